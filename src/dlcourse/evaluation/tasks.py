"""The tasks: regression, two classes, several classes. Each has its loss, its metrics and what it takes for outputs.

A task is all that evaluation, verdict and export must know of a model. `CourseModel` is one itself; for any other
LightningModule a task stands beside it: ``Regression()``, or ``Classification(inputs="image", targets="label")``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat

from dlcourse.errors import CourseError, SettingsError

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets, N x ..., to the loss of each row, N."""


class Task(ABC):
    """What a model's outputs mean, and how they are measured.

    Args:
        loss: The loss of each row in place of the task's own, from outputs and targets to N numbers.
        metrics: Further torchmetrics by name, whose ``update`` takes predictions and targets. Their
            ``higher_is_better`` says which direction is the better one.
        classes: The names of the classes, in the order of their numbers.
        inputs: Where a batch has its inputs: a position, or a key of a batch that is a dictionary.
        targets: Where it has its targets, likewise; the inputs' place for a model that reconstructs them.
        forward: From a module and its inputs to the outputs, where that is more than ``module(inputs)``.
    """

    primary_metric: str
    """The one of `per_sample_metrics` that a run is compared by."""
    lower_is_better: frozenset[str] = frozenset({"loss", "mse", "mae"})
    """Names of the metrics that are better when lower."""
    extra_test_metrics: Mapping[str, str] = MappingProxyType({})
    """Further metrics that a test logs as ``test/<name>``, with a description; the card shows each on its own line."""
    further_metrics: Mapping[str, Metric] = MappingProxyType({})
    classes: tuple[str, ...] = ()
    places: tuple[int | str, int | str] = (0, 1)
    """Where a batch has its inputs and its targets."""
    own_loss: PerSampleLoss | None = None
    own_forward: Callable[[nn.Module, Any], Tensor] | None = None

    def __init__(
        self,
        *,
        loss: PerSampleLoss | None = None,
        metrics: Mapping[str, Metric] | None = None,
        classes: Sequence[str] = (),
        inputs: int | str = 0,
        targets: int | str = 1,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        self.classes, self.places, self.own_forward = tuple(classes), (inputs, targets), forward
        self.measure_also(metrics or {})
        if loss:
            self.use_loss(loss)

    def use_loss(self, loss: PerSampleLoss) -> None:
        """Take ``loss`` in place of `per_sample_loss`."""
        self.own_loss = loss
        self.per_sample_loss = loss  # type: ignore[assignment]  # in this object it hides the method

    def measure_also(self, metrics: Mapping[str, Metric]) -> None:
        """Measure further metrics; raises `SettingsError` if one does not say which direction is better."""
        for name, metric in metrics.items():
            if metric.higher_is_better is None:
                raise SettingsError(f"metric {name}: set higher_is_better of {type(metric).__name__} to True or False")
        self.further_metrics = dict(metrics)
        lower = {name for name, metric in metrics.items() if not metric.higher_is_better}
        self.lower_is_better = (self.lower_is_better - metrics.keys()) | lower

    def all_metrics(self) -> dict[str, Metric]:
        """The task's metrics and the further ones, each new."""
        return {**self.metrics(), **{name: metric.clone() for name, metric in self.further_metrics.items()}}

    @abstractmethod
    def metrics(self) -> dict[str, Any]:
        """The torchmetrics to measure beside the loss, by name. Their ``update`` takes ``preds`` and ``target``."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """From a model's outputs to what a user wants: values of a regression, probabilities of a classifier."""

    @abstractmethod
    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, N, without regularisation."""

    @abstractmethod
    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """For each metric that is a mean over rows, its N values: their spread gives its standard error."""

    def shaped(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets in the task's shapes; raises `CourseError` if they cannot be brought into them."""
        return outputs, targets

    def split_batch(self, batch: Any) -> tuple[Any, Tensor]:
        """The inputs and the targets of a batch; raises `CourseError` if they are not where they should be.

        A batch that is one tensor is inputs and targets alike, if these have the same place.
        """
        if isinstance(batch, Tensor):
            batch = {self.places[0]: batch}  # batch[0] would be its first row
        try:
            inputs, targets = (batch[place] for place in self.places)
        except (KeyError, IndexError, TypeError) as error:
            has = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise CourseError(
                f"a batch ({has}) has no inputs and targets at {self.places}: name their places, as in "
                f'{type(self).__name__}(inputs="image", targets="label")'
            ) from error
        if not isinstance(targets, Tensor):
            raise CourseError(f"the targets of a batch must be a tensor, not {type(targets).__name__}")
        return inputs, targets

    def outputs_of(self, module: nn.Module, inputs: Any) -> Any:
        """What the module, or the task's ``forward``, makes of inputs."""
        return self.own_forward(module, inputs) if self.own_forward else module(inputs)

    def measured(self, module: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """A module's outputs for a batch, and the targets, in the task's shapes; in float32 or more."""
        inputs, targets = self.split_batch(batch)
        outputs = self.outputs_of(module, inputs)
        if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != len(targets):
            what = f"a tensor of {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise CourseError(
                f"forward gives {what} for {len(targets)} rows, not a tensor with outputs for each: "
                "give the task a function, as in forward=lambda module, inputs: module(inputs).logits"
            )
        return self.shaped(as_float32(outputs), targets)


class Regression(Task):
    """Numbers: outputs and predictions are N x columns, in the unit of the targets."""

    primary_metric = "mse"

    def metrics(self) -> dict[str, Any]:
        return {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs

    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets, reduction="none").mean(1)

    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"mse": (outputs - targets).square().mean(1), "mae": (outputs - targets).abs().mean(1)}

    def shaped(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """N x columns both: N numbers become N x 1, images N x pixels."""
        outputs, targets = outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1).to(outputs.dtype)
        if outputs.shape != targets.shape:
            raise CourseError(f"a regression needs an output for each target: {outputs.shape[1]}, {targets.shape[1]}")
        return outputs, targets


