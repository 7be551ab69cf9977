"""Several trainings of the same settings under one run: folds or seeds, with a mean, its interval and one verdict.

One training speaks of one model. Folds and seeds speak of the settings: repeated K-fold cross-validation for small
data sets, where the test rows matter most, and seeds for data sets with test rows of their own.
"""

import dataclasses
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from scipy import stats

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLIT_NAMES, Split
from dlcourse.errors import CourseError, SettingsError
from dlcourse.evaluation.assessment import Assessment, final_metrics, fit_baselines, judge_model
from dlcourse.evaluation.conclude import Measured, measure, present
from dlcourse.evaluation.differences import Answer, Comparison, Difference, Estimate, compare_settings, mean_over_seeds
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.evaluation.evaluation import Evaluation, final_name
from dlcourse.evaluation.intervals import CONFIDENCE
from dlcourse.evaluation.split_data import SplitData
from dlcourse.evaluation.tasks import Task
from dlcourse.evaluation.verdict import LEAST_EFFECT, against, diverged
from dlcourse.reporting.card import in_columns
from dlcourse.reporting.note import link, run_page, table
from dlcourse.reporting.pages import prepare_pages
from dlcourse.reporting.phases import phase
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.run import Run
from dlcourse.training.callbacks.progress import LONG, about
from dlcourse.training.fit import Fitted, fit, new_model, remedy
from dlcourse.training.processes import check_one_process
from dlcourse.training.request import Request
from dlcourse.training.start import load_data, log_start

log = logging.getLogger(__name__)

FEWEST_SEEDS = 2
"""With one there is no spread, and nothing is known about the next training."""


def estimate(values: list[float], folds: int) -> Estimate:
    """The estimate from one value per fold: K R values for R repeats of K folds.

    The interval is Student's t with the standard error of Nadeau and Bengio (2003),
    ``sd * sqrt(1 / (K R) + 1 / (K - 1))`` for K folds and R repeats. The folds share their training rows, so the usual
    standard error would be far too small.
    """
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
class Repeated:
    """The result of several trainings with the same settings.

    Attributes:
        over: What differs between the trainings: "5 seeds", or "2 x 10 folds".
        runs: The ids of the trainings' runs, by what is their own: "seed 3", or "fold 3".
        primary_metric: The metric by which runs are compared, and whether lower values of it are better.
        estimates: The model's estimate by metric.
        baselines: The baselines' estimates by baseline, then metric.
        differences: The model's metric minus the baseline's, by baseline, then metric.
        sentence: The verdict.
        best: The training that is best on validation rows, or without any the first; empty for folds.
        model: Whose model and figures are kept, and why, in words.
        failed: The trainings that failed, with the reason; the others are what is told.
        lost: Whatever is not in the store, with the reason; complete when the run has ended.
    """

    topic: str
    run_id: str
    run_name: str
    store: str
    over: str
    runs: dict[str, str]
    primary_metric: str
    lower_is_better: bool
    estimates: dict[str, Estimate]
    baselines: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Difference]]
    sentence: str
    eval_split: Split
    best: str
    model: str
    failed: dict[str, str]
    lost: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether no training failed and everything is in the store."""
        return not self.lost and not self.failed

    @property
    def metrics(self) -> dict[str, float]:
        """What the run logs: the means, by the names that a single training has for these rows."""
        metrics = {final_name(self.eval_split, name): each.mean for name, each in self.estimates.items()}
        means = [estimates[self.primary_metric].mean for estimates in self.baselines.values()]
        if means:
            best = min(means) if self.lower_is_better else max(means)
            metrics[f"{self.eval_split}/baseline_{self.primary_metric}"] = best
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    @property
    def card(self) -> str:
        """The verdict and the metrics as readable text."""
        lines, split = [("verdict", self.sentence)], SPLIT_NAMES[self.eval_split]
        for name, mine in self.estimates.items():
            lines.append((f"{split} {name}", f"{mine}; standard deviation {mine.std or 0:.2g}"))
            for baseline, estimates in self.baselines.items():
                text = f"{baseline} {estimates[name]}"
                if difference := self.differences[baseline].get(name):
                    text += f"; difference {difference.rounded_like(mine.mean)}, {difference.comparison}"
                lines.append(("", text))
        lines.append(("", f"mean and 95 % interval over {self.over}"))
        lines += [("failed", f"{part}: {why}") for part, why in self.failed.items()]
        if self.model:
            lines.append(("model", self.model))
        lines.append(("run", f"{self.run_id} in {self.store}"))
        if self.lost:
            lines.append(("not in the store", f"{', '.join(self.lost)} ({next(iter(self.lost.values()))})"))
        return in_columns(f"{self.topic}: {self.run_name}", lines)

    def __str__(self) -> str:
        return self.card

    def note(self, experiment_id: str) -> str:
        """The description of its run in Markdown: verdict and metric in the first lines, then all metrics."""
        first, colon, rest = self.sentence.partition(":")
        mine, split = self.estimates[self.primary_metric], SPLIT_NAMES[self.eval_split]
        others = [f"{name} {each[self.primary_metric].mean:.4g}" for name, each in self.baselines.items()]
        lines = [
            f"**{first}**{colon}{rest}",
            "; ".join([f"{split} {self.primary_metric} **{mine}**", *([", ".join(others)] if others else [])]),
            f"means and 95 % intervals over {self.over}",
        ]
        rows = []
        for metric, each in self.estimates.items():
            for name, differences in self.differences.items():
                if metric in differences:
                    text = f"{differences[metric].rounded_like(each.mean)}, {differences[metric].comparison}"
                    rows.append([metric, str(each), name, str(self.baselines[name][metric]), text])
        head = [f"{split} metric", "model", "baseline", "its metric", "difference"]
        pages = ", ".join(link(part, run_page(experiment_id, run_id)) for part, run_id in self.runs.items())
        told = [f"**{part} failed**: {why}" for part, why in self.failed.items()]
        told += [f"**model and figures**: {self.model}"] if self.model else []
        return "\n\n".join(["<br>".join(lines), table(head, rows), *told, pages])

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain types for JSON."""
        return {**dataclasses.asdict(self), "card": self.card}


