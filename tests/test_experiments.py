"""Every YAML file in experiments/, trained for a moment."""

from collections.abc import Callable
from pathlib import Path

import pytest

import dlcourse
from dlcourse import topics
from dlcourse.experiment import train
from dlcourse.settings import resolve, settings_parser
from tests.conftest import EXPERIMENTS

NEEDS = {"diabetes": "diabetes/diabetes.csv.gz"}
FILES = sorted(EXPERIMENTS.glob("*/*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_trains(project: Path, file: Path, real_data: Callable[[str], Path]) -> None:
    if file.parent.name in NEEDS:
        real_data(NEEDS[file.parent.name])
    result = dlcourse.train(file.parent.name, config=file, trainer={"max_epochs": 2, "limit_batches": 2})
    assert result.model_uri
    assert result.verdict.headline.split()[0].strip(":") in ("learned", "unfinished", "stuck")


@pytest.mark.parametrize("name", topics.titles())
def test_default_file_is_what_a_topic_does_without_one(name: str) -> None:
    parser = settings_parser(topics.find(name), train, "dlcourse")
    assert resolve(parser.parse_values({}, str(EXPERIMENTS / name / "default.yaml"))) == resolve(
        parser.parse_values({})
    )
