"""Tables of numbers from CSV files, checked cell by cell: what is wrong is named by row and column."""

import csv
import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlcourse.errors import CourseError, one_line


@dataclass(frozen=True)
class Table:
    """Numbers, rows x columns in float64, and the names of the columns (empty where the file has none)."""

    values: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    names: tuple[str, ...]


def read_table(path: Path, columns: int | None = None) -> Table:
    """Read a CSV file, plain or gzip-compressed, with or without a first line of names.

    Args:
        path: The file.
        columns: How many columns there must be; None takes what the first line has, at least two.

    Raises:
        CourseError: The file is missing, damaged or empty, or a cell is no finite number.
    """
    lines = [(number, line) for number, line in enumerate(_lines(path), start=1) if any(cell.strip() for cell in line)]
    if not lines:
        raise CourseError(f"{path} is empty: it must hold rows of numbers, the label last")
    names: tuple[str, ...] = ()
    if all(_number(cell) is None for cell in lines[0][1]):
        names = tuple(cell.strip() for cell in lines.pop(0)[1])
        if not lines:
            raise CourseError(f"{path} has a first line of names and no rows")
    wanted = columns or max(len(names or lines[0][1]), 2)
    rows = [_row(path, number, line, wanted) for number, line in lines]
    return Table(np.array(rows), names)


def two_classes(path: Path | str, labels: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    """The two values that a column of labels holds, in ascending order.

    Raises:
        CourseError: There are more values, or only one.
    """
    values = np.unique(labels)
    shown = ", ".join(f"{value:g}" for value in values[:5])
    if len(values) == 1:
        raise CourseError(f"{path}: every row carries the label {shown}: there is nothing to tell apart")
    if len(values) > 2:
        more = ", ..." if len(values) > 5 else ""
        raise CourseError(f"{path}: the last column must hold two labels, and holds {len(values)}: {shown}{more}")
    return float(values[0]), float(values[1])


def _lines(path: Path) -> list[list[str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            return list(csv.reader(file))
    except FileNotFoundError as error:
        raise CourseError(f"there is no file {path}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CourseError(f"{path} is cut off or no gzip file ({one_line(error)}): fetch it again") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CourseError(f"{path} is no CSV file in UTF-8: {one_line(error)}") from error
    except OSError as error:
        raise CourseError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error


def _row(path: Path, number: int, line: list[str], wanted: int) -> list[float]:
    if len(line) != wanted:
        raise CourseError(f"{path} line {number} has {len(line)} columns instead of {wanted}")
    row = []
    for column, cell in enumerate(line, start=1):
        value = _number(cell)
        if value is None or not math.isfinite(value):
            raise CourseError(f"{path} line {number}, column {column}: {cell.strip()[:40]!r} is no finite number")
        row.append(value)
    return row


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
