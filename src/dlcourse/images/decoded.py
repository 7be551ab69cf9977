"""Images that are decoded once into one file, read whole into memory, and augmented batch by batch."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from dlcourse.data.datamodule import CourseData, batches
from dlcourse.data.downloads import whole_file
from dlcourse.data.rows import Batch, TensorRows
from dlcourse.errors import CourseError, one_line

log = logging.getLogger(__name__)


class DecodedImages(CourseData, ABC):
    """Images, uint8, N x C x H x W, with a class each: decoded once into one file.

    Only training batches are augmented, after their transfer to the device.
    """

    tensor_names: ClassVar[tuple[str, ...]]
    """The tensors that the file holds."""

    @property
    @abstractmethod
    def cache(self) -> Path:
        """The file that holds the decoded images."""

    @abstractmethod
    def decode(self, folder: Path) -> dict[str, Tensor]:
        """All tensors by `tensor_names`: images in uint8, labels in any integers that hold them all.

        Downloads go to ``folder``.

        Raises:
            CourseError: The images are missing and cannot be downloaded, or are damaged.
        """

    @abstractmethod
    def inconsistency(self, tensors: Mapping[str, Tensor]) -> str | None:
        """What is wrong with the shapes or values of a file's tensors; None where nothing is."""

    @property
    def outputs(self) -> int:
        """One per class, even for two classes."""
        return len(self.rows.classes)

    @property
    @abstractmethod
    def augments(self) -> bool:
        """Whether training images are changed at all."""

    @abstractmethod
    def augmented(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """The images of a training batch, N x C x H x W, as one epoch shows them; ``rows`` are their row numbers, N."""

    def prepare_data(self) -> None:
        """Decode the images and write the file, unless it exists; of several processes one does it, the others wait.

        Raises:
            CourseError: The images are missing and cannot be downloaded, or the file cannot be written.
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
                    decoded = self.decode(self.cache.parent)
                    if unusable := self._inconsistency(decoded):
                        raise CourseError(f"decode of {type(self).__name__} gives {unusable}")
                    _save({name: decoded[name].contiguous() for name in self.tensor_names}, self.cache)
        except OSError as error:
            raise CourseError(
                f"{self.cache} {wrong}, and cannot be written ({one_line(error)}): make room there and the folder "
                "writable, or set DLCOURSE_DATA_DIR to another folder"
            ) from error

    def _wrong_with_cache(self) -> str | None:
        """Why the file cannot be used, as the end of a sentence; None where it can."""
        if not self.cache.is_file():
            return "does not exist"
        damage = self._damage()
        return f"is damaged ({damage})" if damage else None

    def _damage(self) -> str | None:
        try:
            with safe_open(self.cache, "pt") as file:
                digest = (file.metadata() or {}).get("sha256")
                tensors = {name: file.get_tensor(name) for name in self.tensor_names}
        except (SafetensorError, OSError) as error:
            return one_line(error)
        if wrong := self._inconsistency(tensors):
            return wrong
        if digest and digest != _digest(tensors):
            return "its checksum is wrong"
        return None

    def _inconsistency(self, tensors: Mapping[str, object]) -> str | None:
        kept = {name: tensors.get(name) for name in self.tensor_names}
        for name, each in kept.items():
            if not isinstance(each, Tensor):
                return f"{name} as {type(each).__name__}, not as one tensor: bring images of several sizes to one"
            if each.dtype != torch.uint8 and (each.is_floating_point() or name.endswith("images")):
                return f"{name} of another type than uint8"
        return self.inconsistency({name: each for name, each in kept.items() if isinstance(each, Tensor)})

    @cached_property
    def scaling(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the training rows, from counts of the 256 pixel values.

        Sums of counts are exact, and the images are not copied to float64, which would take 1.2 GB for CIFAR-10.
        """
        channels = self.rows.inputs.shape[1]
        if not self.standardize:
            return torch.zeros(channels), torch.full((channels,), 255.0)  # pixels from 0 to 1
        values = torch.arange(256, dtype=torch.float64)
        counts = torch.zeros(channels, 256, dtype=torch.int64)
        for rows in torch.split(self.splits["train"], 2000):
            images = self.rows.inputs[rows]  # 2000 x C x H x W
            counts += torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(channels)])
        shares = counts.double() / counts.sum(1, keepdim=True)
        mean = shares @ values
        std = (shares @ values.square() - mean.square()).clamp(min=0).sqrt()
        return mean.float(), torch.where(std > 0, std, 1.0).float()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; with row numbers where images are augmented, since alternating flips go by them.

        A last batch of one image is dropped: batch normalisation has no variance to measure in it.
        """
        kind = NumberedRows if self.augments else TensorRows
        subset = kind(*self.tensors(), self.splits["train"])
        one_is_left = len(subset) > 1 and len(subset) % self.batch_size == 1
        return batches(subset, self.batch_size, sampler=self.train_order(), drop_last=one_is_left)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Augment batches with row numbers, which only `train_dataloader` gives; all others stay as they are."""
        if len(batch) == 2:
            return batch[0], batch[1]
        images, labels, rows = batch
        return self.augmented(images, rows, self.trainer.current_epoch if self.trainer else 0), labels


class NumberedRows(TensorRows):
    """Rows in memory whose batches carry the row numbers as a third tensor, N."""

    def __getitems__(self, indices: list[int]) -> Any:
        rows = self.numbers(indices)
        return *self.fetch(rows), rows


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the file of decoded images; raises OSError where there is no room."""
    try:
        with whole_file(path) as partial:
            save_file(dict(tensors), partial, {"sha256": _digest(tensors)})
            partial.chmod(0o644)  # safetensors lets only the owner read it
    except SafetensorError as error:
        raise OSError(one_line(error)) from error
