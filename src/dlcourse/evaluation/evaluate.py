"""Evaluate a model, or the outputs of something else, on the rows of one split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dlcourse.data.rows import SPLIT_NAMES
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.reporting.phases import phase

if TYPE_CHECKING:
    from tqdm import tqdm

    from dlcourse.data.datamodule import CourseData
    from dlcourse.data.rows import Split
    from dlcourse.models.base import CourseModel


class _Outputs(Callback):
    """Collect what ``test_step`` returns: the outputs of each batch."""

    def __init__(self, bar: tqdm[Never]) -> None:
        self.batches: list[Tensor] = []
        self.bar = bar

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any) -> None:
        self.batches.append(outputs)
        self.bar.update()


def evaluate(trainer: L.Trainer, model: CourseModel, data: CourseData, split: Split) -> Evaluation:
    """Evaluate a model on one split, with the accelerator and precision of ``trainer``, but on one device.

    On several devices some rows would be repeated to give each device the same number. Moves the model to the device.
    """
    loader = data.eval_dataloader(split)
    with phase(f"evaluating {SPLIT_NAMES[split]} rows", len(loader)) as bar:
        outputs = _Outputs(bar)
        tester = L.Trainer(
            accelerator=trainer.strategy.root_device.type,  # by name: with the object, mixed precision assumes a GPU
            devices=1,
            precision=trainer.precision,
            logger=False,
            callbacks=[outputs],
            deterministic=torch.are_deterministic_algorithms_enabled(),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        measured = tester.test(model, dataloaders=loader, verbose=False)[0]
    metrics = {name.removeprefix("test/"): value for name, value in measured.items()}
    return _evaluation(model, data, split, torch.cat(outputs.batches).cpu(), metrics)


def evaluate_outputs(model: CourseModel, data: CourseData, split: Split, outputs: Tensor) -> Evaluation:
    """Evaluate outputs of something else, such as a baseline, N x outputs, by the model's metrics."""
    targets, predictions = data.rows.targets[data.splits[split]], model.predictions(outputs)
    metrics = {name: float(metric(predictions, targets)) for name, metric in model.metrics().items()}
    return _evaluation(model, data, split, outputs, metrics)


def _evaluation(
    model: CourseModel, data: CourseData, split: Split, outputs: Tensor, metrics: dict[str, float]
) -> Evaluation:
    targets = data.rows.targets[data.splits[split]]
    values = values_of(model, outputs, targets)
    losses = values.pop("loss")
    return Evaluation(split, {"loss": float(losses.mean()), **metrics}, outputs, targets, losses, values)


def values_of(model: CourseModel, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The metrics of each row by name, and its "loss": float64, N each."""
    scores = {name: values.double() for name, values in model.per_sample_metrics(outputs, targets).items()}
    return {**scores, "loss": model.per_sample_loss(outputs, targets).double()}
