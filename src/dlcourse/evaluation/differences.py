"""Differences between models and between settings: how large, how sure, and in which sentence.

Two questions look alike and are not. Whether this *model* is better than that one is a question about rows: both were
evaluated on the same ones. Whether these *settings* are better than those is a question about seeds as well: another
training gives another model. `compare_models` and `compare_settings` answer one each, and `sentence` says which.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, hypot, inf, isinf, isnan, log, log10, nan
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats
from scipy.optimize import brentq
from torch import Tensor

from dlcourse.evaluation.intervals import CONFIDENCE, are_shares, interval_of_mean

ALPHA = 1 - CONFIDENCE
"""The level of two-sided tests. A claim in one direction is thereby tested at half of it."""
POWER = 0.8
"""The usual power to plan for (Cohen 1988)."""
LEAST_ROWS = 20
"""Fewer rows are too few for a paired t-test, and for an estimate of the skewness that decides whether to use it."""
COCHRAN = 25.0
"""Rows needed per unit of squared skewness (Cochran 1977, Sampling Techniques, section 2.15)."""

Comparison = Literal["better", "worse", "not told apart", "not tested"]
Outcome = Literal["better", "worse", "the same", "not told apart", "not tested"]


@dataclass(frozen=True)
class Difference:
    """A model's mean minus a baseline's over the same rows, with its 95 % interval.

    ``rule`` is the rule by which the difference was not tested, if there is one.
    """

    mean: float
    low: float
    high: float
    comparison: Comparison
    rule: str = ""

    def rounded_like(self, value: float) -> str:
        """Rounded like a value with four significant digits: further digits differ between processors."""
        places = max(3 - floor(log10(abs(value))), 0) if value else 4
        mean, low, high = (f"{each:+z.{places}f}" for each in (self.mean, self.low, self.high))
        return f"{mean} ({self.rule or f'{low} to {high}'})"


@dataclass(frozen=True)
class Answer:
    """Whether A is better than B: two models on the same rows, or two settings over seeds and rows.

    Attributes:
        difference: A's mean minus B's; ``low`` and ``high`` are its 95 % interval.
        p_value: Two-sided, of no difference; 1 if a rule forbids the claim.
        p_same: The larger of two one-sided p-values (Schuirmann 1987), of a difference of at least the margin.
        margin: The largest difference that does not matter.
        rows: Number of rows.
        row_variance: The part of the squared standard error that only more rows make smaller.
        seeds: Numbers of seeds of A and B, 0 for a deterministic baseline; None for models.
        seed_variance: The other part, for one seed of each.
        probability: Share of all pairs of seeds in which A is better than B; ties count half (Bouthillier et al. 2021).
        rule: Why the difference was not tested; otherwise empty.
        hypotheses: The number of tests for which `holm` has adjusted the p-values.
    """

    question: Literal["models", "settings"]
    difference: float
    low: float
    high: float
    p_value: float
    p_same: float
    margin: float
    higher_is_better: bool
    rows: int
    row_variance: float
    seeds: tuple[int, int] | None = None
    seed_variance: float = 0.0
    probability: float | None = None
    rule: str = ""
    hypotheses: int = 1

    @property
    def outcome(self) -> Outcome:
        """Each claim is tested at 5 %. A difference that is shown but smaller than the margin is "the same"."""
        if self.p_same <= ALPHA:
            return "the same"
        if self.p_value <= ALPHA:
            return "better" if (self.difference > 0) == self.higher_is_better else "worse"
        return "not tested" if self.rule else "not told apart"

    @property
    def needed(self) -> str:
        """What shows a difference of this size in 80 % of cases, such as "about 12 seeds of each"; otherwise empty.

        By the normal approximation; numbers of seeds with the correction of Guenther (1981) for Student's t.
        """
        if self.outcome != "not told apart" or not self.difference:
            return ""
        critical = float(stats.norm.isf(ALPHA / 2 / self.hypotheses))
        enough = (self.difference / (critical + float(stats.norm.ppf(POWER)))) ** 2  # the squared standard error
        rows = _rounded_up(max(self.rows * self.row_variance / enough, LEAST_ROWS))
        if self.seeds is None:
            return f"about {rows} rows"
        if enough <= self.row_variance:
            return f"more than {rows} rows, however many seeds,"
        samples = 2 if all(self.seeds) else 1
        seeds = self.seed_variance / (enough - self.row_variance) + critical**2 / (2 * samples)
        return f"about {_rounded_up(max(seeds, *(each + 1 for each in self.seeds)))} seeds{' of each' * (samples - 1)}"

    def as_dict(self) -> dict[str, Any]:
        """The fields, the outcome and what is needed, as plain types for JSON."""
        return {**dataclasses.asdict(self), "outcome": self.outcome, "needed": self.needed}


@dataclass(frozen=True)
class Estimate:
    """A mean of a metric with its 95 % interval, and the standard deviation over seeds or folds; None with one.

    The interval is NaN where nothing is known of the rows.
    """

    mean: float
    std: float | None
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if isnan(self.low) else f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})"


class _Variance(NamedTuple):
    """A part of the squared standard error of a mean, with the degrees of freedom of this estimate."""

    of_mean: float
    degrees: float


@dataclass(frozen=True)
class _Mean:
    """A mean over rows, or over seeds and rows, with what its variance consists of."""

    value: float
    rows: _Variance
    seeds: tuple[_Variance, ...] = ()

    def half_width(self, level: float) -> float:
        """Half of the interval that misses the truth with this probability.

        The variances of the seeds of two settings are added as by Welch (1947). Rows and seeds have their own half
        widths, whose squares are added (Howe 1974). One number of degrees of freedom for all, after Satterthwaite,
        would make three seeds too sure where they agree by chance.
        """
        of_seeds = sum(each.of_mean for each in self.seeds)
        parts = [self.rows]
        if of_seeds:
            parts.append(_Variance(of_seeds, of_seeds**2 / sum(each.of_mean**2 / each.degrees for each in self.seeds)))
        return hypot(*(_critical(level, each.degrees) * each.of_mean**0.5 for each in parts))

    def interval(self, least: float = -inf, most: float = inf) -> tuple[float, float]:
        """The 95 % interval, within the range of such means."""
        half = self.half_width(ALPHA)
        return max(self.value - half, least), min(self.value + half, most)

    def p_value(self, bound: float) -> float:
        """Two-sided, of the mean being equal to a bound: the level at which the interval reaches it."""
        distance, smallest = abs(self.value - bound), 1e-100
        if distance == 0:
            return 1.0
        if self.half_width(smallest) <= distance:
            return smallest
        return exp(brentq(lambda power: self.half_width(exp(power)) - distance, log(smallest), 0.0))

    def p_above(self, bound: float) -> float:
        """One-sided, of the claim that the mean is above a bound."""
        half = self.p_value(bound) / 2
        return half if self.value > bound else 1 - half


def _critical(level: float, degrees: float) -> float:
    """The two-sided critical value of Student's t, or of the normal distribution if the degrees are infinite."""
    return -float(special.ndtri(level / 2) if isinf(degrees) else special.stdtrit(degrees, level / 2))


