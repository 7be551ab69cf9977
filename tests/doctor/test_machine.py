"""What is said of this machine and the store, and of runs whose process is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dlcourse.cli import main
from dlcourse.doctor import machine
from dlcourse.doctor.findings import Finding
from dlcourse.doctor.machine import check_machine
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store
from tests.processes import free_port
from tests.servers import Server

HOUR = 3600 * 1000


@pytest.fixture
def store(project: Path) -> Store:
    return open_store()


def left_running(store: Store, pid: int, host: str | None = None, hours_ago: int = 0) -> str:
    """A run of a process, begun now or some hours ago and not ended; gives its id."""
    tags = {"dlcourse.process": f"{host or socket.gethostname()}:{pid}"}
    begun = int(time.time() * 1000) - hours_ago * HOUR
    run = store.client.create_run(store.experiment("sleep"), begun, tags, f"of {pid}")
    return str(run.info.run_id)


def pid_of_the_dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def status(store: Store, run_id: str) -> str:
    return str(store.client.get_run(run_id).info.status)


def only(name: str, findings: list[Finding]) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


class TestWhatIsThere:
    def test_a_line_each_and_status_0(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor"]) == 0
        lines = capsys.readouterr().out.splitlines()
        names = [line.split()[1] for line in lines if line.split()[1] != "mps"]
        assert names == ["python", "torch", "cuda", "memory", "disk", "data", "store", "runs"]
        assert {line.split()[0] for line in lines} <= {"ok", "note"}

    def test_as_json(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["ok"]
        assert said["findings"][1] == {
            "name": "torch",
            "ok": True,
            "text": f"{torch.__version__}, {torch.get_num_threads()} threads",
            "remedy": "",
        }

    def test_cuda_or_why_not(self, store: Store) -> None:
        found = only("cuda", check_machine())
        assert found.ok
        if torch.cuda.is_available():
            assert torch.cuda.get_device_name(0) in found.text
        else:
            assert found.text.startswith("torch.cuda.is_available() is False: ")
            assert ": (" not in found.text
        assert "driver" in found.text

    @pytest.mark.skipif(os.name != "posix", reason="the driver's program is stood in for by a script of sh")
    def test_a_pytorch_without_cuda_beside_a_driver(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert only("cuda", check_machine()) == Finding(
            "cuda",
            True,
            "torch.cuda.is_available() is False: this PyTorch is built without CUDA (driver 550.54.15)",
            "to use the GPU, install PyTorch's build with CUDA",
        )

    def test_too_little_disk_and_memory(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(machine, "MIN_FREE_GB", 1e9)
        assert main(["doctor"]) == 1
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG")]
        assert [line.split()[1] for line in lines] == ["memory", "disk"]
        assert "; make room: a training needs 1e+09 GB" in lines[1]

    def test_data_sets_with_their_size(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert only("data", check_machine()).text == f"none in {project / 'data'}"
        (project / "sets" / "flowers" / "red").mkdir(parents=True)
        (project / "sets" / "flowers" / "red" / "rose.png").write_bytes(bytes(2_500_000))
        (project / "sets" / "points.csv").write_bytes(bytes(1000))
        monkeypatch.setenv("DLCOURSE_DATA_DIR", str(project / "sets"))
        text = only("data", check_machine()).text
        assert text == f"flowers (2.5 MB), points.csv (0.001 MB) in {project / 'sets'}"


class TestTheStore:
    def test_with_its_version_and_its_runs(self, store: Store) -> None:
        from alembic.script import ScriptDirectory
        from mlflow import __version__
        from mlflow.store import db_migrations

        head = ScriptDirectory(str(Path(db_migrations.__file__).parent)).get_current_head()
        for number in range(3):
            with store.start_run("sleep", str(number), {}) as run:
                pass
        store.client.delete_run(run.run_id)
        findings = check_machine()
        assert only("store", findings).text == f"{store.folder} (MLflow {__version__}, schema {head})"
        assert only("runs", findings).text == "2 in the store"

    def test_is_not_made_by_looking_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(tmp_path)
        found = only("store", check_machine())
        assert found == Finding("store", True, f"none yet: the first run makes {tmp_path / 'mlruns'}")
        assert list(tmp_path.iterdir()) == []

    def test_that_is_bad_is_named_with_the_remedy(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (project / "mlruns" / "mlflow.db").write_text("this is no database\n" * 100)
        assert main(["doctor"]) == 1
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG")]
        assert "mlflow.db cannot be opened as a database" in line
        assert "move it away" in line


class TestRunsLeftRunning:
    def test_by_a_process_that_is_gone(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        pid = pid_of_the_dead()
        run_id = left_running(store, pid)
        assert main(["doctor"]) == 1
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith("WRONG")
        assert line.endswith(
            f"{run_id} (sleep: of {pid}) is marked RUNNING, and its process {pid} on {socket.gethostname()} is gone; "
            "dlcourse doctor --fix ends it"
        )
        assert status(store, run_id) == "RUNNING"

        assert main(["doctor", "--fix"]) == 0
        note = f"ended as FAILED by dlcourse doctor --fix, since its process {pid} on {socket.gethostname()} is gone"
        assert capsys.readouterr().out.splitlines()[-1].endswith(f"{run_id} (sleep: of {pid}) {note}")
        kept = store.client.get_run(run_id)
        assert kept.info.status == "FAILED"
        assert kept.data.tags["mlflow.note.content"] == kept.data.tags["dlcourse.error"] == note

        assert main(["doctor"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].split() == ["ok", "runs", "1", "in", "the", "store"]

    def test_what_was_written_on_it_stays(self, store: Store) -> None:
        run_id = left_running(store, pid_of_the_dead())
        store.client.set_tag(run_id, "mlflow.note.content", "My best one.")
        check_machine(fix=True)
        note = store.client.get_run(run_id).data.tags["mlflow.note.content"]
        assert note.startswith("My best one.\n\nended as FAILED by dlcourse doctor --fix")

    def test_by_a_process_whose_number_another_has_now(self, store: Store) -> None:
        run_id = left_running(store, os.getpid(), hours_ago=24 * 365)
        assert not only("running", check_machine()).ok
        check_machine(fix=True)
        assert status(store, run_id) == "FAILED"

    def test_by_a_process_that_was_killed_and_that_its_parent_has_not_waited_for(self, store: Store) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
        run_id = left_running(store, child.pid)
        assert (
            only("running", check_machine(fix=True)).text == f"{run_id} (sleep: of {child.pid}) in process {child.pid}"
        )
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is over, and still has its number
        assert not only("running", check_machine()).ok
        assert "ended as FAILED" in only("running", check_machine(fix=True)).text
        child.wait()

    def test_of_a_process_that_lives_goes_on(self, store: Store) -> None:
        with store.start_run("sleep", "now", {}) as run:
            found = only("running", check_machine(fix=True))
            assert found == Finding("running", True, f"{run.run_id} (sleep: now) in process {os.getpid()}")
            assert status(store, run.run_id) == "RUNNING"

    def test_on_another_machine_or_by_another_program_are_left_alone(self, store: Store) -> None:
        far = left_running(store, pid_of_the_dead(), host="somewhere")
        foreign = str(store.client.create_run(store.experiment("sleep"), run_name="else").info.run_id)
        findings = [finding for finding in check_machine(fix=True) if finding.name == "running"]
        assert all(finding.ok for finding in findings)
        assert sorted(finding.text.partition(" on ")[2] for finding in findings) == [
            "an unknown machine, not on this one: left alone",
            "somewhere, not on this one: left alone",
        ]
        assert status(store, far) == status(store, foreign) == "RUNNING"


class TestTrackingServer:
    @pytest.mark.slow
    def test_is_checked_and_mended_like_a_store_of_files(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlflow import __version__

        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        store = open_store()
        before = int(only("runs", check_machine()).text.split()[0])
        run_id = left_running(store, pid_of_the_dead())
        findings = check_machine(fix=True)
        assert only("store", findings).text == f"{server.address} (MLflow {__version__}, the server's {__version__})"
        assert only("runs", findings).text == f"{before + 1} in the store"
        assert status(store, run_id) == "FAILED"

    def test_that_does_not_answer_is_named(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        found = only("store", check_machine())
        assert not found.ok
        assert "does not answer" in found.text
