"""Measuring by the Trainer and measuring outputs at hand are the same."""

from dataclasses import replace

import pytest
import torch

from dlcourse.data import SPLITS, Rows
from dlcourse.evaluating import Evaluation, evaluate, evaluate_outputs
from dlcourse.learning import CourseModel
from dlcourse.trainer import make_trainer
from tests.samples import Kinds, Line, Noisy, YesOrNo, data_of, iris, numbers, two_classes


def close(first: Evaluation, second: Evaluation) -> None:
    assert first.metrics == pytest.approx(second.metrics, rel=1e-5)
    assert torch.allclose(first.outputs, second.outputs)
    assert torch.equal(first.targets, second.targets)
    torch.testing.assert_close(first.losses, second.losses)
    assert first.scores.keys() == second.scores.keys()
    assert first.standard_errors == pytest.approx(second.standard_errors, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "rows"), [(Line, numbers()), (Noisy, numbers(3000)), (YesOrNo, two_classes()), (Kinds, iris())]
)
def test_evaluate_agrees_with_the_outputs_of_the_model_itself(kind: type[CourseModel], rows: Rows) -> None:
    data = data_of(rows)
    model = kind(data.shape, data.outputs)
    model.set_scaling(*data.scaling)
    trainer = make_trainer(accelerator="cpu")
    for split in SPLITS:
        measured = evaluate(trainer, model, data, split)
        with torch.no_grad():
            own = model.eval()(rows.inputs[data.splits[split]])
        close(measured, evaluate_outputs(model, data, split, own))
        assert measured.split == split
        assert measured.losses.dtype == torch.float64


def test_dropout_is_off_while_measuring() -> None:
    data = data_of(numbers())
    model = Noisy(data.shape, data.outputs).train()
    trainer = make_trainer(accelerator="cpu")
    assert evaluate(trainer, model, data, "val").metrics == evaluate(trainer, model, data, "val").metrics


def test_standard_error_is_the_spread_of_the_rows_over_the_root_of_their_number() -> None:
    rows = replace(numbers(40), targets=torch.arange(40.0)[:, None])
    data = data_of(rows, val_fraction=0.0, test_fraction=0.0)
    evaluation = evaluate_outputs(Line([3], 1), data, "train", torch.zeros(40, 1))
    squares = torch.arange(40.0).double().square()
    assert evaluation.metrics["mse"] == pytest.approx(squares.mean().item())
    assert evaluation.standard_errors["mse"] == pytest.approx(squares.std().item() / 40**0.5)


def test_one_row_has_no_standard_error() -> None:
    data = data_of(numbers(5), val_fraction=0.0, test_fraction=0.2)
    evaluation = evaluate_outputs(Line([3], 1), data, "test", torch.zeros(1, 1))
    assert evaluation.standard_errors == {}
