"""Repeated K-fold cross-validation: a mean over many test sets, with an interval that allows for shared rows."""

import dataclasses
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from dlcourse.data.datamodule import CourseData
from dlcourse.errors import CourseError, SettingsError
from dlcourse.evaluation.assessment import Assessment, final_metrics, fit_baselines, judge_model
from dlcourse.evaluation.differences import Comparison, Difference
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.evaluation.intervals import CONFIDENCE
from dlcourse.evaluation.tasks import Task
from dlcourse.evaluation.verdict import LEAST_EFFECT, against, diverged
from dlcourse.reporting.card import in_columns
from dlcourse.reporting.note import table
from dlcourse.reporting.pages import prepare_pages
from dlcourse.reporting.phases import phase
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.run import Run
from dlcourse.training.callbacks.progress import LONG, about
from dlcourse.training.fit import fit, new_model, remedy
from dlcourse.training.processes import check_one_process
from dlcourse.training.request import Request
from dlcourse.training.start import load_data, log_start

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """Mean and standard deviation of a metric over the folds, and the mean's 95 % interval.

    The interval is Student's t with the standard error of Nadeau and Bengio (2003),
    ``sd * sqrt(1 / (K R) + 1 / (K - 1))`` for K folds and R repeats. The folds share their training rows, so the usual
    standard error would be far too small.
    """

    mean: float
    std: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})"


def estimate(values: list[float], folds: int) -> Estimate:
    """The estimate from one value per fold: K R values for R repeats of K folds."""
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    error = std * (1 / len(values) + 1 / (folds - 1)) ** 0.5
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Estimate(mean, std, mean - half, mean + half)


