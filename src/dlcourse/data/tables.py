"""Tables of numbers from CSV files. An error names the line and the column that it is about."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dlcourse.errors import CourseError, one_line, some_of, suggestion

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
    names, cells = _names(path, cells)
    values = _numbers(path, cells, names)
    default = [*(f"column {number}" for number in range(1, width)), "label"]
    return values.set_axis(names or default, axis=1).reset_index(drop=True)


def read_features(path: Path, features: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Read the columns that a model takes from a CSV file without a label, by name or else in order.

    By name if the first line names every feature, with or without its unit: in any order, and other columns may hold
    anything. If it names none of them, or nothing, the file must have exactly as many columns.

    Args:
        path: The file, as for `read_table`.
        features: The names, such as ``height in cm``.

    Returns:
        float64, rows x features, by the number of the line; and the file's names, if they are others.

    Raises:
        CourseError: The file cannot be read, as for `read_table`, or has other columns.
    """
    cells = _cells(path)
    if cells.empty:
        raise CourseError(f"{path} is empty: it must hold rows of numbers")
    names, cells = _names(path, cells)
    keys = [name_key(name) for name in names]
    ways = [(name_key(feature), name_key(feature.partition(" in ")[0])) for feature in features]
    places = [next((keys.index(key) for key in each if key in keys), None) for each in ways]
    known = [place for place in places if place is not None]
    if known and len(known) < len(features):
        missing = features[places.index(None)]
        raise CourseError(f"{path} has no column {missing!r}{suggestion(missing, names)}")
    if twice := next((names[place] for place in known if keys.count(keys[place]) > 1), None):
        raise CourseError(f"{path} has more than one column {twice!r}")
    if not known and cells.shape[1] != len(features):
        raise CourseError(
            f"the number of columns in {path} is {cells.shape[1]}, and the model takes {some_of(features)}, without a "
            "label"
        )
    chosen = cells.iloc[:, known] if known else cells
    return _numbers(path, chosen, names).set_axis(list(features), axis=1), [] if known else names


def name_key(name: str) -> str:
    """What is the same for all spellings of a name, such as ``body mass index`` and ``body_mass_index``."""
    return re.sub(r"[\s_-]+", "_", name.strip())


def _names(path: Path, cells: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    """The names in the first line, none if a cell of it is a number; and the lines below them."""
    if _as_numbers(cells.iloc[:1]).notna().to_numpy().any():
        return [], cells
    if len(cells) == 1:
        raise CourseError(f"{path} has a first line of names and no rows below it")
    return cells.iloc[0].tolist(), cells.iloc[1:]


def _as_numbers(cells: pd.DataFrame) -> pd.DataFrame:
    """float64; NaN for what is no number."""
    is_number = cells.apply(pd.to_numeric, errors="coerce").notna()
    return cells.where(is_number).astype(np.float64)  # exact, which to_numeric is not before pandas 3


def _numbers(path: Path, cells: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The cells as finite numbers; raises `CourseError` with the place of the first that is none."""
    values = _as_numbers(cells)
    is_wrong = ~(values.abs() <= LARGEST).to_numpy()
    if is_wrong.any():
        row, column = np.argwhere(is_wrong)[0]
        cell, place = cells.iat[row, column], cells.columns[column]
        problem = f": {cell[:40]!r} is no finite number" if cell else " is missing: fill it in, or remove the line"
        if cell and values.iloc[:, column].isna().all():
            problem += ", and neither is any other cell: write the column as numbers"
        name = f" ({names[place]})" if names else ""
        raise CourseError(f"{path} line {cells.index[row]}, column {place + 1}{name}{problem}")
    return values


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
