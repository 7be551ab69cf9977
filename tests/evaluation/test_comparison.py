"""Runs of the store side by side: what is taken, trained and told, and that every place tells the same."""

import csv
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Run

import dlcourse
from dlcourse.cli import main
from dlcourse.evaluation.comparison import Comparison
from dlcourse.evaluation.differences import Estimate
from dlcourse.evaluation.predictions import PREDICTIONS, read_values
from dlcourse.tracking.opening import open_store
from tests.conftest import EXPERIMENTS, shared_project

SPLIT = {"source": "bundled", "val_fraction": 0.2, "test_fraction": 0.2}
QUICK: dict[str, Any] = {"trainer": {"max_epochs": 3}, "data": SPLIT}
FLAGS = [
    "--trainer.max_epochs",
    "3",
    *(word for name, value in SPLIT.items() for word in (f"--data.{name}", str(value))),
]


def compare(*runs: str, **arguments: Any) -> Comparison:
    return dlcourse.compare("diabetes", runs, **arguments)


def stored(kind: str = "training") -> list[Run]:
    store = open_store()
    runs = store.client.search_runs([store.experiment("diabetes")], order_by=["attributes.start_time"])
    return [run for run in runs if run.data.tags["dlcourse.kind"] == kind]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Comparison]:
    """Relu and sigmoid with two seeds each, of which one was trained before; their project is the current folder."""
    with shared_project(tmp_path_factory, made_store):
        dlcourse.train("diabetes", config="relu", seed=1, **QUICK)
        yield compare("relu", "sigmoid", seeds=2, plot=Path("plot.png"), csv=Path("table.csv"), **QUICK)


def of_name(comparison: Comparison, name: str) -> Any:
    (row,) = [row for each in comparison.tables for row in each.rows if row.name == name]
    return row


def test_trains_what_is_missing_and_takes_what_is_there(compared: Comparison) -> None:
    runs = stored()
    assert sorted((run.data.tags["experiment"].split(",")[0], run.data.params["seed"]) for run in runs) == [
        ("relu", "0"),
        ("relu", "1"),
        ("sigmoid", "0"),
        ("sigmoid", "1"),
    ]
    assert runs[0].info.run_id in of_name(compared, "relu").runs
    again = compare("relu", "sigmoid", seeds=2, **QUICK)
    assert len(stored()) == 4
    assert json.dumps(again.as_dict()["tables"]) == json.dumps(compared.as_dict()["tables"])


def test_other_settings_rows_or_versions_are_trained_anew(compared: Comparison) -> None:
    before = {run.info.run_id for run in stored()}
    other = compare("relu", "sigmoid", trainer={"max_epochs": 2}, data=QUICK["data"])
    assert not before & {*of_name(other, "relu").runs, *of_name(other, "sigmoid").runs}
    store = open_store()
    older = of_name(compared, "sigmoid").runs[0]
    version = store.client.get_run(older).data.tags["dlcourse.version"]
    store.client.set_tag(older, "dlcourse.version", "0.0.1")
    try:
        assert older not in of_name(compare("sigmoid", **QUICK), "sigmoid").runs
    finally:
        store.client.set_tag(older, "dlcourse.version", version)
        for run in {run.info.run_id for run in stored()} - before:
            store.client.delete_run(run)


def test_figures_are_those_of_the_runs(compared: Comparison) -> None:
    store = open_store()
    for name in ("relu", "sigmoid"):
        row = of_name(compared, name)
        runs = [store.client.get_run(run) for run in row.runs]
        for estimate, metric in ((row.val, "val/final_accuracy"), (row.test, "test/accuracy")):
            values = [run.data.metrics[metric] for run in runs]
            assert estimate.mean == pytest.approx(np.mean(values), rel=1e-6)
            assert estimate.low < estimate.mean < estimate.high
        assert row.best_epoch == np.mean([run.data.metrics["best_epoch"] for run in runs])
        assert row.seeds == 2
        assert row.settings.keys() == {"model.activation", "model.lr"} & row.settings.keys()
        assert runs[0].data.tags.get("mlflow.source.git.commit", "").startswith(row.commit.rstrip("+"))
    assert [row.name for row in compared.tables[0].baselines] == ["logistic-regression", "majority"]


