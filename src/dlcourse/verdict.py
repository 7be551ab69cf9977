"""What can honestly be said of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from dlcourse.data import Split

LEAST_SKILL = 0.01
"""Share of the trivial baseline's loss that must be gone for anything to have been learned."""
PERMUTATIONS = 999
LEVEL = 0.05

Comparison = Literal["better", "as good", "worse"]


@dataclass(frozen=True)
class Difference:
    """A model's mean loss less a baseline's on the same rows, with the standard error of that paired difference."""

    mean: float
    standard_error: float
    comparison: Comparison


@dataclass(frozen=True)
class Verdict:
    """``headline`` begins with one of: diverged, learned nothing, stuck, unfinished, learned, converged."""

    headline: str
    learned: bool
    judged: Split
    p_value: float
    differences: dict[str, Difference]
    advice: str = ""


def diverged(epoch: int, loss: float, lr: float, standardized: bool) -> Verdict:
    """The verdict on a training whose loss left the range of numbers."""
    remedy = f"lower --model.lr ({lr:g})"
    if not standardized:
        remedy += " or standardise the inputs (--data.standardize true)"
    advice = f"the loss was {loss:.3g} in epoch {epoch}: each step overshot the minimum by more than the last; {remedy}"
    return Verdict("diverged", False, "train", 1.0, {}, advice)


def judge(
    judged: Split,
    losses: Tensor,
    shuffled: Callable[[Tensor], Tensor],
    baselines: Mapping[str, Tensor],
    curve: Sequence[float] = (),
) -> Verdict:
    """Judge a model by its loss on each row of one split.

    It has learned if its loss is at least `LEAST_SKILL` below the trivial baseline's, and lower than with the targets
    dealt out anew among the rows in all but 5 % of the cases (a permutation test: Good 2005, chapter 3).

    Args:
        judged: The split that the rows are of.
        losses: The model's loss on each row, N.
        shuffled: From an order of the rows to the model's losses with the targets in that order.
        baselines: Each baseline's losses on the same rows; the trivial one first.
        curve: The training loss of each epoch, which tells whether a model that is no good was done learning.
    """
    trivial, *others = baselines
    advice = ""
    generator = torch.Generator().manual_seed(0)
    orders = (torch.randperm(len(losses), generator=generator) for _ in range(PERMUTATIONS))
    mean = float(losses.mean())
    as_low = mean + 1e-6 * abs(mean)  # the same losses in another order may sum up a little differently
    at_least_as_low = sum(float(shuffled(order).double().mean()) <= as_low for order in orders)
    p_value = (at_least_as_low + 1) / (PERMUTATIONS + 1)
    skill = 1 - mean / float(baselines[trivial].mean())
    differences = {name: compare(losses, each) for name, each in baselines.items()}
    learned = p_value <= LEVEL and skill >= LEAST_SKILL
    if not learned:
        headline = f"learned nothing: no better than {trivial}"
    elif not others:
        headline = f"learned: better than {trivial}"
    else:
        best = min(others, key=lambda name: float(baselines[name].mean()))
        says = {"better": "better than", "as good": "no better and no worse than", "worse": "worse than"}
        headline = f"learned: {says[differences[best].comparison]} {best}"
        if judged == "train" and differences[best].comparison == "worse":
            # A network holds the linear model within it: on its own training rows nothing excuses being worse.
            if _has_stopped_falling(curve):
                headline = f"stuck: worse than {best} on the very rows it was trained on"
                advice = "the loss no longer falls; another seed, activation or learning rate may get it off"
            else:
                headline = f"unfinished: worse than {best} on the very rows it was trained on"
                advice = "the loss still falls: raise --trainer.max_epochs or --model.lr"
    return Verdict(headline, learned, judged, p_value, differences, advice)


def _has_stopped_falling(curve: Sequence[float]) -> bool:
    """Whether the last tenth of the epochs brought the training loss down by less than 1 %."""
    return len(curve) > 1 and curve[-1] > (1 - LEAST_SKILL) * curve[-1 - max(len(curve) // 10, 1)]


def compare(losses: Tensor, others: Tensor) -> Difference:
    """Which of two models has the lower loss on the same rows, by a paired t-test at 5 %."""
    difference = np.asarray(losses - others, dtype=float)
    mean = float(difference.mean())
    if len(difference) < 2:
        return Difference(mean, float("nan"), "as good")
    error = float(difference.std(ddof=1) / len(difference) ** 0.5)
    far = abs(mean) > stats.t.ppf(1 - LEVEL / 2, len(difference) - 1) * error
    comparison: Comparison = "as good" if not far else "better" if mean < 0 else "worse"
    return Difference(mean, error, comparison)
