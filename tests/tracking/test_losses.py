"""What fails while a run goes on or ends costs itself alone: the card is printed, and one line says what is lost."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

import dlcourse
from dlcourse import topics
from dlcourse.cli import main
from dlcourse.tracking import run as run_module
from dlcourse.tracking.opening import open_store
from tests.servers import Gate, Server

Capture = pytest.CaptureFixture[str]


EVENTFUL = """
from collections.abc import Callable
import dataclasses
from dlcourse import topics
from tests.samples import Line

happens: Callable[[], None] = lambda: None
happens_later: Callable[[], None] = lambda: None


class Eventful(Line):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 2:
            happens()
        if self.current_epoch == 4:
            happens_later()


TOPIC = dataclasses.replace(topics.find("height-weight"), name="eventful", model=Eventful)
"""


@pytest.fixture
def eventful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install a topic in whose trainings something happens as soon as two epochs are over, and after four again."""
    site = tmp_path / "site"
    (site / "eventful-1.0.dist-info").mkdir(parents=True)
    (site / "eventful-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: eventful\nVersion: 1.0\n")
    (site / "eventful-1.0.dist-info" / "entry_points.txt").write_text("[dlcourse.topics]\neventful = eventful:TOPIC\n")
    (site / "eventful.py").write_text(EVENTFUL)
    monkeypatch.syspath_prepend(site)
    yield importlib.import_module("eventful")
    del sys.modules["eventful"]
    importlib.invalidate_caches()


def stored(run_id: str) -> Run:
    return open_store().client.get_run(run_id)


