"""The ants and bees of PyTorch's tutorial on transfer learning (Chilamkurthy 2017), from the tutorial's own server.

https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
"""

import logging
import os
import shutil
import zipfile
from pathlib import Path

from filelock import FileLock

from dlcourse.data.downloads import UnavailableError, download
from dlcourse.errors import CourseError, one_line

log = logging.getLogger(__name__)

ADDRESS = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
CHECKSUM = "sha256:fbc41b31d544714d18dd1230b1e2b455e1557766e13e67f9f5a7a23af7c02209"
"""As in .jenkins/download_data.py of github.com/pytorch/tutorials, commit 2286ae1."""
INSIDE = "hymenoptera_data"
"""The archive's only folder."""
ENDINGS = (".jpg", ".jpeg")
"""The archive's only other image, train/ants/imageNotFound.gif, shows no ant."""


def fetch(folder: Path) -> None:
    """Download the images to ``folder``, as ``{train,val}/{ants,bees}/*.jpg``, unless it exists.

    Raises:
        CourseError: They cannot be downloaded, or the folder cannot be written.
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
            f"the ants and bees cannot be downloaded ({error.reason}): name a folder of your own images with "
            f"--data.root PATH, or unpack {ADDRESS} elsewhere and move its {INSIDE} to {folder}"
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
        download(ADDRESS, archive, CHECKSUM)
        with zipfile.ZipFile(archive) as content:
            content.extractall(partial, [name for name in content.namelist() if name.lower().endswith(ENDINGS)])
        (partial / INSIDE).rename(folder)
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
