"""Training itself: from a new model, or from where an interrupted run left off, to the weights that are kept."""

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from dlcourse.data.datamodule import CourseData
from dlcourse.errors import CourseError, explained
from dlcourse.evaluation.overfitting import Overfitting
from dlcourse.models.base import CourseModel
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking.interrupts import OwnSignals
from dlcourse.tracking.lightning_logger import Curve, RunLogger
from dlcourse.tracking.run import Run
from dlcourse.training.callbacks.checkpoints import AtomicCheckpointIO, KeptCheckpoint
from dlcourse.training.callbacks.divergence import Divergence, divergence_of
from dlcourse.training.callbacks.overfitting import OverfittingMonitor
from dlcourse.training.checkpoints import read_checkpoint
from dlcourse.training.resume import Resumed
from dlcourse.training.trainer import make_trainer

log = logging.getLogger(__name__)


@dataclass
class Fitted:
    """A model with the weights to keep, and how it came by them."""

    model: CourseModel
    data: CourseData
    trainer: L.Trainer
    divergence: Divergence
    checkpoint: Path | None
    why_stopped: str
    epochs: int
    epoch: int
    seconds: float
    overfitting: Overfitting | None
    refitted: bool = False


def new_model(topic: Topic, data: CourseData, settings: Settings) -> CourseModel:
    """The topic's model for this data, its weights drawn by the run's seed."""
    L.seed_everything(settings.seed, workers=True, verbose=False)
    return topic.model(data.shape, data.outputs, **settings.model)


def fit(
    topic: Topic,
    run: Run | None,
    data: CourseData,
    model: CourseModel,
    settings: Settings,
    monitor: str | None,
    folder: Path,
    resumed: Resumed | None = None,
    *,
    light: bool = False,
) -> Fitted:
    """Train, and load the weights to keep: the best by the monitored metric, without one the last.

    Args:
        topic: The topic.
        run: Where the curve is logged; None in a process that takes part in another one's training.
        data: The data, prepared and split.
        model: A model made for it.
        settings: The settings.
        monitor: The metric to choose by.
        folder: Where the checkpoints are kept.
        resumed: Where to carry on, as `prepare_resume` gives it.
        light: Whether to say nothing of single epochs.
    """
    monitoring = OverfittingMonitor()
    callbacks: list[Callback] = [OwnSignals(), monitoring]
    if run:
        callbacks.append(Curve(run))
    limit = {"max_epochs": resumed.max_epochs} if resumed else {}
    trainer = make_trainer(
        **{**settings.trainer, **limit},
        monitor=monitor,
        mode=topic.mode,
        folder=folder,
        logger=RunLogger(run) if run else None,
        callbacks=callbacks,
    )
    if light and trainer.progress_bar_callback:
        trainer.progress_bar_callback.disable()
    if run:
        trainer.strategy.checkpoint_io = RunCheckpointIO(run)
    started = time.perf_counter()
    last = resumed.checkpoint if resumed else None
    try:
        trainer.fit(model, datamodule=data, ckpt_path=last, weights_only=True)
    except RuntimeError as error:
        if explanation := explained(error):
            raise CourseError(explanation) from error
        raise
    seconds = time.perf_counter() - started
    divergence = divergence_of(trainer)
    kept = [each.path for each in trainer.checkpoint_callbacks if isinstance(each, KeptCheckpoint)]
    checkpoint = next((path for path in kept if path.is_file()), None)
    epoch = max(trainer.current_epoch - 1, 0)
    if checkpoint and divergence.epoch is None:
        state = read_checkpoint(checkpoint)
        model.load_state_dict(state["state_dict"])
        epoch = state["epoch"]
    why = "at the last epoch" if trainer.current_epoch >= (trainer.max_epochs or 0) else "early"
    if divergence.epoch is not None:
        why = "diverging"
    return Fitted(
        model,
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


def refit(topic: Topic, run: Run | None, data: CourseData, settings: Settings, chosen: Fitted, folder: Path) -> Fitted:
    """Train anew on training and validation rows together, for as many epochs as the best weights took."""
    data.refit()
    log.info("training anew on %d rows for %d epochs", len(data.splits["train"]), chosen.epoch + 1)
    model = new_model(topic, data, settings)
    trainer = make_trainer(
        **{**settings.trainer, "max_epochs": chosen.epoch + 1, "patience": None, "stopping_threshold": None},
        folder=folder,
        logger=RunLogger(run, "refit/") if run else None,
        callbacks=[OwnSignals()],
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
        trainer=trainer,
        checkpoint=last if last.is_file() else None,
        seconds=seconds,
        refitted=True,
    )


class RunCheckpointIO(AtomicCheckpointIO):
    """Checkpoints of a run: one that cannot be written, as on a full disk, does not cost the training."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with self.run.attempt(f"checkpoints/{Path(path).name}"):
            super().save_checkpoint(checkpoint, path, storage_options)
