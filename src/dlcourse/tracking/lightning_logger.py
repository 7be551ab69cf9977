"""What Lightning logs, written to a `Run`; and a run's curves in its checkpoints."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dlcourse.tracking.run import Run

FIRST = "train/loss"


class RunLogger(Logger):
    """Writes what Lightning logs to a `Run`, each name after ``prefix``: metrics, and a module's hyper-parameters.

    A metric's step is Lightning's, as in Lightning's own loggers: the number of optimiser steps so far. ``by_epoch`` is
    for modules that log each metric once an epoch, and whose hyper-parameters the run has already: then the epoch is
    the step, but for metrics that Lightning calls ``<name>_step``.

    With ``by_epoch``, ``train/loss`` is written first, alone: MLflow's pages list metrics in the order of their first
    writing, those of one request by name, and compare runs by the first. Lightning logs the validation of an epoch
    before its training.
    """

    def __init__(self, run: Run, prefix: str = "", *, by_epoch: bool = False) -> None:
        super().__init__()
        self.run, self.prefix, self.by_epoch = run, prefix, by_epoch
        self._early: list[tuple[dict[str, float], int]] | None = [] if by_epoch else None
        """What is logged before ``train/loss``; None after that."""

    @property
    def name(self) -> str:
        return self.run.experiment_id

    @property
    def version(self) -> str:
        return self.run.run_id

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = step or 0
        named = {self.prefix + name: float(value) for name, value in metrics.items()}
        if not self.by_epoch:
            self.run.log_metrics(named, step)
            return
        epoch = int(named.pop(f"{self.prefix}epoch", step))
        by_step = {name: named.pop(name) for name in list(named) if name.endswith("_step")}
        self.run.log_metrics(by_step, step)
        if self._early is None:
            self.run.log_metrics(named, epoch)
            return
        self._early.append((named, epoch))
        first = f"{self.prefix}{FIRST}"
        if first in named:
            self.run.log_metrics({first: named.pop(first)}, epoch)
            self.run.write()
        if first in self.run.history or epoch > self._early[0][1]:
            self.finalize("")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        for named, epoch in self._early or []:
            self.run.log_metrics(named, epoch)
        self._early = None

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        if not self.by_epoch:
            self.run.log_params(vars(params) if isinstance(params, Namespace) else params)


class Curve(Callback):
    """Saves the run's curves in its checkpoints; a run that is resumed from one logs them again as its own."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        curve = {name: list(points) for name, points in self.run.history.items()}
        # The logger gets this epoch's last metrics only after the checkpoint is saved.
        for name, value in trainer.callback_metrics.items():
            points = curve.setdefault(name, [])
            if not points or points[-1][0] < trainer.current_epoch:
                points.append((trainer.current_epoch, float(value)))
        checkpoint["dlcourse_curve"] = curve

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        curve = checkpoint["dlcourse_curve"]
        for name in sorted(curve, key=lambda name: name != FIRST):
            for step, value in curve[name]:
                self.run.log_metrics({name: value}, step)
            if name == FIRST:
                self.run.write()
