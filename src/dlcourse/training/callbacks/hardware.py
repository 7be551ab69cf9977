"""What a checkpoint was computed with."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class Hardware(Callback):
    """Add ``dlcourse_hardware`` to each checkpoint: the ``precision`` that was used, and the number of ``processes``.

    A test of the checkpoint needs the first, a resumed training both.
    """

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["dlcourse_hardware"] = {"precision": trainer.precision, "processes": trainer.world_size}
