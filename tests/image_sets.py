"""Small image sets in the formats of the real ones, for torchvision's own classes to read."""

import gzip
import hashlib
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import CIFAR10, FashionMNIST
from torchvision.models import get_model, get_model_weights

from dlcourse.images.classifier import ImageClassifier
from dlcourse.images.datasets import ImageData

NOWHERE = "http://127.0.0.1:9/"
"""The port of discard, which nobody serves."""
IDX = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}

Images = dict[str, Tensor]


def made_images(shape: tuple[int, int, int], train: int = 200, test: int = 40, classes: int = 10) -> Images:
    """Noise that is brighter in a place of each class: as many of each class, by the names of `ImageData.names`."""
    draw = torch.Generator().manual_seed(0)
    places = torch.randint(0, 80, (classes, *shape), generator=draw)
    made = {}
    for split, count in (("train", train), ("test", test)):
        labels = torch.arange(count) % classes
        noise = torch.randint(0, 170, (count, *shape), generator=draw)
        made[f"{split}_images"] = (noise + places[labels]).to(torch.uint8)
        made[f"{split}_labels"] = labels.to(torch.uint8)
    return made


def write_fashion_mnist(data: Path, patch: pytest.MonkeyPatch, train: int = 200, test: int = 40) -> Images:
    """FashionMNIST's four archives, in a data folder; torchvision knows their sums, and has nowhere else to turn to."""
    made = made_images((1, 28, 28), train, test)
    raw = data / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    sums = []
    for name, stem in IDX.items():
        values = (made[name][:, 0] if "images" in name else made[name]).numpy()
        header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        content = gzip.compress(header + values.tobytes(), mtime=0)
        (raw / f"{stem}.gz").write_bytes(content)
        sums.append((f"{stem}.gz", _md5(content)))
    patch.setattr(FashionMNIST, "resources", sums)
    patch.setattr(FashionMNIST, "mirrors", [NOWHERE])
    patch.setenv("no_proxy", "127.0.0.1")
    return made


def write_cifar10(data: Path, patch: pytest.MonkeyPatch, train: int = 200, test: int = 40) -> Images:
    """CIFAR-10's archive of five training batches and a test batch."""
    made = made_images((3, 32, 32), train, test)
    contents = {"batches.meta": pickle.dumps({"label_names": ["one of ten"] * 10})}
    batches = zip(made["train_images"].chunk(5), made["train_labels"].chunk(5), strict=True)
    for number, (images, labels) in enumerate(batches, start=1):
        contents[f"data_batch_{number}"] = _batch(images, labels)
    contents["test_batch"] = _batch(made["test_images"], made["test_labels"])
    folder, archive = data / CIFAR10.base_folder, data / CIFAR10.filename
    folder.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
            tar.add(folder / name, f"{CIFAR10.base_folder}/{name}")
            (folder / name).unlink()
    folder.rmdir()
    sums = {name: _md5(content) for name, content in contents.items()}
    patch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name, _ in CIFAR10.train_list])
    patch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    patch.setattr(CIFAR10, "tgz_md5", _md5(archive.read_bytes()))
    patch.setattr(CIFAR10, "url", f"{NOWHERE}{CIFAR10.filename}")
    patch.setenv("no_proxy", "127.0.0.1")
    return made


def write_image_folder(data: Path, patch: pytest.MonkeyPatch, train: int = 60, test: int = 20) -> None:
    """Ants and bees, half of each, where an image folder is looked for unless another one is named."""
    for split, count in (("train", train), ("val", test)):
        for of_class in ("ants", "bees"):
            write_pictures(data / "hymenoptera" / split / of_class, count // 2, darker=of_class == "bees")


def write_pictures(folder: Path, count: int, darker: bool = False) -> list[Path]:
    """Noise in PNG files of several sizes; where it is to be darker, in the middle. The same wherever the folder is."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng([count, darker, *folder.name.encode()])
    paths = []
    for number in range(count):
        pixels = draw.integers(80, 256, (40 + number % 3, 48, 3), dtype=np.uint8)
        if darker:
            pixels[10:30, 10:38] //= 2
        paths.append(folder / f"{number:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def write_weights(name: str, home: Path, patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What torchvision takes for the weights of a network that were downloaded before."""
    patch.setenv("TORCH_HOME", str(home))
    place = home / "hub" / "checkpoints" / Path(get_model_weights(name).DEFAULT.url).name
    place.parent.mkdir(parents=True)
    weights: dict[str, Tensor] = get_model(name).state_dict()
    torch.save(weights, place)
    return weights


def untouchable(*arguments: object, **settings: object) -> None:
    """In place of what must not be called."""
    raise AssertionError("it was called")


def _batch(images: Tensor, labels: Tensor) -> bytes:
    """Red, green and blue one after the other, each line by line."""
    return pickle.dumps({"data": images.flatten(1).numpy().astype(np.uint8), "labels": labels.tolist()})


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Pictures(ImageData):
    """Coloured 8 x 8 images of four classes that come from nowhere."""

    set_name = "pictures"
    classes = ("a", "b", "c", "d")
    made: ClassVar[Images] = made_images((3, 8, 8), 80, 20, 4)

    def decode(self, folder: Path) -> Images:
        return self.made


def pictures(**settings: Any) -> Pictures:
    """Ready to be trained on, in the current project's data folder."""
    data = Pictures(**{"batch_size": 16, "val_rows": 20, **settings})
    data.prepare_data()
    return data


class Small(ImageClassifier):
    """A network of one convolution."""

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Sequential(
            nn.Conv2d(shape[0], 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(32, outputs),
        )  # fmt: skip
