"""One training in two processes on the CPU, started by Lightning, by torchrun, by SLURM's variables, and on two hosts.

Those marked ``processes`` are not in `make test`: `.ci/run processes` runs them.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import chain
from multiprocessing.context import ForkServerProcess
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
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.training.callbacks.overfitting import interleave
from dlcourse.training.checkpoints import load_checkpoint
from dlcourse.training.trainer import make_trainer
from tests.conftest import ROOT, shared_project
from tests.processes import free_port, start_script

FLAGS = ["--trainer.devices", "2", "--trainer.accelerator", "cpu"]
DLCOURSE = [sys.executable, "-m", "dlcourse"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]

PROGRAM = '''
import os, signal, time
from pathlib import Path
import dlcourse
from dlcourse.evaluation import baselines
from dlcourse.topics import Topic
from tests.samples import Given, Line, numbers

VAL_LOSSES = {0: [1, 3, 5, 7, 9, 9, 9, 9], 1: [9, 6, 3, 0, 9, 9, 9, 9]}


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

    def per_sample_loss(self, outputs, targets):
        losses = super().per_sample_loss(outputs, targets)
        if "VAL_LOSSES" in os.environ and self.trainer.world_size > 1 and not self.training:
            return 0 * losses + VAL_LOSSES[self.global_rank][self.current_epoch]
        return losses


TOPIC = Topic(name="telling", title="Tells", data=Odd, model=Telling, baselines={"mean": baselines.mean})


def train(devices):
    trainer = {"accelerator": "cpu", "devices": devices, "num_nodes": int(os.environ.get("NODES", 1))}
    trainer |= {"max_epochs": 8, "patience": 2} if "VAL_LOSSES" in os.environ else {"max_epochs": 3}
    lr = 0.02 if "DIFFER" in os.environ and os.environ["RANK"] == "1" else 0.01
    print("ended", dlcourse.train(TOPIC, data={"batch_size": 8}, model={"lr": lr}, trainer=trainer).run_id)


if __name__ == "__main__":
    for devices in os.environ.get("DEVICES", "1").split():
        train(int(devices))
'''


@pytest.fixture
def program(project: Path) -> Path:
    """A script that trains; it is no test of the environment that it is in, but for what a test sets."""
    return written(project)


def written(folder: Path) -> Path:
    file = folder / "telling.py"
    file.write_text(PROGRAM)
    return file


def ended(started: tuple[ForkServerProcess, Path]) -> tuple[int | None, str]:
    """The exit status of a script, once it has ended, and its output."""
    process, output = started
    process.join(60)
    if process.is_alive():
        process.kill()
        pytest.fail(f"it has not ended within a minute: {output.read_text()}")
    return process.exitcode, output.read_text()


def ran(*command: object, **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    process = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    return process.returncode, process.stdout, process.stderr


def trainings(topic: str = "telling") -> list[mlflow.Run]:
    """The runs of trainings in the store, as the next command finds them."""
    store = open_store()
    return list(store.client.search_runs([store.experiment(topic)], "tags.`dlcourse.kind` = 'training'"))


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


def topic_of_the_program(monkeypatch: pytest.MonkeyPatch) -> Topic:
    """What the current folder's program trains."""
    monkeypatch.syspath_prepend(Path.cwd())
    topic: Topic = __import__("telling").TOPIC
    del sys.modules["telling"]
    return topic


