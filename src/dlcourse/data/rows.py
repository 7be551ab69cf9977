"""A data set in memory, and the dataset that gives its rows to a DataLoader a batch at a time."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlcourse.errors import CourseError

Batch = tuple[Tensor, Tensor]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_NAMES: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}
"""What each split is called in sentences and figures."""


def digest_of(*tensors: Tensor) -> str:
    """SHA-256 of tensors with their types and shapes, in 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Rows:
    """A data set in memory.

    ``inputs`` is N x shape: float32, uint8 for images, int64 for token ids. ``targets`` is N x columns in float32 for a
    regression, and N class numbers in int64 where ``classes`` names the classes. ``source`` says where the rows come
    from. ``fixed_splits`` holds the row numbers, in ascending order, of the splits that the data set itself defines,
    such as official test images. All other rows are divided by `CourseData`.

    Raises:
        CourseError: Inputs or targets are something else.
    """

    inputs: Tensor
    targets: Tensor
    source: str
    feature_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    fixed_splits: Mapping[Split, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            if not isinstance(value := getattr(self, name), Tensor):
                raise CourseError(
                    f"{name} of Rows must be one tensor, not a {type(value).__name__}: bring rows of several sizes to "
                    "one, by cropping or padding them"
                )
        if wrong := self._wrong_shape():
            raise CourseError(wrong)

    def _wrong_shape(self) -> str | None:
        inputs, targets = self.inputs, self.targets
        if inputs.ndim < 2:
            return "inputs of Rows must be N x features: make a single feature a column, by [:, None]"
        if not self.classes:
            return None if targets.ndim == 2 else "targets of a regression must be N x columns: add one, by [:, None]"
        if targets.ndim != 1 or targets.dtype != torch.int64:
            what = f"{targets.dtype} of shape {list(targets.shape)}".removeprefix("torch.")
            return f"targets of Rows with classes must be N class numbers in int64, not {what}"
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(self.classes):
            return f"class numbers go from {int(targets.min())} to {int(targets.max())} in {len(self.classes)} classes"
        return None

    @cached_property
    def digest(self) -> str:
        """A digest of every input and target."""
        return digest_of(self.inputs, self.targets)

    def contents(self, rows: Tensor) -> list[bytes]:
        """A digest of each of these rows. Rows of equal input and target have equal digests, in any data set."""
        pairs = zip(self.inputs[rows].numpy(), self.targets[rows].numpy(), strict=True)
        return [hashlib.sha256(values.tobytes() + target.tobytes()).digest() for values, target in pairs]

    def count_shared(self, rows: Tensor, train: Tensor) -> int:
        """How many of ``rows`` have the same input and target as one of the ``train`` rows."""
        known = set(self.contents(train))
        return sum(content in known for content in self.contents(rows))


class TensorRows(Dataset[Batch]):
    """A subset of the rows in memory. A DataLoader gets a whole batch by one indexing of each tensor.

    Args:
        inputs: All inputs, N x shape.
        targets: All targets, N or N x columns.
        rows: The row numbers of the subset.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, rows: Tensor) -> None:
        self.inputs, self.targets, self.rows = inputs, targets, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        row = self.rows[index]
        return self.inputs[row], self.targets[row]

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of these positions in the subset, already stacked: see `identity_collate`."""
        return self.fetch(self.numbers(indices))

    def numbers(self, indices: list[int]) -> Tensor:
        """The row numbers at these positions of the subset, on the device of the tensors."""
        return self.rows.index_select(0, torch.tensor(indices)).to(self.inputs.device)

    def fetch(self, rows: Tensor) -> Batch:
        # For an epoch of FashionMNIST in batches of 128, index_select takes 0.03 s in all, and inputs[rows] 0.11 s.
        return self.inputs.index_select(0, rows), self.targets.index_select(0, rows)
