"""Data that come with the package. NOTICE says where each file is from, and on what terms."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).parent
COLUMNS = 50
"""Images side by side in a sheet."""


def write_sheet(place: Path, images: Tensor) -> None:
    """Write images (uint8, N x C x S x S, with N a multiple of `COLUMNS`) as one image, in lossless WebP."""
    count, channels, height, width = images.shape
    grid = images.view(count // COLUMNS, COLUMNS, channels, height, width).permute(0, 3, 1, 4, 2)
    sheet = grid.reshape(count // COLUMNS * height, COLUMNS * width, channels)
    Image.fromarray(sheet.expand(-1, -1, 3).numpy()).save(place, lossless=True, quality=100)


def read_sheet(place: Path) -> Tensor:
    """The images of a sheet, pixel for pixel, uint8, N x C x S x S; of one channel where all of them are grey."""
    with Image.open(place) as image:
        sheet = torch.from_numpy(np.array(image.convert("RGB")))
    if (sheet == sheet[..., :1]).all():
        sheet = sheet[..., :1]
    side, channels = sheet.shape[1] // COLUMNS, sheet.shape[2]
    grid = sheet.reshape(-1, side, COLUMNS, side, channels).permute(0, 2, 4, 1, 3)
    return grid.reshape(-1, channels, side, side)


def sheet_of(set_name: str, split: str) -> Path:
    """Where the sheet of an image set's training or test images is, if there is one."""
    return FOLDER / f"{set_name}-{split}.webp"


def read_sample(set_name: str, classes: int) -> dict[str, Tensor]:
    """The sample of an image set: ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``, uint8.

    A sheet holds as many images of each class, one class after the other, and so needs no labels beside it.
    """
    tensors = {}
    for split in ("train", "test"):
        images = read_sheet(sheet_of(set_name, split))
        tensors[f"{split}_images"] = images
        tensors[f"{split}_labels"] = torch.arange(classes, dtype=torch.uint8).repeat_interleave(len(images) // classes)
    return tensors
