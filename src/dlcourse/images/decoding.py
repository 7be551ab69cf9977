"""Image files of any format, mode and size to tensors of one size."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2
from tqdm.auto import tqdm

WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes for grey images with more than 8 bits a pixel."""


def decoded(path: Path, size: int) -> Tensor:
    """The middle square of an image as a viewer shows it: 3 x size x size, uint8.

    It is rotated as its EXIF data say. Of an animation it is the first frame. Transparent parts are white, and grey
    images get three equal channels.

    Raises:
        Exception: The file is no complete image. Pillow does not document of which type.
    """
    with Image.open(path) as file:
        if file.format == "JPEG":
            file.draft(None, (2 * size, 2 * size))  # decodes large photographs at a fraction of their size
        image = _coloured(ImageOps.exif_transpose(file))
    middle = v2.functional.center_crop(image, [min(image.size)] * 2)
    square: Tensor = v2.functional.pil_to_tensor(v2.functional.resize(middle, [size, size], antialias=True))
    return square


def decode_all(paths: Sequence[Path], size: int) -> Iterator[Tensor | None]:
    """Decode the images on all cores, in order; None for one that cannot be read. Shows a bar on a terminal."""

    def attempt(path: Path) -> Tensor | None:
        try:
            return decoded(path, size)
        except Exception:  # damaged files raise a dozen types in Pillow
            return None

    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from tqdm(
            pool.map(attempt, paths), total=len(paths), desc="decoding", leave=False, disable=not sys.stderr.isatty()
        )


def grey(images: Tensor) -> Tensor:
    """N x 3 x H x W to N x 1 x H x W, uint8: the luma of ITU-R BT.601 in 16-bit integers, as Pillow computes it.

    Three equal channels give that channel, to the digit.
    """
    red, green, blue = images.int().unbind(1)
    luma: Tensor = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    return luma.to(torch.uint8)[:, None]


def _coloured(image: Image.Image) -> Image.Image:
    if image.mode in WIDE_MODES:
        values = np.asarray(image)
        image = Image.fromarray((values >> 8 if values.max() > 255 else values).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
