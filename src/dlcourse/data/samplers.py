"""Rows, and how they are split, scaled and dealt out in batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler, Sampler

from dlcourse.data.rows import TensorRows


class ShuffledOrder(Sampler[int]):
    """A random order that is a function of seed and epoch, so that a resumed training sees what it would have seen."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        return iter(torch.randperm(self.length, generator=generator).tolist())


class UnpaddedSampler(DistributedSampler[Any]):
    """Every row to exactly one of several processes, in turn.

    Lightning's own sampler for several processes makes their shares equal by giving some rows twice, which is a little
    training more but a wrong figure. This one it leaves alone.
    """

    def __init__(self, rows: "TensorRows", processes: int, rank: int) -> None:
        super().__init__(rows, processes, rank, shuffle=False)
        self.places = range(rank, len(rows), processes)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)


def even_batch_size(rows: int, processes: int, at_least: int) -> int:
    """The smallest batch size from ``at_least`` on that gives every process's share the same number of batches.

    A process with one batch more than the others would wait for them for ever. There must be a row for each process.
    """
    share, left = divmod(rows, processes)
    size = at_least
    while left and share % size == 0:  # then the row that some have more than others would be a batch of its own
        size += 1
    return size


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed from two numbers, without seed 0's epoch 1 being seed 1's epoch 0."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)


def identity_collate(batch: Any) -> Any:
    """Batches come whole from `TensorRows`: there is nothing to collate."""
    return batch
