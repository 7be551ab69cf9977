"""Image sets: decoded once into one file, mapped into memory from then on, augmented as whole batches."""

import hashlib
import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import redirect_stderr
from functools import cached_property
from io import StringIO
from pathlib import Path
from ssl import SSLError
from typing import IO, Any, ClassVar, Literal
from urllib.error import URLError

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dlcourse import augmentation
from dlcourse.data import Batch, CourseData, Rows, Split, TensorRows, data_folder, share_rows
from dlcourse.errors import CourseError, SettingsError, one_line
from dlcourse.fetching import answers_within, whole_file
from dlcourse.ranges import NonNegativeInt, PositiveInt, Seed

log = logging.getLogger(__name__)

NAMES = ("train_images", "train_labels", "test_images", "test_labels")
PATIENCE = 15.0
"""Seconds for each answer of a server."""
OF_A_DOWNLOAD = (URLError, ConnectionError, TimeoutError, SSLError)
"""The OSErrors that are none of the disk's."""


class ImageData(CourseData, ABC):
    """Images with an official test set: uint8, C x H x W, with a class each.

    Validation rows are cut from the training images, as many of each class as its share; the test images are the test
    rows. What a training batch goes through happens on the device, and to training batches alone.

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

    @abstractmethod
    def decode(self, folder: Path) -> dict[str, Tensor]:
        """All images and labels by the names in `NAMES`, both uint8, downloaded to ``folder`` where they are missing.

        Raises:
            CourseError: They cannot be had, or are damaged.
        """

    @property
    def cache(self) -> Path:
        """The file that the decoded images are kept in."""
        return data_folder() / f"{self.set_name}.safetensors"

    def prepare_data(self) -> None:
        """Decode the images, unless they are there already; of several processes one does it and the others wait.

        Raises:
            CourseError: They cannot be had, or there is nowhere to keep them.
        """
        wrong = self._wrong_with_cache()
        if wrong is None:
            return
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.cache.with_suffix(".lock")):
                wrong = self._wrong_with_cache()
                if wrong is not None:
                    level = logging.WARNING if self.cache.exists() else logging.INFO
                    log.log(level, "%s %s: decoding the images, once", self.cache, wrong)
                    _save(self.decode(self.cache.parent), self.cache)
        except OSError as error:
            raise CourseError(
                f"{self.cache} {wrong}, and cannot be written ({one_line(error)}): make room there and the folder "
                "writable, or set DLCOURSE_DATA_DIR to another folder"
            ) from error

    def _wrong_with_cache(self) -> str | None:
        """Why the decoded images cannot be used; None where they can."""
        if not self.cache.is_file():
            return "is not there"
        damage = self._damage()
        return f"is damaged ({damage})" if damage else None

    def _damage(self) -> str | None:
        try:
            with safe_open(self.cache, "pt") as file:
                digest = (file.metadata() or {}).get("sha256")
                tensors = {name: file.get_tensor(name) for name in NAMES}
        except (SafetensorError, OSError) as error:
            return one_line(error)
        if any(tensor.dtype != torch.uint8 for tensor in tensors.values()):
            return "it holds other types than uint8"
        for split in ("train", "test"):
            images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
            if images.ndim != 4 or len(images) != len(labels) or not len(images):
                return f"{len(labels)} labels for images of shape {tuple(images.shape)}"
            if int(labels.max()) >= len(self.classes):
                return f"label {int(labels.max())} for {len(self.classes)} classes"
        if digest and digest != _digest(tensors):
            return "its checksum is wrong"
        return None

    def load(self) -> Rows:
        with safe_open(self.cache, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in NAMES}
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

    @cached_property
    def scaling(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, counted pixel value by pixel value: exact, in little memory."""
        channels = self.rows.inputs.shape[1]
        if not self.standardize:
            return torch.zeros(channels), torch.full((channels,), 255.0)
        values = torch.arange(256, dtype=torch.float64)
        counts = torch.zeros(channels, 256, dtype=torch.int64)
        for rows in torch.split(self.splits["train"], 2000):
            images = self.rows.inputs[rows]
            counts += torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(channels)])
        shares = counts.double() / counts.sum(1, keepdim=True)
        mean = shares @ values
        deviation = (shares @ values.square() - mean.square()).clamp(min=0).sqrt()
        return mean.float(), torch.where(deviation > 0, deviation, 1.0).float()

    def training_rows(self) -> TensorRows:
        """With their numbers where images are augmented, since each is flipped in its turn."""
        kind = NumberedRows if self.shift or self.flip != "none" or self.cutout else TensorRows
        return kind(*self.at_hand(), self.splits["train"])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Augment what comes from `train_dataloader`; everything else comes without row numbers, and stays as it is."""
        if len(batch) == 2:
            return batch[0], batch[1]
        images, labels, rows = batch
        return self.augmented(images, rows, self.trainer.current_epoch if self.trainer else 0), labels

    def augmented(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Images as a training sees them in one epoch; ``rows`` are their row numbers."""
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


class NumberedRows(TensorRows):
    """Rows that come with their numbers."""

    def __getitems__(self, places: list[int]) -> Any:
        rows = self.numbers(places)
        return *self.fetch(rows), rows


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def _save(tensors: Mapping[str, Tensor], place: Path) -> None:
    """Write the file of decoded images; raises OSError where there is no room."""
    try:
        with whole_file(place) as partial:
            save_file({name: tensors[name].contiguous() for name in NAMES}, partial, {"sha256": _digest(tensors)})
            partial.chmod(0o644)  # it would be its owner's alone
    except SafetensorError as error:
        raise OSError(one_line(error)) from error


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
