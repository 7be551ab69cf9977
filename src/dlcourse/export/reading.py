"""What a model is asked about: pictures, tables and numbers, as the arrays that it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dlcourse.data.tables import LARGEST, name_key, read_features
from dlcourse.errors import CourseError, SettingsError, some_of, suggestion
from dlcourse.export.description import Column, Description, border_means
from dlcourse.images.decoding import decode_all, grey
from dlcourse.images.folders import ENDINGS, images_below

Input = str | Path | float
"""A file, a folder or a number; from the command line as text."""


@dataclass(frozen=True)
class Inputs:
    """The rows that a model is asked about.

    Attributes:
        names: What each row is called.
        values: Raw inputs as the model takes them, N x shape.
        warnings: What is unlike the training rows.
        unread: Pictures that cannot be read.
    """

    names: list[str]
    values: NDArray[np.generic]
    warnings: list[str]
    unread: list[str] = field(default_factory=list)


def read_inputs(
    about: Description, words: Sequence[Input], features: Mapping[str, object], flags: Sequence[str], invert: bool
) -> Inputs:
    """Read what a model is asked about.

    Args:
        about: The model's description.
        words: Files, folders and numbers.
        features: One more row, by the names of its columns.
        flags: The names of all other flags, one of which may be meant by a feature that does not exist.
        invert: Whether to invert pictures.

    Raises:
        SettingsError: The model takes other inputs, or there are none.
        CourseError: A file is damaged, or has other columns.
    """
    takes = about.inputs
    columns = columns_of(about) if len(takes.shape) == 2 else []
    keys = [name_key(each.name) for each in columns]
    for name in features:
        if name_key(name) not in keys:
            near = suggestion(f"--{name}", [f"--{each}" for each in (*keys, *flags)])
            raise SettingsError(f"unknown flag --{name}{near or f'; {about.topic} takes {wanted(about)}'}")
    if not words and not features:
        raise SettingsError(f"there is nothing to predict: {about.topic} takes {wanted(about)}")
    if takes.are_images:
        return _read_pictures(about, words, invert)
    if invert:
        raise SettingsError(f"--invert is for pictures, and {about.topic} takes {wanted(about)}")
    if not columns:
        shape = " x ".join(map(str, takes.shape))
        raise SettingsError(f"{about.topic} takes {shape} numbers of type {takes.dtype}, which no file is read as")
    return _read_numbers(about, columns, words, features)


def columns_of(about: Description) -> list[Column]:
    """The columns of a model of numbers; ``column 1`` and so on if they are not described."""
    return about.inputs.columns or [Column(f"column {place + 1}") for place in range(int(about.inputs.shape[1]))]


def with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit else text


def wanted(about: Description) -> str:
    """What a model takes, in words that continue "the model takes"."""
    if about.inputs.are_images:
        return "pictures, or folders of them"
    flags = [f"--{name_key(each.name)}" for each in about.inputs.columns]
    if len(flags) == 1:
        unit = about.inputs.columns[0].unit
        return f"numbers, {flags[0]}{f' in {unit}' * bool(unit)}, or a CSV file"
    as_flags = f", or {some_of(flags, 'flags')}" if flags else ""
    return f"a CSV file of {about.inputs.shape[-1]} columns{as_flags}"


# Pictures


def _read_pictures(about: Description, words: Sequence[Input], invert: bool) -> Inputs:
    _, channels, height, width = about.inputs.shape
    if channels not in (1, 3) or height != width:
        raise SettingsError(f"{about.topic} takes {channels} x {height} x {width} bytes, which no picture is read as")
    paths = [path for word in words for path in _pictures_of(about, word)]
    names, images, unread = list[str](), list[torch.Tensor](), list[str]()
    for path, image in zip(paths, decode_all(paths, int(width)), strict=True):
        if image is None:
            unread.append(str(path))
        else:
            names.append(str(path))
            images.append(image)
    if not images:
        what = f"{unread[0]} is no picture" if len(unread) == 1 else f"none of these is a picture: {some_of(unread)}"
        raise CourseError(f"{what} that can be read; {about.topic} takes {wanted(about)}")
    values = torch.stack(images)  # N x 3 x H x W
    values = grey(values) if channels == 1 else values
    values = 255 - values if invert else values
    return Inputs(names, values.numpy(), _background(about, names, values, invert), unread)


def _pictures_of(about: Description, word: Input) -> list[Path]:
    path = Path(str(word))
    if path.is_dir():
        return images_below(path)
    if not path.is_file():
        raise SettingsError(f"there is no picture or folder {word}; {about.topic} takes {wanted(about)}")
    return [path]


def _background(about: Description, names: Sequence[str], images: torch.Tensor, inverted: bool) -> list[str]:
    """What is to be said of pictures whose border is lighter or darker than those of the training pictures."""
    if about.inputs.border is None:
        return []
    low, high = about.inputs.border
    means = border_means(images)  # N

    def distance(values: torch.Tensor) -> torch.Tensor:
        return (low - values).clamp(min=0) + (values - high).clamp(min=0)

    is_outside = distance(means) > 0
    if not is_outside.any():
        return []
    unlike, outside = [names[row] for row in is_outside.nonzero()[:, 0].tolist()], means[is_outside]
    how = "a lighter" if (outside > high).all() else "a darker" if (outside < low).all() else "another"
    who = f"{some_of(unlike)} of {len(names)} pictures" if len(names) > 1 else unlike[0]
    verb = "has" if len(unlike) == 1 else "have"
    said = f"{who} {verb} {how} background than 99 % of the training pictures, whose borders are {low:.3g} to "
    said += f"{high:.3g} of 255"
    if (distance(255 - outside) < distance(outside)).float().mean() > 0.5:
        kind = "light on dark" if low + high < 255 else "dark on light"
        said += f": {'leave --invert out' if inverted else f'if those are {kind} and yours are not, add --invert'}"
    return [said]


# Numbers


def _read_numbers(
    about: Description, columns: Sequence[Column], words: Sequence[Input], features: Mapping[str, object]
) -> Inputs:
    names: list[str] = []
    rows: list[NDArray[np.float64]] = []
    warnings: list[str] = []
    for word in words:
        if (value := _number(word)) is not None:
            rows.append(_single(about, columns, word, value))
            names.append(_name_of_row(columns, rows[-1][0]))
        else:
            read, lines, warning = _read_csv(about, columns, word)
            rows.append(read)
            names += lines
            warnings += warning
    if features:
        rows.append(_row_of(about, columns, features))
        names.append(_name_of_row(columns, rows[-1][0]))
    values = np.concatenate(rows).astype(about.inputs.dtype)  # N x columns
    if np.issubdtype(values.dtype, np.integer) and (values != np.concatenate(rows)).any():
        raise CourseError(f"{about.topic} takes whole numbers of type {values.dtype}")
    return Inputs(names, values, warnings + _outside(about, columns, values))


def _number(word: Input) -> float | None:
    try:
        return float(word) if not isinstance(word, Path) else None
    except ValueError:
        return None


def _finite(value: float, name: str, shown: object) -> float:
    if not abs(value) <= LARGEST:
        raise SettingsError(f"{name} must be a finite number, not {shown}")
    return value


def _single(about: Description, columns: Sequence[Column], word: Input, value: float) -> NDArray[np.float64]:
    if len(columns) != 1:
        raise SettingsError(f"{word} is one number, and {about.topic} takes {wanted(about)}")
    return np.array([[_finite(value, columns[0].name, word)]])


def _row_of(about: Description, columns: Sequence[Column], features: Mapping[str, object]) -> NDArray[np.float64]:
    by_key = {name_key(name): value for name, value in features.items()}
    keys = [name_key(each.name) for each in columns]
    if missing := [f"--{key}" for key in keys if key not in by_key]:
        raise SettingsError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: a row has them all")
    row = []
    for key, column in zip(keys, columns, strict=True):
        value = _number(str(by_key[key]))
        if value is None:
            raise SettingsError(
                f"--{key} must be a number{f' in {column.unit}' * bool(column.unit)}, not {by_key[key]}"
            )
        row.append(_finite(value, f"--{key}", by_key[key]))
    return np.array([row])


def _read_csv(
    about: Description, columns: Sequence[Column], word: Input
) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """The values of a CSV file, N x columns; the names of its rows; and a warning if its columns have other names."""
    path = Path(str(word))
    if not path.is_file() or path.suffix.lower() in ENDINGS:
        what = (
            "is a picture" if path.is_file() else "is a folder" if path.is_dir() else "is neither a number nor a file"
        )
        raise SettingsError(f"{word} {what}; {about.topic} takes {wanted(about)}")
    features = [f"{each.name} in {each.unit}" if each.unit else each.name for each in columns]
    table, others = read_features(path, features)
    names = [f"{path} line {line}" for line in table.index]
    warnings = []
    if others and about.inputs.columns:
        pairs = some_of([f"{other!r} as {feature}" for other, feature in zip(others, features, strict=True)])
        warnings = [f"{path} names no column as the model does, so that they are taken in order: {pairs}"]
    return table.to_numpy(), names, warnings


def _name_of_row(columns: Sequence[Column], row: NDArray[np.float64]) -> str:
    shown = [with_unit(f"{each.name} {value:g}", each.unit) for each, value in zip(columns, row, strict=True)]
    return ", ".join(shown) if len(shown) <= 2 else f"{shown[0]}, ..."


def _outside(about: Description, columns: Sequence[Column], values: NDArray[np.generic]) -> list[str]:
    """What is to be said of each column with values outside the range of the training rows."""
    said = []
    for place, column in enumerate(columns):
        if column.low is None or column.high is None:
            continue
        seen = values[:, place].astype(np.float64)
        outside = (seen < column.low) | (seen > column.high)
        limits = with_unit(f"{column.low:.4g} to {column.high:.4g}", column.unit)
        if outside.any() and len(values) == 1:
            value = with_unit(f"{column.name} {seen[0]:g}", column.unit)
            said.append(f"{value} is outside {limits} of the training rows")
        elif outside.any():
            verb = "is" if outside.sum() == 1 else "are"
            said.append(
                f"{column.name}: {outside.sum()} of {len(values)} rows {verb} outside {limits} of the training rows"
            )
    source = about.settings.get("data", {}).get("source")
    if said and source:
        said.append(f"the training rows are those of --data.source {source}: are yours in the same units?")
    return said
