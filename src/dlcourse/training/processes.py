"""One training in several processes: this process writes the run, and its workers only train.

Lightning would start each worker by running the whole command again and, if one fails, would kill this process before
it can mark the run as failed. So workers are started here; Lightning accepts that if ``LOCAL_RANK`` is set.
"""

import dataclasses
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import distributed

from dlcourse.data.datamodule import CourseData
from dlcourse.errors import CourseError, SettingsError
from dlcourse.topics import Topic
from dlcourse.training.fit import Plan, new_model, run_fit
from dlcourse.training.hardware import check_devices, choose_accelerator
from dlcourse.training.trainer import make_trainer

log = logging.getLogger(__name__)

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
"""Environment variables that are set for one training, and restored after it. Lightning sets the last one."""
SECONDS_TO_END = 10.0
"""Time limit for the exit of a worker that has finished or lost its connection."""


def count_processes(trainer: Mapping[str, Any]) -> int:
    """The number of processes of a tracked run with these arguments of `make_trainer`: one per device.

    Raises:
        SettingsError: This machine or a tracked run does not support them.
    """
    devices, strategy = trainer["devices"], trainer["strategy"]
    check_devices(devices, strategy, choose_accelerator(trainer["accelerator"]))
    if trainer["num_nodes"] != 1:
        raise SettingsError(
            "--trainer.num_nodes must be 1 here: a tracked run trains on one machine; make_trainer alone accepts more"
        )
    if (devices, strategy) == (1, "auto"):
        return 1
    # Lightning's own checks run here, before a run is started; "auto" avoids a second warning about the precision.
    trial = make_trainer(**{**trainer, "precision": "auto"})
    launcher = trial.strategy.launcher
    if launcher and (strategy not in STRATEGIES or launcher.is_interactive_compatible):
        raise SettingsError(
            f"--trainer.strategy {strategy} is not for a tracked run, which starts new processes: set it to ddp, "
            "outside of a notebook; make_trainer alone accepts more"
        )
    if devices not in ("auto", trial.world_size):
        raise SettingsError(f"--trainer.strategy {strategy} takes {trial.world_size} device, not {devices}")
    if trial.world_size > 1 and "LOCAL_RANK" in os.environ:
        raise SettingsError(
            f"--trainer.devices {devices}: LOCAL_RANK is set, but a tracked run starts its processes itself: "
            "run it without torchrun"
        )
    return trial.world_size


def check_shares(topic: Topic, data: CourseData, processes: int) -> None:
    """Raises `CourseError` if several processes cannot import a topic's classes, or there are too few rows for them."""
    if processes == 1:
        return
    fewest = min(len(rows) for split, rows in data.splits.items() if split != "test" and len(rows))
    if fewest < processes:
        raise SettingsError(f"--trainer.devices {processes} needs as many training and validation rows, not {fewest}")
    for kind in (topic.data, topic.model):
        if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            raise CourseError(
                f"{kind.__qualname__} cannot be imported by other processes, so --trainer.devices must be 1: "
                "to use more, define the class in a module, outside of any function"
            )


@contextmanager
def workers(plan: Plan, processes: int) -> Iterator[None]:
    """Run the plan in the other processes as well. The body of the ``with`` statement must run it in this one.

    Raises:
        CourseError: A worker failed.
    """
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # Lightning divides the cores among them
        stack.callback(_restore_environment, dict(os.environ))
        stack.callback(_leave)
        if processes > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
            os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": "0"}
        team = [stack.enter_context(_Worker(plan, rank)) for rank in range(1, processes)]
        for worker in team:
            worker.wait_until_ready()
        try:
            yield
            _leave()
            for worker in team:
                worker.wait()
        except Exception as error:
            # If a process has ended, the others fail in their next communication with it.
            gone = [worker for worker in team if _is_of_connection(error) and worker.wait()]
            if gone:
                first = next((worker for worker in gone if _CONNECTION not in worker.said()[-1]), gone[0])
                raise first.failure() from error
            raise


def _leave() -> None:
    """Leave the process group, so that metrics are no longer gathered from processes that have ended."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _restore_environment(before: Mapping[str, str]) -> None:
    for name in VARIABLES:
        os.environ.pop(name, None)
    os.environ |= {name: before[name] for name in VARIABLES if name in before}


_CONNECTION = "gloo"
"""Part of the message of a lost connection, which on the CPU is a plain RuntimeError."""


def _is_of_connection(error: Exception) -> bool:
    return isinstance(error, distributed.DistError) or _CONNECTION in str(error)


class _Worker:
    """A worker process. Its stderr is only shown if it fails."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.rank = rank
        self.written: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the worker
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            env={**os.environ, "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.written,
        )
        assert self.process.stdin
        plain = dataclasses.replace(plan, topic=dataclasses.replace(plan.topic, baselines={}, figures={}))
        with suppress(BrokenPipeError):  # it ended at once: wait_until_ready notices
            self.process.stdin.write(pickle.dumps(sys.path) + pickle.dumps(plain))
            self.process.stdin.flush()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        with self.written, suppress(BrokenPipeError), self.process:
            pass

    def wait_until_ready(self) -> None:
        """Wait until it is about to train; raises `CourseError` if it fails before."""
        assert self.process.stdout
        if not self.process.stdout.read().endswith(b"ready"):  # an import may have printed something first
            self.process.wait()
            raise self.failure()

    def wait(self) -> int | None:
        """Its exit status; None if it takes too long to end."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(SECONDS_TO_END)
        return None

    def said(self) -> list[str]:
        """The lines that it wrote before it ended: at least one, the last of which is the reason."""
        self.written.seek(0)
        text = self.written.read().decode(errors="replace").replace(f"[rank{self.rank}]: ", "")
        return text.strip().splitlines() or [f"it ended with status {self.process.returncode}"]

    def failure(self) -> CourseError:
        """Why it failed. If it wrote more than one line, all of them are logged."""
        *more, last = self.said()
        if more:
            log.error("%s", "\n".join([*more, last]))
        return CourseError(f"process {self.rank} of the training failed: {last}")


_PROGRAM = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from dlcourse.training.processes import take_part
take_part()
"""


def take_part() -> None:
    """The program of a worker: read a plan from stdin, write "ready" to stdout, and run the plan."""
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):
        # The main process receives them as well, and ends its workers.
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    ready = os.dup(1)
    os.dup2(2, 1)
    plan: Plan = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        data = plan.topic.data(**plan.settings.data)
        data.prepare_data()
        data.setup("fit")
        if data.fingerprint != plan.split:
            raise CourseError("its rows or their split differ: data must be the same each time they are loaded")
        model = new_model(plan.topic, data, plan.settings)
        os.write(ready, b"ready")
        os.close(ready)
        run_fit(plan, data, model, None)
    except CourseError as error:
        sys.exit(str(error))
    _leave()


def _end_with_parent() -> None:
    """End at once when the other end of stdin is closed: the main process has ended."""
    while os.read(0, 1024):
        pass
    os._exit(1)
