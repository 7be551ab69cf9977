"""Repeated K-fold cross-validation: one figure with an honest spread, where one split would be a throw of dice."""

import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from dlcourse.data import CourseData
from dlcourse.errors import CourseError, SettingsError
from dlcourse.evaluating import Evaluation, evaluate, evaluate_outputs
from dlcourse.fitting import fit, new_model
from dlcourse.learning import CourseModel
from dlcourse.reporting import log_start
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking import Run, Store
from dlcourse.verdict import LEAST_SKILL, LEVEL, Comparison, diverged

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """Mean and standard deviation of a figure over the folds, and the mean's standard error.

    The error is that of Nadeau and Bengio (2003), ``sd * sqrt(1 / (K R) + 1 / (K - 1))`` for K folds and R repeats: the
    folds share their training rows, so that the usual one would be too small by far.
    """

    mean: float
    deviation: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.standard_error:.2g}"


def estimate(values: list[float], folds: int) -> Estimate:
    """From one value a fold; K R values for R repeats of K folds."""
    deviation = float(np.std(values, ddof=1))
    error = deviation * (1 / len(values) + 1 / (folds - 1)) ** 0.5
    return Estimate(float(np.mean(values)), deviation, error)


def compare(
    values: list[float], others: list[float], folds: int, larger_is_better: bool
) -> tuple[Estimate, Comparison]:
    """The difference of two models on the same folds, by the corrected resampled t-test at 5 %."""
    difference = estimate([mine - other for mine, other in zip(values, others, strict=True)], folds)
    quantile = stats.t.ppf(1 - LEVEL / 2, len(values) - 1)
    if not abs(difference.mean) > quantile * difference.standard_error:
        return difference, "as good"
    return difference, "better" if (difference.mean > 0) == larger_is_better else "worse"


@dataclass
class CrossValidation:
    """What K folds, dealt R times, came to. Figures by name; those of baselines by baseline, then name.

    ``differences`` and ``comparisons`` are to each baseline on the same folds, by name, then baseline.
    """

    topic: str
    run_id: str
    run_name: str
    store: str
    folds: int
    repeats: int
    estimates: dict[str, Estimate]
    baselines: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    comparisons: dict[str, dict[str, Comparison]]
    headline: str
    card: str
    lost: dict[str, str]
    """What is not in the store, and why."""

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def run_folds(
    topic: Topic, settings: Settings, store: Store, data: CourseData, name: str, folds: int, repeats: int
) -> CrossValidation:
    """Train and measure a model on each fold; a run for all of them, with a light one a fold within it."""
    if (folds or 0) < 2:
        raise SettingsError("--folds must be at least 2: a part to test on and a part to train on")
    for number in range(folds):
        data.fold(number, folds)  # so that a class that is too small is told of before anything is written
    with store.start_run(topic.name, name, {"dlcourse.kind": "cross-validation"}) as parent:
        log_start(parent, topic, data, settings)
        parent.log_params({"folds": folds, "repeats": repeats})
        figures: dict[str, list[float]] = {}
        of_baselines: dict[str, dict[str, list[float]]] = {baseline: {} for baseline in topic.baselines}
        for repeat in range(repeats):
            for number in range(folds):
                data.fold(number, folds, repeat)
                place = repeat * folds + number
                tags = {"dlcourse.kind": "fold", "mlflow.parentRunId": parent.run_id}
                part = f"{name}: fold {place}"
                with store.start_run(topic.name, part, tags, watched=False, within=parent) as run:
                    model, measured = _fold(topic, run, data, settings)
                    run.log_params({"fold": number, "repeat": repeat})
                _collect(figures, measured)
                parent.log_metrics({f"fold/{metric}": value for metric, value in measured.metrics.items()}, place)
                for baseline, outputs in _baseline_outputs(topic, data).items():
                    _collect(of_baselines[baseline], evaluate_outputs(model, data, "test", outputs))
                log.info("fold %d/%d  %s %.4g", place, folds * repeats - 1, model.headline, figures[model.headline][-1])
        return _summary(topic, parent, model, folds, repeats, figures, of_baselines)


def _fold(topic: Topic, run: Run, data: CourseData, settings: Settings) -> tuple[CourseModel, Evaluation]:
    model = new_model(topic, data, settings)
    monitor = topic.monitor if len(data.splits["val"]) else None
    # TensorBoard's files go beside the checkpoints' folder, and stay.
    with tempfile.TemporaryDirectory(dir=run.path("checkpoints").parent) as folder:
        fitted = fit(topic, run, data, model, settings, monitor, Path(folder), light=True)
        if fitted.divergence.epoch is not None:
            why = diverged(fitted.divergence.epoch, fitted.divergence.loss, model.lr, data.standardize).advice
            raise CourseError(f"{run.name} diverged: {why}")
        measured = evaluate(fitted.trainer, fitted.model, data, "test")
    run.log_metrics({f"test/{metric}": value for metric, value in measured.metrics.items()})
    run.log_metrics({"best/epoch": fitted.epoch})
    return fitted.model, measured


