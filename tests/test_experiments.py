"""Every YAML file in experiments/, trained for a moment."""

from pathlib import Path
from typing import Any

import pytest

import dlcourse
from dlcourse import topics
from dlcourse.training.request import resolve
from tests.conftest import EXPERIMENTS
from tests.image_sets import write_cifar10, write_fashion_mnist, write_image_folder, write_weights

MADE_UP = {"fashion-mnist": write_fashion_mnist, "cifar10": write_cifar10, "image-folder": write_image_folder}
FILES = sorted(EXPERIMENTS.glob("*/*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_trains(project: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = file.parent.name
    few: dict[str, Any] = {"trainer": {"max_epochs": 2, "limit_batches": 2}}
    if topic in MADE_UP:
        MADE_UP[topic](project / "data", monkeypatch, train=30, test=10)
        few |= {"data": {"batch_size": 10}, "model": {"compile": False}}
        if topic == "image-folder":
            write_weights("resnet18", project / "weights", monkeypatch)
        else:
            few["data"]["val_rows"] = 10
    result = dlcourse.train(topic, config=file, **few)
    assert result.model_uri
    assert result.verdict.sentence.split()[0].strip(":") in ("learned", "unfinished", "stuck", "converged")


@pytest.mark.parametrize("name", topics.titles())
def test_the_default_file_is_what_a_topic_does_without_one(project: Path, name: str) -> None:
    without = resolve(name, None, None, None, None, None)
    assert without.settings == resolve(name, EXPERIMENTS / name / "default.yaml", None, None, None, None).settings
    assert without.name == "default"
