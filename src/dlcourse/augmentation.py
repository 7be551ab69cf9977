"""Changes to training images that leave their class as it is: whole batches at once, on the device they are on.

Each takes images N x C x H x W of any type, draws from torch's global generator of their device, and gives new images.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


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


def crop(images: Tensor, most: float) -> Tensor:
    """A random part of each image in the size of the whole: up to the share ``most`` of its area is lost, and its sides
    are stretched by up to a third (Szegedy et al. 2015).
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, device=images.device) * (high - low) + low

    area, stretch = uniform(1 - most, 1), torch.exp(uniform(-1, 1) * math.log(4 / 3))
    width, height = (area * stretch).sqrt().clamp(max=1), (area / stretch).sqrt().clamp(max=1)
    places = torch.zeros(count, 2, 3, device=images.device)
    places[:, 0, 0], places[:, 0, 2] = width, (1 - width) * uniform(-1, 1)
    places[:, 1, 1], places[:, 1, 2] = height, (1 - height) * uniform(-1, 1)
    grid = F.affine_grid(places, list(images.shape), align_corners=False)
    parts = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return parts if images.is_floating_point() else parts.round().to(images.dtype)


def colour(images: Tensor, most: float) -> Tensor:
    """Change brightness, contrast and saturation of each image, 3 x H x W from 0 to 255, by a factor of 1 +- ``most``
    at the most.
    """
    brightness, contrast, saturation = (
        1 + most * (2 * torch.rand(3, len(images), 1, 1, 1, device=images.device) - 1)
    ).unbind()
    changed = images.float() * brightness
    changed = torch.lerp(_grey(changed).mean((2, 3), keepdim=True), changed, contrast)
    changed = torch.lerp(_grey(changed), changed, saturation)
    changed = changed.clamp(0, 255)
    return changed if images.is_floating_point() else changed.round().to(images.dtype)


def _grey(images: Tensor) -> Tensor:
    """How light each pixel is (ITU-R BT.601), N x 1 x H x W."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    return (images * weights[:, None, None]).sum(1, keepdim=True)
