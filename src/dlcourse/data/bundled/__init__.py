"""Data that come with the package. NOTICE names the origin and the license of each file."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).parent
COLUMNS = 50
"""Images side by side in a sheet."""


def write_sheet(path: Path, images: Tensor) -> None:
    """Write images (uint8, N x C x S x S, with N a multiple of `COLUMNS`) as one image, in lossless WebP."""
    count, channels, height, width = images.shape
    # lines x columns x C x S x S to lines x S x columns x S x C
    grid = images.view(count // COLUMNS, COLUMNS, channels, height, width).permute(0, 3, 1, 4, 2)
    sheet = grid.reshape(count // COLUMNS * height, COLUMNS * width, channels)
    Image.fromarray(sheet.expand(-1, -1, 3).numpy()).save(path, lossless=True, quality=100)


def read_sheet(path: Path) -> Tensor:
    """The images of a sheet, uint8, N x C x S x S; with one channel where all are grey, else with three."""
    with Image.open(path) as image:
        sheet = torch.from_numpy(np.array(image.convert("RGB")))  # lines * S x columns * S x C
    if (sheet == sheet[..., :1]).all():
        sheet = sheet[..., :1]
    side, channels = sheet.shape[1] // COLUMNS, sheet.shape[2]
    grid = sheet.reshape(-1, side, COLUMNS, side, channels).permute(0, 2, 4, 1, 3)
    return grid.reshape(-1, channels, side, side)


def sheet_of(set_name: str, split: str) -> Path:
    """The path of the sheet with an image set's "train" or "test" images, which need not exist."""
    return FOLDER / f"{set_name}-{split}.webp"


def read_sample(set_name: str, classes: int) -> dict[str, Tensor]:
    """The sample of an image set: ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``, uint8.

    A sheet has as many images of each class, one class after the other, which gives the labels.
    """
    tensors = {}
    for split in ("train", "test"):
        images = read_sheet(sheet_of(set_name, split))
        tensors[f"{split}_images"] = images
        tensors[f"{split}_labels"] = torch.arange(classes, dtype=torch.uint8).repeat_interleave(len(images) // classes)
    return tensors
