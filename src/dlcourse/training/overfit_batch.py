"""Overfit one batch. A model that cannot has a bug, too little capacity, or an unsuitable learning rate."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Batch, TensorRows
from dlcourse.data.samplers import identity_collate
from dlcourse.errors import SettingsError
from dlcourse.evaluation.baselines import least_squares
from dlcourse.models.base import CourseModel
from dlcourse.reporting.phases import phase
from dlcourse.settings import Seed, Settings
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.run import Run
from dlcourse.training.callbacks.untrue_warnings import only_true_warnings
from dlcourse.training.fit import new_model
from dlcourse.training.processes import check_one_process
from dlcourse.training.request import LIGHTNINGS, resolve
from dlcourse.training.start import check_in_memory, load_data, log_start
from dlcourse.training.trainer import make_trainer

ROWS = 32
STEPS = 3000
STEPS_BETWEEN_CHECKS = 50
LARGEST_LOSS = 0.05
LEAST_R2 = 0.99
OVER_LEAST_SQUARES = 1.01
REGULARISATION = ("dropout", "label_smoothing", "weight_decay")
"""Settings that would prevent overfitting, and are set to 0 here. The batch is not augmented either."""


@dataclass(frozen=True)
class OverfitBatchResult:
    """Whether the model has overfitted the batch, and its metrics on it, measured in evaluation mode."""

    passed: bool
    figures: dict[str, float]
    rows: int
    steps: int
    lost: dict[str, str] = field(default_factory=dict)
    """Whatever is not in the store, with the reason."""

    @property
    def ok(self) -> bool:
        """Whether the test passed, and everything is in the store."""
        return self.passed and not self.lost

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain types for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        return (
            f"{'PASS' if self.passed else 'FAIL'}: {figures} on one batch of {self.rows} rows, after {self.steps} steps"
        )


def overfit(
    topic: str | Topic,
    *,
    config: str | Path | Sequence[str] | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed | None = None,
    name: str | None = None,
) -> OverfitBatchResult:
    """Test whether a topic's model can overfit one fixed batch, on one device.

    The run has settings and metrics, but no model.

    Args:
        topic: A topic's name, or your own `Topic`.
        config: YAML files with settings, or names of the topic's experiments.
        data: Settings of the topic's data.
        model: Settings of the topic's model.
        trainer: Settings of the Trainer.
        seed: Seed of weights and batches.
        name: Name of the run.

    Raises:
        SettingsError: A setting is invalid, or the data have no targets.
    """
    request = resolve(topic, config, data, model, trainer, seed)
    check_in_memory(request.topic, "overfit")
    settings = request.settings
    settings = dataclasses.replace(settings, trainer={**settings.trainer, "devices": 1, "strategy": "auto"})
    check_one_process(settings.trainer, "overfit")
    datamodule, settings = load_data(request.topic, settings)
    assert isinstance(datamodule, CourseData)
    if not datamodule.rows.targets.numel():
        raise SettingsError("there is nothing to overfit: the rows have no targets, and the loss needs none")
    run_name, tags = f"overfit: {name or request.name}", {"dlcourse.kind": "overfit"}
    with open_store().start_run(request.topic.name, run_name, tags) as run:
        log_start(run, request.topic, datamodule, settings)
        result = dataclasses.replace(overfit_batch(request.topic, settings, datamodule, run), lost=run.lost)
        run.set_tags({"verdict": str(result), "mlflow.note.content": str(result)})
    return result


def overfit_batch(topic: Topic, settings: Settings, data: CourseData, run: Run) -> OverfitBatchResult:
    """Train on one fixed batch of at most `ROWS` training rows, until it is overfitted or `STEPS` steps are done.

    A classifier has overfitted it if all rows are right and the loss is below 0.05; a regression if R² is above 0.99
    or, for a model that is too simple for that, if its squared error is within 1 % of least squares on the same rows.
    """
    train = data.splits["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(data.split_seed))
    rows = train[order[: min(data.batch_size, ROWS)]]
    batch = data.rows.inputs[rows], data.rows.targets[rows]
    data.batch_size = len(rows)
    free = {name: 0.0 for name in REGULARISATION if name in settings.model}
    model = new_model(topic, data, dataclasses.replace(settings, model=settings.model | free))
    assert isinstance(model, CourseModel)
    model.prepare(data)
    check = _Check(batch, run)
    again_and_again = [list(range(len(rows)))] * STEPS
    loader = DataLoader(
        TensorRows(*batch, torch.arange(len(rows))), batch_sampler=again_and_again, collate_fn=identity_collate
    )
    once = {"max_epochs": 1, "patience": None, "stopping_threshold": None, "fast_dev_run": False, "limit_batches": None}
    chosen = {name: value for name, value in settings.trainer.items() if name not in LIGHTNINGS}
    trainer = make_trainer(**{**chosen, **once}, callbacks=[check])
    if trainer.progress_bar_callback:
        trainer.progress_bar_callback.disable()  # it reports epochs, and this is a single one
    with only_true_warnings(data), phase("overfitting one batch"):
        trainer.fit(model, loader, [])
    return check.result


class _Check(Callback):
    """Stop the training as soon as the batch is overfitted."""

    def __init__(self, batch: Batch, run: Run) -> None:
        self.batch, self.run = batch, run

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = batch_idx + 1
        if steps % STEPS_BETWEEN_CHECKS and steps < STEPS:
            return
        assert isinstance(pl_module, CourseModel)
        self.result = _measured(pl_module, self.batch, steps)
        self.run.log_metrics({f"overfit/{name}": value for name, value in self.result.figures.items()}, steps)
        if self.result.passed:
            trainer.should_stop = True


def _measured(model: CourseModel, batch: Batch, steps: int) -> OverfitBatchResult:
    inputs, targets = batch
    was_training = model.training
    model.eval()
    with torch.no_grad():
        outputs = model(inputs.to(model.device)).float().cpu()
    model.train(was_training)
    scores = model.per_sample_metrics(outputs, targets)
    if "accuracy" in scores:
        figures = {
            "accuracy": float(scores["accuracy"].mean()),
            "loss": float(model.per_sample_loss(outputs, targets).mean()),
        }
        return OverfitBatchResult(
            figures["accuracy"] == 1 and figures["loss"] < LARGEST_LOSS, figures, len(targets), steps
        )
    error = float(scores["mse"].mean())
    best = float((least_squares(inputs, targets)(inputs) - targets).square().mean())
    spread = float((targets - targets.mean(0)).square().mean())
    figures = {"R2": 1 - error / spread if spread else float(error == 0), "mse": error, "least-squares mse": best}
    return OverfitBatchResult(
        figures["R2"] > LEAST_R2 or error <= OVER_LEAST_SQUARES * best, figures, len(targets), steps
    )
