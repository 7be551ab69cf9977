"""Rows, and how they are split, scaled and dealt out in batches."""

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
from dlcourse.ranges import Fraction, PositiveInt, Seed
from dlcourse.settings import nearest_folder


def data_folder() -> Path:
    """Where data sets are kept.

    ``DLCOURSE_DATA_DIR``, else ``data/`` of the nearest folder upwards that has one, else a new one here.
    """
    if named := os.environ.get("DLCOURSE_DATA_DIR"):
        return Path(named)
    return nearest_folder("data") or Path.cwd() / "data"


class CourseData(L.LightningDataModule, ABC):
    """A topic's rows, split by a seed into training, validation and test rows that never overlap.

    Args:
        batch_size: Rows of a training batch.
        val_fraction: Share of the rows to validate on; 0 for none, and then nothing stops a training early.
        test_fraction: Share of the rows to test on, once, at the end; 0 for none.
        split_seed: Seed of the split, apart from the training's, so that runs of several seeds share their rows.
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
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.split_seed = split_seed
        self.standardize = standardize
        self._on_device: Batch | None = None
        self.save_hyperparameters()

    @abstractmethod
    def load(self) -> Rows:
        """Every row there is. Called once, after `prepare_data`."""

    def questions(self) -> Tensor | None:
        """Inputs, K x shape, whose answers a run gives beside its figures."""
        return None

    @cached_property
    def rows(self) -> Rows:
        return self.load()

    @cached_property
    def splits(self) -> dict[Split, Tensor]:
        """The row numbers of each split, in ascending order."""
        labels = self.rows.targets if self.rows.classes else torch.zeros(len(self.rows.targets), dtype=torch.int64)
        return stratified_split(labels.numpy(), self.fractions["val"], self.fractions["test"], self.split_seed)

    @property
    def fingerprint(self) -> str:
        """Names the rows and their split: equal for two runs that saw the same rows in the same roles."""
        digest = hashlib.sha256(self.rows.digest.encode())
        for split in SPLITS:
            digest.update(split.encode() + self.splits[split].numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def eval_split(self) -> Split:
        """The split that a run is judged by: test rows, else validation rows, else training rows."""
        return next(split for split in ("test", "val", "train") if len(self.splits[split]))

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
        """Mean and standard deviation of the training rows' inputs, by feature, or by channel for images."""
        inputs = self.rows.inputs[self.splits["train"]].to(torch.float64)
        over = [0, *range(2, inputs.ndim)]
        mean, std = inputs.mean(over), inputs.std(over, correction=0)
        if not self.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        return mean.float(), torch.where(std > 0, std, 1.0).float()

    def fold(self, number: int, folds: int, repeat: int = 0) -> None:
        """Make test rows of one of ``folds`` equal parts of all rows, stratified for classes.

        The other rows are split into training and validation rows by ``val_fraction``. Each repeat deals anew.

        Raises:
            SettingsError: A class has fewer rows than there are folds.
        """
        targets = self.rows.targets.numpy() if self.rows.classes else np.zeros(len(self.rows.targets), dtype=int)
        counts = np.bincount(targets, minlength=max(len(self.rows.classes), 1))
        if counts.min() < folds:
            of_class = f" of class {self.rows.classes[counts.argmin()]}" if self.rows.classes else ""
            raise SettingsError(f"--folds {folds} needs as many rows{of_class}, and there are {counts.min()}")
        seed = epoch_seed(self.split_seed, repeat)
        dealer = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)  # numpy takes no larger one
        rest, test = list(dealer.split(targets, targets))[number]
        inner = stratified_split(targets[rest], self.fractions["val"], 0, seed)
        self.splits = {split: torch.from_numpy(rest)[inner[split]] for split in ("train", "val")}
        self.splits["test"] = torch.from_numpy(test)
        self.__dict__.pop("scaling", None)

    def refit(self) -> None:
        """Make training rows of the validation rows, once they have served to choose."""
        train = torch.cat([self.splits["train"], self.splits["val"]]).sort().values
        self.splits = {"train": train, "val": train[:0], "test": self.splits["test"]}
        self.__dict__.pop("scaling", None)

    def setup(self, stage: str) -> None:
        _ = self.splits

    def tensors(self) -> Batch:
        """Every input and target: on the GPU that trains where half of its free memory is enough, else as loaded."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type != "cuda":
            return self.rows.inputs, self.rows.targets
        if self._on_device is None or self._on_device[0].device != device:
            size = sum(tensor.numel() * tensor.element_size() for tensor in (self.rows.inputs, self.rows.targets))
            if size > torch.cuda.mem_get_info(device)[0] / 2:
                return self.rows.inputs, self.rows.targets
            self._on_device = self.rows.inputs.to(device), self.rows.targets.to(device)
        return self._on_device

    def subset(self, split: Split) -> "TensorRows":
        return TensorRows(*self.tensors(), self.splits[split])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if batch[0].device == device:  # rows that are kept there already
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training rows in batches, in `train_order`."""
        return DataLoader(
            self.training_rows(),
            self.batch_size,
            sampler=self.train_order(),
            collate_fn=identity_collate,
            generator=torch.Generator(),
        )

    def training_rows(self) -> "TensorRows":
        return self.subset("train")

    def train_order(self) -> Sampler[int]:
        """Shuffled, in an order that the global seed and the epoch alone decide."""
        return ShuffledOrder(len(self.splits["train"]), torch.initial_seed())

    def eval_dataloader(self, split: Split) -> DataLoader[Batch]:
        """The rows of a split in their own order, for measuring."""
        return self._eval_dataloader(self.splits[split])

    def _eval_dataloader(self, rows: Tensor, processes: int = 1, rank: int = 0) -> DataLoader[Batch]:
        part = TensorRows(*self.tensors(), rows)
        dealt = UnpaddedSampler(part, processes, rank) if processes > 1 else None
        size = even_batch_size(len(part), processes, max(self.batch_size, 1024))
        return DataLoader(part, size, sampler=dealt, collate_fn=identity_collate, generator=torch.Generator())

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """The validation rows, and beside them training rows to be measured likewise, so that a gap can be seen.

        All training rows, or as many of them as there are validation rows where those are more than a thousand. Where
        several processes train together, each measures its share.
        """
        val, train = self.splits["val"], self.splits["train"]
        if not len(val):
            return []
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.split_seed))
        measured = [val, train[order[: max(len(val), 1000)].sort().values]]
        place = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return [self._eval_dataloader(rows, *place) for rows in measured]

    def test_dataloader(self) -> DataLoader[Batch] | list[Any]:
        return self.eval_dataloader("test") if len(self.splits["test"]) else []