# Two models


def compare(values: Tensor, others: Tensor, *, higher_is_better: bool = False, rule: str = "") -> Difference:
    """Which of two models is better on the same rows, from N values each. Each direction is tested at 2.5 %.

    Proportions (a value is 1 if the row is right, else 0) are compared by McNemar's exact test, whose error rate never
    exceeds its level, with the interval of Bonett and Price (2012). Other values are compared by a paired t-test, whose
    error rate may exceed its level. So nothing is claimed if there are fewer than `LEAST_ROWS` rows, if the differences
    are skewed against the claim by more than Cochran's rule allows, or if ``rule`` is not empty.
    """
    difference = np.asarray(values - others, dtype=float)
    mean, rows = float(difference.mean()), len(difference)
    if are_shares(values) and are_shares(others):
        differs = _mcnemar(difference) <= ALPHA
        low, high = _mean_of_paired_shares(difference).interval(-1.0, 1.0)
        rule = ""
    else:
        low, high = interval_of_mean(torch.from_numpy(difference))
        differs = low > 0 or high < 0
        if differs:
            rule = _rule_against(difference, mean, rule)
    if not differs:
        return Difference(mean, low, high, "not tested" if rows < 2 else "not told apart")
    if rule:
        return Difference(mean, low, high, "not tested", rule)
    return Difference(mean, low, high, "better" if (mean > 0) == higher_is_better else "worse")


