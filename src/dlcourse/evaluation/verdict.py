"""The verdict on a run: whether the model learned anything, and how it compares with the baselines.

It is based on the loss and the primary metric. Every one-sided claim is tested at 2.5 %, so that the probability of any
false claim among the two is at most 5 % (Bonferroni).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlcourse.data.rows import Split
from dlcourse.evaluation.differences import Difference, compare
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.intervals import CONFIDENCE

LEVEL = (1 - CONFIDENCE) / 2
PERMUTATIONS = 999
ENOUGH = round(LEVEL * (PERMUTATIONS + 1)) + 1
"""Permutations that are as good as the real targets: with so many of them the p-value is above `LEVEL`."""
MOST_AT_ONCE, MOST_VALUES = 64, 2**22
"""Permutations that are evaluated as one batch, and how many outputs (32 MiB) that batch may repeat."""
LEAST_EFFECT = 0.01
"""Glass's delta: the smallest gain that counts, in standard deviations of the trivial baseline's losses."""
LEAST_RARE_ROWS = 10
"""The classes with fewer rows than this must have as many together: otherwise their losses may be missing entirely."""
STILL_FALLING = 0.05
"""A training is stuck if the last tenth of its epochs closed less than this fraction of the gap to the linear model: at
that rate it would need more than twice as many epochs again."""

ValuesOf = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""From outputs and targets of any number of rows to the "loss" and the metrics of each row."""
ROWS_OF = {"test": "test rows", "val": "validation rows"}

NO_DIFFERENCE = Difference(0.0, 0.0, 0.0, "not told apart")


@dataclass(frozen=True)
class Verdict:
    """The verdict on one trained model. A claim about its settings would need several seeds.

    Attributes:
        sentence: It begins with one of: diverged, learned nothing, learned, fitted, stuck, unfinished, converged.
        learned: None if that cannot be known, since every row was a training row.
        p_values: Those of the permutation tests, of "loss" and of the primary metric if it is not the loss.
        differences: The differences to each baseline, by baseline, then by the same quantities.
        advice: What to do about it; empty if there is nothing to do.
        baseline: The one that the sentence is about, if the model was compared with it on rows it was not trained on.
    """

    sentence: str
    learned: bool | None
    eval_split: Split
    p_values: dict[str, float]
    differences: dict[str, dict[str, Difference]]
    advice: str = ""
    baseline: str = ""

    @property
    def text(self) -> str:
        """The sentence, and in brackets the differences that it rests on, with their 95 % intervals."""
        if not self.baseline:
            return self.sentence
        parts = [
            f"{quantity} {each.mean:+.3g}" + ("" if each.rule else f", {each.low:+.3g} to {each.high:+.3g}")
            for quantity, each in self.differences[self.baseline].items()
        ]
        return f"{self.sentence} ({'; '.join(parts)})"


def diverged(epoch: int, loss: float, remedy: str) -> Verdict:
    """The verdict on a training that diverged."""
    advice = f"the loss was {loss:.3g} in epoch {epoch}: each step overshot the minimum by more than the last; {remedy}"
    return Verdict("diverged", False, "train", {}, {}, advice)


