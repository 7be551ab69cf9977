"""One training in two processes on the CPU."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any

import mlflow.entities as mlflow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch import Tensor

import dlcourse
from dlcourse.cli import main
from dlcourse.data.rows import TensorRows
from dlcourse.data.samplers import ShuffledOrder, UnpaddedSampler, even_batch_size
from dlcourse.errors import CourseError, Interrupted
from dlcourse.evaluation import baselines
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.training.callbacks.overfitting import interleave
from dlcourse.training.checkpoints import load_checkpoint
from dlcourse.training.fit import Plan
from dlcourse.training.processes import VARIABLES, workers
from dlcourse.training.trainer import make_trainer
from tests.samples import Given, Line, numbers

DDP = {"devices": 2, "strategy": "ddp", "accelerator": "cpu"}
FLAGS = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]


class Odd(Given):
    """103 rows: 61 to train on, and 21 each to validate and to test on."""

    given = numbers(103)


class Telling(Line):
    """A line that keeps an account of the rows each process trains on, and fails in a worker where it is told to."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        with Path(f"rows-{self.current_epoch}-{self.global_rank}").open("a") as file:
            file.writelines(f"{float(target)}\n" for target in batch[1])
        if self.global_rank == 0:
            Path("handler").write_text(repr(signal.getsignal(signal.SIGTERM)))
        elif "FAIL" in os.environ:
            raise ValueError("no more of this")
        return super().training_step(batch, batch_idx)


TOPIC = Topic(name="telling", title="Tells", data=Odd, model=Telling, baselines={"mean": baselines.mean})


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Nothing is left of a training in several processes: neither the group nor its environment."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    yield
    assert {name: os.environ.get(name) for name in VARIABLES} == before
    assert not torch.distributed.is_initialized()


def training_runs(topic: str) -> list[mlflow.Run]:
    store = open_store()
    return list(store.client.search_runs([store.experiment(topic)], "tags.`dlcourse.kind` = 'training'"))


# --- the whole ---


@pytest.mark.slow
def test_two_processes_use_every_row_once_and_keep_one_run(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlcourse.topics.find", lambda name: TOPIC)
    epochs = 3
    flags = ["--trainer.max_epochs", str(epochs), "--data.batch_size", "8", "--json"]
    assert main(["train", "telling", *FLAGS, *flags]) == 0
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert shown.out.count("\n") == 1
    assert shown.err.count("verdict") == 1, "one card"

    (run,) = training_runs("telling")
    assert (run.info.run_id, run.info.status) == (printed["run_id"], "FINISHED")

    # Each training row once an epoch; the 61st has no partner, so one row is used twice.
    data = Odd()
    train, val = (data.rows.targets[data.splits[split]] for split in ("train", "val"))
    assert (len(train), len(val)) == (61, 21)
    orders = []
    for epoch in range(epochs):
        shares = [[float(row) for row in Path(f"rows-{epoch}-{rank}").read_text().split()] for rank in (0, 1)]
        assert [len(share) for share in shares] == [31, 31]
        assert set(shares[0] + shares[1]) == set(train.flatten().tolist())
        orders.append(shares)
    assert orders[0] != orders[1] != orders[2]

    # What two processes logged at the epoch whose weights are kept is what one process measures with these weights.
    metrics, kept = run.data.metrics, int(run.data.metrics["best_epoch"])
    client = open_store().client
    model, _ = load_checkpoint(TOPIC, Path(printed["checkpoint"]))
    alone = make_trainer(accelerator="cpu")
    val_metrics, train_metrics = (evaluate(alone, model, data, split).metrics for split in ("val", "train"))
    for logged, measured in {
        "val/loss": val_metrics["loss"],
        "val/mae": val_metrics["mae"],
        "train/eval_loss": train_metrics["loss"],
        "train/eval_mse": train_metrics["mse"],
    }.items():
        history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, logged)}
        assert sorted(history) == list(range(epochs))
        assert history[kept] == pytest.approx(measured, rel=1e-6)
    assert dlcourse.test(TOPIC, run=run.info.run_id)["test/mse"] == metrics["test/mse"]

    # Which could not be if a row were missing or doubled: it would move the mean by more than that.
    with torch.no_grad():
        losses = model.per_sample_loss(model(data.subset("val").__getitems__(list(range(len(val))))[0]), val)
    moves = (losses - losses.mean()) / len(losses)
    assert float(losses.mean()) == pytest.approx(val_metrics["loss"], rel=1e-6)
    assert float(moves.abs().min()) > 1e-5 * float(losses.mean())

    assert "interrupt" in Path("handler").read_text(), (
        "and not Lightning's, which waits for processes that know nothing"
    )


@pytest.mark.slow
def test_a_helper_that_fails_fails_the_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAIL", "in training")
    with pytest.raises(CourseError, match=r"^process 1 of the training failed: ValueError: no more of this$"):
        dlcourse.train(TOPIC, trainer=DDP)
    (run,) = training_runs("telling")
    assert run.info.status == "FAILED"
    assert run.data.tags["dlcourse.error"].endswith("ValueError: no more of this")
    assert "Traceback" in caplog.text, "of the worker"


# --- workers, played by programs that load nothing ---

READY = "import os, sys, time; os.write(1, b'ready'); os.close(1); "


@pytest.fixture
def team(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], AbstractContextManager[None]]:
    """Two workers that run a program."""
    data = Odd()
    settings = Settings({}, {}, {})

    def start(program: str) -> AbstractContextManager[None]:
        monkeypatch.setattr("dlcourse.training.processes._PROGRAM", program)
        return workers(Plan(TOPIC, settings, data.fingerprint, None, project), 3)

    return start