def test_terminal_json_csv_and_store_tell_the_same(compared: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "diabetes", "relu", "sigmoid", "--seeds", "2", *FLAGS, "--json"]) == 0
    end = capsys.readouterr()
    told = json.loads(end.out)
    assert told["tables"][0]["rows"] == json.loads(json.dumps(compared.as_dict()["tables"][0]["rows"]))
    lines = {row["name"]: row for row in csv.DictReader(Path("table.csv").read_text(encoding="utf-8").splitlines())}
    (run,) = [run for run in stored("comparison") if run.info.run_id == compared.run_id]
    note = run.data.tags["mlflow.note.content"]
    files = open_store().files_of(run)
    assert (files / "comparison.csv").read_text() == Path("table.csv").read_text()
    assert (files / "figures" / "comparison.png").is_file()
    assert Path("plot.png").is_file()
    for row in (*compared.tables[0].rows, *compared.tables[0].baselines):
        for text in (end.err, note, compared.card):
            assert any(row.name in line and str(row.test) in line for line in text.splitlines())
        assert float(lines[row.name]["test/accuracy"]) == row.test.mean
        assert float(lines[row.name]["test/accuracy_low"]) == row.test.low
        assert all(f"/runs/{each})" in note for each in row.runs)
    for pair in compared.tables[0].pairs:
        assert all(pair.sentence in text for text in (end.err, note, compared.card))


def test_a_description_of_many_candidates_is_one_that_mlflow_takes(compared: Comparison) -> None:
    (table,) = compared.tables
    for times, has_links in ((1, True), (30, False), (300, False)):
        many = dataclasses.replace(table, rows=table.rows * times, pairs=table.pairs * times)
        note = dataclasses.replace(compared, tables=[many]).note("1")
        assert len(note) <= 7500
        assert ("/runs/" in note) == has_links
        assert table.pairs[0].sentence in note


def test_validation_rows_rank_and_each_is_compared_with_the_first_and_the_baseline(compared: Comparison) -> None:
    (table,) = compared.tables
    first, second = table.rows
    assert first.val.mean >= second.val.mean
    assert "validation accuracy" in table.ranked_by
    assert [(pair.name, pair.other) for pair in table.pairs] == [
        (second.name, first.name),
        (first.name, "logistic-regression"),
        (second.name, "logistic-regression"),
    ]
    assert {pair.answer.question for pair in table.pairs} == {"settings"}
    assert all(pair.answer.margin == 0.01 for pair in table.pairs)


def test_runs_by_name_and_id_are_models(compared: Comparison) -> None:
    one, two = of_name(compared, "relu").runs[0], of_name(compared, "sigmoid").runs[0]
    (table,) = compare(one, two[:8], metric="loss").tables
    assert [row.seeds for row in table.rows] == [1, 1]
    pair = table.pairs[0]
    assert pair.answer.question == "models"
    store = open_store()
    losses = {}
    for run in (one, two):
        file = store.file_of(store.client.get_run(run), PREDICTIONS)
        assert file
        losses[run] = read_values(file, "test_loss").double()
    ids = {row.name: row.runs[0] for row in table.rows}
    expected = (losses[ids[pair.name]] - losses[ids[pair.other]]).mean()
    assert pair.answer.difference == pytest.approx(float(expected))
    assert pair.answer.margin == pytest.approx(0.01 * float(losses[ids[pair.other]].mean()))


def test_by_filter_and_the_last_ones(compared: Comparison) -> None:
    (newest,) = compare(last=1).tables[0].rows
    assert newest.runs == [stored()[-1].info.run_id]
    (row,) = compare(filter="params.`model.activation` = 'sigmoid'").tables[0].rows
    assert (row.seeds, sorted(row.runs)) == (2, sorted(of_name(compared, "sigmoid").runs))
    assert {row.seeds for row in compare().tables[0].rows} == {2}
    assert not compare().run_id, "what was only looked at leaves no run"


def test_other_rows_stand_in_a_table_of_their_own(compared: Comparison) -> None:
    other = dlcourse.train(
        "diabetes", config="relu", data=QUICK["data"] | {"test_fraction": 0.3}, trainer=QUICK["trainer"]
    )
    try:
        first, second = compare(other.run_id, *of_name(compared, "relu").runs).tables
        assert (len(first.rows), len(second.rows)) == (2, 1)
        assert "data.test_fraction 0.3, not 0.2" in second.reason
        assert second.reason in str(compare(other.run_id, *of_name(compared, "relu").runs))
    finally:
        open_store().client.delete_run(other.run_id)


