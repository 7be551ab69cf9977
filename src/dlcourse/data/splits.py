"""Random splits that keep each class's share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlcourse.data.rows import SPLITS, Split
from dlcourse.errors import SettingsError


def stratified_split(labels: np.ndarray[Any, Any], val: float, test: float, seed: int) -> dict[Split, Tensor]:
    """Split rows at random, each class by the same fractions: to within one row of a class, and half a row in all.

    scikit-learn's ``train_test_split`` refuses classes of a single row, which happen here.

    Args:
        labels: The class of each row, N integers.
        val: Fraction of the rows to validate on.
        test: Fraction of the rows to test on.
        seed: Seed of the random choice.

    Returns:
        The row numbers of each split, in ascending order.

    Raises:
        SettingsError: A fraction above 0 gives no row, or no row is left to train on.
    """
    generator = np.random.default_rng(seed)
    members = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    sizes = np.array([len(rows) for rows in members])
    num_test = _rows_of_each_class(sizes, test, sizes, "test_fraction")
    num_val = _rows_of_each_class(sizes, val, sizes - num_test, "val_fraction")
    if not (sizes - num_test - num_val).any():
        raise SettingsError(
            f"--data.val_fraction {val} and --data.test_fraction {test} of {len(labels)} rows leave none to train on: "
            "lower one of them"
        )
    parts = [np.split(rows, [k, k + n]) for rows, k, n in zip(members, num_test, num_val, strict=True)]
    order: tuple[Split, ...] = ("test", "val", "train")
    of_split = {split: np.concatenate(rows) for split, rows in zip(order, zip(*parts, strict=True), strict=True)}
    return {split: torch.from_numpy(np.sort(of_split[split])) for split in SPLITS}


def _rows_of_each_class(
    sizes: np.ndarray[Any, Any], fraction: float, most: np.ndarray[Any, Any], flag: str
) -> np.ndarray[Any, Any]:
    """The fraction of each class, by the largest remainders: rounded down, then one row more where most was cut off."""
    exact = sizes * fraction
    counts: np.ndarray[Any, Any] = np.floor(exact).astype(int)
    missing = round(sizes.sum() * fraction) - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[: max(missing, 0)]] += 1
    np.minimum(counts, most, out=counts)
    if fraction and not counts.sum():
        raise SettingsError(f"--data.{flag} {fraction} of {sizes.sum()} rows is none: raise it, or set it to 0")
    return counts
