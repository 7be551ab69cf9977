"""The compact network: what its first layer, its start and its shapes are to be."""

import numpy as np
import pytest
import torch
from torch import nn

from dlcourse.images import convolutional_network as convolutional
from dlcourse.images.convolutional_network import ConvolutionalNetwork


def correlated(count: int = 400, channels: int = 3, size: int = 8) -> torch.Tensor:
    """Standardised images whose neighbouring pixels and channels are alike."""
    noise = torch.randn(count, channels, size + 2, size + 2, generator=torch.Generator().manual_seed(0))
    images = nn.functional.avg_pool2d(noise, 3, stride=1) * 3
    images[:, 1:] = images[:, :1] + images[:, 1:] / 2
    return images / images.std()


@pytest.mark.parametrize(("channels", "size"), [(3, 2), (1, 3)])
def test_whitened_patches_are_uncorrelated_with_variance_1(
    monkeypatch: pytest.MonkeyPatch, channels: int, size: int
) -> None:
    monkeypatch.setattr(convolutional, "WHITENING_FLOOR", 0.0)
    network = ConvolutionalNetwork([channels, 8, 8], 10, widths=[8, 8, 8], whitening_size=size)
    images = correlated(channels=channels)
    network.whiten(images)
    with torch.no_grad():
        outputs = network[0](images).transpose(0, 1).flatten(1).double()
    half = channels * size**2
    assert len(outputs) == 2 * half
    assert torch.allclose(outputs[:half], -outputs[half:]), "each filter beside its negative"
    covariance = (outputs[:half] @ outputs[:half].T / outputs.shape[1]).numpy()
    assert np.allclose(covariance, np.eye(half), atol=1e-3)


def test_whitening_blows_up_nothing_where_pixels_are_all_alike() -> None:
    network = ConvolutionalNetwork([1, 8, 8], 2, widths=[8, 8, 8])
    network.whiten(torch.ones(10, 1, 8, 8))
    assert float(network[0].weight.abs().max()) < 50


def test_the_first_layer_and_the_norms_scale_are_not_trained() -> None:
    network = ConvolutionalNetwork([3, 16, 16], 10, widths=[8, 12, 16])
    fixed = {name for name, each in network.named_parameters() if not each.requires_grad}
    norms = {f"{name}.weight" for name, each in network.named_modules() if isinstance(each, nn.BatchNorm2d)}
    assert len(norms) == 6
    assert fixed == {"0.weight", *norms}


def test_convolutions_start_by_passing_their_inputs_on() -> None:
    network = ConvolutionalNetwork([3, 16, 16], 10, widths=[32, 32, 48])
    second = network[2][4]
    images = torch.randn(2, 32, 4, 4)
    assert torch.allclose(second(images), images, atol=1e-6)


@pytest.mark.parametrize("shape", [[1, 28, 28], [3, 32, 32], [2, 17, 21]])
def test_outputs_have_the_shape_asked_for(shape: list[int]) -> None:
    network = ConvolutionalNetwork(shape, 7, widths=[4, 8, 8]).eval()
    assert network(torch.randn(3, *shape)).shape == (3, 7)
