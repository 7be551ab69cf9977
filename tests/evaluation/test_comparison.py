"""Experiments side by side."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import dlcourse
from dlcourse.cli import main
from dlcourse.evaluation.assessment import Assessment
from dlcourse.evaluation.comparison import Comparison
from tests.conftest import EXPERIMENTS

FILES = [EXPERIMENTS / "height-weight" / f"{name}.yaml" for name in ("default", "lecture")]


def test_compares_experiments_over_seeds(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "height-weight", *FILES, "--seeds", 2, "--trainer.max_epochs", 3, "--json"]
    assert main([str(word) for word in words]) == 0
    end = capsys.readouterr()
    table = [line for line in end.err.splitlines() if line.startswith(("experiment", "default", "lecture"))]
    assert re.split("  +", table[0])[:4] == ["experiment", "validation mse", "spread of 2 seeds", "test mse"]
    assert [line.split()[0] for line in table[1:]] == ["default", "lecture"]
    told = json.loads(end.out)
    assert {name: len(results) for name, results in told["results"].items()} == {"default": 2, "lecture": 2}
    client = MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")
    run = client.get_run(told["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["dlcourse.kind"] == "comparison"
    note = run.data.tags["mlflow.note.content"]
    lines = {line.split(" ")[1]: line for line in note.splitlines() if line.startswith(("| default", "| lecture"))}
    for name, results in told["results"].items():
        assert all(f"/runs/{each['run_id']})" in lines[name] for each in results)
    assert note.replace("*", "").startswith(f"{table[1].split()[0]} is first, ranked by validation mse")
    assert f"run_uuid={run.info.run_id})" in note
    assert "figures/comparison.png" in [each.path for each in client.list_artifacts(run.info.run_id, "figures")]


def compared(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["compare", "height-weight", *map(str, words), "--trainer.max_epochs", "1", "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def written(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


def test_seeds_begin_with_that_of_the_flag_else_of_the_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written("with.yaml", "seed: 3\nmodel:\n  lr: 0.1\n"), written("without.yaml", "model:\n  lr: 0.05\n")
    client = MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")

    def seeds(*flags: object) -> dict[str, list[str]]:
        results = compared(capsys, *files, *flags)["results"]
        return {
            name: [client.get_run(each["run_id"]).data.params["seed"] for each in runs]
            for name, runs in results.items()
        }

    assert seeds("--seeds", 2) == {"with": ["3", "4"], "without": ["0", "1"]}
    assert seeds("--seed", 5) == {"with": ["5"], "without": ["5"]}
    before = len(client.search_runs(["1"]))
    line = refused(capsys, *files, "--seeds", 2, "--seed", 2**32 - 1)
    assert line == f"seed must be a whole number from 0 to {2**32 - 1}, not {2**32}"
    assert len(client.search_runs(["1"])) == before


def first_column(comparison: Comparison) -> list[str]:
    return [line.split("  ")[0] for line in str(comparison).splitlines()]


def validated(assessment: Assessment | None, metrics: dict[str, float]) -> Assessment:
    """An assessment with other metrics of the validation rows."""
    assert assessment
    val = dataclasses.replace(assessment.evaluations["val"], metrics=metrics)
    return dataclasses.replace(assessment, evaluations=assessment.evaluations | {"val": val})


def test_validation_rows_choose_and_test_rows_are_told(project: Path) -> None:
    made = (dlcourse.train("height-weight", trainer={"max_epochs": epochs}) for epochs in (1, 2))
    one, other = (
        dataclasses.replace(
            each, metrics=each.metrics | {"test/mse": test}, assessment=validated(each.assessment, {"mse": val})
        )
        for each, val, test in zip(made, (10.0, 5.0), (1.0, 2.0), strict=True)
    )
    comparison = Comparison("height-weight", "", {"one": [one], "other": [other]})
    lines = [re.split("  +", line) for line in str(comparison).splitlines()]
    assert lines[0][:4] == ["experiment", "validation mse", "spread of 1 seeds", "test mse"]
    assert [line[:4] for line in lines[1:3]] == [["other", "5", "5 to 5", "2"], ["one", "10", "10 to 10", "1"]]
    assert lines[3] == ["ranked by validation mse, the mean over the seeds"]
    accurate = [
        dataclasses.replace(
            each, primary_metric="accuracy", assessment=validated(each.assessment, {"accuracy": value}),
            history={"val/accuracy": [(0, value)]},
        )
        for each, value in zip((one, other), (0.9, 0.8), strict=True)
    ]  # fmt: skip
    assert first_column(Comparison("", "", {"less": [accurate[1]], "more": [accurate[0]]}))[1:3] == ["more", "less"]


def test_after_a_refit_what_the_validation_rows_said_before(project: Path) -> None:
    refitted = dlcourse.train("height-weight", trainer={"max_epochs": 3}, refit=True)
    said = refitted.history["val/mse"][int(refitted.metrics["best_epoch"])][1]
    assert f"{said:.4g}" in str(Comparison("height-weight", "", {"refitted": [refitted], "too": [refitted]}))


def test_a_first_experiment_that_diverged_decides_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written("far.yaml", "model:\n  lr: 1000.0\n"), written("near.yaml", "model:\n  lr: 0.1\n")
    assert main(["compare", "height-weight", *files, "--trainer.max_epochs", "8"]) == 0
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0][1:4] == ["validation mse", "spread of 1 seeds", "test mse"]
    assert [line[0] for line in lines[1:3]] == ["near", "far"]
    assert lines[2][1:3] == ["none", "none"]
    assert lines[2][-1] == "diverged"


def test_without_validation_rows_training_rows_rank_and_it_is_said(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = written("a.yaml", "model:\n  lr: 0.001\n"), written("b.yaml", "model:\n  lr: 0.1\n")
    flags = ["--data.val_fraction", "0", "--trainer.max_epochs", "3"]
    assert main(["compare", "height-weight", *files, *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("experiment  training mse")
    assert [line.split()[0] for line in lines[1:3]] == ["b", "a"]
    assert lines[3] == "ranked by training mse, the mean over the seeds"


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["compare", "height-weight", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("dlcourse: ")


def test_bad_input_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, FILES[0]).startswith("compare needs at least two experiments")
    assert "two experiments are called default" in refused(capsys, FILES[0], FILES[0])
    assert refused(capsys, *FILES, "--seeds", 0) == "--seeds must be a whole number above 0, not 0"
    assert "did you mean --trainer.max_epochs?" in refused(capsys, *FILES, "--trainer.max_epoch", 3)
    assert "--folds" in refused(capsys, *FILES, "--folds", 3)