def _baseline_outputs(topic: Topic, data: CourseData) -> dict[str, torch.Tensor]:
    """Fitted on all rows that the network has seen: training rows and those that it stopped by."""
    seen = torch.cat([data.splits["train"], data.splits["val"]])
    test = data.rows.inputs[data.splits["test"]]
    return {
        name: baseline(data.rows.inputs[seen], data.rows.targets[seen])(test)
        for name, baseline in topic.baselines.items()
    }


def _collect(into: dict[str, list[float]], measured: Evaluation) -> None:
    for name, value in measured.metrics.items():
        into.setdefault(name, []).append(value)


def _summary(
    topic: Topic,
    run: Run,
    model: CourseModel,
    folds: int,
    repeats: int,
    figures: Mapping[str, list[float]],
    of_baselines: Mapping[str, Mapping[str, list[float]]],
) -> CrossValidation:
    estimates = {name: estimate(values, folds) for name, values in figures.items()}
    baselines = {
        baseline: {name: estimate(values, folds) for name, values in theirs.items()}
        for baseline, theirs in of_baselines.items()
    }
    compared = {
        name: {
            each: compare(values, theirs[name], folds, name not in model.errors)
            for each, theirs in of_baselines.items()
        }
        for name, values in figures.items()
    }
    differences = {name: {each: pair[0] for each, pair in pairs.items()} for name, pairs in compared.items()}
    comparisons = {name: {each: pair[1] for each, pair in pairs.items()} for name, pairs in compared.items()}
    headline = _headline(estimates, baselines, comparisons)
    for name, each in estimates.items():
        run.log_metrics(
            {
                f"test/{name}": each.mean,
                f"test/{name}_standard_deviation": each.deviation,
                f"test/{name}_standard_error": each.standard_error,
            }
        )
        for baseline, theirs in baselines.items():
            run.log_metrics(
                {
                    f"{baseline}/{name}": theirs[name].mean,
                    f"{baseline}/{name}_difference": differences[name][baseline].mean,
                    f"{baseline}/{name}_difference_standard_error": differences[name][baseline].standard_error,
                }
            )
    card = _card(topic, run, folds, repeats, headline, estimates, baselines, differences, comparisons)
    run.set_tags(
        {
            "mlflow.note.content": f"```\n{card}\n```",
            "dlcourse.verdict": headline,
            "dlcourse.learned": str(headline.startswith("learned:")).lower(),
        }
    )
    return CrossValidation(
        topic.name, run.run_id, run.name, run.store.shown, folds, repeats,
        estimates, baselines, differences, comparisons, headline, card, run.lost,
    )  # fmt: skip


def _headline(
    estimates: Mapping[str, Estimate],
    baselines: Mapping[str, Mapping[str, Estimate]],
    comparisons: Mapping[str, Mapping[str, Comparison]],
) -> str:
    """By the loss, like the verdict on one split: against the trivial baseline first, then against the best other."""
    trivial, *others = baselines
    skill = 1 - estimates["loss"].mean / baselines[trivial]["loss"].mean
    if comparisons["loss"][trivial] != "better" or skill < LEAST_SKILL:
        return f"learned nothing: no better than {trivial}"
    if not others:
        return f"learned: better than {trivial}"
    best = min(others, key=lambda name: baselines[name]["loss"].mean)
    says = {"better": "better than", "as good": "no better and no worse than", "worse": "worse than"}
    return f"learned: {says[comparisons['loss'][best]]} {best}"


def _card(
    topic: Topic,
    run: Run,
    folds: int,
    repeats: int,
    headline: str,
    estimates: Mapping[str, Estimate],
    baselines: Mapping[str, Mapping[str, Estimate]],
    differences: Mapping[str, Mapping[str, Estimate]],
    comparisons: Mapping[str, Mapping[str, Comparison]],
) -> str:
    lines = [("verdict", headline)]
    for name, mine in estimates.items():
        text = "; ".join(
            f"{baseline} {theirs[name]} ({comparisons[name][baseline]}: {differences[name][baseline]})"
            for baseline, theirs in baselines.items()
        )
        lines.append((f"test {name}", f"{mine}; against {text}"))
    lines.append(("", f"mean and corrected standard error over {repeats} x {folds} folds; in brackets: the difference"))
    lines.append(("run", f"{run.run_id} in {run.store.shown}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join([f"{topic.name}: {run.name}", *(f"  {name:<{width}}  {text}" for name, text in lines)])