def test_what_failed_or_kept_no_outputs_is_a_row_that_says_so(compared: Comparison) -> None:
    store = open_store()
    far = dlcourse.train("diabetes", config="relu", model={"lr": 1e6}, name="far", **QUICK)
    older = dlcourse.train("diabetes", config="relu", model={"lr": 0.2}, name="older", **QUICK)
    killed = dlcourse.train("diabetes", config="relu", model={"lr": 0.3}, name="killed", **QUICK)
    file = store.file_of(store.client.get_run(older.run_id), PREDICTIONS)
    assert file
    file.unlink()
    store.client.set_terminated(killed.run_id, "KILLED")
    try:
        (table,) = compare(far.run_id, older.run_id, killed.run_id, *of_name(compared, "relu").runs[:1]).tables
        rows = {row.runs[0]: row for row in table.rows}
        assert {table.rows[-1].runs[0], table.rows[-2].runs[0]} == {far.run_id, killed.run_id}
        assert "FAILED: diverged" in rows[far.run_id].problem
        assert "KILLED" in rows[killed.run_id].problem
        assert "outputs" in rows[older.run_id].problem
        assert rows[older.run_id].test.mean == older.metrics["test/accuracy"]
        assert [pair.other for pair in table.pairs] == ["logistic-regression"], "of the only one that is compared"
    finally:
        for run in (far, older, killed):
            store.client.delete_run(run.run_id)


def test_a_refit_is_ranked_by_what_validation_rows_said_before(compared: Comparison) -> None:
    refitted = dlcourse.train("diabetes", config="relu", refit=True, **QUICK)
    try:
        assert isinstance(refitted, dlcourse.Result)
        said = dict(refitted.history["val/accuracy"])[int(refitted.metrics["best_epoch"])]
        (table, *_) = compare(refitted.run_id).tables
        assert table.rows[0].val == Estimate(said, None, *[pytest.approx(math.nan, nan_ok=True)] * 2)
    finally:
        open_store().client.delete_run(refitted.run_id)


def test_without_validation_rows_training_rows_rank_and_nothing_is_claimed(project: Path) -> None:
    files = []
    for name, lr in (("a", 0.001), ("b", 0.1)):
        Path(f"{name}.yaml").write_text(f"model:\n  lr: {lr}\n")
        files.append(f"{name}.yaml")
    settings = {"data": {"val_fraction": 0, "test_fraction": 0}, "trainer": {"max_epochs": 3}}
    (table,) = dlcourse.compare("height-weight", files, **settings).tables
    assert [row.name for row in table.rows] == ["b", "a"]
    assert "training mse" in table.ranked_by
    assert (table.pairs, bool(table.problem)) == ([], True)


def test_a_seeds_run_stands_for_its_trainings(compared: Comparison) -> None:
    many = dlcourse.train("diabetes", config="relu", model={"lr": 0.05}, seeds=2, **QUICK)
    store = open_store()
    try:
        (row,) = compare(many.run_id).tables[0].rows
        assert sorted(row.runs) == sorted(many.runs.values())
        assert row.test.mean == pytest.approx(many.estimates["accuracy"].mean)
        assert row.test.low == pytest.approx(many.estimates["accuracy"].low)
    finally:
        for run in (many.run_id, *many.runs.values()):
            store.client.delete_run(run)


def refused(capsys: pytest.CaptureFixture[str], *words: object, status: int = 2) -> str:
    assert main(["compare", *map(str, words)]) == status
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dlcourse: ")]
    return line.removeprefix("dlcourse: ")


def test_bad_input_is_one_line(compared: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(stored())
    file = EXPERIMENTS / "diabetes" / "relu.yaml"
    assert "two experiments are called relu" in refused(capsys, "diabetes", file, "relu")
    assert "--seeds" in refused(capsys, "diabetes", file, "--seeds", 0)
    assert "--trainer.max_epochs?" in refused(capsys, "diabetes", "relu", "sigmoid", "--trainer.max_epoch", 3)
    assert str(2**32 - 1) in refused(capsys, "diabetes", "relu", "--seeds", 2, "--seed", 2**32 - 1)
    assert "no run 'nothing'" in refused(capsys, "diabetes", "nothing", status=1)
    assert "--metric nothing" in refused(capsys, "diabetes", "--metric", "nothing")
    assert "--filter nonsense" in refused(capsys, "diabetes", "--filter", "nonsense", status=1)
    assert "--filter" in refused(capsys, "diabetes", "--filter", "metrics.`test/accuracy` > 2", status=1)
    assert "--seeds" in refused(capsys, "diabetes", compared.tables[0].rows[0].runs[0], "--seeds", 3)
    assert "--csv" in refused(capsys, "diabetes", "--csv", "nowhere/table.csv")
    assert "no topic is called 'nothing'" in refused(capsys, "nothing")
    assert "no trainings yet" in refused(capsys, "study-hours", status=1)
    assert len(stored()) == before


def test_runs_of_modules_of_ones_own_by_the_experiments_name(project: Path) -> None:
    dlcourse.train("diabetes", **QUICK)
    store = open_store()
    store.client.rename_experiment(store.experiment("diabetes"), "someones")
    comparison = dlcourse.compare("someones")
    assert comparison.topic == "someones"
    assert "accuracy" in comparison.card