def compare(values: list[float], others: list[float], folds: int, higher_is_better: bool) -> Difference:
    """The difference of two models on the same folds, by the corrected resampled t-test at 2.5 % in each direction."""
    difference = estimate([mine - other for mine, other in zip(values, others, strict=True)], folds)
    comparison: Comparison = "not told apart"
    if difference.low > 0 or difference.high < 0:
        comparison = "better" if (difference.mean > 0) == higher_is_better else "worse"
    return Difference(difference.mean, difference.low, difference.high, comparison)


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation.

    Attributes:
        primary_metric: The metric by which runs are compared, and whether lower values of it are better.
        estimates: The model's estimate by metric.
        baselines: The baselines' estimates by baseline, then metric.
        differences: The model's metric minus the baseline's on the same folds, by baseline, then metric.
        sentence: The verdict.
        lost: Whatever is not in the store, with the reason; complete when the run has ended.
    """

    topic: str
    run_id: str
    run_name: str
    store: str
    folds: int
    repeats: int
    primary_metric: str
    lower_is_better: bool
    estimates: dict[str, Estimate]
    baselines: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Difference]]
    sentence: str
    lost: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether everything is in the store."""
        return not self.lost

    @property
    def metrics(self) -> dict[str, float]:
        """What the run logs: the means over the folds, by the names that a single training has for its test rows."""
        metrics = {f"test/{name}": each.mean for name, each in self.estimates.items()}
        means = [estimates[self.primary_metric].mean for estimates in self.baselines.values()]
        metrics[f"test/baseline_{self.primary_metric}"] = min(means) if self.lower_is_better else max(means)
        return metrics

    @property
    def card(self) -> str:
        """The verdict and the metrics as readable text."""
        lines = [("verdict", self.sentence)]
        for name, mine in self.estimates.items():
            lines.append((f"test {name}", str(mine)))
            for baseline, estimates in self.baselines.items():
                difference = self.differences[baseline][name]
                text = f"{difference.rounded_like(mine.mean)}, {difference.comparison}"
                lines.append(("", f"{baseline} {estimates[name]}; difference {text}"))
        lines.append(("", f"mean and corrected 95 % interval over {self.repeats} x {self.folds} folds"))
        lines.append(("run", f"{self.run_id} in {self.store}"))
        return in_columns(f"{self.topic}: {self.run_name}", lines)

    def __str__(self) -> str:
        return self.card

    @property
    def note(self) -> str:
        """The description of its run in Markdown: verdict and metric in the first lines, then all metrics."""
        first, colon, rest = self.sentence.partition(":")
        mine = self.estimates[self.primary_metric]
        others = [f"{name} {each[self.primary_metric].mean:.4g}" for name, each in self.baselines.items()]
        lines = [
            f"**{first}**{colon}{rest}",
            f"test {self.primary_metric} **{mine.mean:.4g}** ({mine.low:.4g} to {mine.high:.4g}); {', '.join(others)}",
            f"means and corrected 95 % intervals over {self.repeats} x {self.folds} folds",
        ]
        rows = []
        for metric, each in self.estimates.items():
            for name, differences in self.differences.items():
                difference = differences[metric]
                text = f"{difference.rounded_like(each.mean)}, {difference.comparison}"
                rows.append([metric, str(each), name, str(self.baselines[name][metric]), text])
        head = ["test metric", "model", "baseline", "its metric", "difference"]
        return f"{'<br>'.join(lines)}\n\n{table(head, rows)}"

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain types for JSON."""
        return {**dataclasses.asdict(self), "card": self.card}


def cross_validate(request: Request, folds: int, repeats: int, name: str | None = None) -> CrossValidation:
    """Train and evaluate a topic's model on each of K folds, R times: one parent run, with a small child run per fold.

    Raises:
        SettingsError: There are fewer than 2 folds, more than rows of a class, or several devices.
        CourseError: A fold's training diverged.
    """
    if folds < 2:
        raise SettingsError("--folds must be at least 2: one to test on and the others to train on")
    check_one_process(request.settings.trainer, "--folds")
    topic = request.topic
    data, settings = load_data(topic, request.settings)
    if not isinstance(data, CourseData):
        raise SettingsError(f"--folds divides rows in memory, and {topic.name} has no CourseData: leave it out")
    for number in range(folds):
        data.fold(number, folds)  # raises if a class is too small, before a run is started
    name = f"{name or request.run_name}, {repeats} x {folds} folds"
    tags = {
        "dlcourse.kind": "cross-validation",
        "experiment": f"{request.experiment_name()}, {repeats} x {folds} folds",
    }
    store = open_store()
    prepare_pages(store, topic)
    with store.start_run(topic.name, name, tags) as parent:
        log_start(parent, topic, data, settings, {"train": torch.arange(len(data.rows.targets))})
        parent.log_params({"folds": folds, "repeats": repeats})
        assessments: list[Assessment] = []
        started, count = time.perf_counter(), folds * repeats
        with phase("cross-validating", count) as bar:
            for place in range(count):
                repeat, number = divmod(place, folds)
                data.fold(number, folds, repeat)
                tags = {"dlcourse.kind": "fold", "mlflow.parentRunId": parent.run_id}
                part = f"{name}: fold {place}"
                with parent.store.start_run(topic.name, part, tags, within=parent) as run:
                    run.log_params({"fold": number, "repeat": repeat})
                    task, assessment = _fold(topic, run, data, settings)
                assessments.append(assessment)
                metrics, primary = assessment.evaluation.metrics, task.primary_metric
                left = (time.perf_counter() - started) / (place + 1) * (count - place - 1)
                how_long = f"; {about(left)} left" * (left > LONG)
                log.info("fold %d/%d  %s %.4g%s", place, count - 1, primary, metrics[primary], how_long)
                bar.update()
        result = _summary(topic, parent, task, folds, repeats, assessments)
        parent.log_metrics(result.metrics)
        parent.set_tags(
            {
                "mlflow.note.content": result.note,
                "verdict": result.sentence,
            }
        )
    return result


def _fold(topic: Topic, run: Run, data: CourseData, settings: Settings) -> tuple[Task, Assessment]:
    model = new_model(topic, data, settings)
    monitor = topic.monitor if len(data.splits["val"]) else None
    # TensorBoard's files are written beside the folder of the checkpoints, and are kept.
    with tempfile.TemporaryDirectory(dir=run.path("checkpoints").parent) as folder:
        fitted = fit(topic, run, data, model, settings, monitor, Path(folder), light=True)
        if fitted.divergence.epoch is not None:
            why = diverged(fitted.divergence.epoch, fitted.divergence.loss, remedy(fitted)).advice
            raise CourseError(f"{run.name} diverged: {why}")
        task = fitted.task
        evaluation = evaluate(fitted.trainer, model, task, data, "test")
    baselines = fit_baselines(topic.baselines, task, data, evaluation)
    assessment = judge_model(topic, model, task, data, {"test": evaluation}, baselines, run.history, fitted.epoch)
    run.log_metrics({**final_metrics(task, assessment), "best_epoch": fitted.epoch})
    return task, assessment


def _summary(
    topic: Topic, run: Run, task: Task, folds: int, repeats: int, assessments: list[Assessment]
) -> CrossValidation:
    names = list(assessments[0].evaluation.metrics)
    values = {name: [each.evaluation.metrics[name] for each in assessments] for name in names}
    of_baselines = {
        baseline: {name: [each.baselines[baseline].metrics[name] for each in assessments] for name in names}
        for baseline in assessments[0].baselines
    }
    baselines = {
        baseline: {name: estimate(each, folds) for name, each in metrics.items()}
        for baseline, metrics in of_baselines.items()
    }
    differences = {
        baseline: {
            name: compare(values[name], metrics[name], folds, name not in task.lower_is_better) for name in names
        }
        for baseline, metrics in of_baselines.items()
    }
    return CrossValidation(
        topic=topic.name,
        run_id=run.run_id,
        run_name=run.name,
        store=run.store.shown,
        folds=folds,
        repeats=repeats,
        primary_metric=task.primary_metric,
        lower_is_better=task.primary_metric in task.lower_is_better,
        estimates={name: estimate(each, folds) for name, each in values.items()},
        baselines=baselines,
        differences=differences,
        sentence=_sentence(task, assessments, baselines, differences),
        lost=run.lost,
    )


def _sentence(
    task: Task,
    assessments: list[Assessment],
    baselines: Mapping[str, Mapping[str, Estimate]],
    differences: Mapping[str, Mapping[str, Difference]],
) -> str:
    """Like the verdict of a run: compare with the trivial baseline first, then with the best of the others."""
    trivial, *others = baselines
    quantities = dict.fromkeys(("loss", task.primary_metric))
    std = float(np.mean([each.baselines[trivial].losses.std(correction=0) for each in assessments]))
    enough = -differences[trivial]["loss"].mean >= LEAST_EFFECT * std
    better = [name for name in quantities if differences[trivial][name].comparison == "better"]
    if not better or (better == ["loss"] and not enough):
        return f"learned nothing that these folds show: not better than {trivial}"
    best = min(others, key=lambda name: baselines[name]["loss"].mean, default=trivial)
    judged = {name: differences[best][name] for name in quantities}
    if differences[best]["loss"] == differences[best][task.primary_metric]:
        judged.pop("loss")
    return f"learned: {against(best, judged, 'these folds', 'the setting')}"
