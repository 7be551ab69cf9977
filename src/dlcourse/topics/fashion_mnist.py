"""FashionMNIST: ten classes of clothes in 28 x 28 greyscale images (Xiao, Rasul and Vollgraf 2017)."""

import math
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


class FashionMNISTData(ImageData):
    """60,000 training and 10,000 test images, 1 x 28 x 28; the sample has 5,000 and 1,000."""

    set_name = "fashion-mnist"
    classes = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

    def decode(self, folder: Path) -> dict[str, Tensor]:
        from torchvision.datasets import FashionMNIST

        archives = {
            f"FashionMNIST/raw/{name}": Archive(tuple(f"{mirror}{name}" for mirror in FashionMNIST.mirrors), md5)
            for name, md5 in FashionMNIST.resources
        }
        images = {}
        for split, dataset in from_torchvision(FashionMNIST, folder, archives).items():
            images[f"{split}_images"] = dataset.data[:, None]  # N x 28 x 28 to N x 1 x 28 x 28
            images[f"{split}_labels"] = dataset.targets.to(torch.uint8)
        return images


class FashionMNISTNetwork(ImageClassifier):
    """Images, N x 1 x 28 x 28, to logits, N x 10.

    Args:
        network: A compact convolutional network, or one of two fully connected layers without bias (mlp).
        widths: Channels of the convolutional network's three blocks.
        hidden: Units of the hidden layer of mlp.
    """

    def __init__(
        self,
        shape: list[int],
        outputs: int,
        *,
        network: Literal["convolutional", "mlp"] = "convolutional",
        widths: list[PositiveInt] = [64, 128, 128],  # noqa: B006  # read by jsonargparse, never changed
        hidden: PositiveInt = 128,
        **settings: Any,
    ) -> None:
        super().__init__(shape, outputs, **settings)
        if network == "mlp":
            self.network = nn.Sequential(
                nn.Flatten(),
                nn.Linear(math.prod(shape), hidden, bias=False),
                nn.ReLU(),
                nn.Linear(hidden, outputs, bias=False),
            )
        else:
            self.network = ConvolutionalNetwork(shape, outputs, widths=widths, whitening_size=3)


TOPIC = Topic(
    name="fashion-mnist",
    title="FashionMNIST: ten classes of clothes, 28 x 28 greyscale images",
    lesson="docs/images.md",
    data=FashionMNISTData,
    model=FashionMNISTNetwork,
    baselines=baselines.OF_IMAGES,
    monitor="val/accuracy",
    mode="max",
    figures=image_figures.FIGURES,
)
