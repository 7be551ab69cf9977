"""Rows, and how they are split, scaled and dealt out in batches."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Batch = tuple[Tensor, Tensor]
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Rows:
    """A data set in memory.

    ``inputs`` is N x shape (float32, or uint8 for images). ``targets`` is N x columns in float32 for a regression, and
    N class numbers in int64 where ``classes`` names the classes. ``source`` says where the rows come from.
    """

    inputs: Tensor
    targets: Tensor
    source: str
    features: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every input and target, in 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def contents(self, rows: Tensor) -> list[bytes]:
        """A digest of each of some rows: equal where input and target are, whatever data set they are in."""
        pairs = zip(self.inputs[rows].numpy(), self.targets[rows].numpy(), strict=True)
        return [hashlib.sha256(values.tobytes() + target.tobytes()).digest() for values, target in pairs]

    def count_shared(self, rows: Tensor, others: Tensor) -> int:
        """How many of some rows have the very input and target of one of the others."""
        known = set(self.contents(others))
        return sum(content in known for content in self.contents(rows))


class TensorRows(Dataset[Batch]):
    """Rows that are fetched a batch at a time: one indexing of a tensor, not one call a row."""

    def __init__(self, inputs: Tensor, targets: Tensor, rows: Tensor) -> None:
        self.inputs, self.targets, self.rows = inputs, targets, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Batch:
        row = self.rows[place]
        return self.inputs[row], self.targets[row]

    def __getitems__(self, places: list[int]) -> Batch:
        return self.fetch(self.numbers(places))

    def numbers(self, places: list[int]) -> Tensor:
        """The row numbers of a batch, where the rows are."""
        return self.rows.index_select(0, torch.from_numpy(np.array(places))).to(self.inputs.device)

    def fetch(self, rows: Tensor) -> Batch:
        return self.inputs.index_select(0, rows), self.targets.index_select(0, rows)  # faster than by brackets
