"""What a model has to beat: predictors that take no gradient step.

Each takes training inputs (N x features) and targets, and gives a function from inputs to outputs as a model would
give them. They work on standardised inputs in float64.
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
from torch import Tensor

Predictor = Callable[[Tensor], Tensor]
Baseline = Callable[[Tensor, Tensor], Predictor]


def with_every_class(inputs: Tensor, targets: Tensor, classes: Sequence[object]) -> tuple[Tensor, Tensor]:
    """The rows to fit a baseline to, and for each class that is not among them one more, at the mean of all inputs.

    So a baseline knows of every class, and gives none of them probability 0.
    """
    missing = sorted(set(range(len(classes))) - set(targets.tolist())) if classes else []
    if not missing:
        return inputs, targets
    middle = inputs.float().mean(0, keepdim=True).to(inputs.dtype)
    return torch.cat([inputs, *[middle] * len(missing)]), torch.cat([targets, targets.new_tensor(missing)])


def mean(inputs: Tensor, targets: Tensor) -> Predictor:
    """The training targets' mean, whatever the input."""
    value = targets.double().mean(0)
    return lambda rows: value.expand(len(rows), -1).float()


def majority(inputs: Tensor, targets: Tensor) -> Predictor:
    """The classes' shares among the training rows, as logits: the most frequent one wins, whatever the input.

    The shares are counted with one row more for each class (Laplace), so that none has probability 0. Two classes give
    one logit, that of class 1.
    """
    shares = torch.bincount(targets).double() + 1  # of every class that the targets name: see with_every_class
    logits = (shares / shares.sum()).log()
    logits = logits[1:] - logits[:1] if len(logits) == 2 else logits
    return lambda rows: logits.float().expand(len(rows), -1)


def least_squares(inputs: Tensor, targets: Tensor) -> Predictor:
    """The straight line of least squared error, in closed form: ``(X'X)^-1 X'y``."""
    return _linear(inputs, targets, 0.0)


def ridge(inputs: Tensor, targets: Tensor) -> Predictor:
    """Ridge regression, ``(X'X + lambda I)^-1 X'y`` with lambda = 1 (Hoerl and Kennard 1970)."""
    return _linear(inputs, targets, 1.0)


def logistic_regression(inputs: Tensor, targets: Tensor) -> Predictor:
    """scikit-learn's logistic regression with its usual penalty (C = 1), on standardised inputs."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    pipeline.fit(inputs.flatten(1).double().numpy(), targets.numpy())

    def logits(rows: Tensor) -> Tensor:
        scores = torch.from_numpy(pipeline.decision_function(rows.flatten(1).double().numpy())).float()
        return scores[:, None] if scores.ndim == 1 else scores

    return logits


PIXEL_ROWS = 10_000


def logistic_regression_on_pixels(inputs: Tensor, targets: Tensor) -> Predictor:
    """scikit-learn's logistic regression on pixels from 0 to 1, fitted on `PIXEL_ROWS` of the rows at the most.

    They are taken at equal distances; all of them would take several times as long.
    """
    from sklearn.linear_model import LogisticRegression

    def pixels(images: Tensor) -> np.ndarray[Any, Any]:
        return (images.flatten(1).float() / 255).numpy()

    kept = torch.arange(0, len(inputs), max(len(inputs) // PIXEL_ROWS, 1))[:PIXEL_ROWS]
    images, labels = with_every_class(inputs[kept], targets[kept], range(int(targets.max()) + 1))
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # 100 steps are near enough
        classifier = LogisticRegression(C=0.01, max_iter=100).fit(pixels(images), labels.numpy())

    def logits(images: Tensor) -> Tensor:
        parts = [torch.from_numpy(classifier.decision_function(pixels(part))) for part in torch.split(images, 1000)]
        return torch.cat(parts).float()

    return logits


OF_IMAGES = {"majority": majority, "logistic-regression-on-10000-rows": logistic_regression_on_pixels}
"""What every model of images is compared with."""


def a_column_a_class(baseline: Baseline) -> Baseline:
    """A classifier's baseline with two columns for two classes as well: 0, and the logit of class 1."""

    def fitted(inputs: Tensor, targets: Tensor) -> Predictor:
        predict = baseline(inputs, targets)

        def outputs(rows: Tensor) -> Tensor:
            logits = predict(rows).reshape(len(rows), -1)
            return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits

        return outputs

    return fitted


def _linear(inputs: Tensor, targets: Tensor, penalty: float) -> Predictor:
    """Least squares with a penalty on every weight but the bias; the shortest solution where there are several."""
    inputs, targets = inputs.double().flatten(1), targets.double()
    centre, level = inputs.mean(0), targets.mean(0)
    std = inputs.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)

    def scaled(rows: Tensor) -> Tensor:
        return (rows.double().flatten(1) - centre) / std

    rows = scaled(inputs)
    normal = rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=torch.float64)
    weights = torch.linalg.pinv(normal, hermitian=True) @ rows.T @ (targets - level)
    return lambda rows: (scaled(rows) @ weights + level).float()


def version(baseline: Baseline) -> str:
    """Changes with the code of a baseline, which is the file that it is in, and with scikit-learn: 16 hex digits."""
    return hashlib.sha256(f"{sklearn.__version__} {_code(baseline)}".encode()).hexdigest()[:16]


def _code(baseline: Any) -> str:
    try:
        code = inspect.getsource(inspect.getmodule(baseline) or baseline)
    except (OSError, TypeError):  # typed into an interpreter
        code = baseline.__code__.co_code.hex() if isinstance(baseline, FunctionType) else repr(type(baseline))
    inner = [cell.cell_contents for cell in getattr(baseline, "__closure__", None) or ()]
    return "".join([getattr(baseline, "__qualname__", ""), code, *map(_code, filter(callable, inner))])
