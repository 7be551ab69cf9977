"""Baselines against numpy, scikit-learn and the figures of the course."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dlcourse.evaluation import baselines
from dlcourse.topics.height_weight import HEIGHTS, WEIGHTS
from tests.samples import iris, numbers, two_classes


def table() -> tuple[Tensor, Tensor]:
    return torch.tensor(HEIGHTS)[:, None], torch.tensor(WEIGHTS)[:, None]


def points() -> tuple[Tensor, Tensor]:
    inputs, targets = make_regression(n_samples=100, n_features=1, noise=10, bias=1.5, random_state=0)
    return torch.from_numpy(inputs), torch.from_numpy(targets)[:, None]


def line(predict: baselines.Predictor) -> tuple[float, float]:
    """Slope and intercept of a predictor of one input."""
    at_0, at_1000 = predict(torch.tensor([[0.0], [1000.0]])).double()[:, 0].tolist()
    return (at_1000 - at_0) / 1000, at_0


def test_mean_answers_the_mean_whatever_the_input() -> None:
    inputs, targets = table()
    assert baselines.mean(inputs, targets)(torch.tensor([[0.0], [170.0], [1e9]])).tolist() == pytest.approx(
        np.full((3, 1), 65.1)
    )


def test_least_squares_of_the_table_is_the_course_line() -> None:
    predict = baselines.least_squares(*table())
    assert line(predict) == pytest.approx((0.9294217687, -93.2734693878), rel=1e-6)
    assert predict(torch.tensor([[176.0]])).item() == pytest.approx(70.3047619, abs=1e-5)
    inputs, targets = table()
    assert (predict(inputs) - targets).square().mean().item() == pytest.approx(0.8176802721, rel=1e-5)


def test_least_squares_of_make_regression_is_the_course_line() -> None:
    inputs, targets = points()
    predict = baselines.least_squares(inputs, targets)
    slope, intercept = line(predict)
    assert slope == pytest.approx(42.6194302914, rel=1e-6)
    assert intercept == pytest.approx(0.6858181730, rel=1e-6)
    assert (predict(inputs) - targets).square().mean().item() == pytest.approx(114.1714861682, rel=1e-6)
    trivial = baselines.mean(inputs, targets)
    assert (trivial(inputs) - targets).square().mean().item() == pytest.approx(1959.3350463386, rel=1e-6)


def test_least_squares_is_that_of_numpy() -> None:
    rows = numbers(40, features=6)
    targets = torch.cat([rows.targets, rows.targets.flip(0)], 1)
    design = np.hstack([rows.inputs.double().numpy(), np.ones((40, 1))])
    weights, *_ = np.linalg.lstsq(design, targets.double().numpy(), rcond=None)
    assert baselines.least_squares(rows.inputs, targets)(rows.inputs).numpy() == pytest.approx(
        design @ weights, rel=1e-5
    )


def test_ridge_is_that_of_scikit_learn_on_standardised_inputs() -> None:
    rows, new = numbers(40, features=6), numbers(10, features=6, seed=1)
    scaler = StandardScaler().fit(rows.inputs.double().numpy())
    ridge = Ridge(alpha=1.0).fit(scaler.transform(rows.inputs.double().numpy()), rows.targets.double().numpy())
    expected = ridge.predict(scaler.transform(new.inputs.double().numpy()))
    assert baselines.ridge(rows.inputs, rows.targets)(new.inputs)[:, 0].numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("baseline", [baselines.least_squares, baselines.ridge])
def test_a_constant_column_changes_nothing(baseline: baselines.Baseline) -> None:
    rows = numbers(40)
    with_constant = torch.cat([rows.inputs, torch.full((40, 1), 7.3)], 1)
    expected = baseline(rows.inputs, rows.targets)(rows.inputs)
    assert torch.allclose(baseline(with_constant, rows.targets)(with_constant), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_more_columns_than_rows_are_fitted_exactly_by_the_shortest_weights(scale: float) -> None:
    rows = numbers(8, features=20)
    inputs = rows.inputs * scale
    predict = baselines.least_squares(inputs, rows.targets)
    assert torch.allclose(predict(inputs), rows.targets, rtol=1e-4)
    centred = StandardScaler().fit_transform(inputs.double().numpy())
    weights = np.linalg.pinv(centred) @ (rows.targets - rows.targets.mean()).double().numpy()
    new = numbers(5, features=20, seed=1).inputs * scale
    scaler = StandardScaler().fit(inputs.double().numpy())
    expected = scaler.transform(new.double().numpy()) @ weights + rows.targets.mean().item()
    assert predict(new).numpy() == pytest.approx(expected, rel=1e-3)


def test_a_column_given_twice_changes_nothing() -> None:
    rows = numbers(40)
    twice = torch.cat([rows.inputs, rows.inputs[:, :1]], 1)
    expected = baselines.least_squares(rows.inputs, rows.targets)(rows.inputs)
    assert torch.allclose(baselines.least_squares(twice, rows.targets)(twice), expected, rtol=1e-4)


def test_inputs_of_several_dimensions_are_flattened() -> None:
    rows = numbers(40, features=6)
    folded = rows.inputs.reshape(40, 2, 3)
    assert torch.equal(
        baselines.ridge(folded, rows.targets)(folded), baselines.ridge(rows.inputs, rows.targets)(rows.inputs)
    )


def test_logistic_regression_is_that_of_scikit_learn() -> None:
    for rows in (two_classes(), iris()):
        scaled = StandardScaler().fit_transform(rows.inputs.double().numpy())
        expected = LogisticRegression(max_iter=1000).fit(scaled, rows.targets.numpy()).predict_proba(scaled)
        logits = baselines.logistic_regression(rows.inputs, rows.targets)(rows.inputs)
        if len(rows.classes) == 2:
            assert logits[:, 0].sigmoid().numpy() == pytest.approx(expected[:, 1], rel=1e-4)
        else:
            assert logits.softmax(1).numpy() == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("baseline", [baselines.majority, baselines.logistic_regression_on_pixels])
def test_two_columns_say_what_one_logit_does(baseline: baselines.Baseline) -> None:
    images = torch.randint(0, 256, (40, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    targets = torch.arange(40) % 3 // 2
    logits = baseline(images, targets)(images).flatten()
    columns = baselines.as_columns(baseline(images, targets)(images), 2)
    assert columns.shape == (40, 2)
    assert torch.allclose(columns.softmax(1)[:, 1], logits.sigmoid())


def test_columns_of_more_classes_stay_as_they_are() -> None:
    images, targets = torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.arange(6) % 3
    outputs = baselines.majority(images, targets)(images)
    assert torch.equal(baselines.as_columns(outputs, 3), outputs)


@pytest.mark.parametrize("baseline", [baselines.majority, baselines.logistic_regression])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_class_without_training_rows_is_one_that_a_baseline_knows_of(
    baseline: baselines.Baseline, classes: int
) -> None:
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(40) % (classes - 1)
    whole = baseline(inputs, torch.arange(40) % classes)(inputs)
    outputs = baseline(*baselines.with_every_class(inputs, targets, range(classes)))(inputs)
    assert outputs.shape == whole.shape
    assert outputs.isfinite().all()
    logits = baselines.as_columns(outputs, classes)
    assert set(logits.argmax(1).tolist()) <= set(range(classes - 1))


def test_where_every_class_has_rows_there_are_no_others() -> None:
    for rows in (iris(), numbers()):
        inputs, targets = baselines.with_every_class(rows.inputs, rows.targets, rows.classes)
        assert inputs is rows.inputs
        assert targets is rows.targets


def test_a_class_of_images_may_be_missing_among_those_that_are_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "PIXEL_ROWS", 10)
    images = torch.randint(0, 256, (40, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    targets = torch.tensor([0, 1] * 20)
    targets[-1] = 2
    assert baselines.logistic_regression_on_pixels(images, targets)(images).shape == (40, 3)
