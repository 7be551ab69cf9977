"""Divergence: what stops a training, and what does not."""

from typing import Any

import lightning as L
import torch

from dlcourse.training.callbacks.divergence import Divergence
from dlcourse.training.trainer import make_trainer
from tests.samples import Line, data_of, numbers


def diverged(lr: float, **settings: Any) -> tuple[Divergence, L.Trainer]:
    rows = numbers()
    data = data_of(rows, standardize=False, batch_size=8, **settings)
    torch.manual_seed(0)
    divergence = Divergence()
    trainer = make_trainer(max_epochs=200, patience=None, accelerator="cpu", callbacks=[divergence])
    trainer.fit(Line(data.shape, data.outputs, lr=lr), datamodule=data)
    return divergence, trainer


def test_a_loss_beyond_all_numbers_stops_the_training() -> None:
    divergence, trainer = diverged(lr=10.0)
    assert divergence.epoch is not None
    assert trainer.current_epoch == divergence.epoch + 1 <= 5
    assert not abs(divergence.loss) < float("inf")


def test_an_exploding_loss_stops_the_training() -> None:
    divergence, trainer = diverged(lr=0.012)
    assert divergence.epoch is not None
    assert trainer.current_epoch == divergence.epoch + 1
    assert 1e6 * divergence.first < divergence.loss < float("inf")


def test_a_training_that_converges_has_no_divergence() -> None:
    divergence, trainer = diverged(lr=0.0005)
    assert divergence.epoch is None
    assert trainer.current_epoch == 200
