"""The evaluation of a model on the rows of one split."""

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from dlcourse.data.rows import Split
from dlcourse.evaluation.intervals import interval_of_mean


def final_name(split: Split, metric: str) -> str:
    """What a metric of the kept weights is called in a run: splits with curves have their own name for it."""
    return f"test/{metric}" if split == "test" else f"{split}/final_{metric}"


@dataclass(frozen=True)
class Evaluation:
    """One pass over a split in evaluation mode.

    ``metrics`` have names without a prefix (``loss``, ``mse``). ``outputs`` are N x outputs, and ``targets`` as in the
    data. ``losses`` and each of ``scores`` (the metrics of single rows) are float64, N. ``digest`` is that of
    inputs and targets, where the data has none before.
    """

    split: Split
    metrics: dict[str, float]
    outputs: Tensor
    targets: Tensor
    losses: Tensor
    scores: dict[str, Tensor]
    digest: str = ""

    @property
    def values(self) -> dict[str, Tensor]:
        """The loss and the metrics of each row, by name."""
        return {**self.scores, "loss": self.losses}

    def final_name(self, metric: str) -> str:
        """What a metric is called in a run."""
        return final_name(self.split, metric)

    @property
    def finals(self) -> dict[str, float]:
        """The metrics by their names in a run; one that is undefined here, as the AUROC of one class, is left out."""
        return {self.final_name(name): value for name, value in self.metrics.items() if math.isfinite(value)}

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each metric that is a mean over rows; empty if there is only one row."""
        return {
            name: interval_of_mean(values)
            for name, values in self.values.items()
            if name in self.metrics and len(values) > 1
        }
