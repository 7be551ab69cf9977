"""The order in which rows are visited: shuffled anew each epoch, or divided among several processes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler, Sampler

from dlcourse.data.rows import TensorRows


class ShuffledOrder(Sampler[int]):
    """A shuffled order that depends on seed and epoch alone.

    So a training that is resumed sees the batches that it would have seen without the interruption.
    """

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
    """Every row to exactly one of several processes: row i to process i modulo their number.

    Torch's own sampler repeats some rows, so that every process has as many. That does no harm in training, but
    metrics would count those rows twice. Lightning replaces other samplers by that one, and leaves this one alone,
    because it is a DistributedSampler.
    """

    def __init__(self, rows: TensorRows, processes: int, rank: int) -> None:
        super().__init__(rows, processes, rank, shuffle=False)
        self.indices = range(rank, len(rows), processes)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def even_batch_size(rows: int, processes: int, at_least: int) -> int:
    """The smallest batch size from ``at_least`` on with which every process has the same number of batches.

    A process with one batch more than the others would wait for them for ever. There must be a row for each process.
    """
    share, remainder = divmod(rows, processes)
    size = at_least
    # Some processes have share + 1 rows. Where size divides share, that one row would be a batch of its own.
    while remainder and share % size == 0:
        size += 1
    return size


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed, below 2^63, from two numbers: seed 0 in epoch 1 is not seed 1 in epoch 0."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)


def identity_collate(batch: Any) -> Any:
    """`TensorRows` gives whole batches, so there is nothing to collate."""
    return batch
