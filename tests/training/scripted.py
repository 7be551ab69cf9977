"""A LightningModule that is none of the package's, and a training of it."""

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dlcourse.training.trainer import make_trainer


class PulledError(Exception):
    """The end of an interrupted training."""


class Scripted(L.LightningModule):
    """Nothing of the course's: a module whose validation metric is written down beforehand, an epoch each."""

    def __init__(self, scores: list[float], pause: float = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.scores, self.pause = scores, pause

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        time.sleep(self.pause)
        return self.layer(batch[0]).square().mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("score", self.scores[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(rows: int = 12) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(rows, 2)), batch_size=4)


def run(module: L.LightningModule, **settings: Any) -> L.Trainer:
    trainer = make_trainer(accelerator="cpu", **settings)
    trainer.fit(module, loader(), loader())
    return trainer
