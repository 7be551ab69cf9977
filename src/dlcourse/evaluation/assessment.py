"""Evaluate a model and its baselines, and reach a verdict: for a run, for a fold, and for the verdict's benchmarks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import lightning as L
import torch
from torch import Tensor

from dlcourse.data.rows import SPLITS, Split
from dlcourse.errors import CourseError
from dlcourse.evaluation.baselines import Baseline, as_columns, with_every_class
from dlcourse.evaluation.evaluate import evaluate, evaluate_outputs, values_of
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.split_data import SplitData
from dlcourse.evaluation.tasks import Task
from dlcourse.evaluation.verdict import Verdict, judge
from dlcourse.reporting.phases import phase
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


def evaluate_splits(
    trainer: L.Trainer, module: L.LightningModule, task: Task, data: SplitData
) -> dict[Split, Evaluation]:
    """Evaluate a trained model on validation rows and on ``data.eval_split``, as the Trainer computes."""
    splits = [split for split in SPLITS if split == data.eval_split or (split == "val" and data.has("val"))]
    return {split: evaluate(trainer, module, task, data, split) for split in splits}


def fit_baselines(
    baselines: Mapping[str, Baseline], task: Task, data: SplitData, evaluation: Evaluation
) -> dict[str, Evaluation]:
    """Fit each baseline to training rows, and evaluate it on the rows of ``evaluation`` by the task's metrics.

    Where the data gives no inputs for it, only the trivial one is there.

    Raises:
        CourseError: The dataloader gives these rows in another order than before.
    """
    if not baselines or not evaluation.targets.numel():  # the loss depends on the weights alone: nothing to predict
        return {}
    num_outputs = evaluation.outputs.shape[1]
    inputs, targets = data.baseline_rows()
    # As the task shapes them beside outputs, of which there are none for these rows.
    targets = task.shaped(evaluation.outputs[:1].expand(len(targets), *evaluation.outputs.shape[1:]), targets)[1]
    if _are_classes(targets):
        inputs, targets = with_every_class(inputs, targets, range(max(num_outputs, 2)))
    has_inputs = inputs.shape[1:] != (0,)
    known = baselines if has_inputs else dict(list(baselines.items())[:1])
    fitted = {}
    for name, baseline in known.items():
        with phase(f"fitting the baseline {name}"):
            fitted[name] = baseline(inputs, targets)
    outputs: dict[str, list[Tensor]] = {name: [] for name in fitted}
    seen: list[Tensor] = []
    for batch in data.eval_dataloader(evaluation.split):
        rows, labels = task.split_batch(batch)
        rows = rows.cpu() if has_inputs else torch.empty(len(labels), 0)
        for name, predict in fitted.items():
            outputs[name].append(as_columns(predict(rows), num_outputs))
        seen.append(labels.cpu())
        if sum(map(len, seen)) >= len(evaluation.targets):  # a Trainer may be limited to some batches
            break
    targets = task.shaped(evaluation.outputs, torch.cat(seen))[1]
    if not torch.equal(targets, evaluation.targets):
        raise CourseError(
            f"{evaluation.split}_dataloader gives its rows in another order each time, so that models cannot be "
            "compared row by row: set its shuffle to False"
        )
    return {
        name: evaluate_outputs(task, evaluation.split, torch.cat(each).view_as(evaluation.outputs), targets)
        for name, each in outputs.items()
    }


def _are_classes(targets: Tensor) -> bool:
    return targets.ndim == 1 and not targets.is_floating_point()


def judge_model(
    topic: Topic,
    module: L.LightningModule,
    task: Task,
    data: SplitData,
    evaluations: dict[Split, Evaluation],
    baselines: dict[str, Evaluation],
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    kept_epoch: int | None = None,
) -> Assessment:
    """Reach a verdict on ``data.eval_split``: the test rows, or without any the validation rows, or else training rows.

    Args:
        topic: The topic.
        module: The trained model.
        task: What it was trained for.
        data: Its data.
        evaluations: Its evaluations by split, at least that on ``data.eval_split``.
        baselines: The baselines' evaluations on ``data.eval_split``.
        curves: ``train/loss`` and ``val/loss``: (epoch, value).
        kept_epoch: The epoch of the kept weights.
    """
    evaluation = evaluations[data.eval_split]
    if topic.judge:
        verdict = topic.judge(module, data)
    else:
        is_classifier = _are_classes(evaluation.targets)
        verdict = judge(
            evaluation,
            partial(values_of, task),
            baselines,
            task.primary_metric,
            higher_is_better=task.primary_metric not in task.lower_is_better,
            training_classes=torch.unique(data.baseline_rows()[1].long()).tolist() if is_classifier else [],
            curves=curves,
            kept_epoch=kept_epoch,
        )
    return Assessment(
        evaluations, evaluation, baselines, verdict, 0 if data.eval_split == "train" else data.count_shared()
    )


def final_metrics(task: Task, assessment: Assessment) -> dict[str, float]:
    """What a run logs when it has ended, by name.

    Every metric on the split of the verdict, the primary one on validation rows, and the best baseline's.
    """
    evaluation, primary = assessment.evaluation, task.primary_metric
    metrics = evaluation.finals
    if (val := assessment.evaluations.get("val")) and math.isfinite(val.metrics[primary]):
        metrics[val.final_name(primary)] = val.metrics[primary]
    if values := [each.metrics[primary] for each in assessment.baselines.values()]:
        best = min(values) if primary in task.lower_is_better else max(values)
        metrics[f"{evaluation.split}/baseline_{primary}"] = best
    return metrics
