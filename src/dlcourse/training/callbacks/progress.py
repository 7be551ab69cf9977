"""The progress of a training: a bar, or lines, and how long a long one will take."""

import logging
import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

log = logging.getLogger(__name__)

LINES = 20
"""Longer trainings log only every so many epochs: as many lines at most, and one for the last epoch."""
LONG = 30.0
"""Seconds from which on a training says how long it will take."""
MEASURED = 2.0
"""Seconds to measure for that: enough for a GPU to be waited for, which at first only queues its work."""


class Progress(ProgressBar):
    """On a terminal one bar for the whole training, on stderr, with the time that is left; elsewhere lines of epochs.

    A training that will take longer than `LONG` says so once, by its first steps: device, precision and duration.

    Lightning's TQDMProgressBar starts again in each epoch, and writes to stdout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm[Any] | None = None
        self.enabled, self.is_forecast_due, self.batches = True, False, 0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first_epoch = self.reported = trainer.current_epoch
        self.batches = 0
        per_epoch = trainer.num_training_batches
        is_known = math.isfinite(per_epoch) and planned_epochs(trainer) > 0  # a stream of rows has no length
        self.is_forecast_due = self.enabled and is_known
        if self.enabled and sys.stderr.isatty():
            total = per_epoch * planned_epochs(trainer) if is_known else None
            start = int(per_epoch) * trainer.current_epoch if is_known else 0
            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, leave=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is not None:
            self.bar.update()
        if self.is_forecast_due:
            self._measure(trainer)

    def on_validation_batch_end(self, *_: Any) -> None:
        self.batches += 1

    def _measure(self, trainer: L.Trainer) -> None:
        """Count a step, and after `MEASURED` seconds say how long the training takes if that is long."""
        if self.batches == 0:  # the first step warms up, and may compile: the clock starts after it
            self.started = time.perf_counter()
        elif (elapsed := time.perf_counter() - self.started) >= MEASURED:
            self.is_forecast_due = False
            # A batch of validation counts as a step: it has more rows, and takes a third of the work for each.
            per_epoch = trainer.num_training_batches + sum(
                each for each in trainer.num_val_batches if math.isfinite(each)
            )
            epochs = planned_epochs(trainer) - self.first_epoch
            if (seconds := elapsed / self.batches * per_epoch * epochs) > LONG:
                device, most = trainer.strategy.root_device.type, "at most " * may_stop_early(trainer)
                log.info("%s%s on %s, %s; %d epochs", most, about(seconds), device, trainer.precision, epochs)
        self.batches += 1

    # An epoch's metrics are complete only when the next one starts.

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer, is_last=True)
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _report(self, trainer: L.Trainer, is_last: bool = False) -> None:
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
        planned, done = planned_epochs(trainer), epochs - 1 - self.first_epoch
        if not planned:  # until some number of steps or time: epochs 0, 1, 2, 4, 8, ...
            is_due, text = done & (done - 1) == 0, f"epoch {epochs - 1}"
        else:
            is_due = done % math.ceil((planned - self.first_epoch) / LINES) == 0
            text = f"epoch {epochs - 1:{len(str(planned - 1))}}/{planned - 1}"
        if is_last or is_due:
            log.info("%s  %s", text, losses)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def planned_epochs(trainer: L.Trainer) -> int:
    """The largest number of epochs; 0 without one."""
    return max(trainer.max_epochs or 0, 0)


def may_stop_early(trainer: L.Trainer) -> bool:
    """Whether the monitored metric may end the training before its last epoch."""
    most = planned_epochs(trainer)
    return any(each.patience < most or each.stopping_threshold is not None for each in trainer.early_stopping_callbacks)


def about(seconds: float) -> str:
    """A duration to the precision of an estimate: "about 40 s", "about 12 min", "about 2.5 h"."""
    if seconds < 90:
        return f"about {max(round(seconds, -1), 10):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} h"
