"""Learning rate and speed, as a logger gets them."""

from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from dlcourse.training.trainer import make_trainer
from tests.samples import Line, data_of, numbers


class Noting(Logger):
    """Keeps what it is told."""

    name = version = "notes"

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.notes.append(metrics | {"step": -1 if step is None else step})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_learning_rate_and_speed_are_logged() -> None:
    data = data_of(numbers())
    logger = Noting()
    trainer = make_trainer(max_epochs=2, accelerator="cpu", logger=logger)
    trainer.fit(Line(data.shape, data.outputs, lr=0.03), datamodule=data)
    assert [noted["lr"] for noted in logger.notes if "lr" in noted] == pytest.approx([0.03, 0.03])
    assert all(noted["samples_per_second"] > 0 for noted in logger.notes if "lr" in noted)
    own, others = (
        [(noted["epoch"], noted["step"]) for noted in logger.notes if name in noted] for name in ("lr", "train/loss")
    )
    assert own == others == [(0, others[0][1]), (1, others[1][1])]