def judge(
    measured: Evaluation,
    values_of: ValuesOf,
    baselines: Mapping[str, Evaluation],
    primary_metric: str,
    *,
    higher_is_better: bool,
    training_classes: Sequence[int] = (),
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    kept_epoch: int | None = None,
) -> Verdict:
    """The verdict on a model, from its evaluation on one split.

    It has learned if its loss is lower with the rows' own targets than with permuted ones (a permutation test: Good
    2005, chapter 3), and lower than the trivial baseline's by `LEAST_EFFECT`; or if both hold for its primary metric,
    and a paired test finds that better than the baseline's. Training rows cannot show learning, since a network can
    memorise them: for them the sentence says how well they are fitted.

    Args:
        measured: The model's evaluation.
        values_of: Computes the loss and the primary metric of each row, for the permuted targets.
        baselines: The baselines' evaluations on the same rows; the trivial one first.
        primary_metric: One of the evaluations' scores.
        higher_is_better: Whether higher values of that metric are better. For the loss, lower ones always are.
        training_classes: The classes of the training rows; empty for a regression.
        curves: ``train/loss`` and ``val/loss``: (epoch, value).
        kept_epoch: The epoch of the evaluated weights.
    """
    quantities = quantities_of(measured, primary_metric, higher_is_better)
    differences = compare_with(measured, baselines, quantities, training_classes)
    values = measured.values
    trivial, *others = baselines
    least = baselines[trivial].values
    gains = {quantity: _is_gain(values[quantity], least[quantity], up) for quantity, up in quantities.items()}
    best = min(others, key=lambda name: float(baselines[name].losses.mean()), default=trivial)
    curves = curves or {}
    if measured.split == "train":
        sentence, advice = _fitted(measured, baselines, primary_metric, best, any(gains.values()), curves)
        return Verdict(sentence, None if any(gains.values()) else False, "train", {}, differences, advice)
    p_values = permutation_test(measured, values_of, quantities)
    learned = {quantity: p_values[quantity] <= LEVEL and gains[quantity] for quantity in quantities}
    if primary_metric in learned:
        learned[primary_metric] &= differences[trivial][primary_metric].comparison == "better"
    rows = f"these {len(measured.targets)} {ROWS_OF[measured.split]}"
    advice, compared_with = "", trivial
    if not any(learned.values()):
        sentence = f"learned nothing that {rows} show: not better than {trivial}"
    elif not gains["loss"]:
        is_worse = differences[trivial]["loss"].comparison == "worse"
        said = "worse than" if is_worse else "not known to be better than"
        sentence = f"learned: better {primary_metric} than {trivial}, but its loss is {said} that"
        if training_classes:
            sentence = (
                f"learned: classifies better than {trivial}, but its probabilities are {said} the classes' shares"
            )
            advice = _calibrate(curves.get("val/loss", ()), kept_epoch) if is_worse else ""
    elif learned["loss"] and differences[trivial].get(primary_metric, NO_DIFFERENCE).comparison == "worse":
        sentence = f"learned: a better loss than {trivial}, but a worse {primary_metric}"
    else:
        compared_with = best
        sentence = f"learned: {against(best, differences[best], rows)}"
        if best == trivial and "better" not in sentence:  # shown by the permutation test, which needs fewer rows
            sentence = sentence.replace("learned:", "learned: its outputs follow the targets;")
    return Verdict(sentence, any(learned.values()), measured.split, p_values, differences, advice, compared_with)


def quantities_of(measured: Evaluation, primary_metric: str, higher_is_better: bool) -> dict[str, bool]:
    """The quantities of the verdict, and whether higher is better: the loss, and the primary metric if it differs."""
    is_loss = torch.equal(measured.values[primary_metric], measured.losses)
    return {"loss": False} if is_loss else {"loss": False, primary_metric: higher_is_better}


def compare_with(
    measured: Evaluation,
    baselines: Mapping[str, Evaluation],
    quantities: Mapping[str, bool],
    training_classes: Sequence[int] = (),
) -> dict[str, dict[str, Difference]]:
    """The differences between a model and each baseline on the same rows, by baseline, then quantity."""
    rule = _rule_of_classes(measured.targets, training_classes)
    return {
        name: {
            quantity: compare(measured.values[quantity], other.values[quantity], higher_is_better=up, rule=rule)
            for quantity, up in quantities.items()
        }
        for name, other in baselines.items()
    }


def against(name: str, differences: Mapping[str, Difference], rows: str, what: str = "this model") -> str:
    """How a model compares with a baseline, in a sentence that claims only what was tested."""
    by = {
        comparison: " and ".join(
            quantity for quantity, difference in differences.items() if difference.comparison == comparison
        )
        for comparison in ("better", "worse", "not told apart")
    }
    if by["better"] and by["worse"]:
        return f"{what} has a better {by['better']} and a worse {by['worse']} than {name} on {rows}"
    for comparison in ("better", "worse"):
        if by[comparison]:
            part = f" in {by[comparison]}" if len(differences) > 1 and " and " not in by[comparison] else ""
            return f"{what} is {comparison} than {name}{part} on {rows}"
    return (
        f"not told apart from {name} on {rows}"
        if by["not told apart"]
        else f"not compared with {name}: {rows} are too few"
    )


def _rule_of_classes(targets: Tensor, training_classes: Sequence[int]) -> str:
    """The rule by which means over rows are unreliable, or an empty string: rows of a rare class may have other losses.

    With 50 rows and a class that makes up one in twenty, one in thirteen samples contains none of it.
    """
    if not training_classes:
        return ""
    counts = torch.bincount(targets, minlength=max(training_classes) + 1)[list(training_classes)]
    rare = counts[counts < LEAST_RARE_ROWS]
    if not len(rare) or int(rare.sum()) >= LEAST_RARE_ROWS:
        return ""
    return f"{int(rare.sum())} rows of rare classes: a paired t-test needs {LEAST_RARE_ROWS}"


