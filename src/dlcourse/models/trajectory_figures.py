"""Figures of a trajectory: the weights after each epoch, and the loss over them."""

from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Batch
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.models.convergence import training_rows
from dlcourse.models.trajectory import TrajectoryModel, exhaustive_search


def plot_trajectory(model: TrajectoryModel, data: CourseData, evaluation: Evaluation) -> Figure:
    """The loss over one or two weights with the trajectory on it; for more weights, each weight over the epochs."""
    path = torch.tensor(model.path, dtype=torch.float64)  # (epochs + 1) x weights, the start first
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    if path.shape[1] == 1:
        _over_one_weight(figure, model, training_rows(data), path)
    elif path.shape[1] == 2:
        _over_two_weights(figure, model, training_rows(data), path)
    else:
        axes = figure.add_subplot()
        for name, values in zip(model.names, path.T, strict=True):
            axes.plot(range(len(path)), values, label=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epochs", ylabel="weight", title="Weights after each epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _over_one_weight(figure: Figure, model: TrajectoryModel, rows: Batch, path: Tensor) -> None:
    ((low, high),) = _windows(path)
    points = torch.linspace(low, high, 401, dtype=torch.float64)[:, None]
    axes = figure.add_subplot()
    searched, losses = exhaustive_search(model, rows, points), exhaustive_search(model, rows, path)
    axes.plot(points[:, 0], searched, color="grey", label="loss, by exhaustive search")
    axes.plot(path[:, 0], losses, "o-", color="#d95f02", markersize=3, linewidth=1, label="after each epoch")
    axes.plot(path[0, 0], losses[0], "s", color="black", label=f"start: {float(path[0, 0]):.4g}")
    axes.plot(path[-1, 0], losses[-1], "*", color="black", markersize=11, label=f"end: {float(path[-1, 0]):.4g}")
    lowest, highest = float(searched.min()), float(losses.max())
    margin = (highest - lowest) / 10 or 1.0  # the loss far above the trajectory would flatten it
    axes.set(xlabel=model.names[0], ylabel="loss", title=f"The loss over {model.names[0]}")
    axes.set_ylim(lowest - margin, highest + 2 * margin)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center")


def _over_two_weights(figure: Figure, model: TrajectoryModel, rows: Batch, path: Tensor) -> None:
    """The loss as a surface in space, and its contours from above."""
    figure.set_size_inches(11, 4.8)
    first, second = (torch.linspace(*window, 61, dtype=torch.float64) for window in _windows(path))
    grid = torch.cartesian_prod(first, second)  # 3721 x 2
    surface = exhaustive_search(model, rows, grid).view(61, 61)
    x, y = grid[:, 0].view(61, 61), grid[:, 1].view(61, 61)
    losses = exhaustive_search(model, rows, path)
    end = f"end: {model.names[0]} {float(path[-1, 0]):.4g}, {model.names[1]} {float(path[-1, 1]):.4g}"
    space: Any = figure.add_subplot(1, 2, 1, projection="3d", computed_zorder=False)
    space.plot_surface(x.numpy(), y.numpy(), surface.numpy(), cmap="viridis", alpha=0.75, linewidth=0)
    space.plot(path[:, 0].numpy(), path[:, 1].numpy(), losses.numpy(), ".-", color="#d95f02", markersize=3, zorder=5)
    space.set(xlabel=model.names[0], ylabel=model.names[1], zlabel="loss", title="The loss over both weights")
    above = figure.add_subplot(1, 2, 2)
    lowest = float(surface.min())
    # Levels at square distances are closer near the minimum, where the surface is flat.
    levels = lowest + (float(surface.max()) - lowest) * torch.linspace(0, 1, 16, dtype=torch.float64) ** 2
    lines = above.contour(x.numpy(), y.numpy(), surface.numpy(), levels=levels.tolist(), cmap="viridis")
    figure.colorbar(lines, ax=above, label="loss")
    above.plot(path[:, 0], path[:, 1], ".-", color="#d95f02", markersize=3, label="after each epoch")
    above.plot(path[0, 0], path[0, 1], "s", color="black", label="start")
    above.plot(path[-1, 0], path[-1, 1], "*", color="black", markersize=11, label=end)
    above.set(xlabel=model.names[0], ylabel=model.names[1], title="The same from above")
    above.legend()


def _windows(path: Tensor) -> list[tuple[float, float]]:
    """The interval to show of each weight: wider than its trajectory, with the last value well inside.

    A weight that moves less than a tenth as far as the one that moves farthest gets an interval as long as that one's.
    """
    low, high, end = path.min(0).values, path.max(0).values, path[-1]
    spans = high - low
    spans = torch.where(spans < spans.max() / 10, spans.max(), spans)
    spans[spans == 0] = 1.0
    low, high = torch.minimum(low - spans / 4, end - spans * 0.7), torch.maximum(high + spans / 4, end + spans * 0.7)
    return list(zip(low.tolist(), high.tolist(), strict=True))
