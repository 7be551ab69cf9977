"""What models of unusual inputs can be asked about, and what no file is read as."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dlcourse.errors import CourseError, SettingsError
from dlcourse.export.description import Column, Description, Quality, Values, border_means, usual_borders
from dlcourse.export.reading import Inputs, read_inputs


def described(shape: list[int], dtype: str = "float32", **known: Any) -> Description:
    return Description(
        topic="mine", kind="regression", inputs=Values("inputs", dtype, ["N", *shape], **known),
        outputs=[Values("predictions", "float32", ["N", 1])], classes=[], quality=Quality("test/mse", 1, None, None, 9),
        verdict="", run={"id": "0" * 32, "name": "default"}, commit="", version="", module="Line",
    )  # fmt: skip


def read(about: Description, *words: str | Path | float, invert: bool = False, **features: float | str) -> Inputs:
    return read_inputs(about, words, features, ["invert"], invert)


def test_inputs_that_no_file_is_read_as(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for about in (described([3, 8, 8]), described([3, 4, 8], "uint8"), described([2, 8, 8], "uint8"), described([])):
        with pytest.raises(SettingsError, match=r"no (file|picture) is read as"):
            read(about, tmp_path / "a.png")


def test_integers_are_whole_numbers() -> None:
    about = described([1], "int64", columns=[Column("token")])
    assert read(about, "3", 4).values.tolist() == [[3], [4]]
    assert read(about, "3").values.dtype == np.int64
    with pytest.raises(CourseError, match="whole"):
        read(about, "3", "1.5")


def test_wide_rows_have_no_names_and_are_read_in_order(tmp_path: Path) -> None:
    numbers = np.arange(2400).reshape(2, 1200)
    np.savetxt(tmp_path / "wide.csv", numbers, delimiter=",")
    inputs = read(described([1200]), tmp_path / "wide.csv")
    assert (inputs.values == numbers).all()
    assert inputs.warnings == []
    with pytest.raises(CourseError, match="1200"):
        read(described([1201]), tmp_path / "wide.csv")
    with pytest.raises(SettingsError, match="1200"):
        read(described([1200]), 3)


def test_rows_of_several_kinds_are_one_table(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1\n2\n")
    about = described([1], columns=[Column("body height", "m", 1.5, 2)])
    inputs = read(about, tmp_path / "rows.csv", 1.7, body_height="1.8")
    assert inputs.values[:, 0].tolist() == pytest.approx([1, 2, 1.7, 1.8])
    assert inputs.names == [
        f"{tmp_path}/rows.csv line 1", f"{tmp_path}/rows.csv line 2", "body height 1.7 m", "body height 1.8 m"
    ]  # fmt: skip
    assert inputs.warnings == ["body height: 1 of 4 rows is outside 1.5 to 2 m of the training rows"]


@pytest.mark.parametrize(
    ("seen", "trained", "advice"), [(250, (10, 90), "light on dark"), (5, (160, 245), "dark on light")]
)
def test_pictures_that_are_the_inverse_of_the_training_pictures(
    tmp_path: Path, seen: int, trained: tuple[float, float], advice: str
) -> None:
    Image.new("L", (9, 7), seen).save(tmp_path / "a.png")
    about = described([1, 4, 4], "uint8", border=trained)
    inputs = read(about, tmp_path / "a.png")
    assert torch.equal(torch.from_numpy(inputs.values), torch.full((1, 1, 4, 4), seen, dtype=torch.uint8))
    assert advice in inputs.warnings[0]
    assert "--invert" in inputs.warnings[0]
    with pytest.raises(SettingsError, match="nothing"):
        read(about)


def test_the_background_is_told_by_the_border_alone() -> None:
    image = torch.zeros(2, 3, 5, 7, dtype=torch.uint8)
    image[0, :, 1:-1, 1:-1] = 255
    image[1, :, 0], image[1, :, -1], image[1, :, :, 0], image[1, :, :, -1] = 200, 200, 200, 200
    assert border_means(image).tolist() == [0, 200]


def test_pictures_that_are_merely_unlike_are_told_without_advice(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 120).save(tmp_path / "a.png")
    (warning,) = read(described([1, 4, 4], "uint8", border=(10, 90)), tmp_path / "a.png").warnings
    assert "lighter" in warning
    assert "--invert" not in warning


def test_all_inverted_pictures_of_fashion_mnist_have_another_background(real_data: Callable[..., Path]) -> None:
    with safe_open(real_data("fashion-mnist.safetensors"), "pt") as file:
        low, high = usual_borders(file.get_tensor("train_images"))
        images = file.get_tensor("test_images")

    def outside(images: torch.Tensor) -> int:
        means = border_means(images)
        return int(((means < low) | (means > high)).sum())

    assert outside(255 - images) == len(images) == 10_000
    assert outside(images) < 200, "1 % are expected, by the definition of the range"
