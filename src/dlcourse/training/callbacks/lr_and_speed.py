"""Learning rate and training speed of every epoch."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class LrAndSpeed(Callback):
    """Log ``lr`` and ``samples_per_second`` once an epoch.

    ``lr`` is that of the optimiser's first parameter group after the epoch. The speed is that of all processes
    together, without validation; it needs batches that are tuples or lists, with the inputs first.

    Lightning's LearningRateMonitor logs by step, and its names differ between optimisers: ``lr-SGD/pg1``.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started, self.seconds, self.samples = time.perf_counter(), 0.0, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, (tuple, list)):
            self.samples += len(batch[0])
        if trainer.is_last_batch:  # validation follows
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self.seconds = time.perf_counter() - self.started

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {}
        if trainer.optimizers:
            metrics["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        if self.samples and self.seconds:
            metrics["samples_per_second"] = self.samples * trainer.world_size / self.seconds
        for logger in trainer.loggers:  # not by self.log, which would round to float32
            logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, trainer.global_step - 1)