def compare_models(values: Tensor, others: Tensor, *, higher_is_better: bool, margin: float, rule: str = "") -> Answer:
    """Whether a model is better than another on the same N rows, at least 2, or the same: from N values each.

    The difference is tested as in `compare`. "The same" is tested by Student's t under the same rules, and for
    proportions by the normal approximation of Bonett and Price.
    """
    difference = np.asarray(values - others, dtype=float)
    if are_shares(values) and are_shares(others):
        mean = _mean_of_paired_shares(difference)
        answer = _answer("models", mean, difference, margin, higher_is_better, shares=True)
        return dataclasses.replace(answer, p_value=_mcnemar(difference))
    mean = _Mean(float(difference.mean()), _Variance(difference.var(ddof=1) / len(difference), len(difference) - 1))
    return _answer("models", mean, difference, margin, higher_is_better, rule=rule)


def _answer(
    question: Literal["models", "settings"],
    mean: _Mean,
    by_row: NDArray[np.float64],
    margin: float,
    higher_is_better: bool,
    *,
    shares: bool = False,
    rule: str = "",
) -> Answer:
    """From an estimated difference and the differences of the N rows. The rules do not concern proportions."""
    difference = float(by_row.mean())
    p_value = mean.p_value(0)
    p_same = max(mean.p_above(-margin), 1 - mean.p_above(margin))
    if not shares:
        # "Below the margin" is misled by rare large differences that are not among the rows, "above" by small ones.
        if any(_rule_against(by_row, claim, rule) for claim in (-1.0, 1.0)):
            p_same = 1.0
        rule = _rule_against(by_row, difference, rule) if p_value <= ALPHA else ""
        p_value = 1.0 if rule else p_value
    low, high = mean.interval(*((-1.0, 1.0) if shares else (-inf, inf)))
    return Answer(
        question,
        difference,
        low,
        high,
        p_value,
        p_same,
        margin,
        higher_is_better,
        rows=len(by_row),
        row_variance=mean.rows.of_mean,
        rule=rule,
    )


def _mcnemar(difference: NDArray[np.float64]) -> float:
    """The exact two-sided p-value (McNemar 1947) of N differences of 0 and 1."""
    more, fewer = int((difference > 0).sum()), int((difference < 0).sum())
    return float(stats.binomtest(more, more + fewer).pvalue) if more + fewer else 1.0


def _mean_of_paired_shares(difference: NDArray[np.float64]) -> _Mean:
    """The adjusted mean and variance of Bonett and Price (2012), who add one row to each kind that differs."""
    rows = len(difference) + 2
    more, fewer = (int((difference > 0).sum()) + 1) / rows, (int((difference < 0).sum()) + 1) / rows
    return _Mean(more - fewer, _Variance((more + fewer - (more - fewer) ** 2) / rows, inf))


def _rule_against(difference: NDArray[np.float64], claim: float, rule: str = "") -> str:
    """The rule that forbids a claim on the sign of the mean of N differences, by Student's t; otherwise empty.

    Args:
        difference: The differences.
        claim: The claimed sign.
        rule: One that is known already.
    """
    rows = len(difference)
    if rows < LEAST_ROWS:
        return f"a paired t-test needs at least {LEAST_ROWS} rows"
    against_claim = -np.sign(claim) * _skewness(difference)
    if not rule and against_claim > 0 and rows < (needed := COCHRAN * against_claim**2):
        return f"too skewed for a paired t-test: by Cochran's rule it needs {needed:.0f} rows, not {rows}"
    return rule


def _skewness(values: NDArray[np.float64]) -> float:
    """The third central moment over the second to the power of 1.5; 0 if all values are equal (scipy would warn)."""
    centred = values - values.mean()
    variance = float((centred**2).mean())
    return float((centred**3).mean()) / variance**1.5 if variance else 0.0


