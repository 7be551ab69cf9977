"""The topics' default experiments. That every file in experiments/ trains is in test_trajectories.py."""

from pathlib import Path

import pytest

from dlcourse import topics
from dlcourse.training.request import resolve
from tests.conftest import EXPERIMENTS


@pytest.mark.parametrize("name", topics.titles())
def test_the_default_file_is_what_a_topic_does_without_one(project: Path, name: str) -> None:
    without = resolve(name, None, None, None, None, None)
    assert without.settings == resolve(name, EXPERIMENTS / name / "default.yaml", None, None, None, None).settings
    assert without.name == "default"
