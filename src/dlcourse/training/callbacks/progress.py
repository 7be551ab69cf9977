"""The one place where a Trainer is made."""

import logging
import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

log = logging.getLogger(__name__)


LINES_OF_PROGRESS = 200
"""At the most about twice as many are printed where there is no terminal for a bar."""


class Progress(ProgressBar):
    """On a terminal a bar over the whole training with the time that is left; elsewhere a line an epoch, or fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm[Any] | None = None
        self.shown = True

    def disable(self) -> None:
        self.shown = False

    def enable(self) -> None:
        self.shown = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.said = trainer.current_epoch
        if self.shown and sys.stderr.isatty():
            batches = int(trainer.num_training_batches)
            total = batches * (trainer.max_epochs or 0)
            start = batches * trainer.current_epoch
            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, leave=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._say(trainer, trainer.current_epoch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._say(trainer, trainer.current_epoch)
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _say(self, trainer: L.Trainer, epochs: int) -> None:
        """Tell of the epoch that is over. Its metrics are all there only when the next one starts."""
        if not self.shown or epochs == self.said:
            return
        self.said = epochs
        metrics = trainer.callback_metrics
        names: list[str] = [name for name in ("train/loss", "val/loss") if name in metrics]
        names = names or [name for name in metrics if name not in ("lr", "samples_per_second")]
        losses = "  ".join(f"{name} {float(metrics[name]):.5g}" for name in names)
        if self.bar is None:
            last = str((trainer.max_epochs or epochs) - 1)
            if (epochs - 1) % max((trainer.max_epochs or 0) // LINES_OF_PROGRESS, 1) and epochs <= int(last):
                return
            log.info("epoch %*d/%s  %s", len(last), epochs - 1, last, losses)
        else:
            self.bar.set_description(f"epoch {epochs}", refresh=False)
            self.bar.set_postfix_str(losses, refresh=False)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
