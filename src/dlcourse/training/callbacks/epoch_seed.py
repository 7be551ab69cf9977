"""A seed for every epoch."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from dlcourse.data.samplers import epoch_seed


class EpochSeed(Callback):
    """Seed torch's generators at the start of every epoch, from the run's seed, the epoch and the process's rank.

    A resumed training then draws the same random numbers as one that was not interrupted. Changes torch's global random
    state.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seed = torch.initial_seed()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seed = epoch_seed(self.seed, trainer.current_epoch)
        torch.manual_seed(epoch_seed(seed, trainer.global_rank) if trainer.global_rank else seed)
