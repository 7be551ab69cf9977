"""Folders of images: the class and the split of each file."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlcourse.data.rows import SPLITS, Split
from dlcourse.errors import CourseError, SettingsError, one_line, some_of

ENDINGS = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""How names of image files end, in lower or upper case."""
LAYOUT = (
    "it must hold a folder of images for each class, either as train/<class>/ with val/<class>/ or test/<class>/ "
    "beside it, or as <class>/ alone, to be split"
)


@dataclass(frozen=True)
class ImageFile:
    """An image file with its class and split. Files of "train" may still be split, where a split has no folder."""

    path: Path
    class_name: str
    split: Split


@dataclass(frozen=True)
class FolderContents:
    """The images of a folder, sorted by path, and what else is in it: one line of text for each kind."""

    files: tuple[ImageFile, ...]
    left_out: tuple[str, ...]


def read_folder(root: Path) -> FolderContents:
    """List the images of a folder. No file is opened.

    ``train/`` holds training images, ``test/`` test images, and ``val/`` validation images, or test images where there
    is no ``test/``. Without a ``train/`` that holds folders, each folder is a class of training images.

    Names that begin with a dot are ignored. Links are followed, but not to a folder that contains them.

    Raises:
        SettingsError: The folder does not exist, or has fewer than two classes to train on.
        CourseError: Something in it cannot be read.
    """
    if not root.is_dir():
        raise SettingsError(f"--data.root {root} {'is no folder' if root.exists() else 'does not exist'}: {LAYOUT}")
    try:
        return _read(root)
    except OSError as error:
        raise CourseError(f"--data.root {root} cannot be read: {one_line(error)}") from error


def classes_to_train_on(root: Path, files: Sequence[ImageFile]) -> tuple[str, ...]:
    """The names of the classes, in alphabetical order; raises `SettingsError` where there are fewer than two."""
    classes = sorted({each.class_name for each in files if each.split == "train"})
    if len(classes) < 2:
        only = f"images of {classes[0]} alone" if classes else "no images"
        raise SettingsError(f"--data.root {root} has {only} to train on, and two classes are the least: {LAYOUT}")
    return tuple(classes)


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and of the folders in it, sorted by path; raises `CourseError` if it has none."""
    try:
        files = sorted(filter(_is_image, _files_below(folder, set())))
    except OSError as error:
        raise CourseError(f"{folder} cannot be read: {one_line(error)}") from error
    if not files:
        raise CourseError(f"{folder} has no pictures: their names end with one of {', '.join(ENDINGS)}")
    return files


def _read(root: Path) -> FolderContents:
    parents = _parents_of_class_folders(root)
    images: list[ImageFile] = []
    empty: list[str] = []
    loose = [file for folder in sorted({root, *parents.values()}) for file in _visible(folder) if file.is_file()]
    unused = [] if root in parents.values() else [each for each in _folders(root) if each not in parents.values()]
    other = [file for file in loose if not _is_image(file)]
    for split, parent in parents.items():
        for folder in _folders(parent):
            files = sorted(_files_below(folder, set()))
            class_name = folder.name.encode("utf-8", "backslashreplace").decode()  # names need not be UTF-8
            images += [ImageFile(file, class_name, split) for file in files if _is_image(file)]
            other += [file for file in files if not _is_image(file)]
            if not any(map(_is_image, files)):
                empty.append(str(folder.relative_to(root)))
    kinds = {
        "folders of classes without an image": empty,
        "folders beside train": [each.name for each in unused],
        "images outside of the classes' folders": sorted(each.name for each in loose if _is_image(each)),
        "files that are not named like images": [each.name for each in other],
    }
    classes_to_train_on(root, images)
    return FolderContents(tuple(images), tuple(f"{kind}: {some_of(names)}" for kind, names in kinds.items() if names))


def _parents_of_class_folders(root: Path) -> dict[Split, Path]:
    """The folders that hold the classes' folders, by split. One without any, such as unlabelled images, is none."""
    parents = {split: root / split for split in SPLITS if (root / split).is_dir() and _folders(root / split)}
    if "train" not in parents:
        return {"train": root}
    if "val" in parents and "test" not in parents:
        parents["test"] = parents.pop("val")
    return parents


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS


def _files_below(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Every file of a folder and of the folders in it. Links to folders are followed once, and never upwards."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for path in _visible(folder):
        if path.is_file():
            yield path
        elif path.is_dir() and not real.startswith(os.path.join(os.path.realpath(path), "")):
            yield from _files_below(path, seen)
