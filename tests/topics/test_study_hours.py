"""Study hours: what the course prints, and what other starts lead to."""

import math

import pytest
import torch

from dlcourse.models.convergence import assess_convergence
from tests.topics.test_gradient_descent import Descended


@pytest.fixture(scope="module")
def lecture() -> Descended:
    """The lecture's descent of 1000 epochs, for tests that only look at it."""
    return Descended("lecture", "study-hours")


def test_notes(lecture: Descended) -> None:
    assert lecture.weight("w")[-1] == pytest.approx(1.1991, abs=1e-3)
    assert lecture.weight("b")[-1] == pytest.approx(-2.8968, abs=1e-3)
    assert lecture.loss[-1] == pytest.approx(1.0462, abs=1e-3)
    assert torch.sigmoid(torch.tensor(lecture.answer(4))) == pytest.approx(0.8699, abs=1e-3)
    assert lecture.trainer.global_step == 1000


def test_every_epoch_by_hand() -> None:
    run = Descended("lecture", "study-hours", trainer={"max_epochs": 50})
    w, b = 0.2514, 0.1098
    for epoch in range(50):
        probabilities = [1 / (1 + math.exp(-(w * hours + b))) for hours in (1, 2, 3)]
        errors = [p - passed for p, passed in zip(probabilities, (0, 0, 1), strict=True)]
        loss = -math.log(1 - probabilities[0]) - math.log(1 - probabilities[1]) - math.log(probabilities[2])
        assert run.loss[epoch] == pytest.approx(loss, rel=1e-5)
        w -= 0.01 * sum(error * hours for error, hours in zip(errors, (1, 2, 3), strict=True))
        b -= 0.01 * sum(errors)
        assert run.model.path[epoch + 1] == pytest.approx([w, b], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_other_starts_come_near(seed: int) -> None:
    """Seeds 0 to 19 likewise, by `python -m benchmarks.descents`."""
    run = Descended("default", "study-hours", seed=seed)
    assert 0.80 < float(torch.sigmoid(torch.tensor(run.answer(4)))) < 0.92
    w, b = run.model.path[-1]
    assert 2.3 < -b / w < 2.6


@pytest.mark.slow
def test_points_that_can_be_told_apart_have_no_minimum(lecture: Descended) -> None:
    assert assess_convergence(lecture.model, lecture.data).sentence == "unfinished: the loss still falls"
