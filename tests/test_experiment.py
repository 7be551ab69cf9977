"""One experiment from settings to verdict: the figures that it must reach, and that it repeats itself."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import dlcourse
from dlcourse import baselines
from dlcourse.data import CourseData
from dlcourse.errors import CourseError, SettingsError
from dlcourse.experiment import Result
from tests.conftest import EXPERIMENTS

HEIGHT_WEIGHT = EXPERIMENTS / "height-weight"
QUICK: dict[str, Any] = {"max_epochs": 3}


def quick(**settings: Any) -> Result:
    trainer = QUICK | settings.pop("trainer", {})
    return dlcourse.train("height-weight", trainer=trainer, **settings)


def over_least_squares(result: Result) -> float:
    """Training error over that of least squares on the same rows."""
    data, model = result.data, result.model
    assert isinstance(data, CourseData)
    assert model is not None
    rows = data.splits["train"]
    inputs, targets = data.rows.inputs[rows], data.rows.targets[rows]
    best = (baselines.least_squares(inputs, targets)(inputs) - targets).double().square().mean()
    with torch.no_grad():
        return float((model(inputs) - targets).double().square().mean() / best)


@pytest.mark.parametrize("seed", range(3))
def test_default_reaches_least_squares(project: Path, seed: int) -> None:
    result = dlcourse.train("height-weight", config=HEIGHT_WEIGHT / "default.yaml", seed=seed)
    assert over_least_squares(result) <= 1.0005
    assert result.verdict.headline == "learned: no better and no worse than least-squares"
    assert result.metrics["best/epoch"] < 199, "early stopping has not stopped it"


@pytest.mark.parametrize("seed", range(3))
def test_notes_come_close_to_least_squares(project: Path, seed: int) -> None:
    result = dlcourse.train("height-weight", config=HEIGHT_WEIGHT / "notes.yaml", seed=seed)
    assert over_least_squares(result) <= 1.002
    assert result.metrics["best/epoch"] == 99
    assert "not measured" in result.card


@pytest.mark.slow
def test_table_answers_the_course_question_for_20_seeds(project: Path) -> None:
    answers = [
        dlcourse.train("height-weight", config=HEIGHT_WEIGHT / "table.yaml", seed=seed).answers["176"]
        for seed in range(20)
    ]
    assert answers == pytest.approx([70.30] * 20, abs=0.05)
