"""The one place where a Trainer is made."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from dlcourse.data.samplers import epoch_seed


class Epochs(Callback):
    """Seed every epoch anew, and log its learning rate, and rows a second where batches are (inputs, targets).

    The seed comes from the run's and the epoch: a resumed run draws what it would have drawn. Each of several processes
    draws its own.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seed = torch.initial_seed()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seed = epoch_seed(self.seed, trainer.current_epoch)
        seed = epoch_seed(seed, trainer.global_rank) if trainer.global_rank else seed
        if pl_module.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed notes one for all devices it may ever use
        else:
            torch.manual_seed(seed)
        self.started, self.seconds, self.rows = time.perf_counter(), 0.0, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, (tuple, list)):
            self.rows += len(batch[0])
        if trainer.is_last_batch:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self.seconds = time.perf_counter() - self.started

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        figures = {}
        if trainer.optimizers:
            figures["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        if self.rows and self.seconds:
            figures["samples_per_second"] = self.rows * trainer.world_size / self.seconds
        for logger in trainer.loggers:  # directly: Lightning walks through all that a module logs, value by value
            logger.log_metrics({**figures, "epoch": trainer.current_epoch}, trainer.global_step - 1)
