"""A compact convolutional network that learns in few epochs, after airbench94 (Jordan 2024, arXiv 2404.00498).

The first layer is not trained: it decorrelates small patches, as measured on some training images. Blocks without
residual connections follow. The scale of batch normalisation is fixed at 1, and only its shift is trained. The logits
are scaled down, so that the first gradients are small.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WHITENING_IMAGES = 5000
"""Images whose patches are measured: some 4 million, for a covariance matrix of 9 x 9 or 12 x 12."""
WHITENING_FLOOR = 5e-4
"""Added to the variances of the patches' principal components, so that those of almost none are not amplified."""
OUTPUT_SCALE = 1 / 9
"""As in airbench94."""


class Block(nn.Sequential):
    """Two 3 x 3 convolutions, the first one with pooling: N x before x H x W to N x after x H/2 x W/2."""

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
    """From standardised images, N x C x H x W, to logits, N x outputs.

    Args:
        shape: C, H, W.
        outputs: How many classes.
        widths: Channels of each block.
        whitening_size: Side of the patches of the first layer, in pixels.
        norm_momentum: Weight of a batch in the running mean and variance of batch normalisation.
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
        first = 2 * shape[0] * whitening_size**2  # a filter and its negative for each value of a patch
        whitening = nn.Conv2d(shape[0], first, whitening_size)
        whitening.weight.requires_grad = False
        nn.init.zeros_(whitening.bias)  # type: ignore[arg-type]  # it has one
        blocks = [Block(before, after, norm_momentum) for before, after in zip([first, *widths], widths, strict=False)]
        head = nn.Linear(widths[-1], outputs, bias=False)
        super().__init__(whitening, nn.GELU(), *blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head, _Scale())

    def whiten(self, images: Tensor) -> None:
        """Set the first layer from standardised images, N x C x H x W: its outputs are uncorrelated, with variance 1.

        The filters are the eigenvectors of the patches' covariance, each over the root of its eigenvalue, and their
        negatives, since the activation keeps little of negative outputs. At most `WHITENING_IMAGES` images are used.
        """
        whitening = self[0]
        assert isinstance(whitening, nn.Conv2d)
        size = whitening.weight.shape[-1]
        parts = [_products(part, size) for part in torch.split(images[:WHITENING_IMAGES], 500)]
        values, vectors = torch.linalg.eigh(sum(products for products, _ in parts) / sum(count for _, count in parts))
        filters = (vectors / (values + WHITENING_FLOOR).sqrt()).T.view(-1, *whitening.weight.shape[1:])  # K x C x S x S
        with torch.no_grad():
            whitening.weight.copy_(torch.cat([filters, -filters]))


def _products(images: Tensor, size: int) -> tuple[Tensor, int]:
    """The sum over all patches of a patch times its transpose, K x K in float64, and how many patches there are."""
    patches = nn.functional.unfold(images.float(), size).transpose(1, 2).flatten(0, 1).double()  # patches x K
    return patches.T @ patches, len(patches)


def _convolution(before: int, after: int) -> nn.Conv2d:
    """A 3 x 3 convolution whose first channels start as the identity (Dirac initialisation)."""
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
