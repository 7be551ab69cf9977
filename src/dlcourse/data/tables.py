"""Tables of numbers from CSV files. An error names the line and the column that it is about."""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from dlcourse.errors import CourseError, one_line

LARGEST = float(np.finfo(np.float32).max)
"""Networks compute in float32, in which larger numbers are infinite."""


def read_table(path: Path, columns: int | None = None) -> pd.DataFrame:
    """Read a CSV file of numbers, the label in the last column.

    The first line names the columns where no cell of it is a number; otherwise they are ``column 1`` and so on, and
    ``label``. Files may be compressed (``.gz``). Blank lines and spaces around cells are ignored.

    Args:
        path: The file.
        columns: How many columns there must be; None for any number from two on.

    Returns:
        float64, rows x columns; every number is finite in float32 as well.

    Raises:
        CourseError: The file is missing, damaged or empty, or a cell is missing, text or not finite.
    """
    cells = _cells(path)
    width = cells.shape[1]
    if cells.empty:
        raise CourseError(f"{path} is empty: it must hold rows of numbers, the label last")
    if width != (columns or max(width, 2)):
        wanted = columns or "two or more"
        raise CourseError(f"{path} must have {wanted} columns, separated by commas, and has {width}")
    is_number = cells.apply(pd.to_numeric, errors="coerce").notna()
    values = cells.where(is_number).astype(np.float64)  # exact, which to_numeric is not before pandas 3
    has_names = bool(values.iloc[0].isna().all())
    names = cells.iloc[0].tolist() if has_names else [*(f"column {number}" for number in range(1, width)), "label"]
    cells, values = cells.iloc[int(has_names) :], values.iloc[int(has_names) :]
    if values.empty:
        raise CourseError(f"{path} has a first line of names and no rows below it")
    is_wrong = ~(values.abs() <= LARGEST).to_numpy()
    if is_wrong.any():
        row, column = np.argwhere(is_wrong)[0]
        cell = cells.iat[row, column]
        problem = f": {cell[:40]!r} is no finite number" if cell else " is missing: fill it in, or remove the line"
        if cell and values.iloc[:, column].isna().all():
            problem += ", and neither is any other cell: write the column as numbers"
        name = f" ({names[column]})" if has_names else ""
        raise CourseError(f"{path} line {cells.index[row]}, column {column + 1}{name}{problem}")
    return values.set_axis(names, axis=1).reset_index(drop=True)


def two_classes(path: Path | str, labels: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    """The two values of a column of labels, in ascending order.

    Raises:
        CourseError: There are more values, or only one.
    """
    values = np.unique(labels)
    shown = ", ".join(f"{value:g}" for value in values[:5])
    if len(values) == 1:
        raise CourseError(f"{path}: every row has the label {shown}, and two classes are needed")
    if len(values) > 2:
        more = ", ..." if len(values) > 5 else ""
        raise CourseError(f"{path}: the last column must hold two labels, and holds {len(values)}: {shown}{more}")
    return float(values[0]), float(values[1])


def _cells(path: Path) -> pd.DataFrame:
    """The stripped text of every cell, by line number, without blank lines; a missing cell is an empty text."""
    try:
        cells = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, skipinitialspace=True, skip_blank_lines=False,
            encoding="utf-8-sig",
        )  # fmt: skip
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (EOFError, OSError, ValueError, zlib.error) as error:  # ValueError: of pandas' parser, and of decoding
        reason = getattr(error, "strerror", None) or one_line(error)
        raise CourseError(f"{path} cannot be read as a CSV file: {reason}") from error
    cells = cells.fillna("").apply(lambda column: column.str.strip())
    cells.index += 1
    return cells[(cells != "").any(axis=1)]
