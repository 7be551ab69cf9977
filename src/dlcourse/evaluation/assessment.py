"""Evaluate, measure the baselines, judge: the same for a run, for a fold, and for what verdicts are checked by."""

from collections.abc import Callable, Mapping, Sequence
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


MeasuredBaselines = Callable[[Topic, CourseData, CourseModel], dict[str, Evaluation]]


def fitting_rows(data: CourseData) -> tuple[Tensor, Tensor]:
    """What baselines are fitted to: the inputs and targets of the training rows."""
    train = data.splits["train"]
    return with_every_class(data.rows.inputs[train], data.rows.targets[train], data.rows.classes)


def fit_baselines(topic: Topic, data: CourseData, model: CourseModel) -> dict[str, Evaluation]:
    """Each baseline, fitted on the training rows and measured on the judged ones by the model's metrics."""
    seen, judged = fitting_rows(data), data.rows.inputs[data.splits[data.eval_split]]
    return {
        name: evaluate_outputs(model, data, data.eval_split, baseline(*seen)(judged))
        for name, baseline in topic.baselines.items()
    }


def assess(
    topic: Topic,
    trainer: L.Trainer,
    model: CourseModel,
    data: CourseData,
    *,
    splits: Sequence[Split] = SPLITS,
    baselines: MeasuredBaselines = fit_baselines,
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    kept_epoch: int | None = None,
) -> Assessment:
    """Measure a trained model and its baselines, and judge it by the test rows, else validation, else training rows.

    Args:
        topic: The topic.
        trainer: The Trainer that trained it, for accelerator and precision.
        model: The model with the weights to measure.
        data: Its data.
        splits: Which splits to measure, the judged one among them; those without rows are left out.
        baselines: How the baselines are had.
        curves: ``train/loss`` and ``val/loss``: (epoch, value).
        kept_epoch: The epoch that the weights come from.
    """
    evaluations = {split: evaluate(trainer, model, data, split) for split in splits if len(data.splits[split])}
    measured = evaluations[data.eval_split]
    others = baselines(topic, data, model) if data.rows.targets.numel() else {}  # else there is nothing to predict

    def shuffled(order: Tensor) -> dict[str, Tensor]:
        return values_of(model, measured.outputs, measured.targets[order])

    train = data.splits["train"]
    classes = torch.unique(data.rows.targets[train]).tolist() if data.rows.classes else []
    verdict = (
        topic.judge(model, data)
        if topic.judge
        else judge(
            measured,
            shuffled,
            others,
            model.primary_metric,
            higher_is_better=model.primary_metric not in model.lower_is_better,
            training_classes=classes,
            curves=curves,
            kept_epoch=kept_epoch,
        )
    )
    shared = 0 if data.eval_split == "train" else data.rows.count_shared(data.splits[data.eval_split], train)
    return Assessment(evaluations, measured, others, verdict, shared)
