"""Resume a run that was interrupted or is to train longer: from which checkpoint, how far, and what may change."""

import dataclasses
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from dlcourse.errors import CourseError, SettingsError
from dlcourse.settings import Settings
from dlcourse.tracking.store import StoredRun
from dlcourse.training.checkpoints import read_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """The checkpoint to go on from, and the number of epochs at which to end at the latest."""

    checkpoint: Path
    max_epochs: int


MAY_CHANGE = frozenset(
    {
        # When to stop, unless a schedule depends on it: see `find_resume_point`.
        "trainer.max_epochs", "trainer.patience", "trainer.min_delta", "trainer.stopping_threshold",
        "trainer.max_time",
        # What to compute with: the results stay the same.
        "trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.tensorboard",
        # What to show.
        "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.profiler",
        # Where the rows are: their fingerprint tells whether they are the same.
        "data.source", "data.file", "data.root", "data.ask",
    }
)  # fmt: skip
"""The settings that a resumed run may change. Another one would hold for a part of the training only, or would be
overwritten by the checkpoint, such as the learning rate."""


def check_changes(settings: Settings, before: Settings, resume: str) -> None:
    """Raises `SettingsError` if a run with the settings ``before`` cannot be resumed with these."""
    for name in settings.changes(before):
        if name not in MAY_CHANGE:
            weights = f"start from its weights with --init_from {resume}"
            raise SettingsError(
                f"--resume continues a training, and --{name} was {before.flat().get(name)} in it: leave it out, or "
                + ("train again" if name.startswith("data.") else weights)
            )


def find_resume_point(
    old: StoredRun, files: Path, model: L.LightningModule, settings: Settings, before: Settings, processes: int
) -> Resumed:
    """From which checkpoint a run is to be resumed, and how far.

    Args:
        old: The run to resume.
        files: The folder of its files.
        model: A model made by the new settings.
        settings: The new settings.
        before: The settings of the run to resume.
        processes: Number of processes of the new training.

    Raises:
        CourseError: There is no checkpoint, nothing is left to do, or the new settings do not allow it.
    """
    last = files / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise CourseError("the run to resume has no checkpoint, since it ended before its first epoch: train again")
    state = read_checkpoint(last)
    max_epochs, planned = settings.trainer["max_epochs"], before.trainer["max_epochs"]
    from_weights = f"start a new run from its weights with --init_from {old.info.run_id}"
    total_steps_flag = getattr(model, "total_steps_flag", None)  # a CourseModel's
    if total_steps_flag and max_epochs != planned:
        raise SettingsError(
            f"--trainer.max_epochs {max_epochs}: the run to resume was planned for {planned} epochs by "
            f"{total_steps_flag}, and cannot be made longer or shorter; leave it out, or {from_weights}"
        )
    processes_before = state.get("dlcourse_hardware", {}).get("processes", processes)
    if processes_before != processes and (total_steps_flag or settings.model.get("lr_per_1024_samples")):
        raise SettingsError(
            f"--trainer.devices {settings.trainer['devices']} means {processes}, and the learning rates of the run to "
            f"resume were planned for {processes_before}: set it to {processes_before}, or {from_weights}"
        )
    epochs = state["epoch"] + 1
    ended_by = _early_stop(state, settings, before)
    if epochs >= max_epochs:
        ended_by.append(None if total_steps_flag else "raise --trainer.max_epochs")
    if ended_by:
        if old.info.status == "FINISHED":
            to_go_on = from_weights if None in ended_by else f"{' and '.join(map(str, ended_by))}, or {from_weights}"
            raise CourseError(f"the run to resume is complete after {epochs} epochs: {to_go_on}")
        max_epochs = epochs  # it was interrupted after its last epoch: only the evaluation is left to do
    return Resumed(last, max_epochs)


def _early_stop(state: dict[str, Any], settings: Settings, before: Settings) -> list[str | None]:
    """What to change so that a training that had stopped early goes on; empty if it had not, or can go on already."""
    stopping: dict[str, Any] = next((each for each in state["callbacks"].values() if "stopping_reason" in each), {})
    reason = EarlyStoppingReason(stopping.get("stopping_reason", EarlyStoppingReason.NOT_STOPPED))
    patience, threshold = settings.trainer["patience"], settings.trainer["stopping_threshold"]
    if reason is EarlyStoppingReason.PATIENCE_EXHAUSTED and patience and patience <= stopping["wait_count"]:
        return [f"raise --trainer.patience (it stopped early, after {stopping['wait_count']} without improvement)"]
    if reason is EarlyStoppingReason.STOPPING_THRESHOLD and threshold == before.trainer["stopping_threshold"]:
        return ["set another --trainer.stopping_threshold, or null (it stopped at it)"]
    return []


def prepare_resume(resumed: Resumed, folder: Path) -> Resumed:
    """Copy the checkpoints of the run to resume into the new run's folder. They contain its metrics up to then."""
    for path in resumed.checkpoint.parent.glob("*.ckpt"):
        shutil.copy2(path, folder / path.name)
    log.info("resuming from %s", resumed.checkpoint)
    return dataclasses.replace(resumed, checkpoint=folder / resumed.checkpoint.name)
