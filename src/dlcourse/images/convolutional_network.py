"""A compact convolutional network that learns in few epochs, after airbench94 (Jordan 2024, arXiv 2404.00498).

The first layer needs no training: it decorrelates small patches, as measured on training images. Three blocks without
residual connections follow. Batch normalisation keeps the scale at 1 and has only its shift to learn; the outputs are
scaled down, so that the first steps are gentle.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WHITENING_IMAGES = 5000
"""How many images the patches are measured on: more change nothing."""
WHITENING_FLOOR = 5e-4
"""Added to the patches' variances, so that directions in which there is next to nothing are not blown up."""
OUTPUT_SCALE = 1 / 9


class Block(nn.Sequential):
    """Two 3 x 3 convolutions, the first followed by pooling: N x before x H x W to N x after x H/2 x W/2."""

    def __init__(self, before: int, after: int, norm_momentum: float) -> None:
        super().__init__(
            _convolution(before, after),
            nn.MaxPool2d(2),
            _Norm(after, norm_momentum),
            nn.GELU(),
            _convolution(after, after),
            _Norm(after, norm_momentum),
            nn.GELU(),
        )


class ConvolutionalNetwork(nn.Sequential):
    """Standardised images, N x C x H x W, to N x outputs logits.

    Args:
        shape: C, H, W.
        outputs: How many classes.
        widths: Channels of each of the three blocks.
        whitening_size: Side of the patches of the first layer, in pixels.
        norm_momentum: By how much a batch moves the running mean and variance of batch normalisation.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        widths: Sequence[int],
        whitening_size: int = 2,
        norm_momentum: float = 0.4,
    ) -> None:
        first = 2 * shape[0] * whitening_size**2
        whitening = nn.Conv2d(shape[0], first, whitening_size)
        whitening.weight.requires_grad = False
        nn.init.zeros_(whitening.bias)  # type: ignore[arg-type]  # it has one
        blocks = [Block(before, after, norm_momentum) for before, after in zip([first, *widths], widths, strict=False)]
        head = nn.Linear(widths[-1], outputs, bias=False)
        super().__init__(whitening, nn.GELU(), *blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head, _Scale())

    def whiten(self, images: Tensor) -> None:
        """Set the first layer by standardised images, N x C x H x W: patches come out uncorrelated, with variance 1.

        The filters are the eigenvectors of the patches' covariance over the root of their eigenvalues, and their
        negatives, of which the activation keeps what it drops of the others.
        """
        whitening = self[0]
        assert isinstance(whitening, nn.Conv2d)
        size = whitening.weight.shape[-1]
        parts = [_products(part, size) for part in torch.split(images[:WHITENING_IMAGES], 500)]
        values, vectors = torch.linalg.eigh(sum(products for products, _ in parts) / sum(count for _, count in parts))
        filters = (vectors / (values + WHITENING_FLOOR).sqrt()).T.view(-1, *whitening.weight.shape[1:])
        with torch.no_grad():
            whitening.weight.copy_(torch.cat([filters, -filters]))


def _products(images: Tensor, size: int) -> tuple[Tensor, int]:
    """The sum over all patches of a patch times itself transposed, in float64, and how many there are."""
    patches = nn.functional.unfold(images.float(), size).transpose(1, 2).flatten(0, 1).double()
    return patches.T @ patches, len(patches)


def _convolution(before: int, after: int) -> nn.Conv2d:
    """Starts by passing its inputs on in the first channels (Dirac), as far as there are channels for them."""
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[: min(before, after)])
    return convolution


class _Norm(nn.BatchNorm2d):
    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__(channels, eps=1e-12, momentum=momentum)
        self.weight.requires_grad = False


class _Scale(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits * OUTPUT_SCALE
