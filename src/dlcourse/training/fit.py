"""Training itself: from a model and its data to the weights that are kept."""

import copy
import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from dlcourse.data.datamodule import CourseData
from dlcourse.errors import CourseError, SettingsError, explained
from dlcourse.evaluation.overfitting import Overfitting
from dlcourse.evaluation.split_data import LoaderData, SplitData, datamodule_of
from dlcourse.evaluation.tasks import Task
from dlcourse.models.base import CourseModel
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking.interrupts import OwnSignals
from dlcourse.tracking.lightning_logger import Curve, RunLogger
from dlcourse.tracking.run import Run
from dlcourse.training.callbacks.checkpoints import AtomicCheckpointIO
from dlcourse.training.callbacks.divergence import Divergence, divergence_of
from dlcourse.training.callbacks.overfitting import OverfittingMonitor
from dlcourse.training.resume import Resumed
from dlcourse.training.trainer import make_trainer

log = logging.getLogger(__name__)


@dataclass
class Fitted:
    """A model with its kept weights, and how the training went.

    ``epochs`` is the number of epochs trained, ``epoch`` the one whose weights are kept, counted from 0.
    """

    model: L.LightningModule
    task: Task
    data: SplitData
    trainer: L.Trainer
    divergence: Divergence
    checkpoint: Path | None
    why_stopped: str
    epochs: int
    epoch: int
    seconds: float
    overfitting: Overfitting | None
    refitted: bool = False


def remedy(fitted: Fitted) -> str:
    """What to change after a divergence."""
    lr = fitted.trainer.optimizers[0].param_groups[0]["lr"]
    if not isinstance(fitted.model, CourseModel):
        return f"lower the learning rate ({lr:g})"
    is_standardized = not isinstance(fitted.data, CourseData) or fitted.data.standardize
    text = f"lower --model.lr ({fitted.model.lr:g})"
    return text if is_standardized else f"{text} or standardise the inputs (--data.standardize true)"


@dataclass(frozen=True)
class Plan:
    """What a process must know about the training; ``folder`` is that of the checkpoints, which process 0 writes."""

    topic: Topic
    settings: Settings
    monitor: str | None
    folder: Path
    resumed: Resumed | None = None
    refit: bool = False


def new_model(topic: Topic, data: SplitData, settings: Settings) -> L.LightningModule:
    """The topic's model for this data. Sets the random state of Python, NumPy and torch to the run's seed."""
    L.seed_everything(settings.seed, workers=True, verbose=False)
    if not issubclass(topic.model, CourseModel):
        return topic.model(**settings.model)
    if not isinstance(data, CourseData):
        raise CourseError(f"{topic.model.__name__} takes its shapes from a CourseData, not a {topic.data.__name__}")
    model = topic.model(data.shape, data.outputs, **settings.model)
    task_of(topic, model)
    return model


def task_of(topic: Topic, model: L.LightningModule) -> Task:
    """The task of a topic's model, with the topic's loss and metrics.

    The model itself if it is a task; else the topic's, with the model's ``per_sample_loss`` if it has one.

    Raises:
        SettingsError: There is none.
    """
    if isinstance(model, Task):
        task: Task = model
    elif topic.task is None:
        raise SettingsError(f"topic {topic.name}: {type(model).__name__} is no CourseModel, so its Topic needs a task=")
    else:
        task = copy.copy(topic.task)
        if loss := getattr(model, "per_sample_loss", None):
            task.use_loss(loss)
    if topic.loss:
        task.use_loss(topic.loss)
    if topic.metrics:
        task.measure_also(topic.metrics)
    return task


def as_fitted(topic: Topic, model: L.LightningModule, data: SplitData, settings: Settings) -> Fitted:
    """A model that has been trained elsewhere, with a Trainer to evaluate it by."""
    trainer = make_trainer(**{**settings.trainer, "patience": None, "devices": 1})
    return Fitted(
        model,
        task_of(topic, model),
        data,
        trainer,
        divergence_of(trainer),
        checkpoint=None,
        why_stopped="trained elsewhere",
        epochs=0,
        epoch=0,
        seconds=0.0,
        overfitting=None,
    )


def run_fit(plan: Plan, data: SplitData, model: L.LightningModule, run: Run | None) -> Fitted:
    """Train by the plan; ``run`` is None in a process that only takes part."""
    fitted = fit(
        plan.topic, run, data, model, plan.settings, plan.monitor, plan.folder, plan.resumed, light=run is None
    )
    if plan.refit and fitted.divergence.epoch is None:
        fitted = refit(plan.topic, run, data, plan.settings, fitted, plan.folder / "refit")
    return fitted


