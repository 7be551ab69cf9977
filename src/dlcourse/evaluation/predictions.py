"""The outputs of a run on the rows it was evaluated on: any two runs can be compared later without their models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Split
from dlcourse.evaluation.evaluate import values_of
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.intervals import are_shares
from dlcourse.evaluation.split_data import SplitData
from dlcourse.evaluation.tasks import Task

PREDICTIONS = "predictions.npz"
"""For each split arrays such as ``test_rows`` (the numbers of the rows), ``test_targets``, ``test_outputs``, and with
the loss and the metrics of each row ``test_loss`` and ``test_accuracy``; and what the task says of its metrics."""


def save_predictions(
    file: Path, task: Task, data: SplitData, evaluations: Mapping[Split, Evaluation], *, exactly: bool = False
) -> None:
    """Write outputs, targets, losses and metrics of each row, by split.

    Unless they are to be kept ``exactly``, outputs are in half precision where no row's primary metric is changed by
    that, as for most classifiers; losses and metrics are computed before.
    """
    arrays: dict[str, Any] = {"primary_metric": task.primary_metric, "lower_is_better": sorted(task.lower_is_better)}
    for split, each in evaluations.items():
        rows = data.splits[split] if isinstance(data, CourseData) else torch.arange(len(each.targets))
        outputs = each.outputs if exactly or not _is_same_in_half(task, each) else each.outputs.half()
        arrays |= {f"{split}_rows": rows.int(), f"{split}_targets": each.targets, f"{split}_outputs": outputs}
        for name, values in each.values.items():
            arrays[f"{split}_{name}"] = values.to(torch.uint8 if are_shares(values) else torch.float32)
    np.savez_compressed(file, **arrays)


def _is_same_in_half(task: Task, evaluation: Evaluation) -> bool:
    outputs = evaluation.outputs.half().to(evaluation.outputs.dtype)
    values = values_of(task, outputs, evaluation.targets)
    return torch.equal(values[task.primary_metric], evaluation.values[task.primary_metric])


def read_values(file: Path, name: str) -> Tensor:
    """One of the arrays, such as ``test_accuracy``; raises `KeyError` if the file has none of that name."""
    with np.load(file, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays[name])


def read_metrics(file: Path, split: Split) -> tuple[str, dict[str, bool]]:
    """The primary metric; and of every metric that each row has, by name, whether higher values are better."""
    with np.load(file, allow_pickle=False) as arrays:
        lower = set(arrays["lower_is_better"].tolist())
        others = {f"{split}_rows", f"{split}_targets", f"{split}_outputs"}
        names = [name.removeprefix(f"{split}_") for name in arrays if name.startswith(split) and name not in others]
        return str(arrays["primary_metric"]), {name: name not in lower for name in names}
