"""What Lightning logs, written to a `Run`; and a run's curves in its checkpoints."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dlcourse.tracking.run import Run


class RunLogger(Logger):
    """Writes Lightning's metrics to a `Run`, each name after ``prefix``, with the epoch as the step."""

    def __init__(self, run: Run, prefix: str = "") -> None:
        super().__init__()
        self.run, self.prefix = run, prefix

    @property
    def name(self) -> str:
        return self.run.experiment_id

    @property
    def version(self) -> str:
        return self.run.run_id

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        epoch = int(metrics.pop("epoch", step or 0))
        self.run.log_metrics({self.prefix + name: float(value) for name, value in metrics.items()}, epoch)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run has every setting already."""


class Curve(Callback):
    """Saves the run's curves in its checkpoints; a run that is resumed from one logs them again as its own."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        curve = {name: list(points) for name, points in self.run.history.items()}
        # The logger gets this epoch's last metrics only after the checkpoint is saved.
        for name, value in trainer.callback_metrics.items():
            points = curve.setdefault(name, [])
            if not points or points[-1][0] < trainer.current_epoch:
                points.append((trainer.current_epoch, float(value)))
        checkpoint["dlcourse_curve"] = curve

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        for name, points in checkpoint["dlcourse_curve"].items():
            for step, value in points:
                self.run.log_metrics({name: value}, step)
