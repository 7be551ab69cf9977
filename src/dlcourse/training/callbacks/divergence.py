"""Stop a training that diverges."""

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

DIVERGED = 1e6
"""Times the first mean loss: from there no training that was seen came back."""
STEPS_BETWEEN_CHECKS = 1000
"""In longer epochs, which may never end. Looking at a loss waits for the GPU."""


class Divergence(Callback):
    """Stop a training whose mean loss over an epoch is NaN, infinite or a million times that of the first epoch.

    An epoch of more than 1000 steps is checked every 1000. ``epoch`` is then that epoch, counted from 0, and ``loss``
    its loss; until then ``epoch`` is None. The loss is what ``training_step`` returns, alone or as ``"loss"``; a step
    that returns none, as it may with manual optimisation, is not watched.

    Lightning's EarlyStopping looks at the monitored metric only, and its ``divergence_threshold`` is absolute.
    """

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.loss = self.first = float("nan")
        self.losses: list[Tensor] = []  # of the steps; on their device, so that no step waits for it

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses.clear()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self.losses.append(loss.detach())
        if len(self.losses) == STEPS_BETWEEN_CHECKS:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.losses:
            self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        self.loss = float(trainer.strategy.reduce(torch.stack(self.losses).mean()))  # the mean over all processes
        self.losses.clear()
        if math.isnan(self.first):
            self.first = self.loss
        largest = DIVERGED * max(abs(self.first), 1e-30)  # a first loss of 0 allows for rounding
        if not abs(self.loss) <= largest or math.isinf(self.loss):  # NaN is not <= anything
            self.epoch = trainer.current_epoch
            trainer.should_stop = True


def divergence_of(trainer: L.Trainer) -> Divergence:
    """The `Divergence` callback of a Trainer that `make_trainer` has made."""
    return next(each for each in trainer.callbacks if isinstance(each, Divergence))  # type: ignore[attr-defined]
