"""Evaluate a model, or the outputs of something else, on the rows of one split."""

import hashlib
from typing import Any, Never

import lightning as L
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from tqdm import tqdm

from dlcourse.data.rows import SPLIT_NAMES, Split
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.split_data import LoaderData, SplitData
from dlcourse.evaluation.tasks import Task
from dlcourse.models.base import CourseModel
from dlcourse.reporting.phases import phase
from dlcourse.training.callbacks.untrue_warnings import only_true_warnings


def evaluate(trainer: L.Trainer, module: L.LightningModule, task: Task, data: SplitData, split: Split) -> Evaluation:
    """Evaluate a model on one split, with the accelerator and precision of ``trainer``, but on one device.

    On several devices some rows would be repeated to give each device the same number. Moves the model to the device.

    Raises:
        CourseError: The module's outputs or the batches are not as the task needs them.
    """
    loader = data.eval_dataloader(split)
    with only_true_warnings(data), phase(f"evaluating {SPLIT_NAMES[split]} rows", sized_len(loader)) as bar:
        if isinstance(module, CourseModel):
            step = _TestStep(bar)
            measured = _tester(trainer, step).test(module, dataloaders=loader, verbose=False)[0]
            metrics = {name.removeprefix("test/"): value for name, value in measured.items()}
            return _evaluation(task, split, torch.cat(step.outputs).cpu(), torch.cat(step.targets).cpu(), metrics)
        forward = Forward(module, task, data, bar)
        limit = trainer.limit_test_batches if split == "test" else trainer.limit_val_batches
        pairs = _tester(trainer, limit=limit).predict(forward, dataloaders=loader)
    assert pairs is not None  # only without return_predictions
    outputs, targets = (torch.cat([pair[place] for pair in pairs]) for place in (0, 1))
    return evaluate_outputs(task, split, outputs, targets, forward.digest.hexdigest()[:16])


def evaluate_outputs(task: Task, split: Split, outputs: Tensor, targets: Tensor, digest: str = "") -> Evaluation:
    """Evaluate outputs, N x outputs, of a model or of something else, such as a baseline, by the task's metrics."""
    predictions = task.predictions(outputs)
    metrics = {name: float(metric(predictions, targets)) for name, metric in task.all_metrics().items()}
    return _evaluation(task, split, outputs, targets, metrics, digest)


def _tester(trainer: L.Trainer, *callbacks: Callback, limit: int | float = 1.0) -> L.Trainer:
    return L.Trainer(
        accelerator=trainer.strategy.root_device.type,  # by name: with the object, mixed precision assumes a GPU
        devices=1,
        precision=trainer.precision,
        logger=False,
        callbacks=list(callbacks),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_predict_batches=limit,
    )


class _TestStep(Callback):
    """Collect the outputs, which a `CourseModel` returns of its ``test_step``, and the targets of each batch."""

    def __init__(self, bar: "tqdm[Never]") -> None:
        self.bar = bar
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *rest: Any
    ) -> None:
        self.outputs.append(outputs)
        self.targets.append(batch[1])
        self.bar.update()


class Forward(L.LightningModule):
    """A LightningModule of which nothing is used but its forward, with the outputs and targets of each batch.

    Batches go through the hooks of the module, or of its data module, that come before a step.
    """

    def __init__(self, module: L.LightningModule, task: Task, data: SplitData, bar: "tqdm[Never]") -> None:
        super().__init__()
        self.module, self.task, self.bar = module, task, bar
        self.digest = hashlib.sha256()
        datamodule = data.datamodule if isinstance(data, LoaderData) else None
        for hook in ("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer"):
            has_own = datamodule is not None and is_overridden(hook, datamodule, L.LightningDataModule)
            setattr(self, hook, getattr(datamodule if has_own else module, hook))

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        outputs, targets = self.task.measured(self.module, batch)
        apply_to_collection([self.task.split_batch(batch)], Tensor, self._add_to_digest)
        self.bar.update()
        return outputs.cpu(), targets.cpu()

    def _add_to_digest(self, values: Tensor) -> Tensor:
        values = values.cpu().contiguous()
        self.digest.update(values.view(torch.uint8).numpy().tobytes() if values.ndim else str(values).encode())
        return values


def _evaluation(
    task: Task, split: Split, outputs: Tensor, targets: Tensor, metrics: dict[str, float], digest: str = ""
) -> Evaluation:
    values = values_of(task, outputs, targets)
    losses = values.pop("loss")
    return Evaluation(split, {"loss": float(losses.mean()), **metrics}, outputs, targets, losses, values, digest)


def values_of(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The metrics of each row by name, and its "loss": float64, N each."""
    scores = {name: values.double() for name, values in task.per_sample_metrics(outputs, targets).items()}
    return {**scores, "loss": task.per_sample_loss(outputs, targets).double()}
