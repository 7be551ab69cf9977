"""Which store is opened, and what is said of one that cannot be."""

import shlex
import shutil
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.cli import cli

from dlcourse.cli import main
from dlcourse.tracking.opening import open_store
from tests.processes import fork_server, free_port, open_store_at_once


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
        store = open_store()
        assert store.shown == f"sqlite:///{other}"
        with store.start_run("topic", "elsewhere", {}) as run:
            run.path("file.txt").write_text("kept")
        assert (tmp_path / "elsewhere" / "artifacts" / "topic" / run.run_id / "artifacts" / "file.txt").is_file()
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        assert [each.name for each in open_store().client.search_experiments()] == ["Default"]

    @pytest.mark.slow
    def test_made_once_in_the_current_folder_though_two_processes_ask_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(tmp_path)
        context = fork_server()
        barrier = context.Barrier(2)
        processes = [context.Process(target=open_store_at_once, args=(tmp_path, barrier, n)) for n in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(200)
        assert [process.exitcode for process in processes] == [0, 0]
        assert sorted(each.name for each in open_store().client.search_experiments()) == ["Default", "asked"]
        assert (tmp_path / "mlruns" / "mlflow.db").is_file()
        assert len(open_store().client.search_runs([open_store().experiment("asked")])) == 2


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
        python, *_module, command = _command_in(said)[:4]
        assert python == sys.executable
        assert command == "migrate-filestore"
        assert CliRunner().invoke(cli, _command_in(said)[3:]).exit_code == 0
        assert open_store().client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}

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
        monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]  # as if it was not installed
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://ada:s3cret@db.example/runs")
        said = self.complaint(capsys)
        assert f"{scheme}://ada:***@db.example/runs needs the database driver {module}" in said
        assert f"pip install '{package}'" in said

    def test_the_driver_of_another_name_that_is_there(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)  # type: ignore[arg-type]
        (project / "site").mkdir()
        (project / "site" / "psycopg2.py").write_text("")
        monkeypatch.syspath_prepend(project / "site")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://db.example/runs")
        assert "postgresql+psycopg2://" in self.complaint(capsys)


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
