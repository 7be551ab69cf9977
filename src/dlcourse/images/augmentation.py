"""Random augmentation of whole batches, on the device they are on. It does not change an image's class.

Each function takes images N x C x H x W of any dtype, draws from torch's global generator for their device, and returns
new images.
"""

import torch
from torch import Tensor


def shift(images: Tensor, most: int) -> Tensor:
    """Shift each image by up to ``most`` pixels (fewer than its side) to each side; the border is filled by reflection.

    It computes the source of each pixel and gathers all images at once: a loop over images would take several times
    as long.
    """
    count, channels, height, width = images.shape

    def sources(size: int) -> Tensor:
        """For each image, the old index of each of its new rows or columns: N x size."""
        offsets = torch.randint(-most, most + 1, (count, 1), device=images.device)
        indices = torch.arange(size, device=images.device) + offsets
        last = size - 1
        return last - (last - indices.abs()).abs()  # reflects at 0, then at the last index

    pixels = sources(height)[:, :, None] * width + sources(width)[:, None, :]  # N x H x W, into a flat image
    return images.flatten(2).gather(2, pixels.view(count, 1, -1).expand(-1, channels, -1)).view_as(images)


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Mirror left and right the images for which ``which``, N truth values, is true."""
    return torch.where(which[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, size: int, fill: Tensor) -> Tensor:
    """Mask a square of side ``size`` around a random pixel of each image (DeVries and Taylor 2017).

    ``fill`` holds the value for each channel, C. At the border a part of the square lies outside of the image.
    """
    count, _, height, width = images.shape

    def covered(length: int) -> Tensor:
        start = torch.randint(length, (count, 1), device=images.device) - size // 2
        indices = torch.arange(length, device=images.device)
        return (indices >= start) & (indices < start + size)

    square = covered(height)[:, :, None] & covered(width)[:, None, :]  # N x H x W
    return torch.where(square[:, None], fill.to(images).view(-1, 1, 1), images)
