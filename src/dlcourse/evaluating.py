"""What a model says of the rows of one split."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dlcourse.data import CourseData, Split
from dlcourse.learning import CourseModel


@dataclass(frozen=True)
class Evaluation:
    """One pass over a split in evaluation mode.

    ``metrics`` by plain name (``loss``, ``mse``); ``outputs`` are N x outputs and ``targets`` as the data has them;
    ``losses`` and each of ``scores`` hold one number a row, float64, N.
    """

    split: Split
    metrics: dict[str, float]
    outputs: Tensor
    targets: Tensor
    losses: Tensor
    scores: dict[str, Tensor]

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of each metric that is a mean over rows: the rows' standard deviation over the root of their number."""
        return {
            name: float(values.std() / len(values) ** 0.5) for name, values in self.scores.items() if len(values) > 1
        }


class _Outputs(Callback):
    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any) -> None:
        self.batches.append(outputs)


def evaluate(trainer: L.Trainer, model: CourseModel, data: CourseData, split: Split) -> Evaluation:
    """Measure a model on one split, with the accelerator and precision of ``trainer`` but on one device of it.

    One device sees every row once: several would be given some rows twice, to make their shares equal.
    """
    kept = _Outputs()
    tester = L.Trainer(
        accelerator=trainer.strategy.root_device.type,  # by its name: of the object mixed precision makes a GPU
        devices=1,
        precision=trainer.precision,
        logger=False,
        callbacks=[kept],
        deterministic=torch.are_deterministic_algorithms_enabled(),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    measured = tester.test(model, dataloaders=data.ordered(split), verbose=False)[0]
    outputs = torch.cat(kept.batches).cpu()
    targets = data.rows.targets[data.splits[split]]
    return Evaluation(
        split,
        {name.removeprefix("test/"): value for name, value in measured.items()},
        outputs,
        targets,
        model.row_losses(outputs, targets).double(),
        {name: values.double() for name, values in model.row_scores(outputs, targets).items()},
    )


def evaluate_outputs(model: CourseModel, data: CourseData, split: Split, outputs: Tensor) -> Evaluation:
    """Measure outputs that came from elsewhere, such as a baseline, by the model's own metrics."""
    targets = data.rows.targets[data.splits[split]]
    losses = model.row_losses(outputs, targets).double()
    metrics = {"loss": float(losses.mean())}
    predictions = model.predictions(outputs)
    for name, metric in model.metrics().items():
        metrics[name] = float(metric(predictions, targets))
    scores = {name: values.double() for name, values in model.row_scores(outputs, targets).items()}
    return Evaluation(split, metrics, outputs, targets, losses, scores)