@pytest.mark.parametrize("end", [Interrupted(signal.SIGTERM), ValueError("of one's own"), KeyboardInterrupt()])
def test_helpers_do_not_outlive_what_went_wrong(
    project: Path, team: Callable[[str], AbstractContextManager[None]], end: BaseException
) -> None:
    wait = "open('process-' + os.environ['LOCAL_RANK'], 'w').write(str(os.getpid())); "
    with pytest.raises(type(end)), team(f"import os; {wait} {READY} time.sleep(600)"):
        raise end
    for rank in (1, 2):
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path(f"process-{rank}").read_text()), 0)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('no such rows')", "no such rows"),
        ("import os; os._exit(3)", "it ended with status 3"),
        (f"{READY} sys.exit('lost')", "lost"),
    ],
)
def test_a_helper_that_ends_too_early_is_one_line(
    team: Callable[[str], AbstractContextManager[None]], program: str, reason: str
) -> None:
    with pytest.raises(CourseError, match=rf"^process 1 of the training failed: {reason}$"), team(program):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")


def test_the_helper_is_named_that_failed_first(team: Callable[[str], AbstractContextManager[None]]) -> None:
    said = "'no such rows' if os.environ['LOCAL_RANK'] == '2' else 'gloo: Connection closed by peer'"
    failed = r"^process 2 of the training failed: no such rows$"
    with pytest.raises(CourseError, match=failed), team(f"{READY} sys.exit({said})"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")


def test_an_error_of_ones_own_is_not_put_down_to_a_helper(team: Callable[[str], AbstractContextManager[None]]) -> None:
    with pytest.raises(ValueError, match=r"^mine$"), team(f"{READY} sys.exit('lost')"):
        raise ValueError("mine")


# --- who gets which row ---

SHARES = st.integers(1, 8).flatmap(lambda processes: st.tuples(st.just(processes), st.integers(processes, 200)))


@given(SHARES, st.integers(1, 40))
def test_measured_rows_are_dealt_out_once_in_equally_many_batches(shared: tuple[int, int], at_least: int) -> None:
    processes, count = shared
    rows = TensorRows(torch.zeros(count, 1), torch.zeros(count), torch.arange(count))
    shares = [list(UnpaddedSampler(rows, processes, rank)) for rank in range(processes)]
    assert sorted(chain(*shares)) == list(range(count))
    size = even_batch_size(count, processes, at_least)
    assert size >= at_least
    assert len({-(-len(share) // size) for share in shares}) == 1
    assert [len(UnpaddedSampler(rows, processes, rank)) for rank in range(processes)] == [
        len(share) for share in shares
    ]


@given(SHARES)
def test_dealt_rows_come_together_in_their_own_order(shared: tuple[int, int]) -> None:
    processes, count = shared
    rows = torch.arange(count)
    assert torch.equal(interleave([rows[rank::processes] for rank in range(processes)]), rows)


@given(SHARES, st.integers(0, 9))
def test_lightning_deals_our_order_out_and_tells_it_the_epoch(shared: tuple[int, int], seed: int) -> None:
    processes, count = shared

    def order(epoch: int) -> list[int]:
        dealt = []
        for rank in range(processes):
            sampler = DistributedSamplerWrapper(ShuffledOrder(count, seed), processes, rank)
            sampler.set_epoch(epoch)
            dealt += list(sampler)
        return dealt

    first = order(0)
    assert set(first) == set(range(count))
    assert len(first) == -(-count // processes) * processes, "the padding"
    assert order(0) == first
    assert count < 20 or order(1) != first


# --- what cannot be ---

REFUSED = {
    "--trainer.num_nodes 2": "--trainer.num_nodes must be 1 here: a tracked run trains on one machine",
    "--trainer.strategy ddp_spawn": "--trainer.strategy ddp_spawn is not for a tracked run",
    "--trainer.strategy fsdp": "the Trainer cannot be made: ",
    "--trainer.strategy single_device": "--trainer.strategy single_device takes 1 device, not 2",
    "--folds 3": "--folds trains on one device, one fold after another: set --trainer.devices 1, not 2",
    "--data.val_fraction 0.01": "--trainer.devices 2 needs as many training and validation rows, not 1",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_several_processes_cannot_do_is_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], flags: str
) -> None:
    assert main(["train", "height-weight", *FLAGS, *flags.split()]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"dlcourse: {REFUSED[flags]}")
    assert line.count("\n") == 1
    assert not (project / "mlruns" / "artifacts").exists(), "no run was begun"


def test_processes_that_somebody_else_started_are_refused(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["train", "height-weight", *FLAGS]) == 2
    assert "run it without torchrun" in capsys.readouterr().err


def test_a_topic_that_other_processes_cannot_import_is_refused(project: Path) -> None:
    class Hidden(Line):
        pass

    topic: Any = Topic(name="hidden", title="Hidden", data=Odd, model=Hidden, baselines={"mean": baselines.mean})
    with pytest.raises(CourseError, match=r"Hidden .* --trainer\.devices must be 1"):
        dlcourse.train(topic, trainer=DDP)


def test_memorising_one_batch_takes_one_device(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["overfit", "height-weight", *FLAGS]) == 0
    store = open_store()
    (run,) = store.client.search_runs([store.experiment("height-weight")])
    assert run.data.params["trainer.devices"] == "1"
