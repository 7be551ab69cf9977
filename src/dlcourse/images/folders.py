"""Folders of images: which file shows which class, and whether it is there for training, validation or testing."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlcourse.data.rows import SPLITS, Split
from dlcourse.errors import CourseError, SettingsError, one_line

ENDINGS = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What the name of an image ends in, in small or capital letters."""
LAYOUT = (
    "it must hold a folder of images for each class, either as train/<class>/ with val/<class>/ or test/<class>/ "
    "beside it, or as <class>/ alone, to be split"
)


@dataclass(frozen=True)
class ImageFile:
    """A file, what it shows, and which rows it is one of; from training rows others may be cut."""

    path: Path
    of_class: str
    split: Split


@dataclass(frozen=True)
class FolderContents:
    """The images of a folder, in an order that their paths decide, and what else is in it, a line for each kind."""

    files: tuple[ImageFile, ...]
    left_out: tuple[str, ...]


def read_folder(root: Path) -> FolderContents:
    """Find the images of a folder, by their names alone.

    ``train/`` is for training, ``test/`` for testing, and ``val/`` for validation, or for testing where there is no
    ``test/``. Where ``train/`` holds no folders, or is not there, each folder is a class to train on.

    What begins with a dot is passed over. Links are followed, but to no folder that they are in.

    Raises:
        SettingsError: There is no such folder, or it has fewer than two classes to train on.
        CourseError: Something in it cannot be read.
    """
    if not root.is_dir():
        raise SettingsError(f"--data.root {root} is {'no folder' if root.exists() else 'not there'}: {LAYOUT}")
    try:
        return _read(root)
    except OSError as error:
        raise CourseError(f"--data.root {root} cannot be read: {one_line(error)}") from error


def classes_to_train_on(root: Path, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """The names of the classes, in alphabetical order; raises `SettingsError` where there are fewer than two."""
    classes = sorted({each.of_class for each in files if each.split == "train"})
    if len(classes) < 2:
        only = f"images of {classes[0]} alone" if classes else "no images"
        raise SettingsError(f"--data.root {root} has {only} to train on, and two classes are the least: {LAYOUT}")
    return tuple(classes)


def some_of(names: Sequence[str]) -> str:
    """How many there are, and the first few."""
    return f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


def _read(root: Path) -> FolderContents:
    places = _places(root)
    images: list[ImageFile] = []
    empty: list[str] = []
    outside = [file for place in sorted({root, *places.values()}) for file in _visible(place) if file.is_file()]
    beside = [] if root in places.values() else [each for each in _folders(root) if each not in places.values()]
    strange = [file for file in outside if not _is_image(file)]
    for split, place in places.items():
        for folder in _folders(place):
            files = sorted(_files_below(folder, set()))
            of_class = folder.name.encode("utf-8", "backslashreplace").decode()  # names need not be UTF-8
            found = [ImageFile(file, of_class, split) for file in files if _is_image(file)]
            images += found
            strange += [file for file in files if not _is_image(file)]
            if not found:
                empty.append(str(folder.relative_to(root)))
    kinds = {
        "folders of classes without an image": empty,
        "folders beside train": [each.name for each in beside],
        "images outside of the classes' folders": sorted(each.name for each in outside if _is_image(each)),
        "files that are not named like images": [each.name for each in strange],
    }
    classes_to_train_on(root, images)
    return FolderContents(tuple(images), tuple(f"{kind}: {some_of(names)}" for kind, names in kinds.items() if names))


def _places(root: Path) -> dict[Split, Path]:
    """The folders that the classes' folders are in; one without any, such as unlabelled images, does not count."""
    there = {name: root / name for name in SPLITS if (root / name).is_dir() and _folders(root / name)}
    if "train" not in there:
        return {"train": root}
    if "val" in there and "test" not in there:
        there["test"] = there.pop("val")
    return there


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(place: Path) -> list[Path]:
    return [path for path in _visible(place) if path.is_dir()]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS


def _files_below(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Every file of a folder and of the folders in it; each real folder once, and none that the folder is in."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for path in _visible(folder):
        if path.is_file():
            yield path
        elif path.is_dir() and not real.startswith(os.path.join(os.path.realpath(path), "")):
            yield from _files_below(path, seen)
