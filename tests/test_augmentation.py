"""What is done to training images, beside slow plain computations of the same."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from dlcourse import augmentation


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def numbered(count: int = 64, shape: tuple[int, int, int] = (2, 6, 7)) -> Tensor:
    """Images in which every pixel is another."""
    return torch.arange(count * int(np.prod(shape)), dtype=torch.int32).view(count, *shape)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_shift_is_a_crop_of_the_mirrored_image(most: int) -> None:
    images = numbered()
    offsets = []
    for image, shifted in zip(images.numpy(), augmentation.shift(images, most).numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (most, most), (most, most)), mode="reflect")
        crops = {
            (down, right): padded[:, down : down + 6, right : right + 7]
            for down in range(2 * most + 1)
            for right in range(2 * most + 1)
        }
        (found,) = (place for place, crop in crops.items() if np.array_equal(crop, shifted))
        offsets.append(found)
    assert {down for down, _ in offsets} == {right for _, right in offsets} == set(range(2 * most + 1))
    assert len(set(offsets)) > 2 * most + 1, "the two directions are drawn apart"


def test_every_shift_is_as_likely() -> None:
    image = torch.arange(25).view(1, 1, 5, 5).expand(9000, -1, -1, -1)
    middles = Counter(augmentation.shift(image, 1)[:, 0, 2, 2].tolist())
    assert len(middles) == 9
    assert all(850 < count < 1150 for count in middles.values())


def test_flip_mirrors_those_asked_for() -> None:
    images = numbered(4)
    flipped = augmentation.flip(images, torch.tensor([True, False, False, True]))
    assert np.array_equal(flipped[[0, 3]], images[[0, 3]].numpy()[..., ::-1])
    assert torch.equal(flipped[1:3], images[1:3])


@pytest.mark.parametrize("size", [1, 3, 4])
def test_cutout_covers_a_square_around_a_pixel(size: int) -> None:
    images = torch.full((300, 2, 6, 9), 200, dtype=torch.uint8)
    covered = augmentation.cutout(images, size, torch.tensor([7.0, 9.0]))
    assert covered.dtype == torch.uint8
    areas = set()
    for image in covered.numpy():
        hole = image[0] != 200
        assert np.array_equal(image[0], np.where(hole, 7, 200))
        assert np.array_equal(image[1], np.where(hole, 9, 200))
        lines, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1].all(), "one rectangle"
        areas.add(int(hole.sum()))
    assert max(areas) == size**2
    assert len(areas) > 1 or size == 1, "at the border it is cut off"


def ramp(count: int, size: int = 32) -> Tensor:
    """Images whose first channel tells the column, and whose second the line."""
    columns = torch.arange(size).float().expand(size, size)
    return torch.stack([columns, columns.T]).expand(count, -1, -1, -1)


@pytest.mark.parametrize("most", [0.3, 0.8])
def test_crop_is_a_part_of_the_image_in_the_size_of_the_whole(most: float) -> None:
    parts = augmentation.crop(ramp(2000), most)
    assert parts.shape == (2000, 2, 32, 32)
    across, down = parts[:, 0, 16], parts[:, 1, :, 16]
    # Within the part a pixel is as many of the image's as the part's side is shares of the whole.
    width, height = ((each[:, 26] - each[:, 6]) / 20 for each in (across, down))
    assert float(parts[:, 0].std(1).max()) < 1e-3, "lines stay lines"
    area, stretch = width * height, width / height
    assert 1 - most - 0.01 < float(area.min()) < 1 - most + 0.02
    assert 0.97 < float(area.max()) < 1.01
    assert 3 / 4 - 0.01 < float(stretch.min()) < 0.78
    assert 1.3 < float(stretch.max()) < 4 / 3 + 0.01
    left, right = across[:, 6] - 6.5 * width, across[:, 26] + 5.5 * width
    assert -1 < float(left.min()) < 0.5
    assert 30.5 < float(right.max()) < 32
    assert float((left + right).mean()) == pytest.approx(31, abs=0.7), "as often at one side as at the other"


def test_crop_of_bytes_are_bytes() -> None:
    parts = augmentation.crop(torch.full((5, 3, 8, 8), 200, dtype=torch.uint8), 0.5)
    assert (parts.dtype, parts.unique().tolist()) == (torch.uint8, [200])


def test_colour_changes_brightness_contrast_and_saturation() -> None:
    grey, split = torch.full((1000, 3, 4, 4), 100.0), torch.full((1000, 3, 4, 4), 100.0)
    split[:, :, 2:] = 140
    coloured = torch.tensor([140.0, 100.0, 80.0]).view(3, 1, 1).expand(1000, -1, 4, 4)
    brighter = augmentation.colour(grey, 0.3)
    assert (float(brighter.min()), float(brighter.max())) == pytest.approx((70, 130), abs=1), "what is even stays even"
    changed = augmentation.colour(split, 0.3)
    contrast = (changed[:, 0, 2, 0] - changed[:, 0, 0, 0]) / changed.mean((1, 2, 3)) / (40 / 120)
    assert (float(contrast.min()), float(contrast.max())) == pytest.approx((0.7, 1.3), abs=0.05)
    painted = augmentation.colour(coloured, 0.3)[:, :, 0, 0]
    lightness = painted @ torch.tensor([0.299, 0.587, 0.114])
    colourful = (painted[:, 0] - painted[:, 2]) / lightness / (60 / 109.68)
    # Contrast brings colours nearer to grey as well.
    assert 0.7**2 - 0.01 < float(colourful.min()) < 0.6
    assert 1.5 < float(colourful.max()) < 1.3**2 + 0.01


def test_colours_of_bytes_stay_in_their_range() -> None:
    images = torch.randint(0, 256, (200, 3, 6, 6), dtype=torch.uint8)
    changed = augmentation.colour(images, 0.9)
    assert changed.dtype == torch.uint8
    # Had anything gone beyond the range and come in at the other side, white would have become black.
    white = augmentation.colour(torch.full((200, 3, 2, 2), 255, dtype=torch.uint8), 0.9)
    assert float((white == 255).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_nothing_is_done_to_the_images_given() -> None:
    images = numbered()
    before = images.clone()
    augmentation.shift(images, 2)
    augmentation.flip(images, torch.ones(64, dtype=torch.bool))
    augmentation.cutout(images, 2, torch.zeros(2))
    augmentation.crop(images, 0.5)
    augmentation.colour(images[:, :1].expand(-1, 3, -1, -1), 0.5)
    assert torch.equal(images, before)


def test_the_global_seed_decides() -> None:
    images = numbered()
    first = augmentation.shift(images, 2)
    assert not torch.equal(augmentation.shift(images, 2), first)
    torch.manual_seed(0)
    assert torch.equal(augmentation.shift(images, 2), first)
