"""Training itself: from a new model, or from where an interrupted run left off, to the weights that are kept."""

import dataclasses
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import mlflow.entities as mlflow
from lightning.pytorch.callbacks import Callback

from dlcourse.data import CourseData
from dlcourse.errors import CourseError, explained
from dlcourse.exporting import read_checkpoint
from dlcourse.learning import CourseModel
from dlcourse.overfitting import Overfitting, OverfittingMonitor
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking import Curve, OwnSignals, Run, RunLogger
from dlcourse.trainer import AtomicCheckpointIO, Divergence, KeptCheckpoint, divergence_of, make_trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """Where to carry on from, and after how many epochs to end at the latest."""

    checkpoint: Path
    max_epochs: int


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


def start_from(model: CourseModel, checkpoint: Path) -> list[str]:
    """Load the weights of a checkpoint whose names and shapes are the model's, and tell of those that are not.

    Returns:
        A line for each weight that keeps its random start.

    Raises:
        CourseError: Not one weight fits.
    """
    weights = read_checkpoint(checkpoint)["state_dict"]
    own = {name: weight for name, weight in model.state_dict().items() if not name.startswith("input_")}
    fitting = {
        name: weights[name] for name, weight in own.items() if name in weights and weights[name].shape == weight.shape
    }
    left = [
        f"{name} {tuple(weight.shape)}: "
        + (f"there it is {tuple(weights[name].shape)}" if name in weights else "not there")
        for name, weight in own.items()
        if name not in fitting
    ]
    if not fitting:
        raise CourseError(f"no weight of that run fits this model; {left[0]}")
    model.load_state_dict(fitting, strict=False)
    log.info("starting from %d of %d weights", len(fitting), len(own))
    for line in left:
        log.warning("left at random: %s", line)
    return left


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
        resumed: Where to carry on, as `carry_on` gives it.
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


def carry_on(old: mlflow.Run, files: Path, folder: Path, max_epochs: int) -> Resumed:
    """Take over the checkpoints among an old run's files; the curve up to the last of them is in it.

    Raises:
        CourseError: There is no checkpoint, or nothing left to do.
    """
    last = files / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise CourseError("the run to resume has no checkpoint, since it ended before its first epoch: train anew")
    state = read_checkpoint(last)
    epochs = state["epoch"] + 1
    stopped = any(each.get("stopped_epoch") for each in state["callbacks"].values())
    if stopped or epochs >= max_epochs:
        if old.info.status == "FINISHED":
            raise CourseError(
                f"the run to resume is complete after {epochs} epochs: raise --trainer.max_epochs to go on"
            )
        max_epochs = epochs  # it was interrupted after its last epoch: only the rest is to be done
    for name in ("best.ckpt", "last.ckpt"):
        if (files / "checkpoints" / name).is_file():
            shutil.copy2(files / "checkpoints" / name, folder / name)
    log.info("carrying on after epoch %d", epochs - 1)
    return Resumed(folder / "last.ckpt", max_epochs)


def fit_again(
    topic: Topic, run: Run | None, data: CourseData, settings: Settings, chosen: Fitted, folder: Path
) -> Fitted:
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
