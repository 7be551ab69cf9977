"""The one place where a Trainer is made."""

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class Patience(EarlyStopping):
    """Early stopping whose patience is the one that was set, in a resumed training as well.

    Lightning's takes the old one from the checkpoint, so that what had stopped would stop again at once.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        going_on = {"patience": self.patience, "stopped_epoch": 0, "stopping_reason": EarlyStoppingReason.NOT_STOPPED}
        super().load_state_dict(state_dict | going_on)