def by_hand(program: Path, **environment: str) -> list[tuple[ForkServerProcess, Path]]:
    """Two processes with the variables of torchrun."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    group |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", **environment}
    return [start_script(program, **group, RANK=rank, LOCAL_RANK=rank) for rank in "01"]


# --- the whole ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[mlflow.Run]:
    """The run of a training in two processes that Lightning has started; its project is the current folder."""
    with shared_project(tmp_path_factory, made_store) as folder:
        status, output = ended(start_script(written(folder), DEVICES="2"))
        assert status == 0, output
        (run,) = trainings()
        said = [line for line in output.splitlines() if line.startswith("ended")]
        assert said == [f"ended {run.info.run_id}"], "by process 0 alone"
        yield run


def test_process_0_keeps_the_only_run(trained: mlflow.Run) -> None:
    assert (trained.info.status, trained.data.tags["dlcourse.processes"]) == ("FINISHED", "2")
    assert (trained.data.params["trainer.devices"], trained.data.params["trainer.num_nodes"]) == ("2", "1")


def test_every_row_is_used_once(trained: mlflow.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    data = topic_of_the_program(monkeypatch).data(batch_size=8)
    train = data.rows.targets[data.splits["train"]]
    assert len(train) == 61
    orders = []
    for epoch in range(3):
        shares = [[float(row) for row in Path(f"rows-{epoch}-{rank}").read_text().split()] for rank in (0, 1)]
        assert [len(share) for share in shares] == [31, 31], "the 61st has no partner, so one row is used twice"
        assert set(shares[0] + shares[1]) == set(train.flatten().tolist())
        orders.append(shares)
    assert orders[0] != orders[1] != orders[2]


def test_two_processes_log_what_one_measures(trained: mlflow.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they logged in the epoch whose weights are kept is what one process measures with these weights."""
    topic = topic_of_the_program(monkeypatch)
    data = topic.data(batch_size=8)
    val = data.rows.targets[data.splits["val"]]
    kept, store = int(trained.data.metrics["best_epoch"]), open_store()
    model, _ = load_checkpoint(topic, store.files_of(trained) / "checkpoints" / "best.ckpt")
    alone = make_trainer(accelerator="cpu")
    val_metrics, train_metrics = (evaluate(alone, model, model, data, split).metrics for split in ("val", "train"))
    for logged, measured in {
        "val/loss": val_metrics["loss"],
        "val/mae": val_metrics["mae"],
        "train/eval_loss": train_metrics["loss"],
        "train/eval_mse": train_metrics["mse"],
    }.items():
        history = {point.step: point.value for point in store.client.get_metric_history(trained.info.run_id, logged)}
        assert sorted(history) == [0, 1, 2]
        assert history[kept] == pytest.approx(measured, rel=1e-6)
    assert dlcourse.test(topic, run=trained.info.run_id)["test/mse"] == trained.data.metrics["test/mse"]

    # Which could not be if a row were missing or doubled: it would move the mean by more than that.
    assert len(val) == 21
    with torch.no_grad():
        losses = model.per_sample_loss(model(data.subset("val").__getitems__(list(range(len(val))))[0]), val)
    moves = (losses - losses.mean()) / len(losses)
    assert float(losses.mean()) == pytest.approx(val_metrics["loss"], rel=1e-6)
    assert float(moves.abs().min()) > 1e-5 * float(losses.mean())


def test_torchrun_starts_the_command(project: Path) -> None:
    """A batch has all rows, on two devices as on one: so the steps are the same."""
    command = ["train", "height-weight", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--json"]
    (project / "command.py").write_text(f"from dlcourse.cli import main\n\nassert main({command}) == 0\n")
    status, output = ended(start_script(project / "command.py", torchrun=True))
    assert status == 0, output
    (run,) = trainings("height-weight")
    (printed,) = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert printed["run_id"] == run.info.run_id, "process 0 alone has printed it"
    assert output.count("epoch 1/1") == 1
    assert (run.info.status, run.data.params["trainer.devices"]) == ("FINISHED", "2")
    alone = dlcourse.train("height-weight", trainer={"max_epochs": 2, "accelerator": "cpu"})
    for name in ("val/final_mse", "test/mse"):
        assert run.data.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-5)


def test_early_stopping_goes_by_the_rows_of_all_processes(program: Path) -> None:
    """Those of process 0 get worse from epoch 1 on, and those of all from epoch 4 on; the patience is two epochs."""
    for process in by_hand(program, VAL_LOSSES="1"):
        status, output = ended(process)
        assert status == 0, output
    epochs = [{path.name.split("-")[1] for path in Path().glob(f"rows-*-{rank}")} for rank in (0, 1)]
    assert epochs == [set("012345")] * 2
    (run,) = trainings()
    assert run.data.metrics["best_epoch"] == 3


