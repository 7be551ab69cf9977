"""Experiments side by side."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dlcourse.cli import main
from tests.conftest import EXPERIMENTS

FILES = [EXPERIMENTS / "height-weight" / f"{name}.yaml" for name in ("default", "notes")]


def test_compares_experiments_over_seeds(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "height-weight", *FILES, "--seeds", 2, "--trainer.max_epochs", 3, "--json"]
    assert main([str(word) for word in words]) == 0
    end = capsys.readouterr()
    table = [line for line in end.err.splitlines() if line.startswith(("experiment", "default", "notes"))]
    assert table[0].split("  ")[0] == "experiment"
    assert [line.split()[0] for line in table[1:]] == ["default", "notes"]
    told = json.loads(end.out)
    assert {name: len(results) for name, results in told["results"].items()} == {"default": 2, "notes": 2}
    client = MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")
    run = client.get_run(told["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["dlcourse.kind"] == "comparison"
    assert (Path(run.data.tags["dlcourse.folder"]) / "figures" / "comparison.png").is_file()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["compare", "height-weight", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("dlcourse: ")


def test_bad_input_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = "compare needs two files or more, and got 1: experiments/height-weight/*.yaml"
    assert refused(capsys, FILES[0]) == one
    assert refused(capsys, FILES[0], FILES[0]) == "two files are called default: give each experiment a name of its own"
    assert refused(capsys, *FILES, "--seeds", 0) == "--seeds must be a whole number above 0, not 0"
    assert "did you mean --trainer.max_epochs?" in refused(capsys, *FILES, "--trainer.max_epoch", 3)
    assert "--folds" in refused(capsys, *FILES, "--folds", 3)