def cross_validate(request: Request, folds: int, repeats: int, name: str | None = None) -> Repeated:
    """Train and evaluate a topic's model on each of K folds, R times: one parent run, with a small child run per fold.

    Raises:
        SettingsError: There are fewer than 2 folds, more than rows of a class, or several devices.
        CourseError: A fold's training diverged.
    """
    if folds < 2:
        raise SettingsError("--folds must be at least 2: one to test on and the others to train on")
    check_one_process(request.settings.trainer, "--folds")
    topic, over = request.topic, f"{repeats} x {folds} folds"
    data, settings = load_data(topic, request.settings)
    if not isinstance(data, CourseData):
        raise SettingsError(f"--folds divides rows in memory, and {topic.name} has no CourseData: leave it out")
    for number in range(folds):
        data.fold(number, folds)  # raises if a class is too small, before a run is started
    with _parent(request, "cross-validation", over, name) as parent:
        log_start(parent, topic, data, settings, {"train": torch.arange(len(data.rows.targets))})
        parent.log_params({"folds": folds, "repeats": repeats})
        runs: dict[str, str] = {}
        assessments: list[Assessment] = []
        for place in _counted("cross-validating", folds * repeats):
            repeat, number = divmod(place, folds)
            data.fold(number, folds, repeat)
            with _child(parent, topic, f"fold {place}", {"dlcourse.kind": "fold"}) as run:
                run.log_params({"fold": number, "repeat": repeat})
                with _trained(topic, run, data, settings) as fitted:
                    if fitted.divergence.epoch is not None:
                        why = diverged(fitted.divergence.epoch, fitted.divergence.loss, remedy(fitted)).advice
                        raise CourseError(f"{run.name} diverged: {why}")
                    task, evaluation = fitted.task, evaluate(fitted.trainer, fitted.model, fitted.task, data, "test")
                baselines = fit_baselines(topic.baselines, task, data, evaluation)
                of_fold = judge_model(
                    topic, fitted.model, task, data, {"test": evaluation}, baselines, run.history, fitted.epoch
                )
                run.log_metrics({**final_metrics(task, of_fold), "best_epoch": fitted.epoch})
            runs[f"fold {place}"] = run.run_id
            assessments.append(of_fold)
            _tell(f"fold {place}", task, evaluation)
        estimates, of_baselines, differences = _over_folds(task, assessments, folds)
        spread = float(np.mean([_spread(each) for each in assessments]))
        result = Repeated(
            topic=topic.name,
            run_id=parent.run_id,
            run_name=parent.name,
            store=parent.store.shown,
            over=over,
            runs=runs,
            primary_metric=task.primary_metric,
            lower_is_better=task.primary_metric in task.lower_is_better,
            estimates=estimates,
            baselines=of_baselines,
            differences=differences,
            sentence=_sentence(task.primary_metric, of_baselines, differences, spread, "these folds"),
            eval_split="test",
            best="",
            model="",
            failed={},
            lost=parent.lost,
        )
        _finish(parent, result)
    return result


