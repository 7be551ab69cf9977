"""The ants and bees of PyTorch's tutorial on transfer learning (Chilamkurthy 2017), from where the tutorial has them.

https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
"""

import logging
import os
import shutil
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

from filelock import FileLock

from dlcourse.errors import CourseError, one_line
from dlcourse.fetching import UnavailableError, download

log = logging.getLogger(__name__)

ADDRESS = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
PICTURES = {"train/ants": 123, "train/bees": 121, "val/ants": 70, "val/bees": 83}
"""How many there are in each folder."""
ENDINGS = (".jpg", ".jpeg")
"""The one file that is named otherwise, train/ants/imageNotFound.gif, shows no ant."""


def fetch(folder: Path) -> None:
    """Have the pictures in ``folder``, as ``{train,val}/{ants,bees}/*.jpg``: whole, or not at all.

    No checksum of the archive is published. So each file is checked by the archive's own sum of it (CRC-32), and there
    must be as many in each folder as the tutorial has.

    Raises:
        CourseError: They are not there and cannot be had, or there is nowhere to keep them.
    """
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                log.info("downloading the ants and bees to %s, once", folder)
                _download(folder)
    except UnavailableError as error:
        raise CourseError(
            f"the ants and bees cannot be downloaded ({error.reason}): name a folder of your own pictures with "
            f"--data.root PATH, or unpack {ADDRESS} elsewhere and move its hymenoptera_data to {folder}"
        ) from error
    except OSError as error:
        raise CourseError(
            f"{folder} cannot be written ({one_line(error)}): make room there and the folder writable, or set "
            "DLCOURSE_DATA_DIR to another folder"
        ) from error


def _download(folder: Path) -> None:
    archive = folder.with_suffix(".zip")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        download(ADDRESS, archive)
        for path, content in _pictures(archive).items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_bytes(content)
        partial.rename(folder)
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)


def _pictures(archive: Path) -> dict[str, bytes]:
    """The pictures of an archive, by the last three parts of their paths, whatever comes before."""
    pictures = {}
    try:
        with zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                path = PurePosixPath(member.filename)
                if path.suffix.lower() in ENDINGS and not path.name.startswith("."):
                    pictures["/".join(path.parts[-3:])] = content.read(member)
    except Exception as error:  # of damaged archives it raises half a dozen kinds
        raise UnavailableError(f"{ADDRESS} is damaged", f"what came is damaged: {one_line(error)}") from error
    counts = Counter(str(PurePosixPath(path).parent) for path in pictures)
    if counts != PICTURES:
        told = ", ".join(f"{count} pictures in {place}" for place, count in counts.items())
        raise UnavailableError(f"{ADDRESS} is another archive", f"what came has {told[:150]}: it is another archive")
    return pictures
