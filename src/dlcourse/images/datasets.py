"""Image sets with official test images, and the download of torchvision's."""

import logging
import os
from abc import ABC
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from dlcourse.data import bundled
from dlcourse.data.datamodule import data_folder
from dlcourse.data.downloads import UnavailableError, download
from dlcourse.data.rows import Rows, Split
from dlcourse.errors import SettingsError, one_line
from dlcourse.images import augmentation
from dlcourse.images.decoded import DecodedImages
from dlcourse.settings import NonNegativeInt, PositiveInt, Seed

log = logging.getLogger(__name__)

LARGEST_VAL_ROWS = 5000
"""Enough to measure an accuracy of 90 % to a standard error of 0.4 points."""
_unavailable: dict[Path, str] = {}
"""Why the whole set cannot be downloaded, by its file. It is tried once a process, so that several runs have
the same rows, and only the first one waits."""


class ImageData(DecodedImages, ABC):
    """Images with an official test set: uint8, N x C x H x W, with a class each.

    Validation rows are taken from the training images at random, stratified by class. The official test images are the
    test rows.

    Args:
        source: full is the whole set, downloaded once; sample is a small part of it that comes with the package, with
            as many images of each class. auto is full where that exists or can be downloaded, else sample.
        batch_size: Rows of a training batch.
        val_rows: Training images to validate on instead; 0 for none. null is a tenth of them, and 5000 at most.
        split_seed: Seed of that split, which is not the training's.
        standardize: Shift and scale each channel to mean 0 and standard deviation 1, as measured on the training rows;
            otherwise pixels go from 0 to 1.
        shift: Largest random shift of training images, in pixels to each side; the border is filled by reflection.
        flip: Mirror training images left and right: none, each at random, or each in every second epoch (alternating,
            Jordan 2024).
        cutout: Side in pixels of the square that is masked in each training image; 0 for none.
    """

    tensor_names = ("train_images", "train_labels", "test_images", "test_labels")
    set_name: ClassVar[str]
    """What the set's file is called."""
    classes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        source: Literal["auto", "full", "sample"] = "auto",
        batch_size: PositiveInt = 512,
        val_rows: NonNegativeInt | None = None,
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
            del self.hparams[fraction]  # val_rows and the official test set replace them
        if source == "sample" and not self.has_sample:
            raise SettingsError(f"--data.source sample does not exist for {self.set_name}: take full")
        self.source, self.val_rows = source, val_rows
        self.shift, self.flip, self.cutout = shift, flip, cutout

    @property
    def has_sample(self) -> bool:
        """Whether a part of the set comes with the package."""
        return bundled.sheet_of(self.set_name, "train").is_file()

    @property
    def cache(self) -> Path:
        return data_folder() / f"{self.set_name}.safetensors"

    def inconsistency(self, tensors: Mapping[str, Tensor]) -> str | None:
        for split in ("train", "test"):
            images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
            if images.ndim != 4 or len(images) != len(labels) or not len(images):
                return f"{len(labels)} labels for images of shape {tuple(images.shape)}"
            if labels.dtype == torch.uint8 and len(self.classes) > 256:
                return f"labels in uint8, which cannot hold {len(self.classes)} classes: make them int16"
            if int(labels.max()) >= len(self.classes):
                return f"label {int(labels.max())} for {len(self.classes)} classes"
        return None

    def prepare_data(self) -> None:
        """Download and decode the whole set, or fall back to the sample; ``hparams`` then say so.

        Raises:
            CourseError: The whole set was asked for and cannot be downloaded, or its file cannot be written.
        """
        if self.source == "auto":
            self.hparams["source"] = self.source = self._prepare_any_source()
        elif self.source == "full":
            super().prepare_data()

    def _prepare_any_source(self) -> Literal["full", "sample"]:
        path = self.cache.absolute()
        if path not in _unavailable:
            try:
                super().prepare_data()
                return "full"
            except UnavailableError as error:
                if not self.has_sample:
                    raise
                _unavailable[path] = error.reason
        log.warning(
            "%s cannot be downloaded (%s): training on the sample of it that comes with the package; "
            "--data.source full tries again, and says where the files belong",
            self.set_name,
            _unavailable[path],
        )
        return "sample"

    def load(self) -> Rows:
        if self.source == "sample":
            tensors = bundled.read_sample(self.set_name, len(self.classes))
            source = f"the sample of {self.set_name}"
        else:
            with safe_open(self.cache, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in self.tensor_names}
            source = f"{self.set_name}, decoded in {self.cache.name}"
        images = torch.cat([tensors["train_images"], tensors["test_images"]])
        labels = torch.cat([tensors["train_labels"], tensors["test_labels"]]).long()
        test = torch.arange(len(tensors["train_labels"]), len(labels))
        return Rows(images, labels, source, classes=self.classes, fixed_splits={"test": test})

    def split_fraction(self, split: Split) -> float:
        num_train, num_val = self._train_and_val_rows()
        if num_val >= num_train:
            raise SettingsError(
                f"--data.val_rows {num_val} of {num_train} training images leave none to train on: lower it"
            )
        return num_val / num_train

    def _train_and_val_rows(self) -> tuple[int, int]:
        """How many official training images there are, and how many of them to validate on."""
        num_train = len(self.rows.targets) - len(self.rows.fixed_splits["test"])
        return num_train, min(num_train // 10, LARGEST_VAL_ROWS) if self.val_rows is None else self.val_rows

    def setup(self, stage: str) -> None:
        """Split the rows; ``hparams`` then hold the number of validation rows that null stands for."""
        super().setup(stage)
        self.hparams["val_rows"] = self._train_and_val_rows()[1]

    @property
    def augments(self) -> bool:
        return bool(self.shift or self.flip != "none" or self.cutout)

    def augmented(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        if self.shift:
            images = augmentation.shift(images, self.shift)
        if self.flip == "random":
            images = augmentation.flip(images, torch.rand(len(images), device=images.device) < 0.5)
        elif self.flip == "alternating":
            # Copied to the device once: a copy for each batch would make the CPU wait for the GPU.
            self._first_flipped = self._first_flipped.to(rows.device)
            images = augmentation.flip(images, (self._first_flipped[rows] + epoch) % 2 == 1)
        if self.cutout:
            images = augmentation.cutout(images, self.cutout, self.scaling[0].round())
        return images

    @cached_property
    def _first_flipped(self) -> Tensor:
        """For each row 1 if it is flipped in even epochs, 0 if in odd ones: uint8, N."""
        generator = torch.Generator().manual_seed(self.split_seed)
        return torch.randint(2, (len(self.rows.targets),), generator=generator, dtype=torch.uint8)


@dataclass(frozen=True)
class Archive:
    """Where a file of an image set is downloaded from, the first address first, and its checksum."""

    addresses: tuple[str, ...]
    md5: str


def from_torchvision(kind: type[Any], folder: Path, archives: Mapping[str, Archive]) -> dict[str, Any]:
    """One of torchvision's image sets, downloaded where it is missing: ``train`` and ``test``.

    Archives that exist are unpacked again, since torchvision does not always check whether unpacked files are complete.

    Args:
        kind: torchvision's class.
        folder: The data folder.
        archives: The set's archives, by their path in the folder.

    Raises:
        UnavailableError: An archive is missing or damaged, and cannot be downloaded.
        OSError: The folder is full or cannot be written to.
    """
    from torchvision.datasets.utils import check_integrity, extract_archive

    def unusable() -> list[str]:
        return [name for name, each in archives.items() if not check_integrity(folder / name, each.md5)]

    def read() -> dict[str, Any]:
        return {"train": kind(folder, train=True), "test": kind(folder, train=False)}

    missing = unusable()
    try:
        for name in archives.keys() - missing:
            if os.access((folder / name).parent, os.W_OK):
                extract_archive(folder / name)
        if missing:
            with suppress(Exception):  # unpacked files are enough, where they are whole
                return read()
        for name in missing:
            _download_from_any(archives[name], folder / name)
            extract_archive(folder / name)
        return read()
    except OSError:
        raise
    except Exception as error:  # failed downloads and damaged files raise a dozen types in torchvision
        wrong = [f"{name} is {'damaged' if (folder / name).exists() else 'missing'}" for name in unusable()]
        reason = error.reason if isinstance(error, UnavailableError) else one_line(error)[:200]
        raise UnavailableError(
            f"{kind.__name__} is not available: {', '.join(wrong)} ({one_line(error)[:300]}); put whole archives "
            f"into the data folder, {folder.absolute()}, or set DLCOURSE_DATA_DIR to one that has them",
            reason,
        ) from error


def _download_from_any(archive: Archive, path: Path) -> None:
    log.info("downloading %s", path.name)
    *mirrors, last = archive.addresses
    for address in mirrors:
        with suppress(UnavailableError):
            return download(address, path, f"md5:{archive.md5}")
    return download(last, path, f"md5:{archive.md5}")
