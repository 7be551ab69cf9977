"""The run: what is written of it, when, and how it ends."""

import json
import os
import socket
import time
from pathlib import Path

import mlflow.system_metrics
import pytest
import yaml
from mlflow.entities import Run as StoredRun

import dlcourse
from dlcourse.evaluation.baseline_runs import GREY
from dlcourse.tracking import run as run_module
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store, process_of
from tests.conftest import EXPERIMENTS
from tests.finished import HEIGHTS, Finished

TABLE = EXPERIMENTS / "height-weight" / "table.yaml"


@pytest.fixture
def store(project: Path) -> Store:
    return open_store()


def stored(run_id: str) -> StoredRun:
    return open_store().client.get_run(run_id)


def curve(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in open_store().client.get_metric_history(run_id, name)]


class TestWhatARunHolds:
    def test_metrics_by_name(self, finished: Finished) -> None:
        metrics = finished.run.data.metrics
        curves = {f"{split}/{name}" for split in ("train", "val") for name in ("loss", "mse", "mae")}
        curves |= {"train/eval_loss", "train/eval_mse", "lr", "samples_per_second"}
        finals = {
            "test/loss",
            "test/mse",
            "test/mae",
            "test/baseline_mse",
            "val/final_mse",
            "best_epoch",
            "fit_seconds",
        }
        assert set(metrics) == curves | finals
        assert {name: metrics[name] for name in finals} == finished.result.metrics
        baselines = {run.info.run_name: run.data.metrics["test/mse"] for run in finished.runs("baseline")}
        assert metrics["test/baseline_mse"] == min(baselines.values())
        assert {run.data.tags["mlflow.runColor"] for run in finished.runs("baseline")} == {GREY}
        found = {f"baseline: {name}": run_id for name, run_id in finished.result.baseline_runs.items()}
        assert found == {run.info.run_name: run.info.run_id for run in finished.runs("baseline")}

    def test_training_loss_first_by_which_pages_compare_runs(self, finished: Finished) -> None:
        assert next(iter(finished.run.data.metrics)) == "train/loss"

    def test_parameters_by_name_and_long_ones_whole(self, finished: Finished) -> None:
        params = finished.run.data.params
        assert len(params["data.ask"]) > 1000
        assert json.loads(params["data.ask"]) == HEIGHTS
        expected = {"seed": "3", "model.lr": "0.05", "data.batch_size": "8", "trainer.max_epochs": "3"}
        assert expected.items() <= params.items()

    def test_command_host_and_commit(self, finished: Finished) -> None:
        tags = finished.run.data.tags
        command = "python -m dlcourse train height-weight --name 'my first'"
        assert f"# {command}\n" in (finished.files / "environment.txt").read_text()
        assert f"`{command}`" in tags["mlflow.note.content"]
        assert tags["mlflow.source.git.commit"] == finished.commit
        assert tags["dlcourse.git.dirty"] == "false"

    def test_its_process_until_it_has_finished(self, store: Store) -> None:
        with store.start_run("process", "one", {}) as run:
            assert process_of(stored(run.run_id)) == (socket.gethostname(), str(os.getpid()))
        assert process_of(stored(run.run_id)) == ("", "")

    def test_tags_for_readers(self, finished: Finished) -> None:
        tags = {name: value for name, value in finished.run.data.tags.items() if "." not in name}
        experiment = tags.pop("experiment")
        assert experiment.startswith("default, data.ask=")
        assert "seed=3" not in experiment
        assert tags == {
            "verdict": finished.result.verdict.text,
            "overfitting": str(finished.result.overfitting),
        }

    def test_the_data_with_the_rows_of_each_split(self, finished: Finished) -> None:
        inputs = finished.run.inputs.dataset_inputs
        assert finished.result.data is not None
        assert len({each.dataset.digest for each in inputs}) == 3
        rows = {each.tags[0].value: json.loads(each.dataset.profile)["num_rows"] for each in inputs}
        assert rows == {"training": 60, "validation": 20, "test": 20}
        assert {each.tags[0].key for each in inputs} == {"mlflow.data.context"}
        assert json.loads(inputs[0].dataset.source) == {"uri": "scikit-learn's make_regression"}

    def test_each_run_has_the_row_counts_of_its_own_split(self, project: Path) -> None:
        """MLflow keeps the first data set of a name and digest, and shows it for all later runs with both."""
        counts, digests = [], []
        for fraction in (0.2, 0.4, 0.2):
            result = dlcourse.train("height-weight", data={"val_fraction": fraction}, trainer={"max_epochs": 1})
            inputs = stored(result.run_id).inputs.dataset_inputs
            sets = {each.dataset.name: each.dataset for each in inputs}
            counts.append({name: json.loads(each.profile)["num_rows"] for name, each in sets.items()})
            digests.append({name: each.digest for name, each in sets.items()})
        names = [f"height-weight ({split})" for split in ("training", "validation", "test")]
        assert [[each[name] for name in names] for each in counts] == [[60, 20, 20], [40, 40, 20], [60, 20, 20]]
        assert digests[0] == digests[2]
        assert digests[0][names[2]] == digests[1][names[2]], "the same test rows"
        assert digests[0][names[0]] != digests[1][names[0]]

    def test_environment_and_figures(self, finished: Finished) -> None:
        assert "\ntorch==" in (finished.files / "environment.txt").read_text()
        artifacts = finished.store.client.list_artifacts(finished.result.run_id, "figures")
        pictures = ["fitted-line", "learning-curves-small", "learning-curves"]
        assert [each.path for each in artifacts] == [f"figures/{name}.png" for name in pictures]

    def test_settings_that_give_the_same_run_again(self, finished: Finished, project: Path) -> None:
        settings = finished.files / "settings.yaml"
        assert yaml.safe_load(settings.read_text())["model"]["lr"] == 0.05
        again = dlcourse.train("height-weight", config=settings)
        assert stored(again.run_id).data.params == finished.run.data.params
        assert curve(again.run_id, "train/loss") == finished.curve("train/loss")


