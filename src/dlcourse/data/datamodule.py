"""The base of all data modules: rows in memory, split and scaled, as DataLoaders."""

import hashlib
import os
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from dlcourse.data.rows import SPLITS, Batch, Rows, Split, TensorRows
from dlcourse.data.samplers import ShuffledOrder, UnpaddedSampler, epoch_seed, even_batch_size, identity_collate
from dlcourse.data.splits import stratified_split
from dlcourse.errors import SettingsError
from dlcourse.settings import Fraction, PositiveInt, Seed, nearest_folder

SMALLEST_EVAL_BATCH = 1024
"""Rows of a batch without gradients, at the least: small batches would only take longer."""
FEWEST_GAP_ROWS = 1000
"""Training rows measured after each epoch, at the least: their mean is to be about as exact as the validation loss."""


def data_folder() -> Path:
    """Where data sets are kept.

    ``DLCOURSE_DATA_DIR``; without it ``data/`` in the current folder or the nearest folder above that has one; where
    none has, ``data/`` in the current folder, which need not exist.
    """
    if path := os.environ.get("DLCOURSE_DATA_DIR"):
        return Path(path)
    return nearest_folder("data") or Path.cwd() / "data"


class CourseData(L.LightningDataModule, ABC):
    """A topic's rows, split into training, validation and test rows that never overlap.

    Args:
        batch_size: Rows of a training batch.
        val_fraction: Fraction of the rows to validate on; 0 for none, and then nothing stops a training early.
        test_fraction: Fraction of the rows to test on, once, at the end; 0 for none.
        split_seed: Seed of the split. It is not the training's seed, so that runs of several seeds share their rows.
        standardize: Shift and scale each input to mean 0 and standard deviation 1, as measured on the training rows.
    """

    def __init__(
        self,
        *,
        batch_size: PositiveInt = 32,
        val_fraction: Fraction = 0.2,
        test_fraction: Fraction = 0.2,
        split_seed: Seed = 0,
        standardize: bool = True,
    ) -> None:
        super().__init__()
        if val_fraction + test_fraction >= 1:
            raise SettingsError(
                f"--data.val_fraction {val_fraction} and --data.test_fraction {test_fraction} leave no row to "
                "train on: their sum must stay below 1"
            )
        self.batch_size = batch_size
        self.fractions: dict[Split, float] = {"val": val_fraction, "test": test_fraction}
        self.split_seed = split_seed
        self.standardize = standardize
        self.measures_gap = True
        self._on_device: Batch | None = None
        self.save_hyperparameters()

    @abstractmethod
    def load(self) -> Rows:
        """Every row of the data set. Called once, after `prepare_data`."""

    def queries(self) -> Tensor | None:
        """Inputs, K x shape, whose predictions a run reports beside its metrics; None for none."""
        return None

    @cached_property
    def rows(self) -> Rows:
        return self.load()

    @cached_property
    def splits(self) -> dict[Split, Tensor]:
        """The row numbers of each split, in ascending order.

        Raises:
            SettingsError: The fractions leave a split without rows.
        """
        fixed = self.rows.fixed_splits
        is_free = torch.ones(len(self.rows.targets), dtype=torch.bool)
        for rows in fixed.values():
            is_free[rows] = False
        free = is_free.nonzero()[:, 0]
        val, test = (0.0 if split in fixed else self.split_fraction(split) for split in ("val", "test"))
        parts = stratified_split(self._strata()[free.numpy()], val, test, self.split_seed)
        return {split: fixed.get(split, free[parts[split]]) for split in SPLITS}

    def split_fraction(self, split: Split) -> float:
        """Which fraction becomes ``split``, of the rows that are in none of `Rows.fixed_splits`."""
        return self.fractions[split]

    def _strata(self) -> np.ndarray[Any, Any]:
        """What splits keep the shares of: the classes, N integers; for a regression zeros."""
        targets: np.ndarray[Any, Any] = self.rows.targets.numpy()
        return targets if self.rows.classes else np.zeros(len(targets), dtype=int)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that are equal for two runs with the same rows in the same splits."""
        digest = hashlib.sha256(self.rows.digest.encode())
        for split in SPLITS:
            digest.update(split.encode() + self.splits[split].numpy().tobytes())
        return digest.hexdigest()[:16]

    def digest(self, rows: Tensor) -> str:
        """16 hexadecimal digits that are equal for the same rows of the same data set; ``rows`` are their numbers."""
        return hashlib.sha256(self.rows.digest.encode() + rows.numpy().tobytes()).hexdigest()[:16]

    @property
    def eval_split(self) -> Split:
        """The split that a run is evaluated on: test rows, else validation rows, else training rows."""
        return next(split for split in ("test", "val", "train") if self.has(split))

    def has(self, split: Split) -> bool:
        """Whether the split has rows."""
        return len(self.splits[split]) > 0

    def num_rows(self, split: Split) -> int:
        return len(self.splits[split])

    @property
    def origin(self) -> str:
        """Where the rows come from, in words."""
        return self.rows.source

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; empty for a regression."""
        return self.rows.classes

    def baseline_rows(self) -> tuple[Tensor, Tensor]:
        """The inputs and targets that baselines are fitted to: all training rows."""
        train = self.splits["train"]
        return self.rows.inputs[train], self.rows.targets[train]

    def example_inputs(self) -> Tensor:
        """Some inputs of `eval_split`, up to 256: enough to compare predictions."""
        return self.rows.inputs[self.splits[self.eval_split][:256]]

    def count_shared(self) -> int:
        """How many of the rows of `eval_split` have the same input and target as a training row."""
        return self.rows.count_shared(self.splits[self.eval_split], self.splits["train"])

    @property
    def shape(self) -> list[int]:
        """The shape of one input."""
        return list(self.rows.inputs.shape[1:])

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for one input: a column a target, or one a class (one for two classes)."""
        classes = len(self.rows.classes)
        return self.rows.targets.shape[1] if not classes else 1 if classes == 2 else classes

    @cached_property
    def scaling(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training rows' inputs, by feature, or by channel for images.

        A feature that does not vary gets 1 as its standard deviation.
        """
        inputs = self.rows.inputs[self.splits["train"]].to(torch.float64)
        over = [0, *range(2, inputs.ndim)]
        mean, std = inputs.mean(over), inputs.std(over, correction=0)
        if not self.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        return mean.float(), torch.where(std > 0, std, 1.0).float()

    def fold(self, number: int, folds: int, repeat: int = 0) -> None:
        """Take fold ``number`` of ``folds`` as the test rows, stratified for classes; replaces the splits.

        The other rows are split into training and validation rows by ``val_fraction``. Each ``repeat`` shuffles anew.

        Raises:
            SettingsError: A class has fewer rows than there are folds, or the data set defines its test rows.
        """
        if "test" in self.rows.fixed_splits:
            raise SettingsError(
                "--folds would train on the data set's own test rows: vary --seed and --data.split_seed instead"
            )
        strata = self._strata()
        counts = np.bincount(strata, minlength=max(len(self.rows.classes), 1))
        if counts.min() < folds:
            of_class = f" of class {self.rows.classes[counts.argmin()]}" if self.rows.classes else ""
            raise SettingsError(f"--folds {folds} needs as many rows{of_class}, and there are {counts.min()}")
        seed = epoch_seed(self.split_seed, repeat)
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)  # numpy takes no larger one
        rest, test = list(splitter.split(strata, strata))[number]
        inner = stratified_split(strata[rest], self.fractions["val"], 0, seed)
        self.splits = {split: torch.from_numpy(rest)[inner[split]] for split in ("train", "val")}
        self.splits["test"] = torch.from_numpy(test)
        self.__dict__.pop("scaling", None)

    def refit(self) -> None:
        """Make the validation rows training rows, once settings are chosen; replaces the splits."""
        train = torch.cat([self.splits["train"], self.splits["val"]]).sort().values
        self.splits = {"train": train, "val": train[:0], "test": self.splits["test"]}
        self.__dict__.pop("scaling", None)

    def setup(self, stage: str) -> None:
        _ = self.splits

    def tensors(self) -> Batch:
        """Every input and target: on the GPU that trains where half of its free memory is enough, else on the CPU."""
        rows, device = self.rows, self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type != "cuda":
            return rows.inputs, rows.targets
        if self._on_device is None or self._on_device[0].device != device:
            if rows.inputs.nbytes + rows.targets.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
                return rows.inputs, rows.targets
            self._on_device = rows.inputs.to(device), rows.targets.to(device)
        return self._on_device

    def subset(self, split: Split) -> TensorRows:
        return TensorRows(*self.tensors(), self.splits[split])

    def train_order(self) -> Sampler[int]:
        """Shuffled, in an order that depends on the global seed and the epoch alone."""
        return ShuffledOrder(len(self.splits["train"]), torch.initial_seed())

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training rows in batches, in `train_order`."""
        return batches(self.subset("train"), self.batch_size, sampler=self.train_order())

    def eval_dataloader(self, split: Split) -> DataLoader[Batch]:
        """The rows of a split in ascending order, for evaluation."""
        return self._eval_dataloader(self.splits[split])

    def _eval_dataloader(self, rows: Tensor, processes: int = 1, rank: int = 0) -> DataLoader[Batch]:
        subset = TensorRows(*self.tensors(), rows)
        sampler = UnpaddedSampler(subset, processes, rank) if processes > 1 else None
        size = even_batch_size(len(rows), processes, max(self.batch_size, SMALLEST_EVAL_BATCH))
        return batches(subset, size, sampler=sampler)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """The validation rows, and random training rows to measure in the same way, for the generalisation gap.

        There are as many of these as validation rows, but `FEWEST_GAP_ROWS` at the least, or all where there are fewer.
        They are the same in every epoch. A module of another kind than `CourseModel` does not measure them: then
        ``measures_gap`` is False, and there are validation rows alone. Where several processes train together, each
        measures its share.
        """
        val, train = self.splits["val"], self.splits["train"]
        if not len(val):
            return []
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.split_seed))
        gap_rows = train[order[: max(len(val), FEWEST_GAP_ROWS)].sort().values]
        process = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        measured = (val, gap_rows) if self.measures_gap else (val,)
        return [self._eval_dataloader(rows, *process) for rows in measured]

    def test_dataloader(self) -> DataLoader[Batch] | list[Any]:
        return self.eval_dataloader("test") if len(self.splits["test"]) else []


def batches(rows: TensorRows, batch_size: int, **settings: Any) -> DataLoader[Any]:
    """A DataLoader of whole batches; ``settings`` are those of torch's."""
    # With a generator of its own it draws nothing from the global one, on which weights and dropout depend.
    return DataLoader(rows, batch_size, collate_fn=identity_collate, generator=torch.Generator(), **settings)