# Two settings


def compare_settings(values: Tensor, others: Tensor, *, higher_is_better: bool, margin: float) -> Answer:
    """Whether a new training with some settings is expected to be better than one with others, on rows like these.

    What is expected over seeds and rows is compared, by a t-test on the means of the seeds (Welch 1947) with the
    variance of the rows added. Of proportions a row is added to each kind that differs, as Bonett and Price (2012) do.

    Args:
        values: S x N, S at least 2: for each seed's model the values of the same N rows.
        others: T x N, T at least 2; or N values of a deterministic baseline, which no seed changes.
        higher_is_better: Whether higher values are better.
        margin: The largest difference that does not matter.
    """
    mine, theirs = values.double(), others.double().view(-1, values.shape[1])
    assert len(mine) > 1
    assert others.ndim == 1 or len(theirs) > 1
    shares = are_shares(mine) and are_shares(theirs)
    by_row = (mine.mean(0) - theirs.mean(0)).numpy()
    better = (mine.mean(1)[:, None] - theirs.mean(1)).sign()  # S x T
    better = better if higher_is_better else -better
    if shares:
        mine, theirs = _with_rows(mine, [1, 0]), _with_rows(theirs, [0, 1])
    mean = _mean_over_seeds(mine, -theirs)
    answer = _answer("settings", mean, by_row, margin, higher_is_better, shares=shares)
    return dataclasses.replace(
        answer,
        seeds=(len(values), len(others) if others.ndim > 1 else 0),
        seed_variance=sum(each.of_mean * (each.degrees + 1) for each in mean.seeds),
        probability=float((1 + better).mean()) / 2,
    )


def mean_over_seeds(values: Tensor) -> Estimate:
    """The metric that is expected of a new training on rows like these, with its 95 % interval.

    Student's t with the variances of seeds and rows. Of proportions two rows of either kind are added, as Agresti and
    Coull (1998) do, so that the interval has a width even if all rows are right. With one seed it is
    `interval_of_mean`, which says nothing of other seeds.

    Args:
        values: S x N: for each seed's model the values of the same N rows.
    """
    values = values.double()
    if len(values) == 1:
        return Estimate(float(values.mean()), None, *interval_of_mean(values[0]))
    std = float(values.mean(1).std())
    if values.shape[1] < 2:  # as in gradient descent on a function without data
        return Estimate(float(values.mean()), std, nan, nan)
    shares = are_shares(values)
    mean = _mean_over_seeds(_with_rows(values, [1, 1, 0, 0]) if shares else values)
    return Estimate(float(values.mean()), std, *mean.interval(*((0.0, 1.0) if shares else (-inf, inf))))


def _with_rows(values: Tensor, added: list[int]) -> Tensor:
    """S x N values with further rows, the same for each seed."""
    return torch.cat([values, values.new_tensor(added).expand(len(values), -1)], 1)


def _mean_over_seeds(*settings: Tensor) -> _Mean:
    """The sum over settings of the means over seeds and rows, from seeds x N values of each setting.

    Two-way random effects: seeds, rows, and their interaction. That a model is wrong on other rows than that of the
    next seed is interaction. It makes the means of the seeds vary, and is counted there; so it is taken off the
    variance over rows, and what is left is common to the seeds.
    """
    by_row = torch.stack([each.mean(0) for each in settings]).sum(0)  # N
    rows, interaction, parts = len(by_row), 0.0, []
    for values in settings:
        if (seeds := len(values)) > 1:
            means = values.mean(1, keepdim=True)  # seeds x 1
            parts.append(_Variance(float(means.var()) / seeds, seeds - 1))
            interaction += float((values - means).var(0).mean()) / seeds
    common = max(float(by_row.var()) - interaction, 0.0) / rows
    return _Mean(float(by_row.mean()), _Variance(common, rows - 1), tuple(parts))


# Several comparisons, and their sentences


