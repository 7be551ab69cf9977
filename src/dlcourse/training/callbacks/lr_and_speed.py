"""Learning rate and training speed of every epoch."""

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class LrAndSpeed(Callback):
    """Log ``lr`` and ``samples_per_second`` once an epoch.

    ``lr`` is that of the first optimiser's first parameter group after the epoch. The speed is that of all processes
    together, without validation; a batch has as many samples as its first tensor has rows.

    Lightning's LearningRateMonitor logs by step, and its names differ between optimisers: ``lr-SGD/pg1``.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which Lightning leaves out if it resumes within an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started, self.seconds, self.samples = time.perf_counter(), 0.0, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples += num_samples(batch)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._stop(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def _stop(self, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds += time.perf_counter() - self.started

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop(pl_module)
        metrics = {}
        if trainer.optimizers:
            metrics["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        if self.samples:
            metrics["samples_per_second"] = self.samples * trainer.world_size / self.seconds
        # Lightning counts the batches of manual optimisation, and the steps of its own.
        step = trainer.global_step - 1 if pl_module.automatic_optimization else trainer.fit_loop.total_batch_idx
        for logger in trainer.loggers:  # not by self.log, which would round to float32
            logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step)


def num_samples(batch: Any) -> int:
    """The rows of a batch's first tensor; 0 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((count for part in parts if (count := num_samples(part))), 0)
