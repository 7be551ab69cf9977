"""Has a descent arrived at a minimum? Judged by gradient and curvature at its end."""

import torch
from torch import Tensor
from torch.autograd.functional import hessian
from torch.func import grad

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Batch
from dlcourse.evaluation.verdict import Verdict
from dlcourse.models.trajectory import TrajectoryModel

ARRIVED = 1e-4
"""Converged: this share or less of the possible decrease of the loss is left."""
CRAWLING = 0.1
"""Crawling: less than this share of the possible decrease is done."""
LEVEL = 1e-9
"""At a stationary point: no component of the gradient is larger than this share of the largest curvature."""


def assess_convergence(model: TrajectoryModel, data: CourseData) -> Verdict:
    """Judge a descent by the gradient and the Hessian of the training loss at the last weights, in float64.

    What is left to gain is the decrease by a Newton step, half the squared Newton decrement (Boyd and Vandenberghe
    2004, section 9.5.1); for a linear model with squared error, that is the exact distance to least squares.
    """
    rows = training_rows(data)
    start, end = (torch.tensor(point, dtype=torch.float64) for point in (model.path[0], model.path[-1]))

    def loss_at(point: Tensor) -> Tensor:
        return model.loss_at(point, rows)

    loss, gradient = float(loss_at(end)), grad(loss_at)(end)
    curvatures, directions = torch.linalg.eigh(hessian(loss_at, end))  # type: ignore[no-untyped-call]
    slopes = directions.T @ gradient  # along each direction of curvature
    epochs, steepest = len(model.path) - 1, float(curvatures.abs().max())

    def verdict(sentence: str, advice: str = "") -> Verdict:
        return Verdict(sentence, None, "train", {}, {}, advice)

    if float(curvatures[0]) < 0:
        if float(gradient.abs().max()) <= LEVEL * steepest:
            advice = "without a slope there is no step: noise leaves it (--data.batch_size 1), or another --model.start"
            return verdict("stuck: at a saddle point", advice)
        return verdict("unfinished: the loss still falls", "it curves down the way it goes: no minimum is near")
    left = float((slopes.square() / curvatures.clamp(min=1e-12 * steepest)).sum()) / 2
    decrease = float(loss_at(start)) - loss
    share = decrease / (decrease + left) if left > 0 else 1.0
    if share < CRAWLING:
        advice = f"after {epochs} epochs {max(share, 0):.2%} of the way is done: raise --model.lr ({model.lr:g})"
        return verdict("unfinished: it crawls", advice)
    if share < 1 - ARRIVED:
        advice = f"after {epochs} epochs {share:.2%} of the way is done: raise --trainer.max_epochs or --model.lr"
        return verdict("unfinished: the loss still falls", advice)
    if model.lowest is not None and loss - model.lowest > ARRIVED * abs(decrease):
        advice = f"the loss is {loss:.4g}, and elsewhere {model.lowest:.4g}: momentum or another start may get there"
        return verdict("converged: at a minimum, but not the lowest", advice)
    return verdict("converged: at the minimum")


def training_rows(data: CourseData) -> Batch:
    rows = data.splits["train"]
    return data.rows.inputs[rows], data.rows.targets[rows]