def permutation_test(
    measured: Evaluation, values_of: ValuesOf, higher_is_better: Mapping[str, bool]
) -> dict[str, float]:
    """One-sided p-values by quantity: how often permuted targets give a mean as good as that of the real ones.

    Exact for any number of rows and any values if targets and inputs are independent. A p-value that cannot fall below
    `LEVEL` any more is that of the permutation at which this is known (Besag and Clifford 1991).
    """
    generator = torch.Generator().manual_seed(0)
    permuted = _permuted_values(measured, values_of, list(higher_is_better))
    rows, at_once = len(measured.targets), min(max(MOST_VALUES // measured.outputs.numel(), 1), MOST_AT_ONCE)
    as_good = {name: torch.empty(0, dtype=torch.bool) for name in higher_is_better}
    for done in range(0, PERMUTATIONS, at_once):
        left = min(at_once, PERMUTATIONS - done)
        orders = torch.stack([torch.randperm(rows, generator=generator) for _ in range(left)])  # K x N
        for name, values in permuted(orders).items():
            real = measured.values[name].double()
            gains = (values.mean(1) - real.mean()) * (1 if higher_is_better[name] else -1)  # K
            # Sums of the same values in another order may differ by rounding.
            as_good[name] = torch.cat([as_good[name], gains >= -1e-6 * real.abs().mean()])
        if all(int(each.sum()) >= ENOUGH for each in as_good.values()):
            break
    return {name: _p_value(each) for name, each in as_good.items()}


def _p_value(as_good: Tensor) -> float:
    """From whether each permutation was as good, in their order: at most `PERMUTATIONS` of them."""
    count = int(as_good.sum())
    if count < ENOUGH:
        return (count + 1) / (PERMUTATIONS + 1)
    return ENOUGH / (1 + int((as_good.cumsum(0) == ENOUGH).nonzero()[0]))


def _permuted_values(
    measured: Evaluation, values_of: ValuesOf, names: Sequence[str]
) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function from K permutations of the rows, K x N, to the values with the targets in each of these orders, K x N.

    With classes it looks up the value of each row with each class: four times as fast for 10,000 rows of ten classes.
    """
    outputs, targets = measured.outputs, measured.targets
    if targets.is_floating_point() or targets.ndim > 1:

        def evaluated(orders: Tensor) -> dict[str, Tensor]:
            repeated = outputs.expand(len(orders), *outputs.shape).flatten(0, 1)  # K N x outputs
            values = values_of(repeated, targets[orders.flatten()])
            return {name: values[name].double().view(orders.shape) for name in names}

        return evaluated
    classes, numbers = torch.unique(targets, return_inverse=True)  # C, N
    by_class = [values_of(outputs, each.expand_as(targets)) for each in classes]
    tables = {name: torch.stack([values[name] for values in by_class], 1).double() for name in names}  # N x C
    first_places = torch.arange(len(targets)) * len(classes)  # of each row in a table
    return lambda orders: {name: table.take(first_places + numbers[orders]) for name, table in tables.items()}


def _is_gain(values: Tensor, trivial: Tensor, higher_is_better: bool) -> bool:
    """Whether the mean is better than the trivial baseline's by at least `LEAST_EFFECT`."""
    gain = float((values - trivial).mean())
    gain = gain if higher_is_better else -gain
    return gain > 0 and gain >= LEAST_EFFECT * float(trivial.std(correction=0))


def _fitted(
    measured: Evaluation,
    baselines: Mapping[str, Evaluation],
    primary_metric: str,
    best: str,
    is_gain: bool,
    curves: Mapping[str, Sequence[tuple[int, float]]],
) -> tuple[str, str]:
    """Sentence and advice for a model that is evaluated on its training rows."""
    trivial = next(iter(baselines))
    if not is_gain:
        return f"learned nothing: fits its training rows no better than {trivial}", ""
    # A network can represent the linear model, so on its own training rows it should not be worse.
    behind = float((measured.losses - baselines[best].losses).mean())
    if behind > LEAST_EFFECT * float(baselines[trivial].losses.std(correction=0)):
        curve = [value for _, value in curves.get("train/loss", ())]
        if len(curve) > 1 and curve[-1 - max(len(curve) // 10, 1)] - curve[-1] < STILL_FALLING * behind:
            advice = "the loss hardly falls any more: try another seed, activation or learning rate"
            return f"stuck: worse than {best} on the very rows it was trained on", advice
        advice = "the loss is still falling: raise --trainer.max_epochs or --model.lr"
        return f"unfinished: worse than {best} on the very rows it was trained on", advice
    mine, theirs = (f"{each.metrics[primary_metric]:.4g}" for each in (measured, baselines[best]))
    rows = f"its {len(measured.targets)} training rows"
    return f"fitted: {primary_metric} {mine} on {rows}, {theirs} of {best}", ""


def _calibrate(val_losses: Sequence[tuple[int, float]], kept_epoch: int | None) -> str:
    """Advice for a classifier whose probabilities are overconfident."""
    advice = "calibrate them (temperature scaling: Guo et al. 2017)"
    if not val_losses:
        return advice
    lowest = min(val_losses, key=lambda point: point[1])[0]
    if kept_epoch is not None and lowest < kept_epoch:
        advice += (
            f", or stop earlier: validation loss was lowest in epoch {lowest}; these are the weights of {kept_epoch}"
        )
    return advice
