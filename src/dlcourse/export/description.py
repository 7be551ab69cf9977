"""What an exported model says of itself: what it takes and gives, how good it is, and where it comes from.

It is JSON, in the model of the store as in every exported file, so that whoever has the model alone can use it.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from dlcourse import __version__
from dlcourse.data.datamodule import CourseData
from dlcourse.errors import CourseError
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.intervals import CONFIDENCE
from dlcourse.evaluation.split_data import SplitData
from dlcourse.evaluation.tasks import Task
from dlcourse.tracking.run import Run

MOST_COLUMNS = 1000
"""Inputs of more numbers are not described one by one."""
SAMPLE = 5000
"""Training pictures whose borders are measured."""
BATCH = "N"
"""The first entry of a shape: any number of rows."""


@dataclass(frozen=True)
class Column:
    """A number of an input or output.

    Attributes:
        name: Its name, without the unit.
        unit: Its unit, such as ``kg``; empty if there is none.
        low: The smallest value in the training rows; None for a class, whose values are probabilities.
        high: The largest.
        error: Of a value that is predicted: 95 % of rows like the test rows differ from it by this much at the most
            (split conformal prediction, Lei et al. 2018); None if there are too few test rows to say so.
    """

    name: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Values:
    """A tensor that a model takes or gives.

    Attributes:
        name: Its name in the file.
        dtype: Its type, such as ``uint8``.
        shape: Its shape, which begins with N for any number of rows.
        columns: Each number of a row, where there are few.
        border: Of pictures: the range of the mean pixel of the border, of 99 % of the training pictures. It tells a
            light background from a dark one.
    """

    name: str
    dtype: str
    shape: list[int | str]
    columns: list[Column] = field(default_factory=list)
    border: tuple[float, float] | None = None

    @property
    def are_images(self) -> bool:
        """Whether a row is a picture: C x H x W in bytes."""
        return self.dtype == "uint8" and len(self.shape) == 4


@dataclass(frozen=True)
class Quality:
    """A metric on the rows of the verdict, with its 95 % interval where there is one."""

    metric: str
    value: float
    low: float | None
    high: float | None
    rows: int

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:.4g} to {self.high:.4g})"
        return f"{self.metric} {self.value:.4g}{interval} on {self.rows} rows"


@dataclass(frozen=True)
class Description:
    """What is known of an exported model.

    Attributes:
        topic: Its topic, or the name of its experiment.
        kind: Whether it gives values, or probabilities of classes.
        inputs: What it takes.
        outputs: What it gives: ``predictions``, or ``probabilities``; in some files also ``classes``, the numbers of
            the most probable ones.
        classes: The names of the classes in the order of their numbers; empty for a regression.
        quality: How good it is.
        verdict: The sentence of its run's verdict.
        run: Id and name of its run.
        commit: That of its run, with a + where files differed from it; empty if it is not known.
        version: The version of dlcourse that trained it.
        module: The class of the trained module.
    """

    topic: str
    kind: Literal["regression", "classification"]
    inputs: Values
    outputs: list[Values]
    classes: list[str]
    quality: Quality
    verdict: str
    run: dict[str, str]
    commit: str
    version: str
    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings of the run."""
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    """What the class is made with; not in the model of the store, which needs no class."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain types for JSON, without what is not known of a column or a tensor."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        for values in (plain["inputs"], *plain["outputs"]):
            values["columns"] = [_known(column) for column in values["columns"]]
        return {**plain, "inputs": _known(plain["inputs"]), "outputs": [_known(each) for each in plain["outputs"]]}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Description":
        """From what `as_dict` gives, or gave in another version; raises `CourseError` if that is not a description."""
        try:
            inputs, *outputs = (
                _made(Values, {**each, "columns": [_made(Column, column) for column in each.get("columns", [])]})
                for each in (content["inputs"], *content["outputs"])
            )
            quality = _made(Quality, content["quality"])
            return _made(cls, {**content, "inputs": inputs, "outputs": outputs, "quality": quality})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CourseError(f"it does not describe itself as dlcourse's exports do ({error})") from error


Described = TypeVar("Described", Column, Values, Quality, Description)


def _made(kind: type[Described], content: Mapping[str, Any]) -> Described:
    """An object of the fields that this version knows."""
    return kind(**{each.name: content[each.name] for each in dataclasses.fields(kind) if each.name in content})


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "", [])}


def describe(
    inputs: Tensor, predictions: Tensor, *, run: Run, topic: str, task: Task, data: SplitData, evaluation: Evaluation,
    verdict: str, module: str,
) -> Description:  # fmt: skip
    """The description of a trained model.

    Args:
        inputs: Some inputs, N x shape.
        predictions: Its predictions for them: N x columns, or N x classes probabilities.
        run: Its run.
        topic: The name of its topic or experiment.
        task: Its task.
        data: Its data.
        evaluation: That on the rows of the verdict.
        verdict: The verdict's sentence.
        module: The name of its class.
    """
    is_classifier = not evaluation.targets.is_floating_point() and predictions.ndim == 2 and predictions.shape[1] > 1
    classes = _class_names(task, data, predictions.shape[1]) if is_classifier else []
    commit = run.tags.get("mlflow.source.git.commit", "") + "+" * (run.tags.get("dlcourse.git.dirty") == "true")
    known = evaluation.intervals if evaluation.split != "train" else {}  # the rows that the model has been fitted to
    low, high = known.get(task.primary_metric, (None, None))
    return Description(
        topic=topic,
        kind="classification" if is_classifier else "regression",
        inputs=_inputs(data, inputs),
        outputs=_outputs(task, data, evaluation, predictions, is_classifier),
        classes=classes,
        quality=Quality(
            evaluation.final_name(task.primary_metric),
            evaluation.metrics[task.primary_metric],
            low,
            high,
            len(evaluation.targets),
        ),
        verdict=verdict,
        run={"id": run.run_id, "name": run.name},
        commit=commit,
        version=__version__,
        module=module,
    )


def column_of(text: str, low: float | None = None, high: float | None = None, error: float | None = None) -> Column:
    """A column from a name such as ``height in cm``."""
    name, _, unit = text.partition(" in ")
    return Column(name, unit, low, high, error)


def border_means(images: Tensor) -> Tensor:
    """The mean of the outermost pixels of each picture, N, from N x C x H x W."""
    lines = (images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1])  # N x C x length
    return torch.cat(lines, -1).flatten(1).float().mean(1)


def usual_borders(images: Tensor) -> tuple[float, float]:
    """The range of the mean border pixel of 99 % of some pictures, N x C x H x W, of which `SAMPLE` are measured."""
    means = border_means(images[:: max(1, len(images) // SAMPLE)])
    low, high = means.quantile(torch.tensor([0.005, 0.995])).tolist()
    return low, high


def half_width(errors: Tensor) -> float | None:
    """From the absolute errors of N rows that nothing was chosen by: what 95 % of the errors of further rows are below.

    The error of rank 0.95 (N + 1), rounded up. None for fewer than 19 rows, in which there is no such rank.

    See Lei et al. (2018), Distribution-free predictive inference for regression.
    """
    rank = math.ceil(CONFIDENCE * (len(errors) + 1))
    return float(errors.sort().values[rank - 1]) if rank <= len(errors) else None


def _shape(values: Tensor) -> list[int | str]:
    return [BATCH, *values.shape[1:]]


def _type(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _inputs(data: SplitData, inputs: Tensor) -> Values:
    seen, _ = data.baseline_rows()
    columns: list[Column] = []
    border = None
    if inputs.ndim == 2 and 0 < inputs.shape[1] <= MOST_COLUMNS and seen.shape[1:] == inputs.shape[1:]:
        names = data.rows.feature_names if isinstance(data, CourseData) else ()
        names = names or tuple(f"column {number + 1}" for number in range(inputs.shape[1]))
        ranges = zip(seen.amin(0).tolist(), seen.amax(0).tolist(), strict=True)
        columns = [column_of(name, *each) for name, each in zip(names, ranges, strict=True)]
    elif inputs.dtype == torch.uint8 and inputs.ndim == 4 and seen.numel():
        border = usual_borders(seen)
    return Values("inputs", _type(inputs), _shape(inputs), columns, border)


def _outputs(
    task: Task, data: SplitData, evaluation: Evaluation, predictions: Tensor, is_classifier: bool
) -> list[Values]:
    if is_classifier:
        return [Values("probabilities", _type(predictions), _shape(predictions))]
    columns: list[Column] = []
    if predictions.ndim == 2 and predictions.shape[1] <= MOST_COLUMNS:
        count = predictions.shape[1]
        names = data.rows.target_names if isinstance(data, CourseData) else ()
        names = names if len(names) == count else tuple(f"output {place + 1}" for place in range(count))
        columns = [column_of(name) for name in names]
        if evaluation.targets.shape == evaluation.outputs.shape:  # not those of a function that has no targets
            seen = data.baseline_rows()[1].view(-1, count)
            errors = (task.predictions(evaluation.outputs) - evaluation.targets).abs()
            columns = [
                column_of(
                    name,
                    float(seen[:, place].min()),
                    float(seen[:, place].max()),
                    half_width(errors[:, place]) if evaluation.split == "test" else None,
                )
                for place, name in enumerate(names)
            ]
    return [Values("predictions", _type(predictions), _shape(predictions), columns)]


def _class_names(task: Task, data: SplitData, number: int) -> list[str]:
    names = task.classes or data.class_names
    return list(names) if len(names) == number else [str(place) for place in range(number)]
