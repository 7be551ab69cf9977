"""A comparison as a figure: curves with a band over the seeds, and differences with their intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Points = Sequence[tuple[int, float]]

MOST_CURVES = 10
"""More colours than these cannot be told apart."""


def draw_comparison(
    curves: Mapping[str, Sequence[Points]],
    curve_name: str,
    differences: Sequence[tuple[str, float, float, float]],
    difference_name: str,
    margin: float,
) -> Figure:
    """The curves of each candidate's seeds, as mean and range, and beside them a forest plot.

    Args:
        curves: For each candidate the (epoch, value) of each seed; an epoch counts as long as all seeds have it.
        curve_name: What the values are.
        differences: Label, difference, and both ends of its interval.
        difference_name: What they are differences of.
        margin: What is worth having; shaded on both sides of zero.
    """
    height = max(4.5, 1.5 + 0.35 * len(differences))
    figure = Figure(figsize=(13 if differences else 7, height), layout="constrained")
    axes, *beside = figure.subplots(1, 2 if differences else 1, squeeze=False)[0]
    for place, (name, seeds) in enumerate(list(curves.items())[:MOST_CURVES]):
        shared = sorted(set.intersection(*(set(dict(points)) for points in seeds)))
        values = np.array([[dict(points)[epoch] for epoch in shared] for points in seeds])  # seeds x epochs
        marker = "o" if len(shared) < 3 else ""
        axes.plot(shared, values.mean(0), color=f"C{place}", linewidth=1.4, marker=marker, label=name)
        if len(seeds) > 1:
            axes.fill_between(shared, values.min(0), values.max(0), color=f"C{place}", alpha=0.2, linewidth=0)
    band = ", mean and range of the seeds" if any(len(seeds) > 1 for seeds in curves.values()) else ""
    axes.set(xlabel="epoch", ylabel=curve_name, title=f"{curve_name}{band}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if curves:
        axes.legend()
    for forest in beside:
        labels, means, lows, highs = zip(*reversed(differences), strict=True)
        places = range(len(labels))
        for place, mean, low, high in zip(places, means, lows, highs, strict=True):
            forest.plot([low, high], [place, place], color="black", linewidth=1.4)
            forest.plot(mean, place, "s", color="black", markersize=5)
        forest.axvline(0, color="black", linewidth=0.8)
        forest.axvspan(-margin, margin, color="grey", alpha=0.15)
        forest.set_yticks(list(places), labels)
        forest.set(xlabel=f"difference in {difference_name}; grey: within {margin:.2g}")
        forest.set(title="Differences with 95 % intervals")
    return figure