def fit(
    topic: Topic,
    run: Run | None,
    data: SplitData,
    model: L.LightningModule,
    settings: Settings,
    monitor: str | None,
    folder: Path,
    resumed: Resumed | None = None,
    *,
    light: bool = False,
) -> Fitted:
    """Train the model, and load the weights of the best epoch.

    The last weights stay where nothing is monitored, and after a divergence.

    Args:
        topic: The topic.
        run: Where metrics are logged; None in a process that only takes part in the training.
        data: The data, prepared and split.
        model: A model made for this data; it is trained in place.
        settings: The settings.
        monitor: The metric that the best epoch is chosen by.
        folder: Where the checkpoints are saved.
        resumed: The checkpoint to go on from, as `prepare_resume` returns it.
        light: No progress bar and no lines of epochs.

    Raises:
        CourseError: The training failed for a known reason, such as a lack of memory.
    """
    task = task_of(topic, model)
    if isinstance(data, CourseData):
        data.measures_gap = isinstance(model, CourseModel)
    monitoring = OverfittingMonitor(None if isinstance(model, CourseModel) else task)
    callbacks: list[Callback] = [OwnSignals(), monitoring, *topic.callbacks()]
    if run:
        callbacks.append(Curve(run))
    limit = {"max_epochs": resumed.max_epochs} if resumed else {}
    trainer = make_trainer(
        **{**settings.trainer, **limit},
        monitor=monitor,
        mode=topic.mode,
        folder=folder,
        logger=RunLogger(run, by_epoch=True) if run else None,
        callbacks=callbacks,
    )
    if light and trainer.progress_bar_callback:
        trainer.progress_bar_callback.disable()
    if run:
        trainer.strategy.checkpoint_io = RunCheckpointIO(run)
    started = time.perf_counter()
    last = resumed.checkpoint if resumed else None
    try:
        trainer.fit(model, datamodule=datamodule_of(data), ckpt_path=last, weights_only=True)
    except RuntimeError as error:
        if explanation := explained(error):
            raise CourseError(explanation) from error
        raise
    seconds = time.perf_counter() - started
    if isinstance(data, LoaderData):
        data.is_set_up_to_fit = True
    divergence = divergence_of(trainer)
    names = ("best.ckpt", "last.ckpt") if monitor else ("last.ckpt",)
    checkpoint = next((folder / name for name in names if (folder / name).is_file()), None)
    epoch = max(trainer.current_epoch - 1, 0)
    if run and checkpoint and divergence.epoch is None:
        state = torch.load(checkpoint, map_location="cpu", weights_only=False)  # which this process has written
        model.load_state_dict(state["state_dict"])
        epoch = state["epoch"]
    epoch = trainer.strategy.broadcast(epoch)  # only the process with the run has read it
    why = "early"
    if 0 <= (trainer.max_epochs or 0) <= trainer.current_epoch:
        why = "at the last epoch"
    elif 0 <= trainer.max_steps <= trainer.global_step:
        why = "at the last step"
    if 0 <= trainer.max_steps <= trainer.global_step:
        why = "at the last step"
    if divergence.epoch is not None:
        why = "diverging"
    return Fitted(
        model,
        task,
        data,
        trainer,
        divergence,
        checkpoint,
        why_stopped=why,
        epochs=trainer.current_epoch,
        epoch=epoch,
        seconds=seconds,
        overfitting=monitoring.finding,
    )


def refit(topic: Topic, run: Run | None, data: SplitData, settings: Settings, chosen: Fitted, folder: Path) -> Fitted:
    """Train a new model on training and validation rows together, for as many epochs as the best weights took.

    Changes the split of ``data``. Metrics are logged as ``refit/...``.
    """
    assert isinstance(data, CourseData)
    data.refit()
    log.info("training again on %d rows for %d epochs", len(data.splits["train"]), chosen.epoch + 1)
    model = new_model(topic, data, settings)
    trainer = make_trainer(
        **{**settings.trainer, "max_epochs": chosen.epoch + 1, "patience": None, "stopping_threshold": None},
        folder=folder,
        logger=RunLogger(run, "refit/", by_epoch=True) if run else None,
        callbacks=[OwnSignals(), *topic.callbacks()],
    )
    if run:
        trainer.strategy.checkpoint_io = RunCheckpointIO(run)
    started = time.perf_counter()
    trainer.fit(model, datamodule=data)
    seconds = chosen.seconds + time.perf_counter() - started
    last = folder / "last.ckpt"
    return dataclasses.replace(
        chosen,
        model=model,
        task=task_of(topic, model),
        trainer=trainer,
        checkpoint=last if last.is_file() else None,
        seconds=seconds,
        refitted=True,
    )


class RunCheckpointIO(AtomicCheckpointIO):
    """Checkpoints of a run: if one cannot be written, as on a full disk, the training goes on without it."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with self.run.attempt(f"checkpoints/{Path(path).name}"):
            super().save_checkpoint(checkpoint, path, storage_options)
