"""Measuring by the Trainer and measuring outputs at hand are the same."""

from dataclasses import replace

import pytest
import torch
from scipy import stats

from dlcourse.data.rows import SPLITS, Rows
from dlcourse.evaluation.evaluate import evaluate, evaluate_outputs
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.intervals import interval_of_mean
from dlcourse.models.base import CourseModel
from dlcourse.training.trainer import make_trainer
from tests.samples import Kinds, Line, Noisy, YesOrNo, data_of, iris, numbers, two_classes


def close(first: Evaluation, second: Evaluation) -> None:
    assert first.metrics == pytest.approx(second.metrics, rel=1e-5)
    assert torch.allclose(first.outputs, second.outputs)
    assert torch.equal(first.targets, second.targets)
    torch.testing.assert_close(first.losses, second.losses)
    assert first.scores.keys() == second.scores.keys()
    assert first.intervals.keys() == second.intervals.keys()
    for name, interval in first.intervals.items():
        assert interval == pytest.approx(second.intervals[name], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "rows"), [(Line, numbers()), (Noisy, numbers(3000)), (YesOrNo, two_classes()), (Kinds, iris())]
)
def test_evaluate_agrees_with_the_outputs_of_the_model_itself(kind: type[CourseModel], rows: Rows) -> None:
    data = data_of(rows)
    model = kind(data.shape, data.outputs)
    model.set_scaling(*data.scaling)
    trainer = make_trainer(accelerator="cpu")
    for split in SPLITS:
        measured = evaluate(trainer, model, model, data, split)
        with torch.no_grad():
            own = model.eval()(rows.inputs[data.splits[split]])
        close(measured, evaluate_outputs(model, split, own, data.rows.targets[data.splits[split]]))
        assert measured.split == split
        assert measured.losses.dtype == torch.float64


def test_dropout_is_off_while_measuring() -> None:
    data = data_of(numbers())
    model = Noisy(data.shape, data.outputs).train()
    trainer = make_trainer(accelerator="cpu")
    assert evaluate(trainer, model, model, data, "val").metrics == evaluate(trainer, model, model, data, "val").metrics


def test_interval_of_a_mean_is_student_s() -> None:
    rows = replace(numbers(40), targets=torch.arange(40.0)[:, None])
    data = data_of(rows, val_fraction=0.0, test_fraction=0.0)
    evaluation = evaluate_outputs(Line([3], 1), "train", torch.zeros(40, 1), data.rows.targets[data.splits["train"]])
    squares = torch.arange(40.0).double().square()
    assert evaluation.metrics["mse"] == pytest.approx(squares.mean().item())
    expected = stats.t.interval(0.95, 39, squares.mean(), squares.std() / 40**0.5)
    assert evaluation.intervals["mse"] == pytest.approx(expected)


def test_interval_of_a_share_is_wilson_s_and_never_nothing() -> None:
    """Wilson (1927): for 12 of 12, from 1 / (1 + z² / 12) to 1."""
    assert interval_of_mean(torch.ones(12)) == pytest.approx((1 / (1 + 1.959964**2 / 12), 1.0))
    assert interval_of_mean(torch.tensor([1.0, 1, 1, 0])) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    low, high = interval_of_mean(torch.zeros(1))
    assert low == 0
    assert high > 0.7


def test_one_row_has_no_interval() -> None:
    data = data_of(numbers(5), val_fraction=0.0, test_fraction=0.2)
    evaluation = evaluate_outputs(Line([3], 1), "test", torch.zeros(1, 1), data.rows.targets[data.splits["test"]])
    assert evaluation.intervals == {}
