"""Early stopping that can be resumed, and that goes by validations wherever they are."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from dlcourse.errors import SettingsError, suggestion


def validates_by_epoch(trainer: L.Trainer) -> bool:
    """Whether metrics are complete at the end of each epoch.

    With ``val_check_interval`` or ``check_val_every_n_epoch`` they are after each validation: an epoch may have several
    or none, and may never end.
    """
    interval = trainer.val_check_interval
    at_end = isinstance(interval, float) and interval == 1  # the number 1 is after every batch
    return not trainer.enable_validation or (at_end and trainer.check_val_every_n_epoch == 1)


class Patience(EarlyStopping):
    """Lightning's early stopping, but a resumed training has the patience that it is given.

    Lightning's would read the old patience from the checkpoint, so that a training that had stopped early would stop
    again after one epoch.

    Raises:
        SettingsError: An epoch has ended, and its module has not logged the metric.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not validates_by_epoch(trainer):
            return
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)
        elif trainer.is_last_batch:  # and the epoch was not cut short, before its validation
            raise self._not_logged(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if validates_by_epoch(trainer) or trainer.sanity_checking:
            return
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)
        elif trainer.current_epoch:  # metrics of training epochs are first logged at the end of one
            raise self._not_logged(trainer)

    def _not_logged(self, trainer: L.Trainer) -> SettingsError:
        names: list[str] = sorted(trainer.callback_metrics)
        near = suggestion(self.monitor, names) or f"; it logs {', '.join(names) or 'nothing'}"
        return SettingsError(f"monitor is {self.monitor!r}, which the module does not log{near}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        going_on = {"patience": self.patience, "stopped_epoch": 0, "stopping_reason": EarlyStoppingReason.NOT_STOPPED}
        super().load_state_dict(state_dict | going_on)
