"""Changes to training images that leave their class as it is: whole batches at once, on the device they are on.

Each takes images N x C x H x W of any type, draws from torch's global generator of their device, and gives new images.
"""

import torch
from torch import Tensor


def shift(images: Tensor, most: int) -> Tensor:
    """Move each image by up to ``most`` pixels (below its size) either way; what comes in at the border is mirrored."""
    count, channels, height, width = images.shape

    def sources(size: int) -> Tensor:
        """For each image, where each of its new rows or columns comes from: N x size."""
        offsets = torch.randint(-most, most + 1, (count, 1), device=images.device)
        places = torch.arange(size, device=images.device) + offsets
        last = size - 1
        return last - (last - places.abs()).abs()

    pixels = sources(height)[:, :, None] * width + sources(width)[:, None, :]
    return images.flatten(2).gather(2, pixels.view(count, 1, -1).expand(-1, channels, -1)).view_as(images)


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Mirror left and right those images for which ``which``, N truth values, says so."""
    return torch.where(which[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, size: int, fill: Tensor) -> Tensor:
    """Cover a square of ``size`` pixels around a random pixel of each image by ``fill``, C values (DeVries and Taylor
    2017). At the border less than the whole square is covered.
    """
    count, _, height, width = images.shape

    def covered(length: int) -> Tensor:
        start = torch.randint(length, (count, 1), device=images.device) - size // 2
        places = torch.arange(length, device=images.device)
        return (places >= start) & (places < start + size)

    square = covered(height)[:, :, None] & covered(width)[:, None, :]
    return torch.where(square[:, None], fill.to(images).view(-1, 1, 1), images)
