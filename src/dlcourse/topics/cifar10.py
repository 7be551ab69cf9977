"""CIFAR-10: ten classes of animals and vehicles in 32 x 32 colour images (Krizhevsky 2009)."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlcourse.evaluation import baselines
from dlcourse.images import figures as image_figures
from dlcourse.images.classifier import ImageClassifier
from dlcourse.images.convolutional_network import ConvolutionalNetwork
from dlcourse.images.datasets import Archive, ImageData, from_torchvision
from dlcourse.settings import PositiveInt
from dlcourse.topics import Topic


class CIFAR10Data(ImageData):
    """50,000 training and 10,000 test images, 3 x 32 x 32; the sample has 2,500 and 500."""

    set_name = "cifar10"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def decode(self, folder: Path) -> dict[str, Tensor]:
        from torchvision.datasets import CIFAR10

        archives = {CIFAR10.filename: Archive((CIFAR10.url,), CIFAR10.tgz_md5)}
        images = {}
        for split, dataset in from_torchvision(CIFAR10, folder, archives).items():
            images[f"{split}_images"] = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)  # N x C x H x W
            images[f"{split}_labels"] = torch.tensor(dataset.targets, dtype=torch.uint8)
        return images


class CIFAR10Network(ImageClassifier):
    """Images, N x 3 x 32 x 32, to logits, N x 10.

    Args:
        network: A compact convolutional network, or torchvision's ResNet-18 (He et al. 2016) with a first layer for
            small images: a 3 x 3 convolution without stride and pooling.
        widths: Channels of the convolutional network's three blocks.
    """

    def __init__(
        self,
        shape: list[int],
        outputs: int,
        *,
        network: Literal["convolutional", "resnet18"] = "convolutional",
        widths: list[PositiveInt] = [64, 256, 256],  # noqa: B006  # read by jsonargparse, never changed
        **settings: Any,
    ) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = (
            resnet18(shape, outputs) if network == "resnet18" else ConvolutionalNetwork(shape, outputs, widths=widths)
        )


def resnet18(shape: list[int], outputs: int) -> nn.Module:
    """Torchvision's ResNet-18 with random weights, whose first layer does not reduce height and width."""
    from torchvision.models import resnet18 as for_large_images

    network: nn.Module = for_large_images(num_classes=outputs)
    network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


TOPIC = Topic(
    name="cifar10",
    title="CIFAR-10: ten classes of animals and vehicles, 32 x 32 colour images",
    lesson="docs/images.md",
    data=CIFAR10Data,
    model=CIFAR10Network,
    baselines=baselines.OF_IMAGES,
    monitor="val/accuracy",
    mode="max",
    figures=image_figures.FIGURES,
)
