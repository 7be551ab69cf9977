"""The progress of a training: a bar, or lines."""

import logging
import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

log = logging.getLogger(__name__)


LINES = 200
"""Longer trainings log only every so many epochs, so that there are at most about twice as many lines."""


class Progress(ProgressBar):
    """On a terminal one bar for the whole training, on stderr, with the time that is left; elsewhere lines of epochs.

    Lightning's TQDMProgressBar starts again in each epoch, and writes to stdout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm[Any] | None = None
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.reported = trainer.current_epoch
        if self.enabled and sys.stderr.isatty():
            batches = int(trainer.num_training_batches)
            total = batches * (trainer.max_epochs or 0)
            start = batches * trainer.current_epoch
            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, leave=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is not None:
            self.bar.update()

    # An epoch's metrics are complete only when the next one starts.

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer)
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _report(self, trainer: L.Trainer) -> None:
        """Show the losses of the epoch that has just ended; any module's other metrics if it logs none of that name."""
        epochs = trainer.current_epoch
        if not self.enabled or epochs == self.reported:
            return
        self.reported = epochs
        metrics = trainer.callback_metrics
        losses_logged: list[str] = [name for name in ("train/loss", "val/loss") if name in metrics]
        names = losses_logged or list(metrics)
        losses = "  ".join(f"{name} {float(metrics[name]):.5g}" for name in names)
        if self.bar is not None:
            self.bar.set_description(f"epoch {epochs}", refresh=False)
            self.bar.set_postfix_str(losses, refresh=False)
            return
        max_epochs = trainer.max_epochs or epochs
        if (epochs - 1) % max(max_epochs // LINES, 1) == 0 or epochs == max_epochs:
            log.info("epoch %*d/%d  %s", len(str(max_epochs - 1)), epochs - 1, max_epochs - 1, losses)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
