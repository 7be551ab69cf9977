"""95 % intervals of means and of proportions."""

from scipy import stats
from torch import Tensor

CONFIDENCE = 0.95


def are_shares(values: Tensor) -> bool:
    """Whether each of N values is 0 or 1, so that their mean is a proportion."""
    return bool(((values == 0) | (values == 1)).all())


def interval_of_mean(values: Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean of N values: Wilson's (1927) for a proportion, else Student's t.

    NaN for a single value that is neither 0 nor 1.
    """
    if are_shares(values):
        return interval_of_share(int(values.sum()), len(values))
    if len(values) < 2:
        return float("nan"), float("nan")
    mean, error = float(values.mean()), float(values.std()) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def interval_of_share(count: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of the proportion ``count / rows`` (Wilson 1927)."""
    interval = stats.binomtest(count, rows).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
