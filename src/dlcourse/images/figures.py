"""Figures of an image classifier: its augmented inputs, its first filters, and its most confident mistakes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLIT_NAMES
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.images.decoded import DecodedImages
from dlcourse.models.base import CourseModel
from dlcourse.reporting.figures import class_accuracy, confusion_matrix

COLUMNS_OF_MISTAKES, MISTAKES = 6, 18  # three lines
COLUMNS_OF_PREDICTIONS = 8
MOST_CLASSES, FEWEST_IMAGES = 12, 6  # columns of the augmented images
MARGIN_COLOUR = np.array([198, 219, 239], dtype=np.uint8)
"""Light blue, which no grey image has."""


def augmented(model: CourseModel, data: CourseData, evaluation: Evaluation) -> Figure:
    """The first training images of each class (of the first `MOST_CLASSES`), and as two epochs augment them.

    Draws from a generator of its own, and leaves the global one as it is.
    """
    assert isinstance(data, DecodedImages)
    train = data.splits["train"]
    labels = data.rows.targets[train]
    classes = [each for each in range(len(data.rows.classes)) if (labels == each).any()][:MOST_CLASSES]
    of_each = max(FEWEST_IMAGES // len(classes), 1)
    rows = torch.cat([train[labels == each][:of_each] for each in classes])
    images = data.rows.inputs[rows]  # N x C x H x W
    names = [data.rows.classes[label] for label in data.rows.targets[rows].tolist()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shown = torch.cat([images, *(data.augmented(images, rows, epoch) for epoch in (0, 1))])
    figure = Figure(figsize=(1.2 + 0.9 * len(rows), 3.6), layout="constrained")
    axes = figure.add_subplot()
    size = _show(axes, shown, len(rows))
    axes.set_xticks(size * (np.arange(len(rows)) + 0.5), names)
    axes.set_yticks(size * (np.arange(3) + 0.5), ["original", "epoch 0", "epoch 1"])
    axes.tick_params(length=0)
    axes.set_title("Training images as the network sees them")
    return figure


def confident_mistakes(model: CourseModel, data: CourseData, evaluation: Evaluation) -> Figure:
    """The misclassified images whose predicted class has the highest probability, most confident first."""
    probabilities, predictions = model.predictions(evaluation.outputs).max(1)
    wrong = (predictions != evaluation.targets).nonzero()[:, 0]
    worst = wrong[probabilities[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    lines = max(math.ceil(len(worst) / COLUMNS_OF_MISTAKES), 1)
    figure = Figure(figsize=(1.75 * COLUMNS_OF_MISTAKES, 0.6 + 2.2 * lines), layout="constrained")
    rows = f"{len(predictions)} {SPLIT_NAMES[evaluation.split]} rows"
    title = f"Most confident mistakes: {len(worst)} of {len(wrong)} among {rows}"
    figure.suptitle(title if len(wrong) else f"No mistakes among {rows}")
    images = data.rows.inputs[data.splits[evaluation.split][worst]]
    for position, (row, image) in enumerate(zip(worst.tolist(), images, strict=True), start=1):
        axes = figure.add_subplot(lines, COLUMNS_OF_MISTAKES, position)
        axes.imshow(_pixels(image), cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        predicted, true = (data.rows.classes[int(each[row])] for each in (predictions, evaluation.targets))
        axes.set_title(f"predicted: {predicted}, {probabilities[row]:.0%}\ntrue: {true}", fontsize=8)
    return figure


def predicted_images(images: Tensor, texts: Sequence[str], title: str) -> Figure:
    """Images, uint8, N x C x H x W, in a grid, with a text of up to two lines above each."""
    columns = min(len(images), COLUMNS_OF_PREDICTIONS)
    lines = math.ceil(len(images) / columns)
    figure = Figure(figsize=(max(1.75 * columns, 5), 0.6 + 2.2 * lines), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, image, text in zip(figure.subplots(lines, columns, squeeze=False).flat, images, texts, strict=False):
        axes.imshow(_pixels(image), cmap="gray", vmin=0, vmax=255)
        axes.set_title(text, fontsize=8)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def first_layer_filters(model: CourseModel, data: CourseData, evaluation: Evaluation) -> Figure:
    """The weights of each channel, or unit, of the first layer as an image, each scaled to its own range."""
    first = next(each for each in model.network.modules() if isinstance(each, (nn.Conv2d, nn.Linear)))
    window = first.kernel_size if isinstance(first, nn.Conv2d) else data.shape[1:]
    weights = first.weight.detach().view(len(first.weight), -1, *window)  # filters x C x height x width
    low, high = weights.amin((1, 2, 3), keepdim=True), weights.amax((1, 2, 3), keepdim=True)
    scaled = ((weights - low) / (high - low).clamp(min=1e-12) * 255).to(torch.uint8)
    # About twice as wide as high, with a full last line where some number of columns gives one.
    least = math.ceil(math.sqrt(2 * len(scaled)))
    columns = next((each for each in range(least, 2 * least) if len(scaled) % each == 0), least)
    figure = Figure(figsize=(8, 1 + 8 * math.ceil(len(scaled) / columns) / columns), layout="constrained")
    axes = figure.add_subplot()
    _show(axes, scaled, columns)
    axes.set_axis_off()
    kind = "filters" if isinstance(first, nn.Conv2d) else "units"
    size = " x ".join(map(str, weights.shape[1:]))
    axes.set_title(f"First layer: {len(weights)} {kind} of {size} weights, each from its lowest to its highest")
    return figure


def _show(axes: Axes, images: Tensor, columns: int) -> int:
    """Draw images, uint8, N x C x H x W, as tiles line by line; returns the width of a tile with its margin."""
    height, width = images.shape[2:]
    margin = max(width // 14, 1)
    lines = math.ceil(len(images) / columns)
    tiles = np.tile(MARGIN_COLOUR, (lines * (height + margin), columns * (width + margin), 1))
    for number, image in enumerate(images):
        top, left = number // columns * (height + margin), number % columns * (width + margin)
        tiles[top : top + height, left : left + width] = image.permute(1, 2, 0).numpy()  # one channel fills all three
    axes.imshow(tiles[:-margin, :-margin], interpolation="nearest")
    axes.spines[:].set_visible(False)
    return width + margin


def _pixels(image: Tensor) -> np.ndarray[Any, Any]:
    """C x H x W in matplotlib's form: H x W for one channel, else H x W x C."""
    array: np.ndarray[Any, Any] = image.permute(1, 2, 0).numpy()
    return array[:, :, 0] if array.shape[2] == 1 else array


FIGURES = {
    "confusion-matrix": confusion_matrix,
    "class-accuracy": class_accuracy,
    "confident-mistakes": confident_mistakes,
    "first-layer-filters": first_layer_filters,
    "augmented": augmented,
}
"""The figures of every topic with images."""
