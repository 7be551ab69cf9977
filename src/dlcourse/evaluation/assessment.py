"""Evaluate a model and its baselines, and reach a verdict: for a run, for a fold, and for the verdict's benchmarks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

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
    """The evaluations of a trained model and of its baselines, with the verdict.

    ``evaluation`` is the one that the verdict is based on, on ``data.eval_split``; the ``baselines`` are evaluated on
    the same rows. ``shared_rows`` is the number of these rows whose input and target are those of a training row.
    """

    evaluations: dict[Split, Evaluation]
    evaluation: Evaluation
    baselines: dict[str, Evaluation]
    verdict: Verdict
    shared_rows: int


def fitting_rows(data: CourseData) -> tuple[Tensor, Tensor]:
    """The inputs and targets of the training rows, as baselines are fitted to them."""
    train = data.splits["train"]
    return with_every_class(data.rows.inputs[train], data.rows.targets[train], data.rows.classes)


def evaluate_splits(
    trainer: L.Trainer, model: CourseModel, data: CourseData, splits: Sequence[Split] = SPLITS
) -> dict[Split, Evaluation]:
    """Evaluate a trained model on each split that has rows, with the Trainer's accelerator and precision."""
    return {split: evaluate(trainer, model, data, split) for split in splits if len(data.splits[split])}


def fit_baselines(topic: Topic, data: CourseData, model: CourseModel) -> dict[str, Evaluation]:
    """Fit each baseline to the training rows, and evaluate it on ``data.eval_split`` by the model's metrics."""
    if not data.rows.targets.numel():  # the loss depends on the weights alone: there is nothing to predict
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
    """Reach a verdict on ``data.eval_split``: the test rows, or without any the validation rows, or else training rows.

    Args:
        topic: The topic.
        model: The trained model.
        data: Its data.
        evaluations: Its evaluations by split, at least that on ``data.eval_split``.
        baselines: The baselines' evaluations on ``data.eval_split``.
        curves: ``train/loss`` and ``val/loss``: (epoch, value).
        kept_epoch: The epoch of the kept weights.
    """
    evaluation, train = evaluations[data.eval_split], data.splits["train"]
    if topic.judge:
        verdict = topic.judge(model, data)
    else:
        verdict = judge(
            evaluation,
            partial(values_of, model),
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


def final_metrics(model: CourseModel, assessment: Assessment) -> dict[str, float]:
    """What a run logs when it has ended, by name.

    Every metric on the split of the verdict, the primary one on validation rows, and the best baseline's.
    """
    evaluation, primary = assessment.evaluation, model.primary_metric
    metrics = evaluation.finals
    if (val := assessment.evaluations.get("val")) and math.isfinite(val.metrics[primary]):
        metrics[val.final_name(primary)] = val.metrics[primary]
    if values := [each.metrics[primary] for each in assessment.baselines.values()]:
        best = min(values) if primary in model.lower_is_better else max(values)
        metrics[f"{evaluation.split}/baseline_{primary}"] = best
    return metrics
