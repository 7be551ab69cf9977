"""The evaluation of a model on the rows of one split."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from dlcourse.data.rows import Split
from dlcourse.evaluation.intervals import interval_of_mean


@dataclass(frozen=True)
class Evaluation:
    """One pass over a split in evaluation mode.

    ``metrics`` have names without a prefix (``loss``, ``mse``). ``outputs`` are N x outputs, and ``targets`` as in the
    data. ``losses`` and each of ``scores`` (the metrics of single rows) are float64, N.
    """

    split: Split
    metrics: dict[str, float]
    outputs: Tensor
    targets: Tensor
    losses: Tensor
    scores: dict[str, Tensor]

    @property
    def values(self) -> dict[str, Tensor]:
        """The loss and the metrics of each row, by name."""
        return {**self.scores, "loss": self.losses}

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each metric that is a mean over rows; empty if there is only one row."""
        return {
            name: interval_of_mean(values)
            for name, values in self.values.items()
            if name in self.metrics and len(values) > 1
        }
