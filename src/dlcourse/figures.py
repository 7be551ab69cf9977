"""Pictures: pure functions from arrays to a matplotlib Figure, drawn without pyplot and its global state."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dlcourse.data import SPLITS, CourseData

COLOURS = {"train": "#1f77b4", "val": "#d95f02", "test": "#7570b3"}
NAMES = {"train": "training", "val": "validation", "test": "test"}


def smoothed(values: Sequence[float], weight: float = 0.6) -> list[float]:
    """Exponential moving average, each value with (1 - weight) of the sum, without the pull towards 0 at the start.

    The bias correction is that of Adam (Kingma and Ba 2015, section 3).
    """
    average, averages = 0.0, []
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        averages.append(average / (1 - weight**count))
    return averages


def learning_curves(
    history: Mapping[str, Sequence[tuple[int, float]]], metric: str = "loss", best_epoch: int | None = None
) -> Figure:
    """A metric of training and validation over the epochs, raw and smoothed (dashed), with the epoch kept."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shown: list[float] = []
    for split in ("train", "val"):
        points = history.get(f"{split}/{metric}", [])
        if not points:
            continue
        epochs, values = zip(*points, strict=True)
        shown += values
        marker = "o" if len(points) < 3 else ""
        colour, name = COLOURS[split], NAMES[split]
        axes.plot(epochs, values, color=colour, linewidth=1.6, marker=marker, label=name)
        axes.plot(epochs, smoothed(values), "--", color=colour, linewidth=1, alpha=0.7, label=f"{name}, smoothed")
    if best_epoch is not None:
        axes.axvline(best_epoch, color="black", linestyle=":", linewidth=1.2, label=f"weights kept: epoch {best_epoch}")
    if shown and min(shown) > 0 and max(shown) > 10 * min(shown):
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel=metric, title=f"Learning curves: {metric}")
    axes.grid(alpha=0.3)
    if shown:
        axes.legend()
    return figure


def lines_through_points(data: CourseData, lines: Mapping[str, Callable[[Tensor], Tensor]]) -> Figure:
    """Rows of one input and one target as points, coloured by split, and functions of the input as lines."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for split in SPLITS:
        rows = data.splits[split]
        if len(rows):
            points = data.rows.inputs[rows, 0], data.rows.targets[rows, 0]
            axes.scatter(*points, s=18, color=COLOURS[split], alpha=0.7, label=f"{NAMES[split]} rows ({len(rows)})")
    edges = data.rows.inputs[:, 0]
    grid = torch.from_numpy(np.linspace(float(edges.min()), float(edges.max()), 200)).float()[:, None]
    # Colour, width and depth by which lines that lie on each other all stay visible.
    styles = (("black", 1.5, 3, "-"), ("#66a61e", 6, 2, "-"), ("#e7298a", 2.5, 4, ":"))
    for (name, line), (colour, width, depth, style) in zip(lines.items(), styles, strict=False):
        with torch.no_grad():
            values = line(grid)[:, 0]
        axes.plot(grid[:, 0], values, style, color=colour, linewidth=width, zorder=depth, label=name)
    axes.set(xlabel=data.rows.features[0], ylabel=data.rows.answers[0], title="Points and lines")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
