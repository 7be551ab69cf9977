"""The store: its experiments, finding runs and their files in it, and a store that is a server."""

import re
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pytorch
import pytest
import torch
from mlflow import MlflowClient

import dlcourse
from dlcourse.cli import main
from dlcourse.errors import CourseError
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store, StoredRun
from dlcourse.tracking.views import runs_address
from tests.finished import Finished
from tests.servers import Server


@pytest.fixture
def store(project: Path) -> Store:
    return open_store()


def quick(**settings: Any) -> dlcourse.Result:
    return dlcourse.train("height-weight", **{"trainer": {"max_epochs": 3}, **settings})


def runs(kind: str) -> list[StoredRun]:
    store = open_store()
    return list(store.client.search_runs([store.experiment("height-weight")], f"tags.`dlcourse.kind` = '{kind}'"))


def curve(run_id: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in open_store().client.get_metric_history(run_id, "train/loss")]


def test_an_experiment_that_was_deleted_is_an_error_with_the_command_that_restores_it(store: Store) -> None:
    experiment = store.experiment("height-weight")
    store.client.delete_experiment(experiment)
    with pytest.raises(CourseError, match=f"mlflow experiments restore --experiment-id {experiment}`"):
        store.experiment("height-weight")


class TestFindingARun:
    @pytest.fixture
    def three(self, store: Store) -> list[str]:
        """The ids of three trainings, of which the last two have the same name."""
        ids = []
        for name in ("one", "two", "two"):
            with store.start_run("finding", name, {"dlcourse.kind": "training"}) as run:
                ids.append(run.run_id)
        return ids

    def test_by_id_by_its_beginning_or_by_name_the_newest(self, store: Store, three: list[str]) -> None:
        assert store.find_run(three[0], "finding").info.run_id == three[0]
        assert store.find_run(three[1][:12], "finding").info.run_id == three[1]
        assert store.find_run("two", "finding").info.run_id == three[2]

    def test_that_is_not_there_names_the_newest(self, store: Store, three: list[str]) -> None:
        with pytest.raises(CourseError, match=rf"has no run 'three' in .*; the newest is {three[2]} \(two\)"):
            store.find_run("three", "finding")
        with pytest.raises(CourseError, match="there is none yet"):
            store.find_run("three", "another topic")

    def test_by_an_id_whatever_its_topic(self, store: Store, three: list[str]) -> None:
        run = store.get_run(three[0])
        assert run is not None
        assert run.info.run_name == "one"
        assert store.get_run("0" * 32) is None


class TestBaselines:
    def test_measured_once_for_rows_in_their_roles(self, project: Path) -> None:
        first = quick()
        names = {run.data.tags["dlcourse.baseline"] for run in runs("baseline")}
        assert names == {"mean", "least-squares", "ridge"}
        second = quick(seed=1, model={"lr": 0.01})
        assert len(runs("baseline")) == 3
        assert second.verdict.differences.keys() == first.verdict.differences.keys()
        assert [line for line in second.card.splitlines() if "baselines" in line] == [
            line for line in first.card.splitlines() if "baselines" in line
        ]
        quick(data={"split_seed": 1})
        assert len(runs("baseline")) == 6
        quick(data={"test_fraction": 0})
        assert len(runs("baseline")) == 9

    def test_light_runs_without_figures_and_model(self, finished: Finished) -> None:
        baselines = finished.runs("baseline")
        assert len(baselines) == 3
        for run in baselines:
            artifacts = finished.store.client.list_artifacts(run.info.run_id)
            assert [each.path for each in artifacts] == ["predictions.npz"]
            assert run.outputs is None or not run.outputs.model_outputs
            assert run.info.status == "FINISHED"


@pytest.mark.slow
class TestTrackingServer:
    def test_a_training_with_all_that_belongs_to_it(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        address = server.address
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        result = quick()
        assert result.store == address
        assert re.search(rf"view +{address}/#/experiments/\d+/runs\?viewStateShareKey=", result.card)
        assert "verified" in result.card
        client = MlflowClient(address)
        run = client.get_run(result.run_id)
        assert run.info.status == "FINISHED"
        assert {each.path for each in client.list_artifacts(result.run_id)} == {
            "checkpoints",
            "environment.txt",
            "figures",
            "predictions.npz",
            "settings.yaml",
        }
        assert len(runs("baseline")) == 3
        assert not Path(run.data.tags["dlcourse.folder"]).exists()
        assert result.model is not None
        assert result.model_uri is not None

        checkpoint = client.download_artifacts(result.run_id, "checkpoints/best.ckpt", str(tmp_path / "work"))
        weights = torch.load(checkpoint, weights_only=True)["state_dict"]
        torch.testing.assert_close(weights, result.model.state_dict())

        model = client.get_logged_model(result.model_uri.removeprefix("models:/"))
        folder = mlflow.artifacts.download_artifacts(model.artifact_location, tracking_uri=address, dst_path="model")
        rows = torch.tensor([[0.5], [-1.0], [2.0]])
        torch.testing.assert_close(mlflow.pytorch.load_model(folder)(rows), result.model(rows))

        longer = dlcourse.train("height-weight", resume=result.run_id, trainer={"max_epochs": 6})
        assert [step for step, _ in curve(longer.run_id)] == list(range(6))
        assert curve(longer.run_id)[:3] == curve(result.run_id)
        assert dlcourse.test("height-weight", run=longer.run_id)["test/mse"] == longer.metrics["test/mse"]
        assert list((tmp_path / "work").glob("mlruns")) == []

        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full"))
        with pytest.raises(CourseError, match="set TMPDIR"):
            open_store().start_run("height-weight", "unkept", {"dlcourse.kind": "unkept"})
        (unkept,) = runs("unkept")
        assert unkept.info.status == "FAILED"

        assert main(["ui"]) == 0
        pages = runs_address(open_store(), run.info.experiment_id)
        assert f"  height-weight  {pages}\n" in capsys.readouterr().out
