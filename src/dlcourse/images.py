"""Image sets with official test images, and how torchvision's are had."""

import os
import sys
from abc import ABC
from collections.abc import Mapping
from contextlib import redirect_stderr
from functools import cached_property
from io import StringIO
from pathlib import Path
from ssl import SSLError
from typing import IO, Any, ClassVar, Literal
from urllib.error import URLError

import torch
from safetensors import safe_open
from torch import Tensor

from dlcourse import augmentation
from dlcourse.data import Rows, Split, data_folder, share_rows
from dlcourse.decoded_images import DecodedImages
from dlcourse.errors import CourseError, SettingsError, one_line
from dlcourse.fetching import answers_within
from dlcourse.ranges import NonNegativeInt, PositiveInt, Seed

PATIENCE = 15.0
"""Seconds for each answer of a server."""
OF_A_DOWNLOAD = (URLError, ConnectionError, TimeoutError, SSLError)
"""The OSErrors that are none of the disk's."""


class ImageData(DecodedImages, ABC):
    """Images with an official test set: uint8, C x H x W, with a class each.

    Validation rows are cut from the training images, as many of each class as its share; the test images are the test
    rows.

    Args:
        batch_size: Rows of a training batch.
        val_rows: Training images to validate on instead; 0 for none.
        split_seed: Seed of that split, apart from the training's.
        standardize: Shift and scale each channel to mean 0 and standard deviation 1, as measured on the training rows;
            otherwise pixels go from 0 to 1.
        shift: Pixels by which training images are moved at most, either way, with the border mirrored.
        flip: Mirror training images left and right: none, each at random, or each in every second epoch (alternating,
            Jordan 2024).
        cutout: Side of the square that is covered in each training image; 0 for none.
    """

    names = ("train_images", "train_labels", "test_images", "test_labels")
    set_name: ClassVar[str]
    """What the set's file is called."""
    classes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        batch_size: PositiveInt = 512,
        val_rows: NonNegativeInt = 5000,
        split_seed: Seed = 0,
        standardize: bool = True,
        shift: NonNegativeInt = 2,
        flip: Literal["none", "random", "alternating"] = "alternating",
        cutout: NonNegativeInt = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size, val_fraction=0.0, test_fraction=0.0, split_seed=split_seed, standardize=standardize
        )
        for fraction in ("val_fraction", "test_fraction"):
            del self.hparams[fraction]  # val_rows and the official test set stand in their place
        self.val_rows, self.shift, self.flip, self.cutout = val_rows, shift, flip, cutout

    @property
    def cache(self) -> Path:
        return data_folder() / f"{self.set_name}.safetensors"

    def inconsistency(self, tensors: Mapping[str, Tensor]) -> str | None:
        for split in ("train", "test"):
            images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
            if images.ndim != 4 or len(images) != len(labels) or not len(images):
                return f"{len(labels)} labels for images of shape {tuple(images.shape)}"
            if int(labels.max()) >= len(self.classes):
                return f"label {int(labels.max())} for {len(self.classes)} classes"
        return None

    def load(self) -> Rows:
        with safe_open(self.cache, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in self.names}
        images = torch.cat([tensors["train_images"], tensors["test_images"]])
        labels = torch.cat([tensors["train_labels"], tensors["test_labels"]]).long()
        self.official_test = len(tensors["test_labels"])
        return Rows(images, labels, f"{self.set_name}, decoded in {self.cache.name}", classes=self.classes)

    @cached_property
    def splits(self) -> dict[Split, Tensor]:
        labels = self.rows.targets.numpy()
        first_test = len(labels) - self.official_test
        if self.val_rows >= first_test:
            raise SettingsError(
                f"--data.val_rows {self.val_rows} of {first_test} training images leave none to train on: lower it"
            )
        parts = share_rows(labels[:first_test], self.val_rows / first_test, 0.0, self.split_seed)
        return {**parts, "test": torch.arange(first_test, len(labels))}

    def fold(self, number: int, folds: int, repeat: int = 0) -> None:
        raise SettingsError(
            "--folds would train on the official test images: vary --seed and --data.split_seed instead"
        )

    @property
    def augments(self) -> bool:
        return bool(self.shift or self.flip != "none" or self.cutout)

    def augmented(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        if self.shift:
            images = augmentation.shift(images, self.shift)
        if self.flip == "random":
            images = augmentation.flip(images, torch.rand(len(images), device=images.device) < 0.5)
        elif self.flip == "alternating":
            if self._first_flipped.device != rows.device:
                self._first_flipped = self._first_flipped.to(rows.device)  # once: each copy there would be waited for
            images = augmentation.flip(images, (self._first_flipped[rows] + epoch) % 2 == 1)
        if self.cutout:
            images = augmentation.cutout(images, self.cutout, self.scaling[0].round())
        return images

    @cached_property
    def _first_flipped(self) -> Tensor:
        """For each row, 1 if it is flipped in even epochs, 0 if in odd ones."""
        generator = torch.Generator().manual_seed(self.split_seed)
        return torch.randint(2, (len(self.rows.targets),), generator=generator, dtype=torch.uint8)


def from_torchvision(kind: type[Any], folder: Path, archives: Mapping[str, str]) -> dict[str, Any]:
    """One of torchvision's image sets, unpacked and if need be downloaded: ``train`` and ``test``.

    Args:
        kind: torchvision's class.
        folder: The data folder.
        archives: What torchvision unpacks: each file's place in the folder, and its MD5 sum.

    Raises:
        CourseError: An archive is missing or damaged, and cannot be downloaded.
        OSError: The folder is full or cannot be written to.
    """
    from torchvision.datasets.utils import check_integrity, extract_archive

    def is_sound(name: str) -> bool:
        return bool(check_integrity(folder / name, archives[name]))

    bar: IO[str] = sys.stderr if sys.stderr.isatty() else StringIO()
    try:
        for name in filter(is_sound, archives):
            # Anew: of what is unpacked there already torchvision does not always ask whether it is whole.
            if os.access((folder / name).parent, os.W_OK):
                extract_archive(folder / name)
        with answers_within(PATIENCE), redirect_stderr(bar):
            return {"train": kind(folder, train=True, download=True), "test": kind(folder, train=False)}
    except Exception as error:  # of a download that fails, and of damaged files, torchvision raises a dozen kinds
        if isinstance(error, OSError) and not isinstance(error, OF_A_DOWNLOAD):
            raise
        wrong = [
            f"{name} is {'damaged' if (folder / name).exists() else 'missing'}"
            for name in archives
            if not is_sound(name)
        ]
        raise CourseError(
            f"{kind.__name__} cannot be had: {', '.join(wrong)} ({one_line(error)[:200]}); put whole archives into the "
            f"data folder, {folder.absolute()}, or set DLCOURSE_DATA_DIR to one that has them"
        ) from error
