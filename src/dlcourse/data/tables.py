"""Tables of numbers from CSV files, checked cell by cell: what is wrong is named by row and column."""

import csv
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlcourse.errors import CourseError, one_line

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Table:
    """Numbers, rows x columns in float64, and the names of the columns (empty where the file has none).

    Each number is finite in single precision too, which is what networks are fed with.
    """

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
    lines = [(number, line) for number, line in _lines(path) if any(cell.strip() for cell in line)]
    if not lines:
        raise CourseError(f"{path} is empty: it must hold rows of numbers, the label last")
    wanted = columns or max(len(lines[0][1]), 2)
    for number, line in lines:
        if len(line) != wanted:
            there = f"{len(line)} column{'s' * (len(line) != 1)}"
            raise CourseError(f"{path} line {number} has {there} instead of {wanted}, separated by commas")
    names: tuple[str, ...] = ()
    if all(_number(cell) is None for cell in lines[0][1]):
        names = tuple(cell.strip() for cell in lines.pop(0)[1])
        if not lines:
            raise CourseError(f"{path} has a first line of names and no rows below it")
    return Table(np.array([_row(path, number, line, names) for number, line in lines]), names)


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


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            return [(reader.line_num, line) for line in reader]
    except FileNotFoundError as error:
        raise CourseError(f"there is no file {path}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CourseError(
            f"{path} is cut off or no gzip file ({one_line(error)}): replace it by a whole one"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CourseError(f"{path} is no CSV file in UTF-8: {one_line(error)}") from error
    except OSError as error:
        raise CourseError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error


def _row(path: Path, number: int, line: list[str], names: tuple[str, ...]) -> list[float]:
    row = []
    for place, cell in enumerate(line):
        value = _number(cell)
        if value is None or not abs(value) <= LARGEST:
            column = f"column {place + 1}" + (f" ({names[place]})" if names else "")
            raise CourseError(f"{path} line {number}, {column}: {cell.strip()[:40]!r} is no finite number")
        row.append(value)
    return row


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_0 as 10
    except ValueError:
        return None
