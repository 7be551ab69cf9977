"""What a model says of the rows of one split."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from scipy import stats
from torch import Tensor

from dlcourse.data import CourseData, Split
from dlcourse.learning import CourseModel

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Evaluation:
    """One pass over a split in evaluation mode.

    ``metrics`` by plain name (``loss``, ``mse``); ``outputs`` are N x outputs and ``targets`` as the data has them;
    ``losses`` and each of ``scores`` hold one number a row, float64, N.
    """

    split: Split
    metrics: dict[str, float]
    outputs: Tensor
    targets: Tensor
    losses: Tensor
    scores: dict[str, Tensor]

    @property
    def values(self) -> dict[str, Tensor]:
        """Losses and scores by name."""
        return {**self.scores, "loss": self.losses}

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each metric that is a mean over rows; none where there is one row."""
        return {
            name: interval_of_mean(values)
            for name, values in self.values.items()
            if name in self.metrics and len(values) > 1
        }


def are_shares(values: Tensor) -> bool:
    """Whether each row's value is 0 or 1, so that their mean is a share of the rows."""
    return bool(((values == 0) | (values == 1)).all())


def interval_of_mean(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean of N values: of shares by Wilson (1927), of others by Student's t.

    NaN for a single value that is no share.
    """
    if are_shares(values):
        return interval_of_share(int(values.sum()), len(values))
    if len(values) < 2:
        return float("nan"), float("nan")
    mean, error = float(values.mean()), float(values.std()) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def interval_of_share(count: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share of the rows (Wilson 1927)."""
    interval = stats.binomtest(count, rows).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


class _Outputs(Callback):
    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any) -> None:
        self.batches.append(outputs)


def evaluate(trainer: L.Trainer, model: CourseModel, data: CourseData, split: Split) -> Evaluation:
    """Measure a model on one split, with the accelerator and precision of ``trainer`` but on one device of it.

    One device sees every row once: several would be given some rows twice, to make their shares equal.
    """
    kept = _Outputs()
    tester = L.Trainer(
        accelerator=trainer.strategy.root_device.type,  # by its name: of the object mixed precision makes a GPU
        devices=1,
        precision=trainer.precision,
        logger=False,
        callbacks=[kept],
        deterministic=torch.are_deterministic_algorithms_enabled(),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    measured = tester.test(model, dataloaders=data.ordered(split), verbose=False)[0]
    metrics = {name.removeprefix("test/"): value for name, value in measured.items()}
    return _evaluation(model, data, split, torch.cat(kept.batches).cpu(), metrics)


def evaluate_outputs(model: CourseModel, data: CourseData, split: Split, outputs: Tensor) -> Evaluation:
    """Measure outputs that came from elsewhere, such as a baseline, by the model's own metrics."""
    targets, predictions = data.rows.targets[data.splits[split]], model.predictions(outputs)
    metrics = {name: float(metric(predictions, targets)) for name, metric in model.metrics().items()}
    return _evaluation(model, data, split, outputs, metrics)


def _evaluation(
    model: CourseModel, data: CourseData, split: Split, outputs: Tensor, metrics: dict[str, float]
) -> Evaluation:
    targets = data.rows.targets[data.splits[split]]
    values = values_of(model, outputs, targets)
    losses = values.pop("loss")
    return Evaluation(split, {"loss": float(losses.mean()), **metrics}, outputs, targets, losses, values)


def values_of(model: CourseModel, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Each row's scores, and its "loss": float64, N each."""
    scores = {name: values.double() for name, values in model.row_scores(outputs, targets).items()}
    return {**scores, "loss": model.row_losses(outputs, targets).double()}
