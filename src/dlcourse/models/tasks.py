"""The three tasks: regression, two classes, several classes. Each has its loss and metrics."""

from abc import ABC
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Accuracy, MeanAbsoluteError, MeanSquaredError
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC
from torchmetrics.utilities import dim_zero_cat

from dlcourse.errors import SettingsError
from dlcourse.models.base import CourseModel


class Regressor(CourseModel, ABC):
    """A regression: outputs and predictions are N x columns, in the unit of the targets.

    Args:
        loss: Squared error, or absolute error, which outliers influence less. It is the primary metric too.
    """

    primary_metric = "mse"

    def __init__(
        self, shape: Sequence[int], outputs: int, *, loss: Literal["mse", "mae"] = "mse", **settings: Any
    ) -> None:
        self.loss = self.primary_metric = loss
        self.lower_is_better = frozenset({"loss", "mse", "mae"})
        super().__init__(shape, outputs, **settings)

    def metrics(self) -> dict[str, Any]:
        return {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs

    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        errors = F.mse_loss if self.loss == "mse" else F.l1_loss
        return errors(outputs, targets, reduction="none").mean(1)

    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"mse": (outputs - targets).square().mean(1), "mae": (outputs - targets).abs().mean(1)}


class AUROCOrNaN(BinaryAUROC):
    """Area under the ROC curve; NaN if all rows are of one class, where torchmetrics returns 0 and warns."""

    def compute(self) -> Tensor:  # type: ignore[override]  # as in the class itself
        targets = dim_zero_cat(self.target)
        if bool((targets == targets[0]).all()):
            return torch.tensor(float("nan"), device=self.device)
        return super().compute()


class BinaryClassifier(CourseModel, ABC):
    """A model of two classes: outputs are N x 1 logits, predictions N probabilities of class 1."""

    primary_metric = "accuracy"

    def __init__(self, shape: Sequence[int], outputs: int, **settings: Any) -> None:
        if outputs != 1:
            raise SettingsError(f"a BinaryClassifier has one output, not {outputs}: for more classes take Classifier")
        super().__init__(shape, outputs, **settings)

    def metrics(self) -> dict[str, Any]:
        # AUROC is exact, without ``thresholds``: these need seconds a batch with deterministic algorithms.
        return {"accuracy": BinaryAccuracy(), "auroc": AUROCOrNaN()}

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(1).sigmoid()

    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs.squeeze(1), targets.to(outputs.dtype), reduction="none")

    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        correct = (outputs.squeeze(1) > 0) == targets.bool()  # a logit above 0 is a probability above 0.5
        return {"accuracy": correct.float()}


class Classifier(CourseModel, ABC):
    """A model with an output for each class: N x classes logits, predictions their softmax."""

    primary_metric = "accuracy"

    def __init__(self, shape: Sequence[int], outputs: int, **settings: Any) -> None:
        if outputs < 2:
            raise SettingsError(
                "a Classifier has an output for each class, and data of two classes have one: take BinaryClassifier, "
                "or let the property outputs of your data be 2"
            )
        super().__init__(shape, outputs, **settings)

    def metrics(self) -> dict[str, Any]:
        return {"accuracy": Accuracy(task="multiclass", num_classes=self.outputs)}

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1)

    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        correct = outputs.argmax(1) == targets
        return {"accuracy": correct.float()}
