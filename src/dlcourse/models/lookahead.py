"""Lookahead: average the weights over the steps of a training."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

STEPS_OF_LOOKAHEAD = 5
"""As in airbench94 (Jordan 2024)."""
DECAY_OF_A_STEP = 0.95
"""Of the slow weights, at the end of the training; as in airbench94."""


class Lookahead(Callback):
    """Every fifth step, move slow weights towards the weights, and go on from the slow ones (Zhang et al. 2019).

    The share of the slow weights that stays rises with the cube of the step from 0 to 0.95^5, and the last step
    replaces the weights by the slow ones: the result is an average over many steps (Jordan 2024, section 3.4).

    Averages the parameters and the running statistics of ``pl_module.network``, in place. A checkpoint has the slow
    weights as ``slow_weights``.
    """

    def __init__(self) -> None:
        self.slow_weights: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loaded = [weight.to(pl_module.device) for weight in self.slow_weights]  # empty, unless training is resumed
        self.slow_weights = loaded or [weight.clone() for weight in averaged_weights(pl_module)]
        self.total_steps = int(trainer.estimated_stepping_batches)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, is_last = trainer.global_step, trainer.global_step >= self.total_steps
        if step % STEPS_OF_LOOKAHEAD and not is_last:
            return
        decay = 1.0 if is_last else DECAY_OF_A_STEP**STEPS_OF_LOOKAHEAD * (step / self.total_steps) ** 3
        for slow, weight in zip(self.slow_weights, averaged_weights(pl_module), strict=True):
            slow.lerp_(weight, 1 - decay)  # decay * slow + (1 - decay) * weight
            weight.copy_(slow)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["slow_weights"] = self.slow_weights

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.slow_weights = checkpoint["slow_weights"]


def averaged_weights(model: L.LightningModule) -> list[Tensor]:
    """The parameters of ``model.network`` and its running means and variances, without gradients, not copied."""
    state: dict[str, Tensor] = model.get_submodule("network").state_dict()
    return [each.detach() for each in state.values() if each.is_floating_point()]
