"""The optimisers and learning-rate schedules that a model's settings can name."""

from typing import Any, Literal

import numpy as np
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

OptimizerName = Literal["sgd", "nesterov", "adam", "adamw"]
ScheduleName = Literal["constant", "cosine", "one_cycle", "triangle"]

# As in airbench94 (Jordan 2024): up from 0.2 of the peak to the peak at 23 % of the steps, and down to 0.07 of it.
TRIANGLE_STEPS = (0.0, 0.23, 1.0)  # share of the steps
TRIANGLE_LR = (0.2, 1.0, 0.07)  # share of the peak learning rate


def make_optimizer(
    name: OptimizerName,
    groups: list[dict[str, Any]],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    fused: bool,
) -> Optimizer:
    """The named optimiser for parameter groups, whose own ``lr`` and ``weight_decay`` come before those given here.

    Args:
        name: sgd, nesterov (SGD with Nesterov's momentum), adam or adamw.
        groups: Parameter groups as in `torch.optim`.
        lr: Learning rate.
        momentum: Momentum of sgd and nesterov; Adam and AdamW ignore it.
        weight_decay: L2 penalty, in adamw decoupled from the gradient.
        fused: One kernel for all parameters. In mixed precision its gradients cannot be clipped.
    """
    if name in ("sgd", "nesterov"):
        return SGD(groups, lr, momentum, weight_decay=weight_decay, nesterov=name == "nesterov", fused=fused)
    kind = Adam if name == "adam" else AdamW
    return kind(groups, lr, weight_decay=weight_decay, fused=fused)


def make_schedule(
    name: Literal["cosine", "one_cycle", "triangle"], optimizer: Optimizer, *, lr: float, total_steps: int
) -> LRScheduler:
    """The named schedule, to be stepped after each optimiser step.

    Args:
        name: cosine (to 0, without restarts), one_cycle (Smith and Topin 2018) or triangle.
        optimizer: The optimiser whose learning rates it sets.
        lr: The peak of one_cycle, for all parameter groups alike.
        total_steps: Steps of the whole training.
    """
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=total_steps)
    if name == "one_cycle":
        return OneCycleLR(optimizer, lr, total_steps=total_steps, cycle_momentum=False)
    return LambdaLR(optimizer, lambda step: float(np.interp(step / total_steps, TRIANGLE_STEPS, TRIANGLE_LR)))
