"""Class names in pictures: of any script, of any length, or as numbers."""

import warnings
from io import BytesIO

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from dlcourse.data.datamodule import CourseData
from dlcourse.evaluation.evaluate import evaluate_outputs
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.images.figures import confident_mistakes
from dlcourse.models.base import CourseModel
from dlcourse.reporting import fonts
from dlcourse.reporting.figures import class_accuracy, confusion_matrix
from dlcourse.reporting.fonts import families_for, legible
from tests.image_sets import Pictures, Small, pictures

pytestmark = pytest.mark.usefixtures("project")


def texts(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> str:
    """What stands in the pictures of a model that says the wrong class each time."""
    monkeypatch.setattr(Pictures, "classes", names)
    data, model = pictures(), Small([3, 8, 8], 4)
    outputs = torch.nn.functional.one_hot((torch.arange(20) + 1) % 4, 4).float()
    judged = evaluate_outputs(model, "test", outputs, data.rows.targets[data.splits["test"]])
    drawn = [
        draw(model, data, judged)
        for draw in legible({"a": confusion_matrix, "b": class_accuracy, "c": confident_mistakes}).values()
    ]
    for figure in drawn:
        figure.savefig(BytesIO(), format="png")
    assert data.rows.classes == names, "they are other names in pictures alone"
    return "\n".join(text.get_text() for figure in drawn for text in figure.findobj(Text))  # type: ignore[attr-defined]


def test_usual_names_are_in_the_usual_font() -> None:
    assert families_for(("ants", "bees", "Bär")) == ["sans-serif"]


def test_chinese_names_are_in_a_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("蚂蚁", "蜜蜂", "bees", "c")
    families = families_for(names)
    if families is None:
        pytest.skip("this machine has no Chinese font")
    assert len(families) == 2
    with warnings.catch_warnings(action="error"):  # matplotlib warns of each character that it has no glyph for
        shown = texts(names, monkeypatch)
    assert "predicted: 蜜蜂" in shown


def test_names_that_no_font_has_are_numbered_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fonts, "_characters", lambda font: set())
    families_for.cache_clear()
    shown = texts(("蚂蚁", "蜜蜂", "bees", "c"), monkeypatch)
    families_for.cache_clear()
    assert "predicted: class 2" in shown
    assert "蜜蜂" not in shown
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.endswith(": 1 蚂蚁, 2 蜜蜂, 3 bees, 4 c")


def test_long_names_are_cut_off_and_formulas_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = texts(("a" * 21, "b" * 20, "$1 or 2$ _^", "d"), monkeypatch)
    assert f"predicted: {'a' * 19}…" in shown
    assert f"predicted: {'b' * 20}," in shown
    assert "predicted: $1 or 2$ _^," in shown


def test_a_font_file_that_is_gone_has_no_characters() -> None:
    assert fonts._characters(fonts.FontEntry(fname="/nowhere/font.ttf")) == set()


def test_the_name_of_the_picture_stays() -> None:
    def own(model: CourseModel, data: CourseData, judged: Evaluation) -> Figure:
        return Figure()

    (drawn,) = legible({"own": own}).values()
    assert drawn.__name__ == "own"