def holm(answers: Sequence[Answer], hypotheses: int | None = None) -> list[Answer]:
    """The answers with p-values adjusted for their number (Holm 1979): any false claim among them has at most 5 %.

    Args:
        answers: Answers to questions that were asked together.
        hypotheses: The number of tests that there might have been, by default that of the answers. When the best of k
            is compared with each other, the same data chose it: then all k (k - 1) / 2 pairs count. For some of the
            p-values the factors of all are too large, never too small.
    """
    count = hypotheses or len(answers)
    p_values = _adjusted([each.p_value for each in answers], count)
    p_same = _adjusted([each.p_same for each in answers], count)
    return [
        dataclasses.replace(answer, p_value=differs, p_same=same, hypotheses=count)
        for answer, differs, same in zip(answers, p_values, p_same, strict=True)
    ]


def compare_chosen(values: Tensor, others: Tensor, *, higher_is_better: bool, num_tried: int) -> Answer:
    """Whether a model is better than another on the same N rows by which it was chosen as the best of several.

    The p-value is multiplied by their number (Bonferroni): where none of them is better than the other, the best of
    them is called better in at most 5 % of cases.

    Args:
        values: N values of the model.
        others: N values of the other one.
        higher_is_better: Whether higher values are better.
        num_tried: How many models it was chosen from, itself included; 1 if these rows did not choose it.
    """
    (answer,) = holm([compare_models(values, others, higher_is_better=higher_is_better, margin=0.0)], num_tried)
    return answer


def _adjusted(p_values: list[float], hypotheses: int) -> list[float]:
    """Each p-value times the number of hypotheses that are left when it is reached; never below a smaller one's."""
    adjusted, highest = list(p_values), 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min((hypotheses - place) * p_values[number], 1.0))
        adjusted[number] = highest
    return adjusted


def sentence(answer: Answer, name: str, other: str, metric: str, correction: str = "Holm") -> str:
    """The answer in one sentence that says which question it answers.

    Args:
        answer: The answer.
        name: What A is called.
        other: What B is called.
        metric: The name of the metric.
        correction: The method by which p-values were adjusted, if they were.
    """
    outcome, is_model = answer.outcome, answer.question == "models"
    is_worse = outcome in ("better", "worse") and answer.difference < 0
    by = _size(answer, -1 if is_worse else 1)  # "worse by 0.02", not "by -0.02"
    pair = f"{name} and {other}" if is_model else f"settings {name} and {other}"
    where = f"on these {answer.rows} rows" if is_model else "for a new training"
    match outcome:
        case "the same":
            said = f"{pair} are the same in {metric} within {answer.margin:g} {where}: {by}"
        case "not told apart":
            said = f"{pair} cannot be told apart in {metric} {where}: {by}"
        case "not tested":
            said = f"{pair} were not compared in {metric} {where}: {answer.rule}"
        case _ if is_model:
            said = f"this model ({name}) is {outcome} in {metric} than {other} by {by} {where}"
        case _:
            said = f"settings {name}: a new training is expected to be {outcome} in {metric} than {other} by {by}"
    if answer.hypotheses > 1:
        said += f" ({correction}, {answer.hypotheses} comparisons)"
    if answer.needed:
        said += f"; {answer.needed} would be needed to tell a difference of this size"
    if answer.seeds is None or answer.probability is None:
        return f"{said}; nothing is known about their settings"
    pairs = answer.seeds[0] * max(answer.seeds[1], 1)
    return f"{said}; better in {answer.probability * pairs:g} of {pairs} pairs of seeds"


def _size(answer: Answer, sign: int) -> str:
    """The difference with its interval, to two significant digits of half of that: 0.021 (0.009 to 0.033)."""
    low, high = sorted((sign * answer.low, sign * answer.high))
    half = (high - low) / 2
    places = max(1 - floor(log10(half)), 0) if half else 4
    return f"{sign * answer.difference:z.{places}f} ({low:z.{places}f} to {high:z.{places}f})"


def _rounded_up(number: float) -> str:
    """To two significant digits, with commas: 12, 140, 39,000."""
    unit = 10 ** max(len(str(int(number))) - 2, 0)
    return f"{ceil(number / unit) * unit:,}"
