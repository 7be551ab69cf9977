"""Models of the three tasks, with one of which most topics begin."""

from abc import ABC
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Accuracy

from dlcourse.errors import SettingsError
from dlcourse.evaluation.tasks import BinaryClassification, Classification, Regression
from dlcourse.models.base import CourseModel


class Regressor(CourseModel, Regression, ABC):
    """A regression: outputs and predictions are N x columns, in the unit of the targets.

    Args:
        loss: Squared error, or absolute error, which outliers influence less. It is the primary metric too.
    """

    def __init__(
        self, shape: Sequence[int], outputs: int, *, loss: Literal["mse", "mae"] = "mse", **settings: Any
    ) -> None:
        self.loss = self.primary_metric = loss
        super().__init__(shape, outputs, **settings)

    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        errors = F.mse_loss if self.loss == "mse" else F.l1_loss
        return errors(outputs, targets, reduction="none").mean(1)


class BinaryClassifier(CourseModel, BinaryClassification, ABC):
    """A model of two classes: outputs are N x 1 logits, predictions N probabilities of class 1."""

    def __init__(self, shape: Sequence[int], outputs: int, **settings: Any) -> None:
        if outputs != 1:
            raise SettingsError(f"a BinaryClassifier has one output, not {outputs}: for more classes take Classifier")
        super().__init__(shape, outputs, **settings)


class Classifier(CourseModel, Classification, ABC):
    """A model with an output for each class: N x classes logits, predictions their softmax."""

    def __init__(self, shape: Sequence[int], outputs: int, **settings: Any) -> None:
        if outputs < 2:
            raise SettingsError(
                "a Classifier has an output for each class, and data of two classes have one: take BinaryClassifier, "
                "or let the property outputs of your data be 2"
            )
        super().__init__(shape, outputs, **settings)

    def metrics(self) -> dict[str, Any]:
        return {"accuracy": Accuracy(task="multiclass", num_classes=self.outputs)}
