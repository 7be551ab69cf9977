"""Reading checkpoints, those of earlier versions too, without running code that they may hold."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch

from dlcourse import settings
from dlcourse.errors import CourseError, one_line
from dlcourse.topics import Topic

RENAMED_WEIGHTS = {"input_deviation": "input_std"}
"""Buffers that had another name in earlier versions."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a Lightning checkpoint, on the CPU, with the names of today.

    Raises:
        CourseError: There is no such file, or it is not a checkpoint.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of files that it has not written
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CourseError(f"there is no checkpoint {path}") from error
    except Exception as error:  # torch.load raises a dozen kinds, whose messages advise to load the file unsafely
        raise CourseError(
            f"{path} is no checkpoint: it is damaged, or holds more than the weights and plain values that are read"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CourseError(f"{path} is no Lightning checkpoint: it has no state_dict")
    return upgrade(content)


def upgrade(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of an earlier version with the names of today; its own dictionary is changed."""
    for part, names in (("state_dict", RENAMED_WEIGHTS), ("hyper_parameters", settings.RENAMED)):
        content = checkpoint.get(part, {})
        for old, new in names.items():
            if old in content:
                content[new] = content.pop(old)
    curve = checkpoint.get("dlcourse_curve", {})
    for name in [each for each in curve if each.startswith("gap/")]:
        points = curve.pop(name)
        if name.startswith("gap/train_"):
            curve[f"train/eval_{name.removeprefix('gap/train_')}"] = points
    return checkpoint


def load_checkpoint(topic: Topic, path: Path) -> tuple[L.LightningModule, L.LightningDataModule]:
    """The model of a checkpoint, in evaluation mode and with its weights in the precision that they were saved in.

    Its data comes with it, not yet set up.

    Raises:
        CourseError: The file is not a checkpoint of this topic.
    """
    content = read_checkpoint(path)
    model = model_of(topic, content, path)
    with _of_topic(topic, path):
        data = topic.data(**content["datamodule_hyper_parameters"])
    return model, data


def model_of(topic: Topic, content: Mapping[str, Any], path: Path) -> L.LightningModule:
    """A topic's model with the hyper-parameters and weights of a checkpoint, in evaluation mode.

    Raises:
        CourseError: They are not those of this topic.
    """
    with _of_topic(topic, path):
        settings = dict(content["hyper_parameters"])
        if "pretrained" in settings:
            settings["pretrained"] = False  # all weights are here, so that nothing is to be downloaded for them
        model = topic.model(**settings)
        model.load_state_dict(content["state_dict"], assign=True)
    return model.eval()


@contextmanager
def _of_topic(topic: Topic, path: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise CourseError(
            f"{path} is no checkpoint of {topic.name}: it has no {error}, which self.save_hyperparameters() in the "
            "__init__ of data and model would keep"
        ) from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise CourseError(f"{path} is no checkpoint of {topic.name}: {one_line(error)[:120]}") from error
