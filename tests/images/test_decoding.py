"""Pictures of every kind become images of one size, as a viewer shows them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dlcourse.images.decoding import decode_all, decoded, grey

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def colours(image: Tensor) -> list[tuple[int, ...]]:
    """Those of the four corners, line by line."""
    return [tuple(image[:, line, column].tolist()) for line in (0, -1) for column in (0, -1)]


def halves(mode: str = "RGB") -> Image.Image:
    """Red above blue, 8 x 8."""
    image = Image.new("RGB", (8, 8), RED)
    image.paste(BLUE, (0, 4, 8, 8))
    return image.convert(mode)


def saved(image: Image.Image, path: Path, **settings: Any) -> Path:
    image.save(path, **settings)
    return path


def test_images_are_bytes_of_three_channels_and_one_size(tmp_path: Path) -> None:
    image = decoded(saved(halves(), tmp_path / "a.png"), 4)
    assert (image.shape, image.dtype) == ((3, 4, 4), torch.uint8)
    assert colours(image) == [RED, RED, BLUE, BLUE]


@pytest.mark.parametrize("size", [(40, 10), (10, 40)])
def test_the_middle_square_is_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    wide = Image.new("RGB", size, RED)
    wide.paste(GREEN, ((size[0] - 10) // 2, (size[1] - 10) // 2, (size[0] + 10) // 2, (size[1] + 10) // 2))
    assert (decoded(saved(wide, tmp_path / "a.png"), 20).permute(1, 2, 0) == torch.tensor(GREEN)).all()


def test_large_photographs_are_scaled_as_carefully_as_others(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    smooth = Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
        (1200, 1200), Image.Resampling.BICUBIC
    )
    jpeg = decoded(saved(smooth, tmp_path / "a.jpg", quality=95), 32).int()
    png = decoded(saved(smooth, tmp_path / "a.png"), 32).int()
    assert float((jpeg - png).abs().float().mean()) < 3


@pytest.mark.parametrize(
    ("orientation", "seen"), [(3, [BLUE, BLUE, RED, RED]), (6, [BLUE, RED, BLUE, RED]), (8, [RED, BLUE, RED, BLUE])]
)
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_photographs_are_turned_as_their_camera_was(
    tmp_path: Path, ending: str, orientation: int, seen: list[tuple[int, ...]]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decoded(saved(halves().resize((64, 64)), tmp_path / f"a.{ending}", exif=exif), 32)
    assert np.array(colours(image)) == pytest.approx(np.array(seen), abs=3)


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, RED, BLUE)]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert colours(decoded(path, 4)) == [GREEN] * 4


def test_grey_is_red_green_and_blue_alike(tmp_path: Path) -> None:
    assert colours(decoded(saved(Image.new("L", (8, 8), 77), tmp_path / "a.png"), 4)) == [(77, 77, 77)] * 4


def test_black_and_white(tmp_path: Path) -> None:
    assert colours(decoded(saved(Image.new("1", (8, 8), 1), tmp_path / "a.png"), 4)) == [WHITE] * 4


@pytest.mark.parametrize(("value", "seen"), [(65535, 255), (40_000, 156), (0, 0)])
def test_grey_of_two_bytes_a_pixel(tmp_path: Path, value: int, seen: int) -> None:
    values = np.full((8, 8), value, dtype=np.uint16)
    assert colours(decoded(saved(Image.fromarray(values), tmp_path / "a.png"), 4)) == [(seen,) * 3] * 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    image = halves("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.uint8([[0], [255]]), 4, 0).repeat(8, 1)))
    path = (
        saved(image.convert(mode), tmp_path / f"a.{'tiff' if mode == 'PA' else 'png'}")
        if mode != "PA"
        else saved(image.quantize(), tmp_path / "a.png")
    )
    shown = colours(decoded(path, 4))
    assert shown[:2] == [WHITE, WHITE]
    assert shown[2:] == [BLUE if mode != "LA" else (29, 29, 29)] * 2


def test_palettes_have_colours(tmp_path: Path) -> None:
    assert colours(decoded(saved(halves().quantize(4), tmp_path / "a.png"), 4)) == [RED, RED, BLUE, BLUE]


def test_printers_colours(tmp_path: Path) -> None:
    image = decoded(saved(halves("CMYK"), tmp_path / "a.jpg", quality=100), 4)
    assert np.array(colours(image)) == pytest.approx(np.array([RED, RED, BLUE, BLUE]), abs=6)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2)])
def test_pictures_of_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    assert colours(decoded(saved(Image.new("RGB", size, GREEN), tmp_path / "a.png"), 16)) == [GREEN] * 4


def test_broken_files_are_none_and_the_others_stay_in_their_order(tmp_path: Path) -> None:
    whole = [saved(Image.new("RGB", (30, 30), colour), tmp_path / f"{colour}.png") for colour in (RED, GREEN, BLUE)]
    cut, text, empty = tmp_path / "cut.jpg", tmp_path / "text.jpg", tmp_path / "empty.png"
    halves().resize((300, 300)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-1000])
    text.write_text("no picture")
    empty.touch()
    images = list(decode_all([whole[0], cut, whole[1], text, empty, tmp_path / "gone.png", whole[2]], 4))
    assert [image is None for image in images] == [False, True, False, True, True, True, False]
    assert [colours(image)[0] for image in images if image is not None] == [RED, GREEN, BLUE]


def test_a_picture_that_is_too_large_to_be_true_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    large, larger = (saved(Image.new("RGB", (side, side)), tmp_path / f"{side}.png") for side in (12, 30))
    assert [image is None for image in decode_all([large, larger], 4)] == [False, True]


def test_grey_is_pillows_and_leaves_grey_images_as_they_are() -> None:
    images = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for image, one in zip(images, grey(images), strict=True):
        expected = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
        assert np.array_equal(one[0], np.asarray(expected))
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(grey(every.expand(1, 3, 16, 16)), every)
