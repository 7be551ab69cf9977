"""How often comparisons of models and of settings are right, on cases built so that the right answer is known.

    python -m benchmarks.comparisons [--runs 1000] [--real] [--json FILE]

Without ``--real`` nothing is trained: what each seed's model does with each row is drawn, and given to the functions
that every comparison uses. With it, the network of experiments/diabetes/default.yaml is trained with 120 seeds: 20
comparisons of the settings with themselves, three seeds a side, where any difference that is claimed is a false alarm.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from dlcourse.evaluation.differences import Answer, compare_models, compare_settings, holm, mean_over_seeds
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.training.fit import fit, new_model
from dlcourse.training.request import resolve
from dlcourse.training.start import load_data

# What is drawn

ACCURACY = 0.88
OF_SETTING, OF_TRAINING = 0.3, 0.35
"""How far a row is easier for one setting, and for one training, in standard deviations of its difficulty. Of 100 rows,
two trainings with one setting differ on 7, with two settings on 9: `rows_error`."""
NO_MARGIN = 0.0
"""With it nothing is called the same, which would hide a false alarm."""


def right(
    settings: int,
    seeds: int,
    rows: int,
    *,
    spread: float | Sequence[float] = 0.0,
    gain: float = 0.0,
    accuracy: float = ACCURACY,
) -> Tensor:
    """Whether each model is right on each row: settings x seeds x rows, 0 or 1.

    A row has a difficulty, which all models share; so their results are correlated. A model is right if it is less than
    the sum of a level, the luck of its seed on all rows, and noise of its setting and of its training on this row.

    Args:
        settings: With one, several sides of a comparison are the same settings: see `sides`.
        seeds: Trainings with each.
        rows: Number of rows.
        spread: Standard deviation of the seeds' expected accuracy, of all settings or of each.
        gain: By how much the first setting's expected accuracy is above that of the others.
        accuracy: That of the others.
    """
    of_row = (1 + OF_SETTING**2 + OF_TRAINING**2) ** 0.5  # its standard deviation
    level = float(stats.norm.ppf(accuracy))
    luck = torch.tensor(spread).view(-1, 1, 1) / float(stats.norm.pdf(level)) * of_row
    levels = torch.full((settings, 1, 1), level)
    levels[0] = float(stats.norm.ppf(accuracy + gain))
    margins = levels * (of_row**2 + luck**2) ** 0.5 + torch.randn(rows) + luck * torch.randn(settings, seeds, 1)
    margins = margins + OF_SETTING * torch.randn(settings, 1, rows) + OF_TRAINING * torch.randn(settings, seeds, rows)
    return (margins > 0).double()


@cache
def rows_error(rows: int, accuracy: float = ACCURACY) -> float:
    """The standard error over rows of the difference in accuracy of two models with different settings."""
    level, correlation = stats.norm.ppf(accuracy), 1 / (1 + OF_SETTING**2 + OF_TRAINING**2)
    both = stats.multivariate_normal.cdf([level, level], cov=[[1, correlation], [correlation, 1]])
    return float((2 * (accuracy - both) / rows) ** 0.5)


def sides(seeds: int, rows: int, **options: float) -> tuple[Tensor, Tensor]:
    """Two sides with the same settings, each seeds x rows."""
    (values,) = right(1, 2 * seeds, rows, **options)
    return values[:seeds], values[seeds:]


def baseline_beside(seeds: int, rows: int, spread: float) -> tuple[Tensor, Tensor]:
    """A setting, seeds x rows, and an equal baseline that no seed changes: its rows."""
    values, (baseline, *_) = right(2, seeds, rows, spread=(spread, 0.0))
    return values, baseline


def losses(seeds: int, rows: int, spread: float = 0.0) -> Tensor:
    """Log-normal losses of two settings: 2 x seeds x rows. ``spread`` is that of the logarithms over seeds."""
    logarithms = 0.7 * torch.randn(rows) + spread * torch.randn(2, seeds, 1)
    return (logarithms + OF_SETTING * torch.randn(2, 1, rows) + OF_TRAINING * torch.randn(2, seeds, rows)).exp()


def skewed_losses(seeds: int, rows: int) -> Tensor:
    """2 x seeds x rows, of equal mean: the first model is sure, and loses much on one row in twenty."""
    is_hard = torch.rand(rows) < 0.05
    sure, unsure = torch.where(is_hard, 3.85, 0.05), torch.where(is_hard, 1.0, 0.2)
    noise = (0.3 * torch.randn(2, seeds, rows) - 0.3**2 / 2).exp()  # of mean 1
    return torch.stack([sure, unsure])[:, None] * noise


# What is counted, once a draw


def models_told_apart(draw: Callable[[], Tensor], higher_is_better: bool) -> bool:
    """A false alarm, for two models of equal expectation: 2 x 1 x rows."""
    (values,), (others,) = draw()
    return told_apart(compare_models(values, others, higher_is_better=higher_is_better, margin=NO_MARGIN))


def settings_told_apart(draw: Callable[[], Sequence[Tensor]], higher_is_better: bool) -> bool:
    """A false alarm, for two settings of equal expectation."""
    values, others = draw()
    return told_apart(compare_settings(values, others, higher_is_better=higher_is_better, margin=NO_MARGIN))


def best_told_apart(candidates: int, seeds: int, rows: int, spread: float, corrected: bool = True) -> bool:
    """A false alarm in any comparison of the best of equal candidates with another.

    It is the best on as many validation rows, by the same models.
    """
    val, test = right(candidates, seeds, 2 * rows, spread=spread).split(rows, 2)
    best = int(val.mean((1, 2)).argmax())
    others = [number for number in range(candidates) if number != best]
    answers = [compare_settings(test[best], test[each], higher_is_better=True, margin=NO_MARGIN) for each in others]
    return any(
        told_apart(each) for each in (holm(answers, candidates * (candidates - 1) // 2) if corrected else answers)
    )


def told_apart(answer: Answer) -> bool:
    return answer.outcome in ("better", "worse")


def found(seeds: int, rows: int, spread: float, gain: float) -> bool:
    better, other = right(2, seeds, rows, spread=spread, gain=gain)
    return compare_settings(better, other, higher_is_better=True, margin=NO_MARGIN).outcome == "better"


def models_covered(rows: int, gain: float) -> bool:
    (better,), (other,) = right(2, 1, rows, gain=gain)
    answer = compare_models(better, other, higher_is_better=True, margin=NO_MARGIN)
    return answer.low <= gain <= answer.high


def losses_covered(rows: int) -> bool:
    (values,), (others,) = losses(1, rows)
    answer = compare_models(1.1 * values, others, higher_is_better=False, margin=NO_MARGIN)
    expected = 0.1 * float(torch.tensor(0.7**2 + OF_SETTING**2 + OF_TRAINING**2).div(2).exp())
    return answer.low <= expected <= answer.high


def settings_covered(seeds: int, rows: int, spread: float, gain: float) -> bool:
    better, other = right(2, seeds, rows, spread=spread, gain=gain)
    answer = compare_settings(better, other, higher_is_better=True, margin=NO_MARGIN)
    return answer.low <= gain <= answer.high


def mean_covered(seeds: int, rows: int, spread: float, accuracy: float) -> bool:
    (values,) = right(1, seeds, rows, spread=spread, accuracy=accuracy)
    expected = mean_over_seeds(values)
    return expected.low <= accuracy <= expected.high


def models_the_same(rows: int, gain: float, margin: float) -> bool:
    (better,), (other,) = right(2, 1, rows, gain=gain)
    return compare_models(better, other, higher_is_better=True, margin=margin).outcome == "the same"


def settings_the_same(seeds: int, rows: int, spread: float, gain: float, margin: float) -> bool:
    better, other = right(2, seeds, rows, spread=spread, gain=gain)
    return compare_settings(better, other, higher_is_better=True, margin=margin).outcome == "the same"


@dataclass(frozen=True)
class Case:
    """``happens`` draws once and says whether what is counted is so; it may be in at most, or must be in at least."""

    name: str
    counted: str
    happens: Callable[[], bool]
    at_most: float = 1.0
    at_least: float = 0.0

    @property
    def bound(self) -> str:
        if self.at_least:
            return f"lower limit {self.at_least:.0%}"
        return f"upper limit {self.at_most:.0%}" if self.at_most < 1 else "(for comparison)"


FALSE_CLAIMS, COVERED, FOUND = 0.07, 0.93, 0.95
SEEDS = (3, 5, 10)
SPREADS = (0.1, 0.3, 1.0, 3.0)
"""Of the seeds' expected accuracy, in standard errors over rows."""


