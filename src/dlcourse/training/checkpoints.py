"""From the trained module to a model in MLflow, and back, verified.

The model is a program of `torch.export` (format pt2): it takes raw inputs, needs torch alone, and runs no pickled code.
"""

import warnings
from pathlib import Path
from typing import Any

import torch

from dlcourse.data.datamodule import CourseData
from dlcourse.errors import CourseError, one_line
from dlcourse.models.base import CourseModel
from dlcourse.topics import Topic


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a Lightning checkpoint, read without running any code that it may hold.

    Raises:
        CourseError: There is no such file, or it is no checkpoint.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's remarks on files that are none of its own
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CourseError(f"there is no checkpoint {path}") from error
    except Exception as error:  # torch.load raises a dozen kinds, whose messages advise to load the file unsafely
        raise CourseError(
            f"{path} is no checkpoint: it is damaged, or holds more than the weights and plain values that are read"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CourseError(f"{path} is no Lightning checkpoint: it has no state_dict")
    return content


def load_checkpoint(topic: Topic, path: Path) -> tuple[CourseModel, CourseData]:
    """Model (with its weights, as precise as they are kept) and data (not set up yet) of a checkpoint.

    Raises:
        CourseError: The file is no checkpoint of this topic.
    """
    content = read_checkpoint(path)
    try:
        model = topic.model(**content["hyper_parameters"])
        model.load_state_dict(content["state_dict"], assign=True)  # in the checkpoint's type of number
        data = topic.data(**content["datamodule_hyper_parameters"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CourseError(f"{path} is no checkpoint of {topic.name}: {one_line(error)[:120]}") from error
    return model.eval(), data
