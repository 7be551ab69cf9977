"""Pictures hold what they are said to hold, and can always be written."""

from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from torch import Tensor

from dlcourse.data.datamodule import CourseData
from dlcourse.evaluation.evaluate import evaluate_outputs
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.overfitting import Overfitting
from dlcourse.models.base import CourseModel
from dlcourse.reporting.figures import class_accuracy, confusion_matrix, learning_curves, lines_through_points, smoothed
from tests.samples import Kinds, data_of, labelled, numbers

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
        learning_curves(
            HISTORY, best_epoch=2, overfitting=Overfitting(epoch=2, rise=0.5, fall=0.3, standard_errors=4.0, gap=0.1)
        )
    )
    (shade,) = axes.patches
    assert (shade.get_extents().x0, shade.get_extents().x1) == pytest.approx(
        tuple(axes.transData.transform([(2, 0), (5, 0)])[:, 0])
    )
    assert "overfitting" in labels(axes)
    assert not axes_of(
        learning_curves(HISTORY, overfitting=Overfitting(epoch=None, rise=0.0, fall=0.0, standard_errors=0.0, gap=0.1))
    ).patches


def test_curves_of_very_different_values_are_logarithmic() -> None:
    assert axes_of(learning_curves({"train/loss": [(0, 1000.0), (1, 0.1)]})).get_yscale() == "log"
    assert axes_of(learning_curves({"train/loss": [(0, 1000.0), (1, 0.0)]})).get_yscale() == "linear"
    assert axes_of(learning_curves({"train/loss": [(0, 2.0), (1, 1.0)]})).get_yscale() == "linear"


def test_shares_are_never_drawn_logarithmically() -> None:
    history = {"train/accuracy": [(0, 0.02), (1, 0.9)], "val/accuracy": [(0, 0.1), (1, 0.8)]}
    axes = axes_of(learning_curves(history, "accuracy", best_epoch=1))
    assert (axes.get_yscale(), axes.get_ylabel()) == ("linear", "accuracy")
    assert len(axes.lines) == 5


@pytest.mark.parametrize("history", [{}, {"val/loss": []}, {"train/loss": [(0, 1.5)]}])
def test_curves_of_nothing_or_of_one_epoch_can_be_written(history: dict[str, list[tuple[int, float]]]) -> None:
    axes_of(learning_curves(history))
    axes_of(learning_curves(history, best_epoch=0))


def judged(probabilities: list[list[float]], labels: list[int]) -> tuple[CourseModel, CourseData, Evaluation]:
    data = data_of(labelled([*labels, *range(len(probabilities[0]))]), test_fraction=0.0, val_fraction=0.0)
    rows = torch.arange(len(labels))
    data.splits = {"train": rows[:0], "val": rows[:0], "test": rows}
    model = Kinds([1], len(probabilities[0]))
    return model, data, evaluate_outputs(model, "test", torch.tensor(probabilities).log(), data.rows.targets[rows])


def test_accuracy_by_class_is_sorted_and_has_intervals() -> None:
    right, wrong = [0.8, 0.1, 0.05, 0.05], [0.1, 0.8, 0.05, 0.05]
    axes = axes_of(class_accuracy(*judged([right, right, wrong, wrong, right, right], [0, 0, 0, 1, 1, 2])))
    bars, errors = axes.containers[1], axes.containers[0]
    assert isinstance(bars, BarContainer)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "1", "0"], "class 3 has no rows"
    assert [bar.get_width() for bar in bars] == pytest.approx([0, 1 / 2, 2 / 3])
    lengths = [segment[1, 0] - segment[0, 0] for segment in errors.lines[2][0].get_segments()]  # type: ignore[attr-defined]
    # Wilson: 0 of 1 row 0 to 0.7935, 1 of 2 rows 0.0945 to 0.9055, 2 of 3 rows 0.2077 to 0.9385.
    assert lengths == pytest.approx([0.7935, 0.8109, 0.7308], abs=1e-4)
    assert [text.get_text() for text in axes.texts] == ["0.0%", "50.0%", "66.7%"]
    assert axes.get_title().startswith("Accuracy by class, test rows")
    assert "50.0%" in axes.get_title()


def test_confusion_matrix_of_many_classes_leaves_empty_cells_quiet() -> None:
    axes = axes_of(confusion_matrix(*judged([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], [0, 1, 2])))
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells[0, 0] == cells[0, 1] == cells[1, 2] == "1\n100%"
    assert sorted(cells.values()).count("0") == 6


def test_points_and_lines() -> None:
    data = data_of(numbers(features=1))
    object.__setattr__(data.rows, "feature_names", ("height",))
    object.__setattr__(data.rows, "target_names", ("weight",))

    def double(inputs: Tensor) -> Tensor:
        return 2 * inputs

    axes = axes_of(lines_through_points(data, {"fitted": double, "true": lambda inputs: inputs - 1}))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("height", "weight")
    assert sum(np.shape(points.get_offsets())[0] for points in axes.collections) == 50
    fitted, true = axes.lines
    assert fitted.get_ydata() == pytest.approx(2 * fitted.get_xdata())  # type: ignore[operator]
    assert true.get_ydata() == pytest.approx(true.get_xdata() - 1)  # type: ignore[operator]
    assert {"fitted", "true", "test rows (10)", "training rows (30)", "validation rows (10)"} == set(labels(axes))
