"""One training in two processes on the CPU, started by Lightning, by torchrun, and on two hosts."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path

import mlflow.entities as mlflow
import psutil  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper

import dlcourse
from dlcourse.cli import main
from dlcourse.data.rows import TensorRows
from dlcourse.data.samplers import ShuffledOrder, UnpaddedSampler, even_batch_size
from dlcourse.errors import SettingsError
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.tracking.opening import open_store
from dlcourse.training.callbacks.overfitting import interleave
from dlcourse.training.checkpoints import load_checkpoint
from dlcourse.training.trainer import make_trainer
from tests.conftest import ROOT

FLAGS = ["--trainer.devices", "2", "--trainer.accelerator", "cpu"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

PROGRAM = '''
import os, signal, time
from pathlib import Path
import dlcourse
from dlcourse.evaluation import baselines
from dlcourse.topics import Topic
from tests.samples import Given, Line, numbers


class Odd(Given):
    """103 rows: 61 to train on, and 21 each to validate and to test on."""

    given = numbers(103)


class Telling(Line):
    """A line that keeps an account of the rows each process trains on, and does what it is told to in epoch 1."""

    def training_step(self, batch, batch_idx):
        with Path(f"rows-{self.current_epoch}-{self.global_rank}").open("a") as file:
            file.writelines(f"{float(target)}\\n" for target in batch[1])
        Path(f"pid-{self.global_rank}").write_text(str(os.getpid()))
        order = os.environ.get(f"ORDER_{self.global_rank}", "") if self.current_epoch == 1 else ""
        if order == "fail":
            raise ValueError("no more of this")
        elif order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif order == "wait":
            Path("waiting").touch()
            time.sleep(100)
        return super().training_step(batch, batch_idx)


TOPIC = Topic(name="telling", title="Tells", data=Odd, model=Telling, baselines={"mean": baselines.mean})

if __name__ == "__main__":
    trainer = {"max_epochs": 3, "accelerator": "cpu", "devices": int(os.environ.get("DEVICES", 1))}
    trainer["num_nodes"] = int(os.environ.get("NODES", 1))
    lr = 0.02 if "DIFFER" in os.environ and os.environ["RANK"] == "1" else 0.01
    result = dlcourse.train(TOPIC, data={"batch_size": 8}, model={"lr": lr}, trainer=trainer)
    print("ended", result.run_id)
'''


@pytest.fixture
def program(project: Path) -> Path:
    """A script that trains; it is no test of the environment that it is in, but for what a test sets."""
    file = project / "telling.py"
    file.write_text(PROGRAM)
    return file


def started(*command: object, folder: Path = Path(), **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


def ran(*command: object, **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    process = started(*command, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def the_run(topic: str = "telling") -> mlflow.Run:
    """The only run of a training in the store, as the next command finds it."""
    store = open_store()
    (run,) = store.client.search_runs([store.experiment(topic)], "tags.`dlcourse.kind` = 'training'")
    return run


LAUNCHERS = {"Lightning": [sys.executable], "torchrun": [*TORCHRUN, "--nproc-per-node", "2"]}


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Lightning":
        monkeypatch.setenv("DEVICES", "2")
    return str(request.param)


# --- the whole ---


@pytest.mark.slow
def test_two_processes_use_every_row_once_and_keep_one_run(
    program: Path, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = ran(*LAUNCHERS[launcher], program)
    assert status == 0, err
    run = the_run()
    assert out.split() == ["ended", run.info.run_id], "by process 0 alone"
    assert (run.info.status, run.data.tags["dlcourse.processes"]) == ("FINISHED", "2")
    assert (run.data.params["trainer.devices"], run.data.params["trainer.num_nodes"]) == ("2", "1")

    # Each training row once an epoch; the 61st has no partner, so one row is used twice.
    monkeypatch.syspath_prepend(program.parent)
    topic = __import__("telling").TOPIC
    sys.modules.pop("telling")
    data = topic.data(batch_size=8)
    train, val = (data.rows.targets[data.splits[split]] for split in ("train", "val"))
    assert (len(train), len(val)) == (61, 21)
    orders = []
    for epoch in range(3):
        shares = [[float(row) for row in Path(f"rows-{epoch}-{rank}").read_text().split()] for rank in (0, 1)]
        assert [len(share) for share in shares] == [31, 31]
        assert set(shares[0] + shares[1]) == set(train.flatten().tolist())
        orders.append(shares)
    assert orders[0] != orders[1] != orders[2]

    # What two processes logged at the epoch whose weights are kept is what one process measures with these weights.
    metrics, kept = run.data.metrics, int(run.data.metrics["best_epoch"])
    store = open_store()
    model, _ = load_checkpoint(topic, store.files_of(run) / "checkpoints" / "best.ckpt")
    alone = make_trainer(accelerator="cpu")
    val_metrics, train_metrics = (evaluate(alone, model, data, split).metrics for split in ("val", "train"))
    for logged, measured in {
        "val/loss": val_metrics["loss"],
        "val/mae": val_metrics["mae"],
        "train/eval_loss": train_metrics["loss"],
        "train/eval_mse": train_metrics["mse"],
    }.items():
        history = {point.step: point.value for point in store.client.get_metric_history(run.info.run_id, logged)}
        assert sorted(history) == [0, 1, 2]
        assert history[kept] == pytest.approx(measured, rel=1e-6)
    assert dlcourse.test(topic, run=run.info.run_id)["test/mse"] == metrics["test/mse"]

    # Which could not be if a row were missing or doubled: it would move the mean by more than that.
    with torch.no_grad():
        losses = model.per_sample_loss(model(data.subset("val").__getitems__(list(range(len(val))))[0]), val)
    moves = (losses - losses.mean()) / len(losses)
    assert float(losses.mean()) == pytest.approx(val_metrics["loss"], rel=1e-6)
    assert float(moves.abs().min()) > 1e-5 * float(losses.mean())


@pytest.mark.slow
def test_the_command_line_with_refit_then_resumed(project: Path) -> None:
    flags = ["height-weight", *FLAGS, "--data.batch_size", "16"]
    command = [sys.executable, "-m", "dlcourse", "train"]
    status, out, err = ran(*command, *flags, "--trainer.max_epochs", "2", "--refit", "true", "--json")
    assert status == 0, err
    assert (out.count("\n"), err.count("verdict"), err.count("epoch 1/1")) == (1, 1, 2), (
        "process 0 alone, in fit and refit"
    )
    first = the_run("height-weight")
    assert (open_store().files_of(first) / "checkpoints" / "refit" / "last.ckpt").is_file()

    resumed = ["height-weight", "--resume", first.info.run_id, "--trainer.max_epochs", "4"]
    status, _, err = ran(*command, *resumed)
    assert status == 0, err
    store = open_store()
    runs = store.client.search_runs([store.experiment("height-weight")], "tags.`dlcourse.kind` = 'training'")
    (longer,) = [run for run in runs if run.info.run_id != first.info.run_id]
    history = store.client.get_metric_history(longer.info.run_id, "val/loss")
    assert sorted(point.step for point in history) == [0, 1, 2, 3]
    assert longer.info.status == "FINISHED"


# --- what ends it ---


def stored_status() -> str:
    """That of the only training, without a command that might change it."""
    with closing(sqlite3.connect("mlruns/mlflow.db")) as connection:
        query = "SELECT status FROM runs JOIN tags USING (run_uuid) WHERE key = 'dlcourse.kind' AND value = 'training'"
        ((status,),) = connection.execute(query).fetchall()
    return str(status)


def wait_until_gone(pid: int, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while psutil.pid_exists(pid):
        assert time.monotonic() < end, "it has outlived the training"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "first"), [("fail", ""), ("die", "wait")], ids=["in step", "while process 0 is busy"]
)
def test_a_process_that_ends_fails_the_run(program: Path, launcher: str, order: str, first: str) -> None:
    status, out, err = ran(*LAUNCHERS[launcher], program, ORDER_0=first, ORDER_1=order)
    assert (status, out) != (0, "")
    assert order == "die" or "ValueError: no more of this" in err
    if launcher == "torchrun":
        assert stored_status() == "FAILED"
    assert the_run().info.status == "FAILED", "at the latest by the next command: Lightning kills process 0"
    wait_until_gone(int(Path("pid-0").read_text()))


@pytest.mark.slow
def test_the_next_command_names_a_run_whose_process_was_killed(program: Path, caplog: pytest.LogCaptureFixture) -> None:
    ran(*LAUNCHERS["Lightning"], program, DEVICES="2", ORDER_0="die")
    assert stored_status() == "RUNNING"
    run = the_run()
    assert run.info.status == "FAILED"
    (line,) = [line for line in caplog.messages if run.info.run_id in line]
    assert run.data.tags["dlcourse.error"] in line
    wait_until_gone(int(Path("pid-1").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "signum"),
    [("Lightning", signal.SIGINT), ("Lightning", signal.SIGTERM), ("torchrun", signal.SIGTERM)],
    indirect=["launcher"],
)
def test_a_signal_ends_the_run_as_killed(program: Path, launcher: str, signum: signal.Signals) -> None:
    process = started(*LAUNCHERS[launcher], program, ORDER_0="wait")
    while not Path("waiting").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signum)
    _, err = process.communicate(timeout=120)
    assert stored_status() == "KILLED", err
    wait_until_gone(int(Path("pid-1").read_text()))


@pytest.mark.slow
def test_processes_with_other_settings_begin_no_run(program: Path) -> None:
    status, _, err = ran(*LAUNCHERS["torchrun"], program, DIFFER="1")
    assert status == 1
    assert "process 1 has model.lr 0.02, and process 0 0.01" in err
    store = open_store()
    assert not store.client.search_runs([store.experiment("telling")])


# --- SLURM, and two hosts ---


@pytest.mark.slow
def test_processes_that_slurm_has_started(program: Path) -> None:
    """With the variables that `srun` sets: there is no SLURM here."""
    job = {"SLURM_JOB_ID": str(10000 + os.getpid() % 5000), "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0"}
    job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    tasks = [started(sys.executable, program, **job, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in "01"]
    for task in tasks:
        _, err = task.communicate(timeout=120)
        assert task.returncode == 0, err
    run = the_run()
    assert (run.info.status, run.data.params["trainer.devices"]) == ("FINISHED", "2")


def two_hosts() -> Iterator[list[list[str]]]:
    """What to put before a command to run it on each of two hosts: network namespaces, each with its own address."""
    names = [f"dl{os.getpid()}{letter}" for letter in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    with ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "delete", name)
            ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1], "netns", names[1])
            for number, name in enumerate(names, 1):
                ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", name)
                for device in ("lo", name):
                    ip("-n", name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        # Their common host name has an address in neither of them.
        yield [["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={name}"] for name in names]


hosts = pytest.fixture(two_hosts)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["torchrun", "Lightning"])
def test_two_hosts(program: Path, hosts: list[list[str]], by: str) -> None:
    processes = []
    for number, host in enumerate(hosts):
        folder = Path(f"host-{number}")  # they share no folder
        shutil.copytree("mlruns", folder / "mlruns") if number == 0 else folder.mkdir()
        torchrun = [*TORCHRUN, "--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
        torchrun += ["--master-addr", "10.77.0.1", "--master-port", "29511"]
        alone = ["MASTER_ADDR=10.77.0.1", "MASTER_PORT=29512", f"NODE_RANK={number}", "NODES=2", sys.executable]
        command = [*host, *(torchrun if by == "torchrun" else alone), program]
        processes.append(started(*command, folder=folder))
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert {path.name.partition("-")[0] for path in Path("host-1").iterdir()} == {"rows", "pid"}, "of the model alone"
    os.chdir("host-0")
    run = the_run()
    assert (run.info.status, run.data.params["trainer.num_nodes"]) == ("FINISHED", "2")


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
    "train height-weight --trainer.strategy ddp_spawn": "--trainer.strategy ddp_spawn",
    "train height-weight --trainer.strategy fsdp": "--trainer.strategy fsdp",
    "train height-weight --trainer.strategy single_device": "--trainer.strategy single_device",
    "train height-weight --folds 3": "--trainer.devices 1",
    "train height-weight --data.val_fraction 0.01": "--trainer.devices",
    "compare height-weight default other.yaml": "--trainer.devices 1",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_several_processes_cannot_do_is_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    Path("other.yaml").write_text("seed: 1")
    assert main([*words.split(), *FLAGS]) == 2
    line = capsys.readouterr().err
    assert REFUSED[words] in line
    assert line.count("\n") == 1
    assert not (project / "mlruns" / "artifacts").exists(), "no run was begun"


def test_an_interactive_session_has_no_command_to_run_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(SettingsError, match=r"--trainer\.devices 1"):
        dlcourse.train("height-weight", trainer={"devices": 2, "accelerator": "cpu"})


def test_flags_against_the_launcher_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"--trainer\.num_nodes is 3, but SLURM has started 2"):
        dlcourse.train("height-weight", trainer={"num_nodes": 3, "accelerator": "cpu"})


def test_memorising_one_batch_takes_one_device(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["overfit", "height-weight", *FLAGS]) == 0
    store = open_store()
    (run,) = store.client.search_runs([store.experiment("height-weight")])
    assert run.data.params["trainer.devices"] == "1"
