"""The one place where a Trainer is made."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class Divergence(Callback):
    """Stop when an epoch's loss is no number any more, or a million times the first one's: nothing better can come.

    ``epoch`` then says which epoch it was, counted from 0, and ``loss`` what its loss was.
    """

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.loss = self.first = float("nan")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs is not None:
            self.losses.append(outputs["loss"] if isinstance(outputs, dict) else outputs)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.losses:
            return
        self.loss = float(trainer.strategy.reduce(torch.stack(self.losses).mean()))  # the mean over all processes
        if math.isnan(self.first):
            self.first = self.loss
        if not abs(self.loss) <= 1e6 * max(abs(self.first), 1e-30) or math.isinf(self.loss):
            self.epoch = trainer.current_epoch
            trainer.should_stop = True


def divergence_of(trainer: L.Trainer) -> Divergence:
    """The watch that `make_trainer` gave a Trainer."""
    return next(each for each in trainer.callbacks if isinstance(each, Divergence))  # type: ignore[attr-defined]