class TestNamesThatAreRefused:
    def test_a_question_of_a_million_has_an_answer_in_the_store(self, project: Path, capsys: Capture) -> None:
        flags = ["--data.ask", "[1000000.0]", "--trainer.max_epochs", "2"]
        assert main(["train", "height-weight", "--name", "far", *flags]) == 0
        run = open_store().find_run("far", "height-weight")
        assert run.info.status == "FINISHED"
        assert "1e+06" in capsys.readouterr().out

    def test_cost_themselves_alone(self, project: Path, caplog: pytest.LogCaptureFixture) -> None:
        with open_store().start_run("names", "odd", {}) as run:
            for step in range(3):
                run.log_metrics({"loss": 1.0, "right (%)": 2.0, "tops/5": 3.0, "../up": 4.0}, step)
                run.write()
            run.log_params({"../wide": 2, "narrow": 1})
            run.set_tags({"mine": "kept"})
        kept = stored(run.run_id)
        assert kept.info.status == "FINISHED"
        assert kept.data.metrics == {"loss": 1.0, "tops/5": 3.0}
        assert kept.data.params == {"narrow": "1"}
        assert kept.data.tags["mine"] == "kept"
        assert set(run.lost) == {"metrics: right (%)", "metrics: ../up", "params: ../wide"}
        assert "right (%)" in kept.data.tags["dlcourse.lost"]
        assert len([line for line in caplog.messages if "right (%)" in line]) == 2, "once when lost, once at the end"

    def test_a_picture_that_fails_costs_no_other(self, project: Path, caplog: pytest.LogCaptureFixture) -> None:
        def fails(*_: Any) -> None:
            raise ZeroDivisionError("no picture")

        found = topics.find("height-weight")
        topic = dataclasses.replace(found, figures={"bad": fails, **found.figures})
        result = dlcourse.train(topic, trainer={"max_epochs": 2})
        run = stored(result.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["verdict"] == result.verdict.text
        assert result.lost == {"figures/bad.png": "ZeroDivisionError: no picture"}
        assert re.search(r"not in the store +figures/bad.png \(ZeroDivisionError: no picture\)", result.card)
        assert {each.path for each in open_store().client.list_artifacts(result.run_id, "figures")} == {
            "figures/fitted-line.png",
            "figures/learning-curves.png",
            "figures/learning-curves-small.png",
        }
        assert "in fails" in caplog.text, "its author needs the traceback"


@pytest.fixture
def small_disk(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project on a file system of its own, of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        (project / "mlruns").rename(project / "template")
        subprocess.run(["cp", "-r", str(project / "template"), str(disk / "mlruns")], check=True)
        monkeypatch.chdir(disk)
        yield disk
    finally:
        monkeypatch.chdir("/")
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    with open(disk / "filling", "wb", buffering=0) as file:
        try:
            for size in (2**20, 2**12, 1):
                while file.write(bytes(size)):
                    pass
        except OSError:
            pass


TRAIN = ["train", "eventful", "--trainer.max_epochs", "5", "--name", "unlucky"]


def last_words(caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """The run's id, and the line that says what is lost, what is kept where and how to go on; there is but one."""
    (line,) = [line for line in caplog.messages if line.startswith("run ")]
    return line.split()[1], line


class TestADiskThatFills:
    def test_during_the_training_and_how_to_go_on(
        self, small_disk: Path, eventful: Any, capsys: Capture, caplog: pytest.LogCaptureFixture
    ) -> None:
        eventful.happens = lambda: fill(small_disk)
        assert main(TRAIN) == 1
        shown = capsys.readouterr()
        assert "  verdict " in shown.out
        assert "  not in the store  " in shown.out
        assert "Traceback" not in shown.err + caplog.text
        run_id, line = last_words(caplog)
        lost = ("checkpoints/best.ckpt", "figures/learning-curves.png", "database or disk is full")
        for part in (*lost, str(small_disk / "mlruns"), "doctor --fix", f"carry on with --resume {run_id}"):
            assert part in line
        assert not list(small_disk.rglob("*.part")), "half of a checkpoint takes room that others need"

        (small_disk / "filling").unlink()
        eventful.happens = lambda: None
        assert stored(run_id).info.status == "RUNNING"
        assert main(["train", "eventful", "--resume", run_id]) == 0
        assert open_store().find_run("unlucky (resumed)", "eventful").info.status == "FINISHED"


def steps(run: Run) -> list[int]:
    return [each.step for each in open_store().client.get_metric_history(run.info.run_id, "val/loss")]


@pytest.mark.slow
class TestAServerThatGoesAway:
    @pytest.fixture
    def gate(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
        gate = Gate(server.address)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{gate.port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return gate

    def test_holds_no_call_for_minutes(self) -> None:
        assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 3
        assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 60

    def test_for_longer_than_the_training_and_how_to_go_on(
        self, gate: Gate, eventful: Any, capsys: Capture, caplog: pytest.LogCaptureFixture
    ) -> None:
        eventful.happens = gate.close
        assert main(TRAIN) == 1
        shown = capsys.readouterr()
        assert "  verdict " in shown.out
        assert "  not in the store  " in shown.out
        assert "Traceback" not in shown.err + caplog.text
        run_id, line = last_words(caplog)
        assert "Connection refused" in line
        assert f"carry on with --resume {run_id}" in line
        folder = Path(line.partition("its files are in ")[2].partition(";")[0])
        assert (folder / "checkpoints" / "best.ckpt").is_file()
        assert (folder / "figures" / "learning-curves.png").is_file()

        gate.open()
        eventful.happens = lambda: None
        assert stored(run_id).info.status == "RUNNING"
        assert main(["train", "eventful", "--resume", run_id]) == 0
        resumed = open_store().find_run("unlucky (resumed)", "eventful")
        assert resumed.info.status == "FINISHED"
        assert steps(resumed) == [*range(5)]

    def test_during_the_first_of_several_folds(
        self, gate: Gate, eventful: Any, capsys: Capture, caplog: pytest.LogCaptureFixture
    ) -> None:
        eventful.happens = gate.close
        assert main([*TRAIN, "--folds", "3"]) == 1
        assert "\n  verdict  " in capsys.readouterr().out
        line = last_words(caplog)[1]
        assert "fold 1, fold 2" in line
        assert line.endswith("when the store can be written again, start the command again")

    def test_for_a_while_costs_nothing(
        self, gate: Gate, eventful: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_module, "SECONDS_BETWEEN_WRITES", 0)
        eventful.happens = gate.close
        eventful.happens_later = gate.open
        assert main([*TRAIN[:-1], "lucky"]) == 0
        lucky = open_store().find_run("lucky", "eventful")
        assert lucky.info.status == "FINISHED"
        assert steps(lucky) == [*range(5)]
        assert "not in the store" not in capsys.readouterr().out


PASSWORD = "s3cret/p@ss:word%"
QUOTED = "s3cret%2Fp%40ss%3Aword%25"
SPELLINGS = (PASSWORD, QUOTED, QUOTED.lower(), "s3cret")


@pytest.mark.slow
class TestAServerWithAPassword:
    """It lets the run in, and shows up nowhere."""

    @pytest.fixture
    def gate(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
        gate = Gate(server.address, f"ada:{PASSWORD}")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:{QUOTED}@127.0.0.1:{gate.port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return gate

    def test_in_nothing_that_a_run_says_or_keeps(
        self, gate: Gate, server: Server, eventful: Any, capsys: Capture, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert main([*TRAIN[:-1], "secret", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["store"] == f"http://ada:***@127.0.0.1:{gate.port}"
        run = open_store().find_run("secret", "eventful")
        assert run.info.status == "FINISHED"
        said = json.dumps(run.to_dictionary())
        for file in ("settings.yaml", "environment.txt"):
            said += Path(open_store().client.download_artifacts(run.info.run_id, file)).read_text()
        assert main(["doctor"]) == 0
        assert main(["ui"]) == 0
        shown = capsys.readouterr()
        said += shown.out + shown.err
        assert f"http://127.0.0.1:{gate.port}/#/experiments/" in shown.out, "a link that works where one signs in"

        eventful.happens = gate.close
        assert main(TRAIN) == 1
        assert main([*TRAIN[:-1], "too late"]) == 1
        assert main(["test", "eventful", "--run", "secret"]) == 1
        assert main(["doctor"]) == 1
        shown = capsys.readouterr()
        said += shown.out + shown.err + caplog.text
        assert "***" in said
        assert [spelling for spelling in SPELLINGS if spelling in said] == []

    def test_a_wrong_one_is_told_of(self, gate: Gate, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:mistaken@127.0.0.1:{gate.port}")
        assert main(["train", "height-weight"]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"dlcourse: the store http://ada:***@127.0.0.1:{gate.port} cannot be opened: ")
        assert "401" in said
        assert "mistaken" not in said
