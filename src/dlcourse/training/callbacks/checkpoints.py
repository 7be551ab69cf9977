"""The one place where a Trainer is made."""

import os
import time
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

SECONDS_BETWEEN_CHECKPOINTS = 1.0


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the old checkpoint and then take its place: whoever pulls the plug finds one or the other whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        partial = f"{path}.part"
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)  # on a full disk its room is needed
            raise


class KeptCheckpoint(ModelCheckpoint):
    """One file that holds the newest state, or with ``monitor`` the best one.

    The newest is written when the last writing is a second ago, and at the end: epochs that are shorter are trained
    again faster than they are saved.
    """

    def __init__(
        self, folder: Path | str, filename: str, *, monitor: str | None = None, mode: Literal["min", "max"] = "min"
    ) -> None:
        super().__init__(
            folder,
            filename,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._saved = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        is_last = trainer.should_stop or trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        is_due = bool(self.monitor) or is_last or time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        if trainer.strategy.broadcast(is_due):  # all processes save together, and each has a clock of its own
            super().on_train_epoch_end(trainer, pl_module)
            self._saved = time.monotonic()

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}({self.filename})"  # Lightning's takes longer, and is asked for each step

    @property
    def path(self) -> Path:
        return Path(str(self.dirpath)) / f"{self.filename}.ckpt"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run keeps its own files: what the state says of the old run's folder holds for the new one's."""
        here = str(self.path)
        paths = {"best_model_path": here, "kth_best_model_path": here, "last_model_path": ""}
        scores = dict.fromkeys([here], state_dict["best_model_score"]) if state_dict["best_k_models"] else {}
        super().load_state_dict(state_dict | paths | {"dirpath": self.dirpath, "best_k_models": scores})


class Hardware(Callback):
    """Keep in each checkpoint, as ``dlcourse_hardware``, what computed it: ``precision``, as it came to, and how many
    ``processes``.
    """

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["dlcourse_hardware"] = {"precision": trainer.precision, "processes": trainer.world_size}
