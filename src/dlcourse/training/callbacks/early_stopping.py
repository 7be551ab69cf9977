"""Early stopping that can be resumed."""

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class Patience(EarlyStopping):
    """Lightning's early stopping, but a resumed training has the patience that it is given.

    Lightning's would read the old patience from the checkpoint, so that a training that had stopped early would stop
    again after one epoch.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        going_on = {"patience": self.patience, "stopped_epoch": 0, "stopping_reason": EarlyStoppingReason.NOT_STOPPED}
        super().load_state_dict(state_dict | going_on)
