"""Evaluate, measure the baselines, judge: the same for a run, for a fold, and for what verdicts are checked by."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLITS, Split
from dlcourse.evaluation.baselines import with_every_class
from dlcourse.evaluation.evaluate import evaluate, evaluate_outputs, values_of
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.verdict import Verdict, judge
from dlcourse.models.base import CourseModel
from dlcourse.topics import Topic


@dataclass(frozen=True)
class Assessment:
    """What a trained model came to.

    ``evaluation`` is that of the rows the model is judged by; the ``baselines`` are measured on the same rows.
    ``shared_rows`` is how many of them are training rows again, by input and target.
    """

    evaluations: dict[Split, Evaluation]
    evaluation: Evaluation
    baselines: dict[str, Evaluation]
    verdict: Verdict
    shared_rows: int


def fitting_rows(data: CourseData) -> tuple[Tensor, Tensor]:
    """What baselines are fitted to: the inputs and targets of the training rows."""
    train = data.splits["train"]
    return with_every_class(data.rows.inputs[train], data.rows.targets[train], data.rows.classes)


def evaluate_splits(
    trainer: L.Trainer, model: CourseModel, data: CourseData, splits: Sequence[Split] = SPLITS
) -> dict[Split, Evaluation]:
    """Measure a trained model on each split that has rows, with the Trainer's accelerator and precision."""
    return {split: evaluate(trainer, model, data, split) for split in splits if len(data.splits[split])}


def fit_baselines(topic: Topic, data: CourseData, model: CourseModel) -> dict[str, Evaluation]:
    """Each baseline, fitted on the training rows and measured on the evaluation rows by the model's metrics."""
    if not data.rows.targets.numel():  # only the weights are in the loss: there is nothing to predict
        return {}
    rows, inputs = fitting_rows(data), data.rows.inputs[data.splits[data.eval_split]]
    return {
        name: evaluate_outputs(model, data, data.eval_split, baseline(*rows)(inputs))
        for name, baseline in topic.baselines.items()
    }


def judge_model(
    topic: Topic,
    model: CourseModel,
    data: CourseData,
    evaluations: dict[Split, Evaluation],
    baselines: dict[str, Evaluation],
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    kept_epoch: int | None = None,
) -> Assessment:
    """Judge a measured model by the test rows, without any by the validation rows, else by the training rows.

    Args:
        topic: The topic.
        model: The model that was measured.
        data: Its data.
        evaluations: Its evaluation on each split, that on ``data.eval_split`` among them.
        baselines: Those of the baselines on ``data.eval_split``.
        curves: ``train/loss`` and ``val/loss``: (epoch, value).
        kept_epoch: The epoch that the weights come from.
    """
    evaluation, train = evaluations[data.eval_split], data.splits["train"]
    if topic.judge:
        verdict = topic.judge(model, data)
    else:
        verdict = judge(
            evaluation,
            lambda order: values_of(model, evaluation.outputs, evaluation.targets[order]),
            baselines,
            model.primary_metric,
            higher_is_better=model.primary_metric not in model.lower_is_better,
            training_classes=torch.unique(data.rows.targets[train]).tolist() if data.rows.classes else [],
            curves=curves,
            kept_epoch=kept_epoch,
        )
    is_train = data.eval_split == "train"
    shared_rows = 0 if is_train else data.rows.count_shared(data.splits[data.eval_split], train)
    return Assessment(evaluations, evaluation, baselines, verdict, shared_rows)


def final_metrics(evaluations: Iterable[Evaluation]) -> dict[str, float]:
    """A run's final metrics: ``test/<metric>``, and ``best/<split>_<metric>`` of other rows, with 95 % intervals.

    A metric without a value on these rows, such as the AUROC of a single class, is left out.
    """
    metrics: dict[str, float] = {}
    for evaluation in evaluations:
        prefix = "test/" if evaluation.split == "test" else f"best/{evaluation.split}_"
        metrics |= {f"{prefix}{name}": value for name, value in evaluation.metrics.items() if math.isfinite(value)}
        for name, (low, high) in evaluation.intervals.items():
            metrics |= {f"{prefix}{name}_low": low, f"{prefix}{name}_high": high}
    return metrics
