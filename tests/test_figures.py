"""Pictures hold what they are said to hold, and can always be written."""

from io import BytesIO

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dlcourse.figures import learning_curves, lines_through_points, smoothed
from dlcourse.overfitting import Overfitting
from tests.samples import data_of, numbers

HISTORY = {
    "train/loss": [(epoch, 2.0 / (epoch + 1)) for epoch in range(6)],
    "val/loss": [(epoch, 3.0 / (epoch + 1)) for epoch in range(6)],
    "lr": [(epoch, 0.1) for epoch in range(6)],
}


def axes_of(figure: Figure) -> Axes:
    figure.savefig(BytesIO(), format="png")
    (axes,) = figure.axes
    return axes


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_smoothing_of_a_case_worked_by_hand() -> None:
    # Averages 1, 2.5 and 3.75 with weight 1/2, divided by 1/2, 3/4 and 7/8.
    assert smoothed([2, 4, 5], weight=0.5) == pytest.approx([1 / 0.5, 2.5 / 0.75, 3.75 / 0.875])


def test_smoothing_keeps_a_constant_and_the_first_value() -> None:
    assert smoothed([7.0] * 5, weight=0.9) == pytest.approx([7.0] * 5)
    assert smoothed([3.0, 100.0])[0] == pytest.approx(3.0)
    assert smoothed([]) == []


def test_curves_show_training_and_validation_raw_and_smoothed() -> None:
    axes = axes_of(learning_curves(HISTORY))
    drawn = [list(map(float, line.get_ydata())) for line in axes.lines]  # type: ignore[arg-type]
    for name in ("train/loss", "val/loss"):
        values = [value for _, value in HISTORY[name]]
        assert values in drawn
        assert pytest.approx(smoothed(values)) in drawn
    assert [list(line.get_xdata()) for line in axes.lines] == [list(range(6))] * 4  # type: ignore[arg-type]


def test_curves_say_what_they_are() -> None:
    axes = axes_of(learning_curves(HISTORY, best_epoch=4))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss")
    assert "loss" in axes.get_title()
    assert any("training" in text for text in labels(axes))
    assert any("validation" in text for text in labels(axes))


def test_curves_mark_the_epoch_whose_weights_are_kept() -> None:
    axes = axes_of(learning_curves(HISTORY, best_epoch=4))
    assert [4.0, 4.0] in [list(map(float, line.get_xdata())) for line in axes.lines]  # type: ignore[arg-type]
    assert any("epoch 4" in text for text in labels(axes))


def test_curves_shade_the_epochs_that_overfitted() -> None:
    axes = axes_of(
        learning_curves(HISTORY, best_epoch=2, overfitting=Overfitting(epoch=2, rise=0.5, standard_errors=4.0, gap=0.1))
    )
    (shade,) = axes.patches
    assert (shade.get_extents().x0, shade.get_extents().x1) == pytest.approx(
        tuple(axes.transData.transform([(2, 0), (5, 0)])[:, 0])
    )
    assert "overfitting" in labels(axes)
    assert not axes_of(
        learning_curves(HISTORY, overfitting=Overfitting(epoch=None, rise=0.0, standard_errors=0.0, gap=0.1))
    ).patches


def test_curves_of_very_different_values_are_logarithmic() -> None:
    assert axes_of(learning_curves({"train/loss": [(0, 1000.0), (1, 0.1)]})).get_yscale() == "log"
    assert axes_of(learning_curves({"train/loss": [(0, 1000.0), (1, 0.0)]})).get_yscale() == "linear"
    assert axes_of(learning_curves({"train/loss": [(0, 2.0), (1, 1.0)]})).get_yscale() == "linear"


@pytest.mark.parametrize("history", [{}, {"val/loss": []}, {"train/loss": [(0, 1.5)]}])
def test_curves_of_nothing_or_of_one_epoch_can_be_written(history: dict[str, list[tuple[int, float]]]) -> None:
    axes_of(learning_curves(history))
    axes_of(learning_curves(history, best_epoch=0))


def test_points_and_lines() -> None:
    data = data_of(numbers(features=1))
    object.__setattr__(data.rows, "features", ("height",))
    object.__setattr__(data.rows, "answers", ("weight",))

    def double(inputs: Tensor) -> Tensor:
        return 2 * inputs

    axes = axes_of(lines_through_points(data, {"fitted": double, "true": lambda inputs: inputs - 1}))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("height", "weight")
    assert sum(np.shape(points.get_offsets())[0] for points in axes.collections) == 50
    fitted, true = axes.lines
    assert fitted.get_ydata() == pytest.approx(2 * fitted.get_xdata())  # type: ignore[operator]
    assert true.get_ydata() == pytest.approx(true.get_xdata() - 1)  # type: ignore[operator]
    assert {"fitted", "true", "test rows (10)", "training rows (30)", "validation rows (10)"} == set(labels(axes))
