"""Training itself: from a new model, or from where an interrupted run left off, to the weights that are kept."""

import dataclasses
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from dlcourse.errors import CourseError, SettingsError
from dlcourse.models.base import CourseModel
from dlcourse.settings import Settings
from dlcourse.tracking.store import StoredRun
from dlcourse.training.checkpoints import read_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """Where to carry on from, and after how many epochs to end at the latest."""

    checkpoint: Path
    max_epochs: int


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


def find_resume_point(
    old: StoredRun, files: Path, model: CourseModel, settings: Settings, before: Settings, processes: int
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
    if model.fixed_length_setting and max_epochs != planned:
        raise SettingsError(
            f"--trainer.max_epochs {max_epochs}: the run to resume was laid out for {planned} epochs, by "
            f"{model.fixed_length_setting}, and cannot be made longer or shorter; leave it out, or {anew}"
        )
    shares = state.get("dlcourse_hardware", {}).get("processes", processes)
    if shares != processes and (model.fixed_length_setting or settings.model.get("lr_per_1024_samples")):
        raise SettingsError(
            f"--trainer.devices {settings.trainer['devices']} comes to {processes}, and the steps of the run to resume "
            f"were laid out for {shares}: set it to {shares}, or {anew}"
        )
    epochs = state["epoch"] + 1
    missing = _to_raise(state, settings, before)
    if epochs >= max_epochs:
        missing.append(None if model.fixed_length_setting else "raise --trainer.max_epochs")
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


def prepare_resume(resumed: Resumed, folder: Path) -> Resumed:
    """Take over the checkpoints of another run; the curve up to the last of them is in it."""
    for path in resumed.checkpoint.parent.glob("*.ckpt"):
        shutil.copy2(path, folder / path.name)
    log.info("carrying on from %s", resumed.checkpoint)
    return dataclasses.replace(resumed, checkpoint=folder / resumed.checkpoint.name)
