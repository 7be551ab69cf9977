"""One training in several processes: all run the same command, and the first, of rank 0, alone keeps the run.

Lightning starts them by running the command again, unless torchrun or SLURM has started them all.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed

from dlcourse.errors import CourseError, Interrupted, SettingsError, one_line
from dlcourse.evaluation.split_data import SplitData
from dlcourse.settings import Settings
from dlcourse.training.fit import Plan, run_fit
from dlcourse.training.hardware import check_devices, choose_accelerator
from dlcourse.training.trainer import quiet

# torchrun's SIGTERM may come before gloo, in a thread of its own, has seen that the connection is closed.
LOSS_SECONDS = 2.0
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")


def as_launched(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `make_trainer`, with ``devices`` and ``num_nodes`` as torchrun or SLURM has started processes.

    Raises:
        SettingsError: Other numbers were asked for.
    """
    if TorchElasticEnvironment.detect():
        launcher, names = "torchrun", {"devices": "LOCAL_WORLD_SIZE", "num_nodes": "GROUP_WORLD_SIZE"}
    elif SLURMEnvironment.detect():
        launcher, names = "SLURM", {"devices": "SLURM_NTASKS_PER_NODE", "num_nodes": "SLURM_NNODES"}
    else:
        return dict(trainer)
    started = {flag: int(os.environ.get(name, 1)) for flag, name in names.items()}
    for flag, number in started.items():
        if trainer[flag] not in (1, "auto", number):
            raise SettingsError(
                f"--trainer.{flag} is {trainer[flag]}, but {launcher} has started {number}: leave the flag out"
            )
    return {**trainer, **started}


class Processes:
    """The processes of one training, one for each device of each machine.

    Attributes:
        count: The number of processes.
        rank: The number of this one, counted from 0.
    """

    has_trained: ClassVar[bool] = False
    """Whether this program has trained before: the others, which begin it anew, would take part in that training."""

    def __init__(self, trainer: Mapping[str, Any]) -> None:
        """Find out about them, and start none yet; ``trainer`` are arguments of `make_trainer`.

        Raises:
            SettingsError: This machine or a tracked run does not support them.
        """
        devices, strategy = trainer["devices"], trainer["strategy"]
        accelerator = choose_accelerator(trainer["accelerator"])
        check_devices(devices, strategy, accelerator)
        if strategy not in STRATEGIES:
            raise SettingsError(
                f"--trainer.strategy {strategy} is not for a tracked run: leave it out, or set it to ddp; "
                "make_trainer alone accepts more"
            )
        quiet()
        try:
            self._fabric = L.Fabric(
                accelerator=accelerator, devices=devices, strategy=strategy, num_nodes=trainer["num_nodes"]
            )
        except (ValueError, RuntimeError) as error:
            raise SettingsError(f"the processes cannot be started: {one_line(error)}") from error
        self.count, self.rank = self._fabric.world_size, self._fabric.global_rank
        if self.rank:
            logging.getLogger("dlcourse").setLevel(logging.ERROR)  # process 0 says all there is to say

    def start(self, data: SplitData, settings: Settings) -> None:
        """Start the other processes, unless something else has, and wait until all are here.

        Raises:
            SettingsError: There are too few rows, no command, an earlier training, or a wrong number of processes.
            CourseError: Some do not come, or have other rows or settings.
        """
        sizes = [data.num_rows(split) for split in ("train", "val") if data.fingerprint and data.has(split)]
        fewest = min((size for size in sizes if size is not None), default=self.count)
        if fewest < self.count:
            raise SettingsError(
                f"{self.count} processes (--trainer.devices on each machine) need as many training and validation "
                f"rows, not {fewest}"
            )
        is_started = "LOCAL_RANK" in os.environ or SLURMEnvironment.detect()
        if self.count > 1 and not is_started and (hasattr(sys, "ps1") or sys.argv[0] in ("", "-", "-c")):
            raise SettingsError(
                "each process runs the same command, which a notebook or an interactive session has not: write a "
                "script, or set --trainer.devices 1"
            )
        if self.count > 1 and Processes.has_trained:
            raise SettingsError(
                "each process runs the whole program, which has trained before: write a script for each training in "
                "several processes, or set --trainer.devices 1"
            )
        Processes.has_trained = True
        self._before = torch.get_num_threads(), dict(os.environ)
        try:
            self._fabric.launch()
        except ValueError as error:  # SLURM or torchrun has started other numbers of them
            raise SettingsError(f"the processes cannot be started: {one_line(error)}") from error
        except RuntimeError as error:
            raise CourseError(f"the processes of the training do not reach one another: {one_line(error)}") from error
        if self.count == 1:
            return
        # NCCL neither sends objects nor notices at once that a process has ended.
        group = distributed.new_group(backend="gloo")
        assert isinstance(group, distributed.ProcessGroup)  # which this process is a member of
        self._group = group
        mine: dict[str, object] = {"rows and splits": data.fingerprint, **settings.flat()}
        everyones: list[dict[str, object]] = [{}] * self.count
        distributed.all_gather_object(everyones, mine, self._group)
        for rank, theirs in enumerate(everyones):
            for name, value in everyones[0].items():
                if theirs.get(name) != value:
                    raise CourseError(
                        f"process {rank} has {name} {theirs.get(name)}, and process 0 {value}: "
                        "run the same command with the same files in each"
                    )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Train within; at the end the processes part, so that one alone can evaluate.

        Raises:
            CourseError: Another process has ended. It has said why.
        """
        try:
            yield
        except (RuntimeError, Interrupted) as error:
            # torchrun sends SIGTERM to the others if a process fails, and to all if it gets one itself.
            is_of_user = isinstance(error, Interrupted) and error.signum != signal.SIGTERM
            if isinstance(error, Interrupted) and not is_of_user:
                time.sleep(LOSS_SECONDS)
            if is_of_user or not self._has_lost_one():
                raise
            if self.rank:  # process 0 says why it has ended, and Lightning would kill it if this one failed as well
                sys.exit(0)
            raise CourseError(
                f"another process of the training has ended; what it wrote says why (here: {one_line(error)[:200]})"
            ) from error
        finally:
            # The others end when they have said why: torchrun ends them once process 0 misses them.
            if self.rank == 0:
                self._part()

    def _has_lost_one(self) -> bool:
        """Whether a process that this one depends on has ended."""
        try:
            for other in range(1, self.count) if self.rank == 0 else [0]:
                distributed.isend(torch.zeros(1), other, self._group)  # nobody receives it; raises if nobody can
        except RuntimeError:
            return True
        return False

    def _part(self) -> None:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        # Lightning has divided the cores, and would not start the processes of a second training.
        threads, environment = self._before
        torch.set_num_threads(threads)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)

    def take_part(self, plan: Plan, data: SplitData, model: L.LightningModule) -> NoReturn:
        """Train with the others, and end this process, which is not that of rank 0."""
        self.start(data, plan.settings)
        for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):
            signal.signal(getattr(signal, name), signal.SIG_IGN)  # process 0 receives them as well, and ends the run
        with self.together():
            run_fit(plan, data, model, None)
        sys.exit(0)


def check_one_process(trainer: Mapping[str, Any], what: str) -> None:
    """Before any other training: raises `SettingsError` if these arguments of `make_trainer` need several processes."""
    Processes.has_trained = True
    count = Processes(as_launched(trainer)).count
    if count > 1:
        raise SettingsError(f"{what} trains on one device: set --trainer.devices 1 and start one process, not {count}")
