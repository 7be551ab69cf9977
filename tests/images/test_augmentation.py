"""What is done to training images, beside slow plain computations of the same."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from dlcourse.images import augmentation


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


def test_nothing_is_done_to_the_images_given() -> None:
    images = numbered()
    before = images.clone()
    augmentation.shift(images, 2)
    augmentation.flip(images, torch.ones(64, dtype=torch.bool))
    augmentation.cutout(images, 2, torch.zeros(2))
    assert torch.equal(images, before)


def test_the_global_seed_decides() -> None:
    images = numbered()
    first = augmentation.shift(images, 2)
    assert not torch.equal(augmentation.shift(images, 2), first)
    torch.manual_seed(0)
    assert torch.equal(augmentation.shift(images, 2), first)
