"""Rows, and how they are split, scaled and dealt out in batches."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlcourse.data.rows import SPLITS, Split
from dlcourse.errors import SettingsError


def stratified_split(labels: np.ndarray[Any, Any], val: float, test: float, seed: int) -> dict[Split, Tensor]:
    """Row numbers of each split.

    Each class is shared out by the fractions, to within one row a class and half a row in all.
    """
    generator = np.random.default_rng(seed)
    members = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    sizes = np.array([len(rows) for rows in members])
    tests = _share(sizes, test, sizes, "test_fraction")
    vals = _share(sizes, val, sizes - tests, "val_fraction")
    if not (sizes - tests - vals).any():
        raise SettingsError(
            f"--data.val_fraction {val} and --data.test_fraction {test} of {len(labels)} rows leave none to train on: "
            "lower one of them"
        )
    parts = {
        "test": [rows[:k] for rows, k in zip(members, tests, strict=True)],
        "val": [rows[k : k + n] for rows, k, n in zip(members, tests, vals, strict=True)],
        "train": [rows[k + n :] for rows, k, n in zip(members, tests, vals, strict=True)],
    }
    return {split: torch.from_numpy(np.sort(np.concatenate(parts[split]))) for split in SPLITS}


def _share(sizes: np.ndarray[Any, Any], fraction: float, left: np.ndarray[Any, Any], flag: str) -> np.ndarray[Any, Any]:
    """How many rows of each class: rounded down, then up where most was cut off, until the whole fits."""
    exact = sizes * fraction
    counts: np.ndarray[Any, Any] = np.floor(exact).astype(int)
    missing = round(sizes.sum() * fraction) - counts.sum()
    for place in np.argsort(counts - exact, kind="stable")[: max(missing, 0)]:
        counts[place] += 1
    np.minimum(counts, left, out=counts)
    if fraction and not counts.sum():
        raise SettingsError(f"--data.{flag} {fraction} of {sizes.sum()} rows is none: raise it, or set it to 0")
    return counts
