"""The course's figures for heights and weights."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dlcourse
from dlcourse.cli import main
from dlcourse.data.datamodule import CourseData
from dlcourse.evaluation import baselines
from dlcourse.reporting.result import Result
from dlcourse.training.fit import new_model
from dlcourse.training.request import resolve
from tests.conftest import EXPERIMENTS

HEIGHT_WEIGHT = EXPERIMENTS / "height-weight"


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
    assert result.verdict.sentence == "learned: these 20 test rows cannot tell this model from least-squares"
    assert result.metrics["best_epoch"] < 199, "early stopping has not stopped it"


@pytest.mark.parametrize("seed", range(3))
def test_notes_come_close_to_least_squares(project: Path, seed: int) -> None:
    result = dlcourse.train("height-weight", config=HEIGHT_WEIGHT / "lecture.yaml", seed=seed)
    assert over_least_squares(result) <= 1.002
    assert result.metrics["best_epoch"] == 99
    assert "not measured" in result.card
    assert result.verdict.sentence.startswith("fitted: mse 114.")
    assert result.verdict.learned is None


def descended(seed: int, epochs: int = 1000) -> tuple[Tensor, Tensor, float]:
    """Weight, bias and answer after the table's epochs, by a loop of torch alone: a step is all five rows."""
    request = resolve("height-weight", "table", None, None, None, seed)
    data = request.topic.data(**request.settings.data)
    data.prepare_data()
    data.setup("fit")
    model = new_model(request.topic, data, request.settings)
    model.prepare(data)
    inputs, targets = data.rows.inputs, data.rows.targets
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        model.training_loss(model(inputs), targets).backward()
        optimizer.step()
    weight, bias = (each.detach().flatten() for each in model.parameters())
    return weight, bias, float(model(torch.tensor([[176.0]])).detach())


@pytest.mark.parametrize("seed", range(20))
def test_table_answers_the_course_question(seed: int) -> None:
    assert descended(seed)[2] == pytest.approx(70.30, abs=0.05)


def test_a_run_of_the_table_is_that_descent(project: Path) -> None:
    result = dlcourse.train("height-weight", config="table", trainer={"max_epochs": 300})
    weight, bias = (each.detach().flatten() for each in result.model.parameters())
    expected = descended(0, 300)
    assert torch.allclose(weight, expected[0], rtol=1e-5)
    assert torch.allclose(bias, expected[1], rtol=1e-5)
    assert result.answers == {"176": pytest.approx(expected[2], rel=1e-6)}


def test_raw_heights_diverge_and_the_run_says_why(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["train", "height-weight", "--config", str(HEIGHT_WEIGHT / "table.yaml"), "--data.standardize=false"]) == 1
    )
    card = capsys.readouterr().out
    assert "diverged" in card
    assert "lower --model.lr (0.01) or standardise the inputs (--data.standardize true)" in card
    store = dlcourse.open_store()
    run = store.find_run("table, data.standardize=False", "height-weight")
    assert run.info.status == "FAILED"
    assert run.data.tags["dlcourse.error"].startswith("diverged")
    assert all(math.isfinite(value) for value in run.data.metrics.values())
    assert not store.client.search_logged_models([run.info.experiment_id])
