"""Stop a trial that is worse than the others were at the same epoch."""

import lightning as L
from lightning.pytorch.callbacks import Callback
from optuna.trial import Trial


class Pruning(Callback):
    """Reports the monitored metric to a trial after each validation, and stops the training if the study's pruner says.

    ``is_pruned`` is then true. The training ends as by early stopping, with its last metrics logged and its checkpoint
    closed, and whoever called it raises `optuna.TrialPruned`: raised within, it would be an error to Lightning and to
    the run.
    """

    def __init__(self, trial: Trial, monitor: str) -> None:
        self.trial, self.monitor = trial, monitor
        self.num_reports = 0
        self.is_pruned = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or self.monitor not in trainer.callback_metrics:
            return  # early stopping says that nothing logs the metric
        self.trial.report(float(trainer.callback_metrics[self.monitor]), self.num_reports)
        self.num_reports += 1
        if self.trial.should_prune():
            self.is_pruned = trainer.should_stop = True