def train_seeds(request: Request, seeds: int, name: str | None = None) -> Repeated:
    """Train a topic's model with consecutive seeds on the same rows: one parent run, with a small child run per seed.

    The training that is best on validation rows has its checkpoint, figures and model as a single training has.

    Raises:
        SettingsError: There is one seed alone, or there are several devices.
        CourseError: Fewer than two trainings did not diverge.
    """
    first, last = request.settings.seed, request.settings.seed + seeds - 1
    if seeds < FEWEST_SEEDS:
        raise SettingsError(f"--seeds must be at least {FEWEST_SEEDS}: one training says nothing about the next")
    if last >= 2**32:
        raise SettingsError(f"--seeds {seeds} ends with seed {last}, and the largest is {2**32 - 1}: lower --seed")
    check_one_process(request.settings.trainer, "--seeds")
    topic, over = request.topic, f"{seeds} seeds"
    data, settings = load_data(topic, request.settings)
    with _parent(request, "seeds", over, name) as parent, tempfile.TemporaryDirectory() as folder:
        log_start(parent, topic, data, settings)
        parent.log_params({"seeds": seeds})
        runs, failed, trained = dict[str, str](), dict[str, str](), list[Assessment]()
        best: _Best | None = None
        for place in _counted("training", seeds):
            seed = first + place
            tags = {"dlcourse.kind": "training", "experiment": request.experiment_name()}
            tags |= {"dlcourse.split": data.fingerprint} if data.fingerprint else {}
            of_seed = dataclasses.replace(settings, seed=seed)
            with _child(parent, topic, f"seed {seed}", tags) as run:
                runs[run.part_name] = run.run_id
                log_start(run, topic, data, of_seed)
                with _trained(topic, run, data, of_seed) as fitted:
                    measured = measure(run, topic, fitted)
                    run.set_tags({"mlflow.note.content": "<br>".join(measured.lines)})
                    if measured.assessment is None:
                        failed[run.part_name] = f"diverged: {measured.verdict.advice}"
                        continue
                    trained.append(measured.assessment)
                    if best is None or best.is_worse_than(fitted.task, measured.assessment):
                        checkpoint = fitted.checkpoint and Path(shutil.copy(fitted.checkpoint, folder))
                        best = _Best(run, dataclasses.replace(fitted, checkpoint=checkpoint), measured)
            _tell(run.part_name, fitted.task, measured.assessment.evaluation)
        if best is None or len(trained) < FEWEST_SEEDS:
            raise CourseError(f"{len(failed)} of {seeds} trainings failed: {next(iter(failed.values()))}")
        with best.run as run:
            if checkpoint := best.fitted.checkpoint:
                shutil.copy(checkpoint, run.path(f"checkpoints/{checkpoint.name}"))
            present(run, topic, best.fitted, best.measured)
        task, evaluation = best.fitted.task, trained[0].evaluation
        estimates, baselines, differences = _over_seeds(task, trained)
        if baselines and evaluation.split != "train":
            rows = f"{len(trained)} seeds and these {len(evaluation.targets)} {SPLIT_NAMES[evaluation.split]} rows"
            sentence = _sentence(task.primary_metric, baselines, differences, _spread(trained[0]), rows)
        else:
            sentence = _counted_verdicts(trained)
        result = Repeated(
            topic=topic.name,
            run_id=parent.run_id,
            run_name=parent.name,
            store=parent.store.shown,
            over=over,
            runs=runs,
            primary_metric=task.primary_metric,
            lower_is_better=task.primary_metric in task.lower_is_better,
            estimates=estimates,
            baselines=baselines,
            differences=differences,
            sentence=sentence,
            eval_split=evaluation.split,
            best=best.run.part_name,
            model=f"that of {best.run.part_name}, "
            + ("the best on validation rows" if data.has("val") else "the first: no validation rows tell the best"),
            failed=failed,
            lost=parent.lost,
        )
        _finish(parent, result)
    return result


@dataclass(frozen=True)
class _Best:
    """The best training so far: its run, which has ended, its model, and what was measured."""

    run: Run
    fitted: Fitted
    measured: Measured

    def is_worse_than(self, task: Task, other: Assessment) -> bool:
        """Whether another training is better on validation rows; without any the first stays."""
        assert self.measured.assessment
        mine, its = (each.evaluations.get("val") for each in (self.measured.assessment, other))
        if mine is None or its is None:
            return False
        gain = its.metrics[task.primary_metric] - mine.metrics[task.primary_metric]
        return gain < 0 if task.primary_metric in task.lower_is_better else gain > 0


@contextmanager
def _parent(request: Request, kind: str, over: str, name: str | None) -> Iterator[Run]:
    store, topic = open_store(), request.topic
    prepare_pages(store, topic)
    tags = {"dlcourse.kind": kind, "experiment": f"{request.experiment_name()}, {over}"}
    with store.start_run(topic.name, f"{name or request.run_name}, {over}", tags) as parent:
        yield parent


def _child(parent: Run, topic: Topic, part: str, tags: Mapping[str, str]) -> Run:
    tags = {"mlflow.parentRunId": parent.run_id, **tags}
    return parent.store.start_run(topic.name, f"{parent.name}: {part}", tags, within=parent)


