"""The store and the run: where it is, what is written, how it ends, and what is said of a store that is bad."""

import importlib.util
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pytorch
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from sqlalchemy import event
from sqlalchemy.engine import Engine

import dlcourse
from dlcourse.cli import main
from dlcourse.errors import CourseError, Interrupted
from dlcourse.tracking import run as run_module
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store
from tests.conftest import EXPERIMENTS
from tests.processes import free_port, open_store_at_once, wait_until_it_answers

TABLE = EXPERIMENTS / "height-weight" / "table.yaml"
EPOCHS = 500


def quick(**settings: Any) -> dlcourse.Result:
    return dlcourse.train("height-weight", **{"trainer": {"max_epochs": 3}, **settings})


def run_of(result: dlcourse.Result) -> Run:
    return open_store().client.get_run(result.run_id)


def runs(kind: str) -> list[Run]:
    store = open_store()
    return list(store.client.search_runs([store.experiment("height-weight")], f"tags.`dlcourse.kind` = '{kind}'"))


def curve(run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in open_store().client.get_metric_history(run_id, name)]


class TestWhereTheStoreIs:
    def test_in_the_nearest_folder_upwards_that_has_one(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (project / "notebooks" / "week 1").mkdir(parents=True)
        monkeypatch.chdir(project / "notebooks" / "week 1")
        assert open_store().folder == project / "mlruns"
        assert not (project / "notebooks" / "week 1" / "mlruns").exists()

    def test_where_the_tracking_uri_says_first(
        self, project: Path, made_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        other = shutil.copy(made_store, tmp_path / "elsewhere" / "all runs.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
        result = quick()
        assert result.store == f"sqlite:///{other}"
        assert len(runs("training")) == 1
        assert (tmp_path / "elsewhere" / "artifacts" / "height-weight" / result.run_id).is_dir()
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        assert runs("training") == []

    @pytest.mark.slow
    def test_made_once_in_the_current_folder_though_four_processes_ask_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(tmp_path)
        spawn = multiprocessing.get_context("spawn")
        barrier = spawn.Barrier(4)
        processes = [spawn.Process(target=open_store_at_once, args=(barrier, number)) for number in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(200)
        assert [process.exitcode for process in processes] == [0, 0, 0, 0]
        assert sorted(each.name for each in open_store().client.search_experiments()) == ["Default", "asked"]
        assert (tmp_path / "mlruns" / "mlflow.db").is_file()
        assert len(open_store().client.search_runs([open_store().experiment("asked")])) == 4


class TestWhatARunHolds:
    @pytest.fixture
    def repository(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """The project as a git repository with everything committed; gives the commit."""
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        (project / ".gitignore").write_text("mlruns/\n")
        git = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "All"]):
            subprocess.run([*git, *command], check=True)
        return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()

    def test_metrics_by_name_with_the_epoch_as_their_step(self, project: Path) -> None:
        result = quick()
        metrics = run_of(result).data.metrics
        of_a_split = {"loss", "mse", "mae"}
        expected = {f"{split}/{name}" for split in ("train", "val", "test") for name in of_a_split}
        expected |= {f"best/{split}_{name}" for split in ("train", "val") for name in of_a_split}
        expected |= {"best/epoch", "lr", "samples_per_second", "fit_seconds", "test/mse_low", "test/mse_high"}
        assert expected <= set(metrics)
        for name in ("train/loss", "val/mse", "lr", "samples_per_second"):
            assert [step for step, _ in curve(result.run_id, name)] == [0, 1, 2], name
        assert metrics["test/mse"] == result.metrics["test/mse"]
        assert metrics["train/loss"] == curve(result.run_id)[-1][1]

    def test_parameters_by_name_and_long_ones_whole(self, project: Path) -> None:
        heights = [150 + number / 7 for number in range(60)]
        params = run_of(quick(data={"ask": heights, "batch_size": 8}, model={"lr": 0.05}, seed=3)).data.params
        assert len(params["data.ask"]) > 1000
        assert json.loads(params["data.ask"]) == heights
        assert {name: params[name] for name in ("seed", "model.lr", "data.batch_size", "trainer.max_epochs")} == {
            "seed": "3",
            "model.lr": "0.05",
            "data.batch_size": "8",
            "trainer.max_epochs": "3",
        }

    def test_command_host_and_commit(
        self, repository: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = ["train", "height-weight", "--trainer.max_epochs", "2", "--name", "my first"]
        monkeypatch.setattr(sys, "argv", ["/somewhere/dlcourse/__main__.py", *flags])
        assert main(flags) == 0
        (run,) = runs("training")
        tags = run.data.tags
        assert (
            tags["dlcourse.command"]
            == "python -m dlcourse train height-weight --trainer.max_epochs 2 --name 'my first'"
        )
        assert tags["dlcourse.host"]
        assert tags["mlflow.source.git.commit"] == repository
        assert tags["dlcourse.git.dirty"] == "false"
        assert tags["mlflow.note.content"].strip("`\n") == capsys.readouterr().out.strip()

    def test_a_changed_file_makes_the_commit_dirty(self, repository: str, project: Path) -> None:
        (project / "notes.txt").write_text("changed")
        assert run_of(quick()).data.tags["dlcourse.git.dirty"] == "true"

    def test_outside_a_repository_there_is_no_commit(self, project: Path) -> None:
        tags = run_of(quick()).data.tags
        assert "mlflow.source.git.commit" not in tags
        assert "dlcourse.git.dirty" not in tags

    def test_the_data_with_the_rows_of_each_split(self, project: Path) -> None:
        result = quick()
        inputs = run_of(result).inputs.dataset_inputs
        assert result.data is not None
        assert {each.dataset.digest for each in inputs} == {result.data.rows.digest}
        rows = {each.tags[0].value: json.loads(each.dataset.profile)["num_rows"] for each in inputs}
        assert rows == {"training": 60, "validation": 20, "test": 20}
        assert {each.tags[0].key for each in inputs} == {"mlflow.data.context"}
        assert json.loads(inputs[0].dataset.source) == {"uri": "scikit-learn's make_regression"}

    def test_settings_that_give_the_same_run_again(self, project: Path) -> None:
        first = quick(model={"lr": 0.03}, data={"split_seed": 5}, seed=2)
        folder = Path(run_of(first).data.tags["dlcourse.folder"])
        again = dlcourse.train("height-weight", config=folder / "settings.yaml")
        assert yaml.safe_load((folder / "settings.yaml").read_text())["model"]["lr"] == 0.03
        assert run_of(again).data.params == run_of(first).data.params
        assert curve(again.run_id) == curve(first.run_id)

    def test_environment_and_pictures(self, project: Path) -> None:
        result = quick()
        folder = Path(run_of(result).data.tags["dlcourse.folder"])
        lines = (folder / "environment.txt").read_text().splitlines()
        assert f"torch=={torch.__version__.partition('+')[0]}" in [line.partition("+")[0] for line in lines]
        assert lines[1] == f"# Python {sys.version.split()[0]}"
        artifacts = [each.path for each in open_store().client.list_artifacts(result.run_id, "figures")]
        assert artifacts == ["figures/fitted-line.png", "figures/learning-curves.png"]

    def test_a_distribution_without_a_name_costs_no_run(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (project / "site" / "broken-1.0.dist-info").mkdir(parents=True)
        (project / "site" / "nameless-1.0.dist-info").mkdir(parents=True)
        (project / "site" / "nameless-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
        monkeypatch.syspath_prepend(project / "site")
        result = quick()
        assert result.lost == {}
        assert "\ntorch==" in (Path(run_of(result).data.tags["dlcourse.folder"]) / "environment.txt").read_text()


class TestWriting:
    @pytest.fixture
    def store(self, project: Path) -> Store:
        return open_store()

    def test_2500_metrics_are_all_there(self, store: Store) -> None:
        with store.start_run("metrics", "many", {}, watched=False) as run:
            for step in range(25):
                run.log_metrics({f"figure/{number}": step + number for number in range(100)}, step)
        kept = store.client.get_run(run.run_id).data.metrics
        assert kept == {f"figure/{number}": 24 + number for number in range(100)}
        assert curve(run.run_id, "figure/7") == [(step, step + 7) for step in range(25)]

    def test_metrics_wait_for_the_next_write(self, store: Store) -> None:
        with store.start_run("metrics", "few", {}, watched=False) as run:
            run.log_metrics({"loss": 1.0})
            assert store.client.get_run(run.run_id).data.metrics == {}
            run.write()
            assert store.client.get_run(run.run_id).data.metrics == {"loss": 1.0}

    def test_what_is_no_number_is_left_out(self, store: Store) -> None:
        with store.start_run("metrics", "holes", {}, watched=False) as run:
            for step, loss in enumerate([2.0, float("nan"), float("inf"), -float("inf"), 1.0]):
                run.log_metrics({"loss": loss}, step)
        assert curve(run.run_id, "loss") == [(0, 2.0), (4, 1.0)]
        assert run.history["loss"] == [(0, 2.0), (4, 1.0)]

    def test_250_parameters_and_tags_are_all_there(self, store: Store) -> None:
        values = {f"name {number}": "x" * 300 for number in range(250)}
        with store.start_run("metrics", "wide", {}, watched=False) as run:
            run.log_params(values)
            run.set_tags(values)
        data = store.client.get_run(run.run_id).data
        assert data.params == values
        assert values.items() <= data.tags.items()


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

    def test_light_runs_without_pictures_and_model(self, project: Path) -> None:
        quick()
        for run in runs("baseline"):
            artifacts = open_store().client.list_artifacts(run.info.run_id)
            assert [each.path for each in artifacts] == ["outputs.npy"]
            assert run.outputs is None or not run.outputs.model_outputs
            assert run.info.status == "FINISHED"


class TestHowARunEnds:
    def test_finished(self, project: Path) -> None:
        assert run_of(quick()).info.status == "FINISHED"

    def test_failed_with_the_error_in_its_note(self, project: Path) -> None:
        run = open_store().start_run("ends", "bad", {})
        with pytest.raises(ValueError, match="disk"), run:
            _fail_after_a_metric(run)
        kept = open_store().client.get_run(run.run_id)
        assert kept.info.status == "FAILED"
        assert kept.data.tags["mlflow.note.content"] == "ValueError: the disk is full, or nearly"
        assert kept.data.metrics == {"loss": 1.0}

    def test_diverged_counts_as_failed(self, project: Path) -> None:
        result = dlcourse.train("height-weight", config=TABLE, data={"standardize": False})
        run = run_of(result)
        assert run.info.status == "FAILED"
        assert run.data.tags["dlcourse.error"].startswith("diverged: the loss was ")
        assert "--data.standardize true" in run.data.tags["mlflow.note.content"]

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_killed_by_a_signal(self, signum: signal.Signals, project: Path) -> None:
        before = signal.signal(signum, signal.SIG_DFL)
        run = open_store().start_run("ends", "stopped", {})
        with pytest.raises(Interrupted, match=signum.name), run:
            signal.raise_signal(signum)
        assert signal.signal(signum, before) is signal.SIG_DFL
        assert open_store().client.get_run(run.run_id).info.status == "KILLED"

    def test_killed_by_a_signal_while_it_ends(self, project: Path) -> None:
        def interrupt(connection: object) -> None:
            event.remove(Engine, "begin", interrupt)
            signal.raise_signal(signal.SIGINT)

        def interrupt_the_next_write() -> None:
            run.log_metrics({"loss": 1.0})
            event.listen(Engine, "begin", interrupt)

        run = open_store().start_run("ends", "late", {}, watched=False)
        with pytest.raises(Interrupted), run:
            interrupt_the_next_write()
        kept = open_store().client.get_run(run.run_id)
        assert kept.info.status == "KILLED"
        assert kept.data.metrics == {"loss": 1.0}

    def test_nohup_lets_the_terminal_be_closed(self, project: Path) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with open_store().start_run("ends", "in the background", {}) as run:
            signal.raise_signal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
        assert open_store().client.get_run(run.run_id).info.status == "FINISHED"


Stopped = tuple[Path, int, str]
"""The project, the exit status, and what was said on stderr after the signal."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> dict[signal.Signals, Stopped]:
    def train_and_stop(signum: signal.Signals) -> Stopped:
        folder = tmp_path_factory.mktemp(signum.name)
        (folder / "mlruns").mkdir()
        shutil.copy(made_store, folder / "mlruns" / "mlflow.db")
        command = [sys.executable, "-u", "-m", "dlcourse", "train", "height-weight", "--config", str(TABLE)]
        command += ["--trainer.max_epochs", str(EPOCHS), "--data.batch_size", "2"]
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stderr is not None
            next(line for line in child.stderr if line.startswith("epoch  20/"))
            child.send_signal(signum)
            said = child.stderr.read()
            return folder, child.wait(60), said

    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
    with ThreadPoolExecutor() as threads:  # all at once, since most of the time goes into importing
        return dict(zip(signals, threads.map(train_and_stop, signals), strict=True))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> tuple[Any, Any]:
    """Curve and weights of the same training, left alone."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "mlruns").mkdir()
    shutil.copy(made_store, folder / "mlruns" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        result = dlcourse.train("height-weight", config=TABLE, trainer={"max_epochs": EPOCHS}, data={"batch_size": 2})
        assert result.model is not None
        return curve(result.run_id), result.model.state_dict()


@pytest.mark.slow
class TestSignals:
    """Real trainings that are stopped after their first epochs, and carried on with."""

    @pytest.mark.parametrize(
        ("signum", "exit_status", "status"),
        [
            (signal.SIGINT, 130, "KILLED"),
            (signal.SIGTERM, 143, "KILLED"),
            (signal.SIGKILL, -9, "RUNNING"),
        ],
    )
    def test_carried_on_with_it_ends_as_if_nothing_had_been(
        self,
        signum: signal.Signals,
        exit_status: int,
        status: str,
        stopped: dict[signal.Signals, Stopped],
        uninterrupted: tuple[Any, Any],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder, exited, said = stopped[signum]
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(folder)
        (old,) = runs("training")
        run_id = old.info.run_id
        assert exited == exit_status
        assert old.info.status == status
        assert "Traceback" not in said
        if signum != signal.SIGKILL:
            assert old.data.tags["mlflow.note.content"] == f"stopped by {signum.name}"
            assert f"dlcourse: stopped by {signum.name}; carry on with --resume {run_id}\n" in said
        assert 20 <= len(curve(run_id)) < EPOCHS or status == "RUNNING"

        assert main(["train", "height-weight", "--resume", run_id, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert open_store().client.get_run(result["run_id"]).data.tags["dlcourse.resumed_from"] == run_id
        expected_curve, expected_weights = uninterrupted
        assert curve(result["run_id"]) == expected_curve
        weights = torch.load(result["checkpoint"], weights_only=True)["state_dict"]
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)


@pytest.mark.slow
class TestTrackingServer:
    @pytest.fixture
    def server(self, tmp_path: Path, made_store: Path) -> Iterator[str]:
        database = shutil.copy(made_store, tmp_path / "server.db")
        address = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
        command += ["--artifacts-destination", str(tmp_path / "kept"), "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(tmp_path / "server.log", "w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True, cwd=tmp_path)
            try:
                wait_until_it_answers(f"{address}/health", process)
                yield address
            finally:
                process.terminate()
                process.wait(30)

    def test_a_training_with_all_that_belongs_to_it(
        self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        result = quick()
        assert result.store == server
        assert "verified" in result.card
        client = MlflowClient(server)
        run = client.get_run(result.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["dlcourse.verified"] == "true"
        assert {each.path for each in client.list_artifacts(result.run_id)} == {
            "checkpoints",
            "environment.txt",
            "figures",
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
        folder = mlflow.artifacts.download_artifacts(model.artifact_location, tracking_uri=server, dst_path="model")
        rows = torch.tensor([[0.5], [-1.0], [2.0]])
        torch.testing.assert_close(mlflow.pytorch.load_model(folder)(rows), result.model(rows))

        longer = dlcourse.train("height-weight", resume=result.run_id, trainer={"max_epochs": 6})
        assert [step for step, _ in curve(longer.run_id)] == list(range(6))
        assert curve(longer.run_id)[:3] == curve(result.run_id)
        assert dlcourse.test("height-weight", run=longer.run_id)["test/mse"] == longer.metrics["test/mse"]
        assert list((tmp_path / "work").glob("mlruns")) == []

        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full"))
        with pytest.raises(CourseError, match="set TMPDIR"):
            open_store().start_run("height-weight", "unkept", {"dlcourse.kind": "unkept"}, watched=False)
        (unkept,) = runs("unkept")
        assert unkept.info.status == "FAILED"

        assert main(["ui"]) == 0
        pages = f"{server}/#/experiments/{run.info.experiment_id}/runs?workflowType=machine_learning"
        assert capsys.readouterr().out == f"the runs are on a server; open\n  height-weight  {pages}\n"


class TestBadStores:
    """Each is one line that says what to do, and exit status 1."""

    @pytest.fixture(autouse=True)
    def _no_tracking_uri(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    @staticmethod
    def complaint(capsys: pytest.CaptureFixture[str]) -> str:
        assert main(["train", "height-weight", "--trainer.max_epochs", "2"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("dlcourse: ")
        assert err.count("\n") == 1, err
        return err

    def test_a_file_in_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mlruns").write_text("no folder")
        said = self.complaint(capsys)
        assert f"{tmp_path / 'mlruns'} cannot be written" in said
        assert "set MLFLOW_TRACKING_URI" in said

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that not even root may write")
    def test_a_folder_that_cannot_be_written(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir("/proc")
        said = self.complaint(capsys)
        assert "/proc/mlruns cannot be written" in said
        assert "go to another folder" in said

    def test_a_store_of_a_newer_mlflow(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _set_revision(project, "ffffffffffff")
        said = self.complaint(capsys)
        assert "was made by a newer MLflow" in said
        assert "pip install -U mlflow" in said

    def test_a_store_of_an_older_mlflow_and_the_command_that_mends_it(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _set_revision(project, _last_revision_but_one())
        said = self.complaint(capsys)
        assert "was made by an older MLflow: copy it to be safe" in said
        assert _command_in(said)[1:] == ["-m", "mlflow", "db", "upgrade", f"sqlite:///{project}/mlruns/mlflow.db"]

    @pytest.mark.parametrize("kind", ["text", "folder"])
    def test_what_is_no_database(self, kind: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
        (tmp_path / "mlruns").mkdir()
        monkeypatch.chdir(tmp_path)
        if kind == "text":
            (tmp_path / "mlruns" / "mlflow.db").write_text("this is no database\n" * 100)
        else:
            (tmp_path / "mlruns" / "mlflow.db").mkdir()
        begun = time.monotonic()
        said = self.complaint(capsys)
        assert "mlflow.db cannot be opened as a database" in said
        assert "move it away" in said
        assert time.monotonic() - begun < 10

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*filesystem tracking backend.*:FutureWarning")  # it is what the test is of
    def test_a_store_of_files_and_the_command_that_takes_it_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "my course"
        (folder / "mlruns").mkdir(parents=True)
        monkeypatch.chdir(folder)
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
            old = MlflowClient((folder / "mlruns").as_uri())
            run = old.create_run(old.create_experiment("before"), run_name="an old run")
            old.log_metric(run.info.run_id, "loss", 0.5)
        said = self.complaint(capsys)
        assert "old file format" in said
        assert "-m mlflow migrate-filestore --source" in said
        subprocess.run(_command_in(said), check=True, capture_output=True, timeout=120)
        result = quick()
        client = open_store().client
        assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}
        assert client.get_run(result.run_id).info.status == "FINISHED"

    def test_a_server_that_does_not_answer(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        address = f"http://127.0.0.1:{free_port()}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        begun = time.monotonic()
        said = self.complaint(capsys)
        assert f"the tracking server {address} does not answer" in said
        assert "start it, or unset MLFLOW_TRACKING_URI" in said
        assert time.monotonic() - begun < 10

    @pytest.mark.parametrize("uri", ["/somewhere/mlruns", "file:///somewhere/mlruns", "mlruns", r"C:\course\mlruns"])
    def test_a_folder_as_tracking_uri(
        self, uri: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        said = self.complaint(capsys)
        assert f"MLFLOW_TRACKING_URI is {uri}, a folder" in said
        assert "sqlite:///PATH/mlflow.db" in said

    @pytest.mark.parametrize("uri", ["nonsense://x", "http://127.0.0.1:port", "http://"])
    def test_a_tracking_uri_that_means_nothing(
        self, uri: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert uri in self.complaint(capsys)

    @pytest.mark.parametrize(
        "uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:runs?mode=memory&uri=true"]
    )
    def test_a_store_in_memory(
        self, uri: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        said = self.complaint(capsys)
        assert f"MLFLOW_TRACKING_URI is {uri}, a store in memory" in said
        assert "sqlite:///PATH/mlflow.db" in said

    @pytest.mark.parametrize(
        ("scheme", "module", "package"),
        [
            ("postgresql", "psycopg", "psycopg[binary]"),
            ("postgresql+psycopg2", "psycopg2", "psycopg2-binary"),
            ("mysql+pymysql", "pymysql", "pymysql"),
        ],
    )
    def test_a_database_whose_driver_is_missing(
        self,
        scheme: str,
        module: str,
        package: str,
        project: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        if importlib.util.find_spec(module):
            pytest.skip(f"{module} is installed")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://ada:s3cret@db.example/runs")
        said = self.complaint(capsys)
        assert f"{scheme}://ada:***@db.example/runs needs the database driver {module}" in said
        assert f"pip install '{package}'" in said

    def test_the_driver_of_another_name_that_is_there(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if importlib.util.find_spec("psycopg"):
            pytest.skip("psycopg is installed")
        (project / "site").mkdir()
        (project / "site" / "psycopg2.py").write_text("")
        monkeypatch.syspath_prepend(project / "site")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://db.example/runs")
        assert "postgresql+psycopg2://" in self.complaint(capsys)

    def test_an_experiment_that_was_deleted(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        store = open_store()
        experiment = store.experiment("height-weight")
        store.client.delete_experiment(experiment)
        said = self.complaint(capsys)
        assert "the experiment 'height-weight' was deleted" in said
        assert _command_in(said)[1:] == ["-m", "mlflow", "experiments", "restore", "--experiment-id", experiment]


def _fail_after_a_metric(run: run_module.Run) -> None:
    run.log_metrics({"loss": 1.0})
    raise ValueError("the disk is full,\n  or nearly")


def _command_in(said: str) -> list[str]:
    return shlex.split(said.split("`")[1])


def _set_revision(project: Path, revision: str) -> None:
    with sqlite3.connect(project / "mlruns" / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    connection.close()


def _last_revision_but_one() -> str:
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    scripts = ScriptDirectory(str(Path(db_migrations.__file__).parent))
    return str(scripts.get_revision(scripts.get_current_head()).down_revision)