class AUROCOrNaN(BinaryAUROC):
    """Area under the ROC curve; NaN if all rows are of one class, where torchmetrics returns 0 and warns."""

    def compute(self) -> Tensor:  # type: ignore[override]  # as in the class itself
        targets = dim_zero_cat(self.target)
        if bool((targets == targets[0]).all()):
            return torch.tensor(float("nan"), device=self.device)
        return super().compute()


class BinaryClassification(Task):
    """Two classes: outputs are N x 1 logits, predictions N probabilities of class 1."""

    primary_metric = "accuracy"

    def metrics(self) -> dict[str, Any]:
        # AUROC is exact, without ``thresholds``: these need seconds a batch with deterministic algorithms.
        return {"accuracy": BinaryAccuracy(), "auroc": AUROCOrNaN()}

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.flatten().sigmoid()

    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs.squeeze(1), targets.to(outputs.dtype), reduction="none")

    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        correct = (outputs.squeeze(1) > 0) == targets.bool()  # a logit above 0 is a probability above 0.5
        return {"accuracy": correct.float()}

    def shaped(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs N x 1, targets N integers."""
        if outputs.numel() != len(outputs):
            raise CourseError(
                f"two classes need one logit a row, that of class 1, not {list(outputs.shape[1:])}: "
                "with a logit for each class the task is Classification()"
            )
        return outputs.reshape(-1, 1), _class_numbers(targets, len(outputs))


class Classification(Task):
    """Two classes or more: outputs are N x classes logits or log-probabilities, predictions their softmax."""

    primary_metric = "accuracy"

    def metrics(self) -> dict[str, Any]:
        return {"accuracy": MulticlassAccuracy(average="micro")}

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1)

    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        correct = outputs.argmax(1) == targets
        return {"accuracy": correct.float()}

    def shaped(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs N x classes, targets N integers below the number of classes."""
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise CourseError(
                f"a classification needs a logit for each class, N x classes, not {list(outputs.shape)}: "
                "with one logit for two classes the task is BinaryClassification()"
            )
        targets = _class_numbers(targets, len(outputs))
        if len(targets) and int(targets.max()) >= outputs.shape[1]:
            raise CourseError(f"there is a row of class {int(targets.max())}, but only {outputs.shape[1]} outputs")
        # Rows of probabilities, which a cross-entropy would silently take for logits.
        if bool((outputs >= 0).all() & ((outputs.sum(1) - 1).abs() < 1e-3).all()):
            raise CourseError(
                "the outputs are probabilities, where logits are needed: give the task a function, as in "
                "forward=lambda module, inputs: module(inputs).log()"
            )
        return outputs, targets


def _class_numbers(targets: Tensor, rows: int) -> Tensor:
    """Targets as N integers; raises `CourseError` if there is more than one a row."""
    if targets.numel() != rows:
        raise CourseError(f"a classification needs one class a row, as a number, not targets of {list(targets.shape)}")
    return targets.reshape(-1).long()


TASKS: dict[str, type[Task]] = {
    "regression": Regression, "binary": BinaryClassification, "classification": Classification
}  # fmt: skip
TaskName = Literal["regression", "binary", "classification"]


def as_float32(outputs: Tensor) -> Tensor:
    """Outputs as metrics need them: in float32, where mixed precision has made them bfloat16 or float16."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()