@contextmanager
def _trained(topic: Topic, run: Run, data: SplitData, settings: Settings) -> Iterator[Fitted]:
    """A trained model; its checkpoints are there until the end of the context."""
    model = new_model(topic, data, settings)
    monitor = topic.monitor if data.has("val") and is_overridden("validation_step", model) else None
    # TensorBoard's files are written beside the folder of the checkpoints, and are kept.
    with tempfile.TemporaryDirectory(dir=run.path("checkpoints").parent) as folder:
        yield fit(topic, run, data, model, settings, monitor, Path(folder), light=True)


def _counted(text: str, count: int) -> Iterator[int]:
    """The numbers of ``count`` trainings, under a bar; a line says how long the rest will take, if that is long."""
    started = time.perf_counter()
    with phase(text, count) as bar:
        for place in range(count):
            yield place
            bar.update()
            left = (time.perf_counter() - started) / (place + 1) * (count - place - 1)
            if left > LONG:
                log.info("%s left", about(left))


def _tell(part: str, task: Task, evaluation: Evaluation) -> None:
    log.info("%s  %s %.4g", part, task.primary_metric, evaluation.metrics[task.primary_metric])


def _finish(parent: Run, result: Repeated) -> None:
    parent.log_metrics(result.metrics)
    parent.set_tags({"mlflow.note.content": result.note(parent.experiment_id), "verdict": result.sentence})


Estimates = dict[str, Estimate]


def _over_folds(
    task: Task, assessments: Sequence[Assessment], folds: int
) -> tuple[Estimates, dict[str, Estimates], dict[str, dict[str, Difference]]]:
    """Estimates of the model and of each baseline, and the differences of the two, by metric."""
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
    return {name: estimate(each, folds) for name, each in values.items()}, baselines, differences


def _over_seeds(
    task: Task, assessments: Sequence[Assessment]
) -> tuple[Estimates, dict[str, Estimates], dict[str, dict[str, Difference]]]:
    """The same over seeds, on the same rows: of metrics that are means over rows."""
    evaluations = [each.evaluation for each in assessments]
    names = [name for name in evaluations[0].metrics if name in evaluations[0].values]
    values = {name: torch.stack([each.values[name] for each in evaluations]) for name in names}  # seeds x rows
    of_baselines = {
        baseline: {name: each.values[name][None] for name in names}
        for baseline, each in assessments[0].baselines.items()
    }
    estimates = {name: mean_over_seeds(each) for name, each in values.items()}
    baselines = {
        baseline: {name: mean_over_seeds(each) for name, each in metrics.items()}
        for baseline, metrics in of_baselines.items()
    }
    differences: dict[str, dict[str, Difference]] = {baseline: {} for baseline in baselines}
    if evaluations[0].split != "train":  # training rows say nothing of others
        for baseline, metrics in of_baselines.items():
            for name in names:
                up = name not in task.lower_is_better
                answer = compare_settings(values[name], metrics[name][0], higher_is_better=up, margin=0.0)
                differences[baseline][name] = _difference(answer)
    return estimates, baselines, differences


def _difference(answer: Answer) -> Difference:
    assert answer.outcome != "the same"  # with a margin of 0
    return Difference(answer.difference, answer.low, answer.high, answer.outcome, answer.rule)


def _spread(assessment: Assessment) -> float:
    """The standard deviation of the trivial baseline's losses, which a gain is measured in."""
    return float(next(iter(assessment.baselines.values())).losses.std(correction=0))


def _counted_verdicts(assessments: Sequence[Assessment]) -> str:
    """How many trainings have which verdict, where no rows but those of the training tell more."""
    verdicts = [each.verdict.sentence.partition(":")[0] for each in assessments]
    return "; ".join(f"{each}: {verdicts.count(each)} of {len(verdicts)} seeds" for each in dict.fromkeys(verdicts))


def _sentence(
    primary_metric: str,
    baselines: Mapping[str, Mapping[str, Estimate]],
    differences: Mapping[str, Mapping[str, Difference]],
    spread: float,
    rows: str,
) -> str:
    """Like the verdict of a run: compare with the trivial baseline first, then with the best of the others."""
    trivial, *others = baselines
    quantities = dict.fromkeys(("loss", primary_metric))
    enough = -differences[trivial]["loss"].mean >= LEAST_EFFECT * spread
    better = [name for name in quantities if differences[trivial][name].comparison == "better"]
    if not better or (better == ["loss"] and not enough):
        return f"learned nothing that {rows} show: not better than {trivial}"
    best = min(others, key=lambda name: baselines[name]["loss"].mean, default=trivial)
    judged = {name: differences[best][name] for name in quantities}
    if differences[best]["loss"] == differences[best][primary_metric]:
        judged.pop("loss")
    return f"learned: {against(best, judged, rows, 'the setting')}"
