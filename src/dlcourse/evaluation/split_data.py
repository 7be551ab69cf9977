"""What evaluation, verdict and report must know of data: its splits as dataloaders, and rows to fit baselines to."""

from collections.abc import Callable, Iterable, Mapping, Sized
from functools import cached_property
from typing import Any, Literal, Protocol

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from dlcourse.data.rows import Split
from dlcourse.errors import CourseError

SAMPLE_ROWS = 10_000
"""Training rows that baselines are fitted to, where the data is not in memory."""
SAMPLE_NUMBERS = 20_000_000
"""The most numbers that these may hold: with larger inputs there are fewer rows."""
MOST_FEATURES = 10_000
"""With more numbers a row, a linear model would only learn its few rows by heart."""


class SplitData(Protocol):
    """Data in splits. `CourseData` is this itself; `LoaderData` makes it of any LightningDataModule."""

    @property
    def origin(self) -> str:
        """Where the rows come from, in words."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; empty for a regression, or if they are not known."""

    @property
    def fingerprint(self) -> str:
        """A digest of the rows and their splits; empty if that is not known before they are evaluated."""

    @property
    def eval_split(self) -> Split:
        """The split that a run is evaluated on: test rows, else validation rows, else training rows."""

    def has(self, split: Split) -> bool:
        """Whether the split has rows."""

    def num_rows(self, split: Split) -> int | None:
        """How many rows the split has; None for a stream without a length."""

    def eval_dataloader(self, split: Split) -> Iterable[Any]:
        """The rows of a split in an order that is always the same."""

    def baseline_rows(self) -> tuple[Tensor, Tensor]:
        """Inputs (N x shape) and targets of the training rows that baselines are fitted to."""

    def example_inputs(self) -> Any:
        """Some inputs of `eval_split`, up to 256: enough to compare predictions."""

    def count_shared(self) -> int:
        """How many of the rows of `eval_split` have the same input and target as a training row."""


def datamodule_of(data: SplitData) -> L.LightningDataModule:
    """The data module itself."""
    if isinstance(data, LoaderData):
        return data.datamodule
    assert isinstance(data, L.LightningDataModule)
    return data


class LoaderData:
    """Any LightningDataModule, seen through its dataloaders, of which several of a kind count by the first.

    Training rows are seen through a sample: `SAMPLE_ROWS` random ones, the same each time; of a stream its first rows.

    Args:
        datamodule: The data module.
        split_batch: From a batch to its inputs and targets, as `Task.split_batch` does it.
        class_names: The names of the classes, if there are any.
    """

    fingerprint = ""

    def __init__(
        self,
        datamodule: L.LightningDataModule,
        split_batch: Callable[[Any], tuple[Any, Tensor]],
        class_names: tuple[str, ...] = (),
    ) -> None:
        self.datamodule, self.split_batch, self.class_names = datamodule, split_batch, class_names
        self.origin = type(datamodule).__name__
        self.is_set_up_to_fit = False
        """Whether a training has set the data up, so that it need not be done again."""
        self._is_ready = set[str]()

    def has(self, split: Split) -> bool:
        return split == "train" or self._overrides(f"{split}_dataloader")

    @cached_property
    def eval_split(self) -> Split:
        return next(split for split in ("test", "val", "train") if self.has(split))

    def num_rows(self, split: Split) -> int | None:
        dataset = getattr(self._loader(split), "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) else None

    def eval_dataloader(self, split: Split) -> Iterable[Any]:
        return self._sample_loader() if split == "train" else self._loader(split)

    def _loader(self, split: Split) -> Iterable[Any]:
        self._set_up("test" if split == "test" else "fit")
        loaders = getattr(self.datamodule, f"{split}_dataloader")()
        first: Iterable[Any] | None = (list(loaders) or [None])[0] if isinstance(loaders, (list, tuple)) else loaders
        if first is None or isinstance(first, Mapping):
            kind = "nothing" if first is None else "loaders by name"
            raise CourseError(f"{split}_dataloader of {self.origin} gives {kind}: one is needed, or a list of them")
        return first

    def _set_up(self, stage: Literal["fit", "test"]) -> None:
        """Do what Lightning does before it takes the loaders."""
        if self.is_set_up_to_fit and not self._overrides("teardown"):
            self._is_ready.add("fit")
        if not self._is_ready:
            self.datamodule.prepare_data()
        if stage not in self._is_ready:
            self.datamodule.setup(stage)
        self._is_ready.add(stage)

    def _overrides(self, method: str) -> bool:
        return is_overridden(method, self.datamodule, L.LightningDataModule)

    def baseline_rows(self) -> tuple[Tensor, Tensor]:
        """The sample of the training rows.

        Inputs that no linear model can take are left out, N x 0: those that are not one tensor for all rows, integers
        such as token ids, and rows of more than `MOST_FEATURES` numbers.
        """
        return self._sample

    @cached_property
    def _sample(self) -> tuple[Tensor, Tensor]:
        inputs: list[Any] = []
        targets: list[Tensor] = []
        size = 0
        for batch in self._sample_loader():
            some, labels = self.split_batch(batch)
            inputs.append(some)
            targets.append(labels)
            size += (some.numel() if isinstance(some, Tensor) else 0) + labels.numel()
            if sum(map(len, targets)) >= SAMPLE_ROWS or size >= SAMPLE_NUMBERS:
                break
        labels = torch.cat(targets)[:SAMPLE_ROWS]
        kinds = {(each.shape[1:], each.dtype) if isinstance(each, Tensor) else None for each in inputs}
        kind = kinds.pop()
        if kinds or kind is None or kind[0].numel() > MOST_FEATURES or kind[1] in (torch.int32, torch.int64):
            return torch.empty(len(labels), 0), labels
        return torch.cat(inputs)[:SAMPLE_ROWS], labels

    def _sample_loader(self) -> Iterable[Any]:
        loader = self._loader("train")
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            return loader
        assert isinstance(loader.dataset, Sized)  # as each but an IterableDataset is
        order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(0))[:SAMPLE_ROWS]
        return DataLoader(
            Subset(loader.dataset, order.tolist()),
            loader.batch_size or 1,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            generator=torch.Generator(),
        )

    def example_inputs(self) -> Any:
        inputs, _ = self.split_batch(next(iter(self.eval_dataloader(self.eval_split))))
        return inputs[:256] if isinstance(inputs, Tensor) else inputs

    def count_shared(self) -> int:
        """0: rows that are not in memory are not compared."""
        return 0