def test_processes_that_slurm_has_started(program: Path) -> None:
    """With the variables that `srun` sets: there is no SLURM here."""
    job = {"SLURM_JOB_ID": str(10000 + os.getpid() % 5000), "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0"}
    job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    for task in [start_script(program, **job, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in "01"]:
        status, output = ended(task)
        assert status == 0, output
    (run,) = trainings()
    assert (run.info.status, run.data.params["trainer.devices"]) == ("FINISHED", "2")


@pytest.mark.processes
def test_the_command_with_refit_then_resumed(project: Path) -> None:
    flags = ["height-weight", *FLAGS, "--data.batch_size", "16", "--trainer.max_epochs", "2", "--refit", "true"]
    status, out, err = ran(*DLCOURSE, "train", *flags, "--json")
    assert status == 0, err
    assert (out.count("\n"), err.count("verdict"), err.count("epoch 1/1")) == (1, 1, 2), "process 0, fit and refit"
    (first,) = trainings("height-weight")
    assert (open_store().files_of(first) / "checkpoints" / "refit" / "last.ckpt").is_file()

    resumed = ["height-weight", "--resume", first.info.run_id, "--trainer.max_epochs", "4"]
    status, _, err = ran(*DLCOURSE, "train", *resumed)
    assert status == 0, err
    (longer,) = [run for run in trainings("height-weight") if run.info.run_id != first.info.run_id]
    history = open_store().client.get_metric_history(longer.info.run_id, "val/loss")
    assert sorted(point.step for point in history) == [0, 1, 2, 3]
    assert longer.info.status == "FINISHED"


@pytest.mark.processes
def test_images_by_torchrun(project: Path, real_data: Callable[..., Path]) -> None:
    """With half a batch on each device, as accurate as in one process."""
    real_data("fashion-mnist.safetensors", "FashionMNIST")
    flags = ["--config", "quick", "--trainer.max_epochs", "1", "--data.batch_size", "256", "--json"]
    status, out, err = ran(*TORCHRUN, "2", "-m", "dlcourse", "train", "fashion-mnist", *flags)
    assert status == 0, err
    alone = dlcourse.train("fashion-mnist", config="quick", trainer={"max_epochs": 1}, data={"batch_size": 512})
    assert isinstance(alone, dlcourse.Result)
    low, high = alone.intervals["test/accuracy"]
    assert low < json.loads(out)["metrics"]["test/accuracy"] < high
    assert [run.info.status for run in trainings("fashion-mnist")] == ["FINISHED"] * 2


# --- what ends it ---


def start(program: Path, by: str, **orders: str) -> tuple[ForkServerProcess, Path]:
    """Start a script by Lightning or by torchrun; orders are those to its processes."""
    return start_script(program, torchrun=by == "torchrun", DEVICES="2" if by == "Lightning" else "1", **orders)


@pytest.mark.parametrize(
    ("by", "order", "first"),
    [
        ("torchrun", "fail", ""),
        ("torchrun", "die", "wait"),
        pytest.param("Lightning", "fail", "", marks=pytest.mark.processes),
        ("Lightning", "die", "wait"),
    ],
)
def test_a_process_that_ends_fails_the_run(
    program: Path, by: str, order: str, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Process 1 fails in its step, or is killed while process 0 is busy."""
    status, output = ended(start(program, by, ORDER_0=first, ORDER_1=order))
    assert status != 0
    assert "ended" not in output.split()
    assert order == "die" or "ValueError: no more of this" in output
    status_before = stored_status()
    is_marked = status_before == "FAILED"
    # Lightning kills process 0: then the next command marks the run, and names it.
    assert is_marked or by == "Lightning", status_before
    (run,) = trainings()
    assert run.info.status == "FAILED"
    assert is_marked or [run.data.tags["dlcourse.error"] in line for line in caplog.messages] == [True]
    wait_until_gone(int(Path("pid-0").read_text()))


@pytest.mark.processes
def test_the_next_command_names_a_run_whose_process_was_killed(program: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended(start(program, "Lightning", ORDER_0="die"))
    assert stored_status() == "RUNNING"
    (run,) = trainings()
    assert run.info.status == "FAILED"
    (line,) = [line for line in caplog.messages if run.info.run_id in line]
    assert run.data.tags["dlcourse.error"] in line
    wait_until_gone(int(Path("pid-1").read_text()))


@pytest.mark.parametrize(
    ("by", "signum"),
    [
        ("torchrun", signal.SIGTERM),
        pytest.param("Lightning", signal.SIGINT, marks=pytest.mark.processes),
        pytest.param("Lightning", signal.SIGTERM, marks=pytest.mark.processes),
    ],
)
def test_a_signal_ends_the_run_as_killed(program: Path, by: str, signum: signal.Signals) -> None:
    process, output = start(program, by, ORDER_0="wait")
    while not Path("waiting").exists() and process.is_alive():
        time.sleep(0.05)
    assert process.pid
    os.kill(process.pid, signum)
    ended((process, output))
    assert stored_status() == "KILLED", output.read_text()
    wait_until_gone(int(Path("pid-1").read_text()))


def test_processes_with_other_settings_begin_no_run(program: Path) -> None:
    for process in by_hand(program, DIFFER="1"):
        status, output = ended(process)
        assert status == 1
        assert "process 1 has model.lr 0.02, and process 0 0.01" in output
    assert not trainings()


# --- two hosts ---


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


@pytest.mark.processes
@pytest.mark.parametrize("by", ["torchrun", "Lightning"])
def test_two_hosts(program: Path, hosts: list[list[str]], by: str) -> None:
    processes = []
    for number, host in enumerate(hosts):
        folder = Path(f"host-{number}")  # they share no folder
        shutil.copytree("mlruns", folder / "mlruns") if number == 0 else folder.mkdir()
        torchrun = [*TORCHRUN, "1", "--nnodes", "2", "--node-rank", str(number)]
        torchrun += ["--master-addr", "10.77.0.1", "--master-port", "29511"]
        alone = ["MASTER_ADDR=10.77.0.1", "MASTER_PORT=29512", f"NODE_RANK={number}", "NODES=2", sys.executable]
        command = [*host, f"PYTHONPATH={ROOT}", *(torchrun if by == "torchrun" else alone), str(program)]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder))
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert {path.name.partition("-")[0] for path in Path("host-1").iterdir()} == {"rows", "pid"}, "of the model alone"
    os.chdir("host-0")
    (run,) = trainings()
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


def test_several_processes_come_before_any_other_training(program: Path) -> None:
    """The others would begin the script anew, and take part in its first training."""
    status, output = ended(start_script(program, DEVICES="1 2"))
    assert status == 1
    line = output.splitlines()[-1]
    assert "SettingsError" in line
    assert "--trainer.devices 1" in line
    (run,) = trainings()
    assert (run.info.status, run.data.params["trainer.devices"]) == ("FINISHED", "1")


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
