"""Checkpoints that survive a kill at any moment, and that a resumed training takes over."""

import math
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from dlcourse.training.callbacks.early_stopping import validates_by_epoch
from dlcourse.training.checkpoints import upgrade

SECONDS_BETWEEN_CHECKPOINTS = 1.0
"""Shorter epochs are trained again in less time than it takes to save each."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the old checkpoint, then replace it: after a kill at any moment, one of the two is whole.

    Lightning writes to the folder for temporary files, and from another file system moves by copying over the old
    checkpoint. Checkpoints of earlier versions are read too.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        partial = f"{path}.part"
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)  # its space is needed if the disk is full
            raise

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        return upgrade(super().load_checkpoint(path, *arguments, **options))


class KeptCheckpoint(ModelCheckpoint):
    """``<filename>.ckpt`` in a folder: the best epoch by ``monitor``, or without one the newest.

    The best is saved at the end of an epoch, or after each validation where an epoch may have several or none. The
    newest is saved at the end of an epoch when a second has passed since the last time, and after the last epoch; also
    after validations where the data do not say how long an epoch is.
    (Lightning's ``train_time_interval`` saves in the middle of an epoch, from where a training cannot be resumed
    exactly, and its ``save_last`` saves only when the best one is saved.)
    """

    def __init__(self, folder: Path | str, filename: str, **settings: Any) -> None:
        super().__init__(folder, filename, **settings, save_on_train_epoch_end=True, enable_version_counter=False)
        self._saved = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        is_last = trainer.should_stop or _limits_reached(trainer)
        if not self.monitor or validates_by_epoch(trainer):
            self._save(trainer, pl_module, is_last)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not validates_by_epoch(trainer) if self.monitor else math.isinf(trainer.num_training_batches):
            self._save(trainer, pl_module, False)

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, is_last: bool) -> None:
        if self.monitor and self.monitor not in trainer.callback_metrics:
            return  # the training was cut short before it was first measured
        is_due = bool(self.monitor) or is_last or time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        if trainer.strategy.broadcast(is_due):  # each process has its own clock, and all must save together
            super().on_train_epoch_end(trainer, pl_module)
            self._saved = time.monotonic()

    @property
    def state_key(self) -> str:
        return f"KeptCheckpoint({self.filename})"  # as in all checkpoints that have been written so far

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score. Lightning's would drop it, since a resumed run has a folder of its own."""
        path = self.format_checkpoint_name({})
        scores = {path: state_dict["best_model_score"]} if state_dict["best_k_models"] else {}
        paths = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path, "last_model_path": ""}
        super().load_state_dict(state_dict | paths | {"best_k_models": scores})


def _limits_reached(trainer: L.Trainer) -> bool:
    """Whether the training ends with this epoch, by its number of epochs or of steps; -1 is no limit."""
    is_last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return is_last_step or trainer.current_epoch + 1 == trainer.max_epochs