def cases() -> list[Case]:
    listed: list[Case] = []

    def alarm(name: str, happens: Callable[..., bool], *arguments: Any) -> None:
        listed.append(Case(name, "told apart", partial(happens, *arguments), at_most=FALSE_CLAIMS))

    def compares(name: str, happens: Callable[..., bool], *arguments: Any) -> None:
        listed.append(Case(name, "told apart", partial(happens, *arguments)))

    def covers(name: str, happens: Callable[..., bool], *arguments: Any) -> None:
        listed.append(Case(name, "covered", partial(happens, *arguments), at_least=COVERED))

    for rows in (100, 1000, 10_000):
        alarm(f"equal models: accuracy, {rows} rows", models_told_apart, partial(right, 2, 1, rows), True)
    for rows in (30, 100, 1000):
        alarm(f"equal models: loss, {rows} rows", models_told_apart, partial(losses, 1, rows), False)
    for rows in (100, 1000):
        alarm(f"equal models: skewed loss, {rows} rows", models_told_apart, partial(skewed_losses, 1, rows), False)
    compares("equal models: skewed loss, 30 rows", models_told_apart, partial(skewed_losses, 1, 30), False)
    for seeds in SEEDS:
        for spread in SPREADS:
            name, size = f"{seeds} seeds, 1000 rows, spread {spread:g}", spread * rows_error(1000)
            alarm(f"the same settings: {name}", settings_told_apart, partial(sides, seeds, 1000, spread=size), True)
    for seeds, rows in ((2, 1000), (3, 100), (3, 10_000)):
        draw = partial(sides, seeds, rows, spread=rows_error(rows))
        alarm(f"the same settings: {seeds} seeds, {rows} rows, spread 1", settings_told_apart, draw, True)
    for spread in SPREADS:
        draw = partial(sides, 1, 10_000, spread=spread * rows_error(10_000))
        compares(f"the same settings: one model of each, 10000 rows, spread {spread:g}", models_told_apart, draw, True)
    for seeds in SEEDS:
        name = f"{seeds} seeds, 1000 rows"
        draw = partial(right, 2, seeds, 1000, spread=rows_error(1000))
        alarm(f"equal settings: {name}, spread 1", settings_told_apart, draw, True)
        draw = partial(baseline_beside, seeds, 1000, 3 * rows_error(1000))
        alarm(f"equal to a baseline: {name}, spread 3", settings_told_apart, draw, True)
        draw = partial(losses, seeds, 1000, 0.02)
        alarm(f"equal settings: loss, {name}", settings_told_apart, draw, False)
        draw = partial(skewed_losses, seeds, 1000)
        alarm(f"equal settings: skewed loss, {name}", settings_told_apart, draw, False)
    for seeds in SEEDS:
        for spread in (0.1, 1.0, 3.0):
            name, size = f"best of ten: {seeds} seeds, 1000 rows, spread {spread:g}", spread * rows_error(1000)
            alarm(name, best_told_apart, 10, seeds, 1000, size)
    name, size = "best of ten without Holm's correction: 3 seeds, 1000 rows, spread 1", rows_error(1000)
    compares(name, best_told_apart, 10, 3, 1000, size, False)
    happens = partial(found, 3, 10_000, 0.002, 0.02)
    name = "2 points better: 3 seeds, 10000 rows, spread 0.2 points"
    listed.append(Case(name, "better", happens, at_least=FOUND))
    for seeds in SEEDS:
        happens = partial(found, seeds, 1000, rows_error(1000), 0.02)
        listed.append(Case(f"2 points better: {seeds} seeds, 1000 rows, spread 1", "better", happens))
    for rows in (30, 100, 1000):
        covers(f"models: 2 points, {rows} rows", models_covered, rows, 0.02)
    for rows in (100, 1000):
        covers(f"models: loss, {rows} rows", losses_covered, rows)
    for seeds in SEEDS:
        for spread in (0.1, 1.0, 3.0):
            name, size = f"{seeds} seeds, 1000 rows, spread {spread:g}", spread * rows_error(1000)
            covers(f"settings: 2 points, {name}", settings_covered, seeds, 1000, size, 0.02)
            covers(f"mean over seeds: {name}", mean_covered, seeds, 1000, size, ACCURACY)
    for seeds in SEEDS:
        name, size = f"mean over seeds: accuracy 0.99, {seeds} seeds, 1000 rows, spread 1", rows_error(1000, 0.99)
        covers(name, mean_covered, seeds, 1000, size, 0.99)
    for rows in (1000, 10_000):
        happens = partial(models_the_same, rows, 0.03, 0.03)
        listed.append(Case(f"models: 3 points apart, margin 3, {rows} rows", "the same", happens, at_most=FALSE_CLAIMS))
    for seeds in SEEDS:
        for spread in (0.1, 1.0, 3.0):
            name, size = f"margin 3, {seeds} seeds, 1000 rows, spread {spread:g}", spread * rows_error(1000)
            happens = partial(settings_the_same, seeds, 1000, size, 0.03, 0.03)
            listed.append(Case(f"settings: 3 points apart, {name}", "the same", happens, at_most=FALSE_CLAIMS))
    for seeds in SEEDS:
        happens = partial(settings_the_same, seeds, 1000, rows_error(1000), 0.0, 0.03)
        listed.append(Case(f"settings: equal, margin 3, {seeds} seeds, 1000 rows, spread 1", "the same", happens))
    return listed


