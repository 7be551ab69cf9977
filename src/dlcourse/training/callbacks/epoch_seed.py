"""A seed for every epoch."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from dlcourse.data.samplers import epoch_seed


class EpochSeed(Callback):
    """Seed torch's generators at the start of every epoch, from the run's seed, the epoch and the process's rank.

    A resumed training then draws the same random numbers as one that was not interrupted. Changes torch's global random
    state; in a training on the CPU, that of the CPU alone.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seed = torch.initial_seed()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seed = epoch_seed(self.seed, trainer.current_epoch)
        # For each kind of device that is not in use, `torch.manual_seed` keeps the call and its stack for later: in a
        # small training on the CPU an eighth of each epoch, and a list that grows.
        manual_seed = torch.default_generator.manual_seed if pl_module.device.type == "cpu" else torch.manual_seed
        manual_seed(epoch_seed(seed, trainer.global_rank) if trainer.global_rank else seed)
