"""Make the samples of the image sets that come with the package, from the whole sets.

    python -m dlcourse.datasets.make_samples [FOLDER]

FashionMNIST: 5,000 training and 1,000 test images; CIFAR-10: 2,500 and 500. As many of each class, drawn by a seed.
"""

import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlcourse.data.bundled import FOLDER, sheet_of, write_sheet
from dlcourse.images.datasets import ImageData
from dlcourse.topics.cifar10 import CIFAR10Data
from dlcourse.topics.fashion_mnist import FashionMNISTData

SEED = 0
# The copy of CIFAR-10 that the sample was made from had these images from JPEG files, not pixel for pixel. They are
# left out, so that the same sample comes of any copy.
NOT_EXACT = {
    "train": (
        4298, 5949, 7066, 7237, 7248, 7630, 8006, 8831, 8968, 9415, 10336, 10408, 12762, 12834, 13546, 21493, 25728,
        26098, 26927, 27621, 28435, 28728, 29694, 29747, 30329, 31066, 31367, 31462, 31625, 31663, 32777, 33641, 33661,
        34067, 34276, 34387, 34825, 35160, 35646, 36733, 37329, 37474, 37567, 38384, 38925, 39358, 39385, 39613, 39840,
        39888, 39971, 40805, 41779, 42004, 42389, 42611, 43357, 43883, 44882, 45168, 45240, 46175, 46435, 46538, 46624,
        47393, 47597, 48081, 48124, 48333, 48821, 48836, 49321, 49429, 49631, 49830, 49857,
    ),
    "test": (
        722, 1259, 1369, 1422, 2245, 2737, 2935, 3695, 3718, 4085, 4496, 5791, 5896, 6286, 7580, 7707, 7724, 7832, 8117,
        8551, 9254,
    ),
}  # fmt: skip


def chosen(labels: Tensor, of_each_class: int, left_out: Collection[int] = ()) -> Tensor:
    """Numbers of images: the first class's in ascending order, then the next one's, as many of each."""
    generator = np.random.default_rng(SEED)
    rows = []
    for label in np.unique(labels.numpy()):
        members = np.setdiff1d(np.flatnonzero(labels.numpy() == label), list(left_out))
        rows.append(np.sort(generator.choice(members, of_each_class, replace=False)))
    return torch.from_numpy(np.concatenate(rows))


def write_sample(data: ImageData, sizes: dict[str, int], left_out: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Write a sheet of each split, with ``sizes`` images, as many of each class."""
    data.prepare_data()
    images, labels = data.rows.inputs, data.rows.targets
    first_test = len(labels) - len(data.rows.fixed_splits["test"])
    for split, part in (("train", slice(first_test)), ("test", slice(first_test, None))):
        rows = chosen(labels[part], sizes[split] // len(data.classes), left_out.get(split, ()))
        write_sheet(folder / sheet_of(data.set_name, split).name, images[part][rows])


def main(folder: Path) -> None:
    write_sample(FashionMNISTData(source="full"), {"train": 5000, "test": 1000}, {}, folder)
    write_sample(CIFAR10Data(source="full"), {"train": 2500, "test": 500}, NOT_EXACT, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
