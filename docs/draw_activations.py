"""Pictures of what needs no training, for the pages in docs/: ``python docs/draw_activations.py FOLDER``."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from dlcourse.topics.diabetes import ACTIVATIONS


def activations() -> Figure:
    """Each activation function of the diabetes network, and its derivative by autograd."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    for place, (name, kind) in enumerate(ACTIVATIONS.items(), start=1):
        points = torch.from_numpy(np.linspace(-5, 5, 401)).requires_grad_()
        values = kind()(points)
        (slopes,) = torch.autograd.grad(values.sum(), points)
        axes = figure.add_subplot(2, 4, place)
        axes.plot(points.detach(), values.detach(), color="black", label="function")
        axes.plot(points.detach(), slopes, "--", color="#d95f02", label="derivative")
        axes.set(title=name, ylim=(-1.4, 3))
        axes.grid(alpha=0.3)
        if place == 1:
            axes.legend()
    return figure


def collapsed(layers: list[nn.Linear]) -> nn.Linear:
    """The one linear layer that gives what these give one after the other."""
    one = nn.Linear(layers[0].in_features, layers[-1].out_features).to(layers[0].weight)
    weight: Tensor = layers[0].weight
    bias: Tensor = layers[0].bias
    for layer in layers[1:]:
        weight, bias = layer.weight @ weight, layer.weight @ bias + layer.bias
    with torch.no_grad():
        one.weight.copy_(weight)
        one.bias.copy_(bias)
    return one


def collapse() -> Figure:
    """Three linear layers with random weights, without an activation between them and with one."""
    torch.manual_seed(3)
    layers = [nn.Linear(1, 16), nn.Linear(16, 16), nn.Linear(16, 1)]
    points = torch.linspace(-3, 3, 401)[:, None]
    networks: dict[str, nn.Module] = {
        "three linear layers": nn.Sequential(*layers),
        "the one layer that they come to": collapsed(layers),
        "the same three with ReLU between": nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]),
    }
    styles = ("-", 6, "#66a61e"), ("-", 1.5, "black"), ("-", 1.8, "#d95f02")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, network), (style, width, colour) in zip(networks.items(), styles, strict=True):
        with torch.no_grad():
            axes.plot(points, network(points), style, linewidth=width, color=colour, label=name)
    axes.set(xlabel="input", ylabel="output", title="Without an activation, layers collapse into one")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def outside_probabilities() -> Figure:
    """Binary cross-entropy over what a network gives, for both targets: outside 0 to 1 there is none."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    given: Tensor = torch.linspace(0.001, 0.999, 500)
    for target, colour in ((1.0, "black"), (0.0, "#1f77b4")):
        losses = nn.functional.binary_cross_entropy(given, torch.full_like(given, target), reduction="none")
        axes.plot(given, losses, color=colour, label=f"target {target:g}")
    axes.axvspan(1, 2, color="#d95f02", alpha=0.15, label="where ReLU goes and the loss is not defined")
    axes.axvspan(-0.5, 0, color="grey", alpha=0.15, label="where a network without any activation goes")
    axes.set(xlabel="what the network gives", ylabel="binary cross-entropy", xlim=(-0.5, 2), ylim=(0, 5))
    axes.set_title("Binary cross-entropy takes probabilities")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


FIGURES = {"activations": activations, "collapse": collapse, "outside-probabilities": outside_probabilities}


if __name__ == "__main__":
    for title, draw in FIGURES.items():
        draw().savefig(Path(sys.argv[1]) / f"{title}.png", dpi=100)
