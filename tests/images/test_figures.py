"""Pictures of images hold what they are said to hold."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from dlcourse.evaluation.evaluate import evaluate_outputs
from dlcourse.images.figures import MARGIN_COLOUR, augmented, confident_mistakes, first_layer_filters
from tests.image_sets import Pictures, Small, pictures

pytestmark = pytest.mark.usefixtures("project")


def drawn(figure: Figure) -> list[Axes]:
    figure.savefig(BytesIO(), format="png")
    return figure.axes


def picture(axes: Axes) -> np.ndarray[Any, Any]:
    (image,) = axes.images
    array: np.ndarray[Any, Any] = np.asarray(image.get_array())
    return array


def tiles(axes: Axes, height: int, width: int) -> list[np.ndarray[Any, Any]]:
    """The tiles of a wall, line by line, each with all three colours; empty places are left out."""
    wall, margin = picture(axes), max(width // 14, 1)
    found = [
        wall[top : top + height, left : left + width]
        for top in range(0, len(wall), height + margin)
        for left in range(0, wall.shape[1], width + margin)
    ]
    return [tile for tile in found if not (tile == MARGIN_COLOUR).all()]


def as_drawn(image: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return array


# What augmentation makes of images


def test_one_image_of_each_class_as_two_epochs_show_it() -> None:
    data = pictures(shift=0, flip="alternating")
    (axes,) = drawn(augmented(Small(data.shape, 4), data, None))  # type: ignore[arg-type]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c", "d"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["original", "epoch 0", "epoch 1"]
    shown = tiles(axes, 8, 8)
    assert len(shown) == 12
    for place in range(4):
        original, *epochs = shown[place::4]
        row = next(row for row in data.splits["train"] if data.rows.targets[row] == place)
        assert np.array_equal(original, as_drawn(data.rows.inputs[row]))
        mirrored = [np.array_equal(each, original[:, ::-1]) for each in epochs]
        assert sorted(mirrored) == [False, True]


def test_of_few_classes_there_are_several_images() -> None:
    data = pictures()
    data.splits["train"] = data.splits["train"][data.rows.targets[data.splits["train"]] < 2]
    (axes,) = drawn(augmented(Small(data.shape, 4), data, None))  # type: ignore[arg-type]
    assert [label.get_text() for label in axes.get_xticklabels()] == [*"aaabbb"]
    assert len(tiles(axes, 8, 8)) == 18


def test_augmentation_is_drawn_alike_each_time_and_disturbs_no_other_drawing() -> None:
    data, model = pictures(shift=2, cutout=3), Small([3, 8, 8], 4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (picture(*drawn(augmented(model, data, None))) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(first, second)


# Mistakes


def judged(labels_said: list[int], certain: list[float]) -> list[Axes]:
    """Test rows that a model gives these labels with these probabilities; their true ones are 0, 1, 2, 3, 0, 1 ..."""
    data, model = pictures(), Small([3, 8, 8], 4)
    probabilities = torch.stack([torch.full((4,), (1 - p) / 3) for p in certain])
    probabilities[torch.arange(len(certain)), labels_said] = torch.tensor(certain)
    targets = data.rows.targets[data.splits["test"]]
    return drawn(confident_mistakes(model, data, evaluate_outputs(model, "test", probabilities.log(), targets)))


def test_mistakes_come_with_the_most_certain_first() -> None:
    said, certain = [row % 4 for row in range(20)], [0.9] * 20
    said[3], certain[3] = 1, 0.7
    said[9], certain[9] = 0, 0.95
    first, second = judged(said, certain)
    assert first.get_title() == "predicted: a, 95%\ntrue: b"
    assert second.get_title() == "predicted: b, 70%\ntrue: d"
    assert np.array_equal(picture(first), as_drawn(Pictures.made["test_images"][9]))
    assert np.array_equal(picture(second), as_drawn(Pictures.made["test_images"][3]))
    figure = first.figure
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == "Most confident mistakes: 2 of 2 among 20 test rows"


def test_no_more_mistakes_than_can_be_looked_at() -> None:
    axes = judged([(row + 1) % 4 for row in range(20)], [0.5] * 20)
    assert len(axes) == 18


def test_a_model_without_mistakes_has_none_to_show() -> None:
    data, model = pictures(), Small([3, 8, 8], 4)
    outputs = torch.nn.functional.one_hot(torch.arange(20) % 4).float()
    figure = confident_mistakes(
        model, data, evaluate_outputs(model, "test", outputs, data.rows.targets[data.splits["test"]])
    )
    assert drawn(figure) == []
    assert figure.get_suptitle() == "No mistakes among 20 test rows"


# Filters


def filters_of(layer: nn.Module, shape: list[int], monkeypatch: pytest.MonkeyPatch) -> Axes:
    data = pictures()
    monkeypatch.setattr(type(data), "shape", shape)
    model = Small(shape, 4)
    model.network = nn.Sequential(layer)
    (axes,) = drawn(first_layer_filters(model, data, None))  # type: ignore[arg-type]
    return axes


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_go_each_from_its_lowest_to_its_highest_weight(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    layer = nn.Conv2d(channels, 5, 3)
    shown = tiles(filters_of(layer, [channels, 8, 8], monkeypatch), 3, 3)
    assert len(shown) == 5
    for tile, weights in zip(shown, layer.weight.detach(), strict=True):
        span = weights.max() - weights.min()
        assert np.array_equal(tile, as_drawn(((weights - weights.min()) / span * 255).to(torch.uint8)))
        assert (tile.min(), tile.max()) == (0, 255)


def test_units_of_a_fully_connected_layer_are_images(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(28 * 14, 6)
    with torch.no_grad():
        layer.weight[2] = 0
        layer.weight[2, 14 * 5 + 3] = 1
    axes = filters_of(layer, [1, 28, 14], monkeypatch)
    shown = tiles(axes, 28, 14)
    assert len(shown) == 6
    assert np.argwhere(shown[2][..., 0]).tolist() == [[5, 3]]
    assert axes.get_title().startswith("First layer: 6 units of 1 x 28 x 14 weights")


def test_filters_that_are_all_alike_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(1, 2, 3)
    nn.init.zeros_(layer.weight)
    filters_of(layer, [1, 8, 8], monkeypatch)
