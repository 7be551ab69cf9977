"""Optimisers and schedules: the steps that they take."""

import math
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from dlcourse.errors import SettingsError
from tests.models.training import fitted
from tests.samples import Line, data_of, numbers


def test_one_step_of_sgd_is_the_gradient_times_the_learning_rate() -> None:
    data = data_of(numbers(), batch_size=64)
    torch.manual_seed(0)
    before = Line(data.shape, data.outputs)
    before.set_scaling(*data.scaling)
    rows = data.splits["train"]
    loss = (before(data.rows.inputs[rows]) - data.rows.targets[rows]).square().mean()
    loss.backward()
    after, _ = fitted(Line, data, epochs=1, optimizer="sgd", lr=0.05)
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert old.grad is not None
        torch.testing.assert_close(new, old - 0.05 * old.grad)


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizer_is_the_one_named_with_its_settings(name: str, kind: type[torch.optim.Optimizer]) -> None:
    data = data_of(numbers())
    _, trainer = fitted(Line, data, epochs=1, optimizer=name, lr=0.02, weight_decay=0.3, momentum=0.7)
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert optimizer.param_groups[0].get("momentum", 0.7) == 0.7


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_every_optimizer_learns(name: str) -> None:
    data = data_of(numbers(), batch_size=16)
    _, trainer = fitted(Line, data, epochs=40, optimizer=name, lr=0.02 if name == "sgd" else 1.0)
    targets = data.rows.targets[data.splits["val"]]
    assert float(trainer.callback_metrics["val/loss"]) < 0.3 * float(targets.var())


def test_nesterov_without_momentum_is_refused_when_the_model_is_made() -> None:
    with pytest.raises(SettingsError, match=r"--model\.optimizer nesterov needs --model\.momentum above 0"):
        Line([3], 1, optimizer="nesterov")


class Rates(Callback):
    """The learning rate and momentum of every step."""

    def __init__(self) -> None:
        self.lr: list[float] = []
        self.momentum: set[float] = set()

    def on_train_batch_start(self, trainer: L.Trainer, *rest: Any) -> None:
        group = trainer.optimizers[0].param_groups[0]
        self.lr.append(float(group["lr"]))
        self.momentum.add(float(group["momentum"]))


def rates(schedule: str) -> Rates:
    seen = Rates()
    fitted(Line, data_of(numbers(), batch_size=10), seen, epochs=10, lr=0.02, momentum=0.5, schedule=schedule)
    assert len(seen.lr) == 30
    return seen


def test_constant_schedule_keeps_the_learning_rate() -> None:
    assert set(rates("constant").lr) == {0.02}


def test_cosine_schedule_falls_from_the_learning_rate_to_0() -> None:
    lr = rates("cosine").lr
    assert lr == pytest.approx([0.01 * (1 + math.cos(math.pi * step / 30)) for step in range(30)])


def test_one_cycle_schedule_rises_to_the_learning_rate_and_falls() -> None:
    seen = rates("one_cycle")
    assert seen.lr[0] == pytest.approx(0.02 / 25)
    assert max(seen.lr) == pytest.approx(0.02, rel=0.01)
    assert seen.lr[-1] < 1e-6
    assert seen.momentum == {0.5}, "the momentum is the one that was set"
