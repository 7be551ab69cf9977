"""Signals end a run in order, and a training that was stopped ends as if it had not been."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import event
from sqlalchemy.engine import Engine

import dlcourse
from dlcourse.cli import main
from dlcourse.errors import Interrupted
from dlcourse.tracking.opening import open_store
from tests.conftest import EXPERIMENTS
from tests.processes import start_command, wait_for_line

TABLE = EXPERIMENTS / "height-weight" / "table.yaml"
EPOCHS = 300


def curve(run_id: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in open_store().client.get_metric_history(run_id, "train/loss")]


class TestHowARunEnds:
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

        run = open_store().start_run("ends", "late", {})
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
"""The project, the exit status, and the output."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> dict[signal.Signals, Stopped]:
    def train_and_stop(signum: signal.Signals) -> Stopped:
        folder = tmp_path_factory.mktemp(signum.name)
        (folder / "mlruns").mkdir()
        shutil.copy(made_store, folder / "mlruns" / "mlflow.db")
        flags = ["--config", TABLE, "--trainer.max_epochs", EPOCHS, "--data.batch_size", 2]
        process, output = start_command(folder, "train", "height-weight", *flags)
        wait_for_line("epoch  15/", output, process)
        assert process.pid
        os.kill(process.pid, signum)
        process.join(60)
        return folder, process.exitcode or 0, output.read_text()

    return {signum: train_and_stop(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)}


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
        (old,) = open_store().client.search_runs(["1"], "tags.`dlcourse.kind` = 'training'")
        run_id = old.info.run_id
        assert exited == exit_status
        assert old.info.status == status
        assert "Traceback" not in said
        if signum != signal.SIGKILL:
            note = f"stopped by {signum.name}; carry on with --resume {run_id}"
            assert old.data.tags["mlflow.note.content"] == note
            assert f"dlcourse: stopped by {signum.name}; carry on with --resume {run_id}\n" in said
        assert 15 < len(curve(run_id)) < EPOCHS or status == "RUNNING"

        assert main(["train", "height-weight", "--resume", run_id, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert open_store().client.get_run(result["run_id"]).data.tags["dlcourse.resumed_from"] == run_id
        expected_curve, expected_weights = uninterrupted
        assert curve(result["run_id"]) == expected_curve
        weights = torch.load(result["checkpoint"], weights_only=True)["state_dict"]
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)
