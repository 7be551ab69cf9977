"""Images that are decoded once into one file, mapped into memory from then on, and augmented batch by batch."""

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

from dlcourse.data.datamodule import CourseData
from dlcourse.data.downloads import whole_file
from dlcourse.data.rows import Batch, TensorRows
from dlcourse.data.samplers import identity_collate
from dlcourse.errors import CourseError, one_line

log = logging.getLogger(__name__)


class DecodedImages(CourseData, ABC):
    """Images, uint8, C x H x W, with a class each: decoded once into one file, and augmented batch by batch.

    What a training batch goes through happens on the device, and to training batches alone.
    """

    names: ClassVar[tuple[str, ...]]
    """The tensors that the file holds."""

    @property
    @abstractmethod
    def cache(self) -> Path:
        """The file that the decoded images are kept in."""

    @abstractmethod
    def decode(self, folder: Path) -> dict[str, Tensor]:
        """All tensors by `names`, each uint8; what has to be downloaded goes to ``folder``.

        Raises:
            CourseError: They cannot be had, or are damaged.
        """

    @abstractmethod
    def inconsistency(self, tensors: Mapping[str, Tensor]) -> str | None:
        """What is wrong with the tensors of a file, each uint8; None where nothing is."""

    @property
    @abstractmethod
    def augments(self) -> bool:
        """Whether training images are changed at all."""

    @abstractmethod
    def augmented(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Images as a training sees them in one epoch; ``rows`` are their row numbers."""

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
                    decoded = self.decode(self.cache.parent)
                    _save({name: decoded[name].contiguous() for name in self.names}, self.cache)
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
                tensors = {name: file.get_tensor(name) for name in self.names}
        except (SafetensorError, OSError) as error:
            return one_line(error)
        if any(tensor.dtype != torch.uint8 for tensor in tensors.values()):
            return "it holds other types than uint8"
        if wrong := self.inconsistency(tensors):
            return wrong
        if digest and digest != _digest(tensors):
            return "its checksum is wrong"
        return None

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
        std = (shares @ values.square() - mean.square()).clamp(min=0).sqrt()
        return mean.float(), torch.where(std > 0, std, 1.0).float()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; with row numbers where images are augmented, since each is flipped in its turn.

        A single image that is left over is left out: batch normalisation could not measure it.
        """
        kind = NumberedRows if self.augments else TensorRows
        part = kind(*self.tensors(), self.splits["train"])
        one_left = len(part) > 1 and len(part) % self.batch_size == 1
        return DataLoader(
            part,
            self.batch_size,
            sampler=self.train_order(),
            collate_fn=identity_collate,
            drop_last=one_left,
            generator=torch.Generator(),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Augment what comes from `train_dataloader`; everything else comes without row numbers, and stays as it is."""
        if len(batch) == 2:
            return batch[0], batch[1]
        images, labels, rows = batch
        return self.augmented(images, rows, self.trainer.current_epoch if self.trainer else 0), labels


class NumberedRows(TensorRows):
    """Rows that come with their numbers."""

    def __getitems__(self, places: list[int]) -> Any:
        rows = self.numbers(places)
        return *self.fetch(rows), rows


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _save(tensors: Mapping[str, Tensor], place: Path) -> None:
    """Write the file of decoded images; raises OSError where there is no room."""
    try:
        with whole_file(place) as partial:
            save_file(dict(tensors), partial, {"sha256": _digest(tensors)})
            partial.chmod(0o644)  # it would be its owner's alone
    except SafetensorError as error:
        raise OSError(one_line(error)) from error
