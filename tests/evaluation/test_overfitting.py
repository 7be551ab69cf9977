"""Overfitting is named where validation rows got worse while training rows got better, and nowhere else."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dlcourse
from dlcourse.data.datamodule import CourseData
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.evaluation.overfitting import Overfitting, _Epoch, compare_epochs
from dlcourse.models.base import CourseModel
from dlcourse.models.tasks import Regressor
from dlcourse.reporting.result import Result
from dlcourse.training.callbacks.overfitting import OverfittingMonitor
from dlcourse.training.trainer import make_trainer
from tests.samples import Stuck, data_of, numbers


def epoch(number: int, losses: list[float], train_loss: float) -> _Epoch:
    return _Epoch(number, torch.tensor(losses, dtype=torch.float64), train_loss)


LOWEST = epoch(3, [0.4, 0.5, 0.6], 0.45)


# Two epochs compared


def test_a_rise_of_every_row_while_training_loss_falls() -> None:
    # Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, and 0.2 / (0.1 / root of 3) is 3.4641 standard errors.
    found = compare_epochs(LOWEST, epoch(9, [0.5, 0.7, 0.9], 0.2))
    assert found.epoch == 3
    assert found.rise == pytest.approx(0.4)
    assert found.fall == pytest.approx(0.25 / 0.45)
    assert found.standard_errors == pytest.approx(3.4641, rel=1e-4)
    assert found.gap == pytest.approx(0.05)
    assert str(found) == (
        "from epoch 3 on validation loss rose by 40% (3.5 standard errors) while training loss fell by 56%; "
        "gap of validation to training loss 0.05"
    )


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (epoch(9, [0.404, 0.505, 0.606], 0.2), "a rise of 1 %, however sure"),
        (epoch(9, [0.1, 0.5, 1.2], 0.2), "a rise of one row, which may be chance"),
        (epoch(9, [0.5, 0.7, 0.9], 0.46), "training rows got worse as well"),
        (epoch(9, [0.5, 0.7, 0.9], 0.45), "training rows stayed as they were"),
        (epoch(9, [0.5, 0.7, 0.9], 0.41), "training rows got better by 9 %"),
        (epoch(9, [0.3, 0.4, 0.5], 0.2), "validation rows got better"),
        (epoch(9, [0.4, 0.5, 0.6], 0.2), "validation rows stayed as they were"),
        (LOWEST, "the last epoch is the best"),
        (epoch(9, [float("nan")] * 3, float("nan")), "a loss that is no number"),
    ],
)
def test_no_overfitting_is_seen_in(last: _Epoch, why: str) -> None:
    found = compare_epochs(LOWEST, last)
    assert found.epoch is None, why
    assert str(found) == "none seen; gap of validation to training loss 0.05"


def test_one_validation_row_tells_nothing() -> None:
    assert compare_epochs(epoch(0, [0.5], 0.5), epoch(9, [5.0], 0.1)).epoch is None


def test_a_lowest_loss_of_0_or_below_can_be_risen_above() -> None:
    found = compare_epochs(epoch(2, [0.0, 0.0, 0.0], 0.1), epoch(9, [1.0, 1.1, 1.2], 0.0))
    assert found.epoch == 2
    assert np.isfinite(found.rise)
    assert compare_epochs(epoch(2, [0.0, 0.0], 0.1), epoch(9, [0.0, 0.0], 0.0)).rise == 0
    below = compare_epochs(epoch(2, [-2.0, -2.1], 0.1), epoch(9, [-1.0, -1.2], 0.0))
    assert below.epoch == 2
    assert below.rise == pytest.approx(0.95 / 2.05)


finite = st.floats(0, 1e6)
pairs_of_losses = st.lists(st.tuples(finite, finite), min_size=1, max_size=20)


@given(pairs_of_losses, finite, finite)
def test_no_pair_of_epochs_breaks_the_rule(
    losses: list[tuple[float, float]], train_before: float, train_after: float
) -> None:
    before, after = ([pair[place] for pair in losses] for place in (0, 1))
    found = compare_epochs(epoch(1, before, train_before), epoch(2, after, train_after))
    if np.mean(after) <= np.mean(before) or train_after >= train_before:
        assert found.epoch is None
    json.dumps([found.rise, found.fall, found.standard_errors, found.gap], allow_nan=False)


# In a training


class Wide(Regressor):
    """A network that learns a hundred rows by heart."""

    def __init__(self, shape: list[int], outputs: int, *, dropout: float = 0.0, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Sequential(
            nn.Linear(shape[0], 200), nn.ReLU(), nn.Dropout(dropout), nn.Linear(200, outputs)
        )  # fmt: skip


def noise(**settings: Any) -> CourseData:
    """Inputs that say nothing of their targets, so that whatever is learned of them is overfitting."""
    rows = numbers(200, 5)
    rows.targets.copy_(torch.randn(200, 1, generator=torch.Generator().manual_seed(1)))
    return data_of(rows, val_fraction=0.5, test_fraction=0.0, **settings)


def fitted(model: CourseModel, data: CourseData, epochs: int = 60) -> tuple[L.Trainer, OverfittingMonitor]:
    monitor = OverfittingMonitor()
    trainer = make_trainer(max_epochs=epochs, callbacks=[monitor])
    trainer.fit(model, datamodule=data)
    return trainer, monitor


def test_learning_noise_by_heart_is_named() -> None:
    L.seed_everything(0, verbose=False)
    _, monitor = fitted(Wide([5], 1, optimizer="adam", lr=0.01), noise())
    found = monitor.finding
    assert found is not None
    assert found.epoch is not None
    assert found.epoch < 15
    assert found.standard_errors > 2


def test_a_model_that_cannot_improve_does_not_overfit() -> None:
    _, monitor = fitted(Stuck([5], 1), noise(), epochs=3)
    assert monitor.finding == Overfitting(None, 0.0, 0.0, 0.0, monitor.finding.gap if monitor.finding else 0)


def test_without_validation_rows_nothing_is_found() -> None:
    data = data_of(numbers(), val_fraction=0.0)
    _, monitor = fitted(Wide([3], 1), data, epochs=2)
    assert monitor.finding is None
    assert monitor.state_dict() == {}


def test_gap_is_measured_without_dropout() -> None:
    L.seed_everything(0, verbose=False)
    data, model = noise(), Wide([5], 1, dropout=0.8, optimizer="adam", lr=0.01)
    trainer, monitor = fitted(model, data, epochs=4)
    train, val = (evaluate(trainer, model, model, data, split).metrics["loss"] for split in ("train", "val"))
    assert monitor.last is not None
    assert monitor.last.train_loss == pytest.approx(train, rel=1e-5)
    assert monitor.last.loss == pytest.approx(val, rel=1e-5)
    measured = trainer.callback_metrics
    assert float(measured["train/eval_loss"]) == pytest.approx(train, rel=1e-5)
    assert float(measured["train/loss"]) > 1.2 * train, "in training mode dropout blurs the loss"


def own_file(project: Path) -> dict[str, Any]:
    """A hundred rows of noise, and a wide network that takes half of them by heart."""
    generator = np.random.default_rng(0)
    rows = [",".join([*(f"{value:.3f}" for value in generator.normal(size=4)), str(row % 2)]) for row in range(100)]
    (project / "noise.csv").write_text("\n".join(rows))
    return {
        "data": {"file": "noise.csv", "val_fraction": 0.5, "test_fraction": 0.0},
        "model": {"hidden": [64, 64], "weight_decay": 0.0, "lr": 0.01},
    }


def trained(settings: dict[str, Any], epochs: int, **others: Any) -> Result:
    return dlcourse.train("diabetes", trainer={"max_epochs": epochs, "patience": None}, **settings, **others)


def test_run_that_overfits_names_the_epoch_in_card_tag_and_result(project: Path) -> None:
    result = trained(own_file(project), 40)
    client = dlcourse.open_store().client
    val, train = (
        [point.value for point in client.get_metric_history(result.run_id, name)]
        for name in ("val/loss", "train/eval_loss")
    )
    lowest = int(np.argmin(val))
    found = result.overfitting
    assert found is not None
    assert found.epoch == lowest
    assert found.rise == pytest.approx(val[-1] / val[lowest] - 1, rel=1e-4)
    assert found.gap == pytest.approx(val[lowest] - train[lowest], abs=1e-5)
    assert f"from epoch {lowest} on validation loss rose" in result.card
    assert client.get_run(result.run_id).data.tags["overfitting"] == str(found)
    assert result.as_dict()["overfitting"]["epoch"] == lowest


def test_resumed_run_has_seen_what_the_interrupted_one_saw(project: Path) -> None:
    settings = own_file(project)
    whole = trained(settings, 24)
    first = trained(settings, 12)
    assert whole.overfitting is not None
    assert first.overfitting is not None
    assert whole.overfitting.epoch is not None
    assert whole.overfitting.epoch < 12, "the lowest loss must lie before the interruption"
    resumed = dlcourse.train("diabetes", resume=first.run_id, trainer={"max_epochs": 24})
    assert resumed.overfitting == whole.overfitting
    assert resumed.overfitting != first.overfitting


def test_state_of_the_monitor_survives_its_checkpoint(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    monitor = OverfittingMonitor()
    trainer = make_trainer(max_epochs=3, monitor="val/loss", folder=tmp_path, callbacks=[monitor])
    trainer.fit(Wide([5], 1, optimizer="adam"), datamodule=noise())
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["OverfittingMonitor"]
    again = OverfittingMonitor()
    again.load_state_dict(state)
    assert again.finding == monitor.finding
    assert again.last is not None
    assert again.last.number == 2


def test_fit_only_run_says_that_it_was_not_measured(project: Path) -> None:
    settings = own_file(project)
    settings["data"]["val_fraction"] = 0.0
    result = trained(settings, 2)
    assert result.overfitting is None
    assert "overfitting" not in result.card.replace(result.run_name, "")
    run = dlcourse.open_store().client.get_run(result.run_id)
    assert run.data.tags["overfitting"] == "not measured"
