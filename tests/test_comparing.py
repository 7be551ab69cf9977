"""Experiments side by side."""

import json
from pathlib import Path

from mlflow import MlflowClient

from tests.conftest import EXPERIMENTS, Dlcourse

FILES = [EXPERIMENTS / "height-weight" / f"{name}.yaml" for name in ("default", "notes")]


def test_compares_experiments_over_seeds(dlcourse: Dlcourse, project: Path) -> None:
    end = dlcourse("compare", "height-weight", *FILES, "--seeds", 2, "--trainer.max_epochs", 3, "--json")
    assert end.returncode == 0, end.stderr
    table = [line for line in end.stderr.splitlines() if line.startswith(("experiment", "default", "notes"))]
    assert table[0].split("  ")[0] == "experiment"
    assert [line.split()[0] for line in table[1:]] == ["default", "notes"]
    told = json.loads(end.stdout)
    assert {name: len(results) for name, results in told["results"].items()} == {"default": 2, "notes": 2}
    client = MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")
    run = client.get_run(told["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["dlcourse.kind"] == "comparison"
    assert (Path(run.data.tags["dlcourse.folder"]) / "figures" / "comparison.png").is_file()


def test_one_file_is_not_enough(dlcourse: Dlcourse) -> None:
    end = dlcourse("compare", "height-weight", FILES[0])
    assert end.returncode == 2
    assert end.stderr.strip() == (
        "dlcourse: compare needs two files or more, and got 1: experiments/height-weight/*.yaml"
    )


def test_a_wrong_flag_is_named(dlcourse: Dlcourse) -> None:
    end = dlcourse("compare", "height-weight", *FILES, "--trainer.max_epoch", 3)
    assert end.returncode == 2
    assert "did you mean --trainer.max_epochs?" in end.stderr