class TestWriting:
    def test_2500_metrics_are_all_there(self, store: Store) -> None:
        with store.start_run("metrics", "many", {}) as run:
            for step in range(25):
                run.log_metrics({f"figure/{number}": step + number for number in range(100)}, step)
        kept = store.client.get_run(run.run_id).data.metrics
        assert kept == {f"figure/{number}": 24 + number for number in range(100)}
        assert curve(run.run_id, "figure/7") == [(step, step + 7) for step in range(25)]

    def test_metrics_wait_for_the_next_write(self, store: Store) -> None:
        with store.start_run("metrics", "few", {}) as run:
            run.log_metrics({"loss": 1.0})
            assert store.client.get_run(run.run_id).data.metrics == {}
            run.write()
            assert store.client.get_run(run.run_id).data.metrics == {"loss": 1.0}

    def test_what_is_no_number_is_left_out(self, store: Store) -> None:
        with store.start_run("metrics", "holes", {}) as run:
            for step, loss in enumerate([2.0, float("nan"), float("inf"), -float("inf"), 1.0]):
                run.log_metrics({"loss": loss}, step)
        assert curve(run.run_id, "loss") == [(0, 2.0), (4, 1.0)]
        assert run.history["loss"] == [(0, 2.0), (4, 1.0)]

    def test_250_parameters_and_tags_are_all_there(self, store: Store) -> None:
        values = {f"name {number}": "x" * 300 for number in range(250)}
        with store.start_run("metrics", "wide", {}) as run:
            run.log_params(values)
            run.set_tags(values)
        data = store.client.get_run(run.run_id).data
        assert data.params == values
        assert values.items() <= data.tags.items()

    def test_the_load_of_the_machine_is_among_the_metrics(self, store: Store) -> None:
        mlflow.system_metrics.set_system_metrics_sampling_interval(0.1)
        mlflow.system_metrics.set_system_metrics_samples_before_logging(1)
        try:
            with store.start_run("metrics", "watched", {}, watched=True) as run:
                time.sleep(1)
        finally:
            mlflow.system_metrics.set_system_metrics_sampling_interval(None)
            mlflow.system_metrics.set_system_metrics_samples_before_logging(None)
        assert store.client.get_run(run.run_id).data.metrics["system/system_memory_usage_percentage"] > 0


class TestHowARunEnds:
    def test_finished(self, finished: Finished) -> None:
        assert finished.run.info.status == "FINISHED"

    def test_failed_with_the_error_in_its_note(self, project: Path) -> None:
        run = open_store().start_run("ends", "bad", {})
        with pytest.raises(ValueError, match="disk"), run:
            _fail_after_a_metric(run)
        kept = open_store().client.get_run(run.run_id)
        assert kept.info.status == "FAILED"
        assert kept.data.tags["verdict"] == "ValueError: the disk is <b>full</b>, or nearly"
        assert kept.data.tags["mlflow.note.content"] == "ValueError: the disk is &lt;b&gt;full&lt;/b&gt;, or nearly"
        assert kept.data.metrics == {"loss": 1.0}

    def test_diverged_counts_as_failed(self, project: Path) -> None:
        result = dlcourse.train("height-weight", config=TABLE, data={"standardize": False})
        run = stored(result.run_id)
        assert run.info.status == "FAILED"
        assert run.data.tags["dlcourse.error"].startswith("diverged: the loss was ")
        why = run.data.tags["mlflow.note.content"].splitlines()[2]
        assert why.startswith("| **diverged**: the loss was ")
        assert "--data.standardize true" in why


def _fail_after_a_metric(run: run_module.Run) -> None:
    run.log_metrics({"loss": 1.0})
    raise ValueError("the disk is <b>full</b>,\n  or nearly")
