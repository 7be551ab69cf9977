"""Image sets with official test images, and how torchvision's are had."""

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

from dlcourse.data import bundled as datasets
from dlcourse.data.datamodule import data_folder
from dlcourse.data.downloads import UnavailableError, download
from dlcourse.data.rows import Rows, Split
from dlcourse.data.splits import stratified_split
from dlcourse.errors import SettingsError, one_line
from dlcourse.images import augmentation
from dlcourse.images.decoded import DecodedImages
from dlcourse.ranges import NonNegativeInt, PositiveInt, Seed

log = logging.getLogger(__name__)

LARGEST_VAL_ROWS = 5000
_unavailable: dict[Path, str] = {}
"""Why the whole set cannot be had, by its file: asked once a process, so that of several runs none waits again and
none has other rows than the one before."""


class ImageData(DecodedImages, ABC):
    """Images with an official test set: uint8, C x H x W, with a class each.

    Validation rows are cut from the training images, as many of each class as its share; the test images are the test
    rows.

    Args:
        source: full is the whole set, downloaded once; sample a small part of it that comes with the package, as many
            images of each class. auto is full where that is there or can be downloaded, else sample.
        batch_size: Rows of a training batch.
        val_rows: Training images to validate on instead; 0 for none. null is a tenth of them, and 5000 at most.
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
            del self.hparams[fraction]  # val_rows and the official test set stand in their place
        if source == "sample" and not self.has_sample:
            raise SettingsError(f"--data.source sample is not there for {self.set_name}: take full")
        self.source, self.val_rows = source, val_rows
        self.shift, self.flip, self.cutout = shift, flip, cutout

    @property
    def has_sample(self) -> bool:
        """Whether a part of the set comes with the package."""
        return datasets.sheet_of(self.set_name, "train").is_file()

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

    def prepare_data(self) -> None:
        """Have the whole set there, or settle for the sample, which `hparams` then say as well.

        Raises:
            CourseError: The whole set is asked for and cannot be had, or there is nowhere to keep it.
        """
        if self.source == "auto":
            self.hparams["source"] = self.source = self.with_resolved_auto()
        if self.source == "full":
            super().prepare_data()

    def with_resolved_auto(self) -> Literal["full", "sample"]:
        place = self.cache.absolute()
        if place not in _unavailable:
            try:
                super().prepare_data()
                return "full"
            except UnavailableError as error:
                if not self.has_sample:
                    raise
                _unavailable[place] = error.reason
        log.warning(
            "the whole of %s cannot be had (%s): training on the sample of it that comes with the package; "
            "--data.source full tries again, and says where the files belong",
            self.set_name,
            _unavailable[place],
        )
        return "sample"

    def load(self) -> Rows:
        if self.source == "sample":
            tensors = datasets.read_sample(self.set_name, len(self.classes))
            source = f"the sample of {self.set_name}"
        else:
            with safe_open(self.cache, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in self.names}
            source = f"{self.set_name}, decoded in {self.cache.name}"
        images = torch.cat([tensors["train_images"], tensors["test_images"]])
        labels = torch.cat([tensors["train_labels"], tensors["test_labels"]]).long()
        self.official_test = len(tensors["test_labels"])
        if self.val_rows is None:
            self.val_rows = min(len(tensors["train_labels"]) // 10, LARGEST_VAL_ROWS)
            self.hparams["val_rows"] = self.val_rows  # what it came to is part of the run
        return Rows(images, labels, source, classes=self.classes)

    @cached_property
    def splits(self) -> dict[Split, Tensor]:
        labels = self.rows.targets.numpy()
        first_test = len(labels) - self.official_test
        assert self.val_rows is not None  # since `load`
        if self.val_rows >= first_test:
            raise SettingsError(
                f"--data.val_rows {self.val_rows} of {first_test} training images leave none to train on: lower it"
            )
        parts = stratified_split(labels[:first_test], self.val_rows / first_test, 0.0, self.split_seed)
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


@dataclass(frozen=True)
class Archive:
    """Where a file of a set is downloaded from, the first address first, and its checksum."""

    addresses: tuple[str, ...]
    md5: str


def from_torchvision(kind: type[Any], folder: Path, archives: Mapping[str, Archive]) -> dict[str, Any]:
    """One of torchvision's image sets, unpacked and if need be downloaded: ``train`` and ``test``.

    Args:
        kind: torchvision's class.
        folder: The data folder.
        archives: What is unpacked, by its place in the folder.

    Raises:
        UnavailableError: An archive is missing or damaged, and cannot be downloaded.
        OSError: The folder is full or cannot be written to.
    """
    from torchvision.datasets.utils import check_integrity, extract_archive

    def unsound() -> list[str]:
        return [name for name, each in archives.items() if not check_integrity(folder / name, each.md5)]

    def read() -> dict[str, Any]:
        return {"train": kind(folder, train=True), "test": kind(folder, train=False)}

    missing = unsound()
    try:
        for name in archives.keys() - missing:
            # Anew: of what is unpacked there already torchvision does not always ask whether it is whole.
            if os.access((folder / name).parent, os.W_OK):
                extract_archive(folder / name)
        if missing:
            with suppress(Exception):  # unpacked files will do, where they are whole
                return read()
        for name in missing:
            _download_from_any(archives[name], folder / name)
            extract_archive(folder / name)
        return read()
    except OSError:
        raise
    except Exception as error:  # of a download that fails, and of damaged files, torchvision raises a dozen kinds
        wrong = [f"{name} is {'damaged' if (folder / name).exists() else 'missing'}" for name in unsound()]
        reason = error.reason if isinstance(error, UnavailableError) else one_line(error)[:200]
        raise UnavailableError(
            f"{kind.__name__} cannot be had: {', '.join(wrong)} ({one_line(error)[:300]}); put whole archives into the "
            f"data folder, {folder.absolute()}, or set DLCOURSE_DATA_DIR to one that has them",
            reason,
        ) from error


def _download_from_any(archive: Archive, place: Path) -> None:
    log.info("downloading %s", place.name)
    *others, last = archive.addresses
    for address in others:
        with suppress(UnavailableError):
            return download(address, place, f"md5:{archive.md5}")
    return download(last, place, f"md5:{archive.md5}")
