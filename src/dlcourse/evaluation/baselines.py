"""Baselines that a model has to beat.

Each takes training inputs (N x shape) and targets, and returns a function from inputs to float32 outputs of the same
shape and meaning as a model's. Linear models are scikit-learn's, on inputs in float64.
"""

import hashlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dlcourse.errors import SettingsError
from dlcourse.evaluation.tasks import BinaryClassification, Classification, Regression, Task

Predictor = Callable[[Tensor], Tensor]
Baseline = Callable[[Tensor, Tensor], Predictor]


def with_every_class(inputs: Tensor, targets: Tensor, classes: Sequence[object]) -> tuple[Tensor, Tensor]:
    """Add a row at the mean of all inputs for each class that has none.

    A baseline that is fitted to the result predicts every class with a probability above 0.
    """
    missing = sorted(set(range(len(classes))) - set(targets.tolist())) if classes else []
    if not missing:
        return inputs, targets
    middle = inputs.float().mean(0, keepdim=True).to(inputs.dtype)
    return torch.cat([inputs, *[middle] * len(missing)]), torch.cat([targets, targets.new_tensor(missing)])


def mean(inputs: Tensor, targets: Tensor) -> Predictor:
    """Always predicts the mean of the training targets."""
    value = targets.double().mean(0)
    return lambda rows: value.expand(len(rows), -1).float()


def majority(inputs: Tensor, targets: Tensor) -> Predictor:
    """Always predicts the class frequencies of the training rows, as logits, and so the most frequent class.

    One row is added to the count of each class (Laplace smoothing), so that none has probability 0. Two classes have
    one logit, that of class 1.
    """
    shares = torch.bincount(targets).double() + 1  # every class has a row: see with_every_class
    logits = (shares / shares.sum()).log()
    logits = logits[1:] - logits[:1] if len(logits) == 2 else logits
    return lambda rows: logits.float().expand(len(rows), -1)


def least_squares(inputs: Tensor, targets: Tensor) -> Predictor:
    """Linear regression by least squares; of several solutions, the one with the smallest norm of the weights."""
    return _regression(LinearRegression(), inputs, targets)


def ridge(inputs: Tensor, targets: Tensor) -> Predictor:
    """Ridge regression with scikit-learn's default penalty, alpha = 1 (Hoerl and Kennard 1970)."""
    return _regression(Ridge(), inputs, targets)


def _regression(estimator: Any, inputs: Tensor, targets: Tensor) -> Predictor:
    fitted = _fit(estimator, inputs, targets)
    return lambda rows: torch.from_numpy(fitted.predict(_table(rows)).reshape(len(rows), -1)).float()


def logistic_regression(inputs: Tensor, targets: Tensor, max_iter: int = 1000) -> Predictor:
    """Logistic regression with scikit-learn's default penalty, C = 1."""
    fitted = _fit(LogisticRegression(max_iter=max_iter), inputs, targets)

    def logits(rows: Tensor) -> Tensor:
        scores = torch.from_numpy(fitted.decision_function(_table(rows))).float()
        return scores[:, None] if scores.ndim == 1 else scores

    return logits


def short_logistic_regression(inputs: Tensor, targets: Tensor) -> Predictor:
    """The same after 100 iterations: enough for a few features, and close to it for thousands, as of images."""
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        return logistic_regression(inputs, targets, max_iter=100)


def _fit(estimator: Any, inputs: Tensor, targets: Tensor) -> Pipeline:
    """Fit to standardised inputs, so that the penalty has the same effect on every feature."""
    labels = targets.double() if targets.is_floating_point() else targets
    return make_pipeline(StandardScaler(), estimator).fit(_table(inputs), labels.numpy())


def _table(inputs: Tensor) -> np.ndarray[Any, Any]:
    """N x shape to N x features, float64."""
    table: np.ndarray[Any, Any] = inputs.flatten(1).double().numpy()
    return table


PIXEL_ROWS = 10_000
"""Number of images to fit to. All 60,000 of FashionMNIST would take several times as long."""


def logistic_regression_on_pixels(inputs: Tensor, targets: Tensor) -> Predictor:
    """Logistic regression on pixels from 0 to 1, fitted to at most `PIXEL_ROWS` of the rows, evenly spaced."""

    def pixels(images: Tensor) -> np.ndarray[Any, Any]:
        return (images.flatten(1).float() / 255).numpy()

    kept = torch.arange(0, len(inputs), max(len(inputs) // PIXEL_ROWS, 1))[:PIXEL_ROWS]
    images, labels = with_every_class(inputs[kept], targets[kept], range(int(targets.max()) + 1))
    # 100 iterations do not converge, but are close enough.
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        classifier = LogisticRegression(C=0.01, max_iter=100).fit(pixels(images), labels.numpy())

    def logits(images: Tensor) -> Tensor:
        parts = [torch.from_numpy(classifier.decision_function(pixels(part))) for part in torch.split(images, 1000)]
        return torch.cat(parts).float()

    return logits


OF_IMAGES = {"majority": majority, "logistic-regression-on-10000-rows": logistic_regression_on_pixels}
"""The baselines of image classifiers."""


def as_columns(outputs: Tensor, columns: int) -> Tensor:
    """Outputs of a baseline as a model's, N x columns: two for two classes are 0, and the logit of class 1."""
    outputs = outputs.reshape(len(outputs), -1)
    has_one_for_two = (outputs.shape[1], columns) == (1, 2)
    return torch.cat([torch.zeros_like(outputs), outputs], 1) if has_one_for_two else outputs


def of_task(task: Task) -> dict[str, Baseline]:
    """The trivial and the linear baseline of a task.

    Raises:
        SettingsError: The task is of another kind.
    """
    if isinstance(task, Regression):
        return {"mean": mean, "ridge": ridge}
    if isinstance(task, (BinaryClassification, Classification)):
        return {"majority": majority, "logistic-regression": short_logistic_regression}
    raise SettingsError(f"a task of your own, {type(task).__name__}, needs baselines=, the trivial one first")


def version(baseline: Baseline) -> str:
    """16 hexadecimal digits that change with scikit-learn's version and with the source file of the baseline."""
    return hashlib.sha256(f"{sklearn.__version__} {_code(baseline)}".encode()).hexdigest()[:16]


def _code(baseline: Any) -> str:
    try:
        code = inspect.getsource(inspect.getmodule(baseline) or baseline)
    except (OSError, TypeError):  # defined in an interpreter, without a source file
        code = baseline.__code__.co_code.hex() if isinstance(baseline, FunctionType) else repr(type(baseline))
    inner = [cell.cell_contents for cell in getattr(baseline, "__closure__", None) or ()]
    return "".join([getattr(baseline, "__qualname__", ""), code, *map(_code, filter(callable, inner))])
