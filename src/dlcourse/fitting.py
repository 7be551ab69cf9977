"""Training itself: from a new model, or from where an interrupted run left off, to the weights that are kept."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import mlflow.entities as mlflow
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from mlflow.exceptions import MlflowException

from dlcourse.data import CourseData
from dlcourse.errors import CourseError, SettingsError, explained, one_line
from dlcourse.exporting import read_checkpoint
from dlcourse.figures import NAMES
from dlcourse.learning import CourseModel
from dlcourse.overfitting import Overfitting, OverfittingMonitor
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking import Curve, OwnSignals, Run, RunLogger, Store
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


MAY_CHANGE = frozenset(
    {
        # When to stop, as far as no schedule has laid that out.
        "trainer.max_epochs", "trainer.patience", "trainer.min_delta", "trainer.stopping_threshold",
        # By what to compute, as far as the same comes out.
        "trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.tensorboard",
        # Where the rows are: whether they are the same is seen from their fingerprint.
        "data.source", "data.file", "data.root", "data.ask",
    }
)  # fmt: skip
"""What a run that is carried on may have another setting of. Any other would be half one thing and half another, or be
overwritten by what is in the checkpoint, such as the learning rate."""


def check_changes(settings: Settings, before: Settings, resume: str) -> None:
    """Raises `SettingsError` where a run cannot be carried on with such settings; ``before`` are those that it had."""
    for name in settings.changes(before):
        if name not in MAY_CHANGE:
            weights = f"start from its weights with --init_from {resume}"
            raise SettingsError(
                f"--resume carries a training on, and --{name} was {before.flat().get(name)} in it: leave it out, or "
                + ("train anew" if name.startswith("data.") else weights)
            )


def to_carry_on(
    old: mlflow.Run, files: Path, model: CourseModel, settings: Settings, before: Settings, processes: int
) -> Resumed:
    """Where to carry on with a run, whose files are ``files``, and how far.

    Args:
        old: The run.
        files: Its files.
        model: A model by the new settings.
        settings: The new settings.
        before: The settings that the run had.
        processes: How many processes are to train.

    Raises:
        CourseError: There is no checkpoint, nothing is left to do, or it cannot be done by these settings.
    """
    last = files / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise CourseError("the run to resume has no checkpoint, since it ended before its first epoch: train anew")
    state = read_checkpoint(last)
    max_epochs, planned = settings.trainer["max_epochs"], before.trainer["max_epochs"]
    anew = f"start anew from its weights with --init_from {old.info.run_id}"
    if model.laid_out and max_epochs != planned:
        raise SettingsError(
            f"--trainer.max_epochs {max_epochs}: the run to resume was laid out for {planned} epochs, by "
            f"{model.laid_out}, and cannot be made longer or shorter; leave it out, or {anew}"
        )
    shares = state.get("dlcourse_hardware", {}).get("processes", processes)
    if shares != processes and (model.laid_out or settings.model.get("decoupled")):
        raise SettingsError(
            f"--trainer.devices {settings.trainer['devices']} comes to {processes}, and the steps of the run to resume "
            f"were laid out for {shares}: set it to {shares}, or {anew}"
        )
    epochs = state["epoch"] + 1
    missing = _to_raise(state, settings, before)
    if epochs >= max_epochs:
        missing.append(None if model.laid_out else "raise --trainer.max_epochs")
    if missing:
        if old.info.status == "FINISHED":
            remedy = anew if None in missing else f"{' and '.join(map(str, missing))} to go on, or {anew}"
            raise CourseError(f"the run to resume is complete after {epochs} epochs: {remedy}")
        max_epochs = epochs  # it was interrupted after its last epoch: only the rest is to be done
    return Resumed(last, max_epochs)


def _to_raise(state: dict[str, Any], settings: Settings, before: Settings) -> list[str | None]:
    """What would have to be changed for a training that had stopped early to go on."""
    stopping: dict[str, Any] = next((each for each in state["callbacks"].values() if "stopping_reason" in each), {})
    reason = EarlyStoppingReason(stopping.get("stopping_reason", EarlyStoppingReason.NOT_STOPPED))
    patience, threshold = settings.trainer["patience"], settings.trainer["stopping_threshold"]
    if reason is EarlyStoppingReason.PATIENCE_EXHAUSTED and patience and patience <= stopping["wait_count"]:
        return [f"raise --trainer.patience (it stopped early, after {stopping['wait_count']} without improvement)"]
    if reason is EarlyStoppingReason.STOPPING_THRESHOLD and threshold == before.trainer["stopping_threshold"]:
        return ["set another --trainer.stopping_threshold, or null (it stopped at it)"]
    return []


def carry_on(resumed: Resumed, folder: Path) -> Resumed:
    """Take over the checkpoints of another run; the curve up to the last of them is in it."""
    for path in resumed.checkpoint.parent.glob("*.ckpt"):
        shutil.copy2(path, folder / path.name)
    log.info("carrying on from %s", resumed.checkpoint)
    return dataclasses.replace(resumed, checkpoint=folder / resumed.checkpoint.name)


def check_unseen(store: Store, topic: Topic, first: mlflow.Run, data: CourseData) -> None:
    """Whether a run that starts from another one's weights would be judged by rows that these have learned.

    Those are the training rows of that run and of all whose weights it came from itself. Rows are compared by their
    contents, since data sets may share some.

    Raises:
        CourseError: It would, or it cannot be known.
    """
    for run in _behind(store, first):
        tags = run.data.tags
        refitted = tags.get("dlcourse.refit") == "true"
        if data.judged == "train" or (tags["dlcourse.split"] == data.fingerprint and not refitted):
            continue
        there = _data_of(store, topic, run)
        if refitted:
            there.refit()
        learned = set(there.rows.contents(there.splits["train"]))
        for split in ("test", "val"):
            rows = data.rows.contents(data.splits[split])
            seen = sum(row in learned for row in rows)
            told = f"{seen} of the {len(rows)} {NAMES[split]} rows were training rows of {run.info.run_name}"
            if seen and split == data.judged:
                raise CourseError(
                    f"--init_from {first.info.run_name}: {told} ({run.info.run_id}), whose weights know them: take the "
                    "data and the split of that run, or start from another one's weights"
                )
            if seen:
                log.warning("%s: what is chosen by them says little", told)


def _behind(store: Store, run: mlflow.Run) -> Iterator[mlflow.Run]:
    """A run, and all that its weights came from; a resumed run names what the first one started from."""
    yield run
    while origin := run.data.tags.get("dlcourse.init_from"):
        try:
            run = store.client.get_run(origin)
        except MlflowException as error:
            raise CourseError(
                f"the weights of {run.info.run_name} came from run {origin}, which is gone from the store, so that "
                "nobody knows which rows they have learned: start from another run's weights"
            ) from error
        yield run


def _data_of(store: Store, topic: Topic, run: mlflow.Run) -> CourseData:
    """The rows of a run, split as they were; raises `CourseError` where they cannot be had any more."""
    try:
        settings = yaml.safe_load((store.files_of(run) / "settings.yaml").read_text(encoding="utf-8"))
        data = topic.data(**settings["data"])
        data.prepare_data()
        data.setup("fit")
        if data.fingerprint != run.data.tags["dlcourse.split"]:
            raise CourseError("they are others by now")
    except Exception as error:  # whatever a topic's code raises
        raise CourseError(
            f"the rows that {run.info.run_name} ({run.info.run_id}) was trained on cannot be had any more "
            f"({one_line(error)[:200]}), so that nobody knows whether this run would be tested on them: put them back, "
            "or start from another run's weights"
        ) from error
    return data


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