def row(name: str, counted: str, hits: int, runs: int, bound: str) -> dict[str, Any]:
    """Prints a line of the table, with the interval of Wilson (1927)."""
    limits = stats.binomtest(hits, runs).proportion_ci(method="wilson")
    share = f"{hits / runs:.1%} ({limits.low:.1%} to {limits.high:.1%})"
    print(f"| {name} | {counted} | {runs} | {share} | {bound} |", flush=True)
    return {"case": name, "counted": counted, "hits": hits, "runs": runs}


def run_drawn(runs: int) -> list[dict[str, Any]]:
    rows = []
    for case in cases():
        torch.manual_seed(0)
        rows.append(row(case.name, case.counted, sum(case.happens() for _ in range(runs)), runs, case.bound))
    return rows


# Trainings


PAIRS, SIDE = 20, 3


def run_real(pairs: int = PAIRS) -> list[dict[str, Any]]:
    """Compares settings with themselves, from `SIDE` seeds on each side."""
    trained = [train_diabetes(seed) for seed in range(2 * SIDE * pairs)]
    rows = []
    for metric, higher_is_better in (("loss", False), ("accuracy", True)):
        values = torch.stack([each[metric] for each in trained]).view(pairs, 2, SIDE, -1)
        answers = [compare_settings(*pair, higher_is_better=higher_is_better, margin=NO_MARGIN) for pair in values]
        one_each = [stats.ttest_rel(mine[0], other[0]).pvalue for mine, other in values]
        averages = [stats.ttest_rel(mine.mean(0), other.mean(0)).pvalue for mine, other in values]
        counts = {
            "compare_settings": sum(told_apart(each) for each in answers),
            "paired t over rows, one run of each": sum(bool(p_value <= 0.05) for p_value in one_each),
            "paired t over rows, averages of three": sum(bool(p_value <= 0.05) for p_value in averages),
        }
        rows += [row(f"diabetes: {metric}, {by}", "told apart", hits, pairs, "") for by, hits in counts.items()]
    return rows


def train_diabetes(seed: int) -> dict[str, Tensor]:
    """The loss and whether it is right, of each test row. The split is the same for all seeds."""
    request = resolve("diabetes", None, None, None, None, seed)
    topic = request.topic
    data, settings = load_data(topic, request.settings)
    model = new_model(topic, data, settings)
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(topic, None, data, model, settings, topic.monitor, Path(folder), light=True)
        evaluation = evaluate(fitted.trainer, fitted.model, fitted.task, data, "test")
    return {"loss": evaluation.losses, "accuracy": evaluation.values["accuracy"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000, help="draws of each case")
    parser.add_argument("--real", action="store_true", help="train instead (see above)")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    logging.getLogger("dlcourse").setLevel(logging.ERROR)
    print("| case | counted | runs | share, with its 95 % limits | must be |\n| --- | --- | --- | --- | --- |")
    rows = run_real() if asked.real else run_drawn(asked.runs)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
