"""Save the trained model to MLflow, and verify it by loading it back.

It is saved as a `torch.export` program (MLflow's format pt2), which takes raw inputs, needs only torch to run, and
contains no pickled code.
"""

import importlib.metadata
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import lightning as L
import mlflow.artifacts
import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import torch
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from dlcourse.errors import CourseError
from dlcourse.evaluation.tasks import BinaryClassification, Task
from dlcourse.export.description import Description
from dlcourse.export.verification import verify
from dlcourse.reporting.phases import phase
from dlcourse.tracking.run import WAITING, Run, reason
from dlcourse.tracking.store import Store

log = logging.getLogger(__name__)

Describe = Callable[[Tensor, Tensor], Description]

REFUSED_IN_NAMES = re.compile(r"[/:.%\"']")
"""What MLflow refuses in the name of a model; in that of a run it takes anything."""
PACKAGES = ("mlflow", "torch", "numpy")
"""The packages that are needed to load the model."""
EXAMPLES = "rows.npz"
"""Beside the model's files: real rows, ``inputs``, by which any copy of it can be verified later."""
MOST_BYTES = 4 * 2**20
"""Of these rows."""


class PredictionModule(nn.Module):
    """The exported module: raw inputs, N x shape, to values, N x columns, or to probabilities, N x classes."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        # In a list: a task that is the model itself would be registered as a second module.
        self.tasks = [task]

    def forward(self, inputs: Tensor) -> Tensor:
        (task,) = self.tasks
        predictions = task.predictions(task.outputs_of(self.model, inputs))
        if isinstance(task, BinaryClassification):  # which gives the probability of the second class
            return torch.stack([1 - predictions, predictions], 1)
        return predictions[:, None] if predictions.ndim == 1 else predictions


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        uri: The model's URI, ``models:/...``; None if it is not in the store or not verified.
        text: The entry on the card.
    """

    uri: str | None
    text: str


@dataclass(frozen=True)
class ModelPage:
    """What MLflow's pages show of a model beside the parameters of its run.

    Attributes:
        text: Markdown.
        metrics: The names of those metrics of its run that were measured on the data set.
        dataset: The name that its run logged the data set by.
        digest: The data set's digest.
    """

    text: str
    metrics: Sequence[str]
    dataset: str
    digest: str


def export_model(
    run: Run, model: L.LightningModule, task: Task, inputs: object, epoch: int, page: ModelPage, describe: Describe
) -> Exported:
    """Call `log_model`; an exception becomes a warning and is named in the text of the result."""
    try:
        if not run.reachable:
            raise CourseError(run.lost[WAITING])
        if not isinstance(inputs, Tensor):
            raise CourseError(f"the inputs of an exported model are one tensor, not a {type(inputs).__name__}")
        with phase("exporting the model, and loading it back"):
            uri = log_model(run, model, task, inputs, epoch, page, describe)
    except Exception as error:  # an export that fails must not cost the training
        log.warning("the model is not in the store: %s", reason(error))
        return Exported(None, f"not verified: {reason(error)[:120]}")
    return Exported(uri, f"{uri}, verified: loaded back, same predictions on {len(inputs)} rows")


def log_model(
    run: Run, model: L.LightningModule, task: Task, inputs: Tensor, epoch: int, page: ModelPage, describe: Describe
) -> str:
    """Log the model to the store, load it back, and compare the predictions of the two.

    Moves ``model`` to the CPU, sets it to evaluation mode, and detaches it from its Trainer.

    Args:
        run: The run that the model comes from.
        model: The module with the weights to keep.
        task: Its task, which makes predictions of its outputs.
        inputs: Rows to compare the predictions of, N x shape; the first two are kept as the input example.
        epoch: The epoch of the weights.
        page: What to show of the model.
        describe: Describes it by inputs and predictions.

    Returns:
        The model's URI, ``models:/...``.

    Raises:
        CourseError: The loaded model's predictions differ.
        Exception: Whatever torch.export or MLflow raises. In either case the store marks the model as FAILED.
    """
    client = run.store.client
    inputs = inputs if len(inputs) > 1 else inputs.repeat(2, *[1] * (inputs.ndim - 1))  # torch.export fixes a size of 1
    model = model.cpu().eval()
    model.trainer = None  # torch.export would follow the reference
    module = PredictionModule(model, task).eval()
    with torch.no_grad():
        expected = module(inputs)
    run.write()
    logged = client.create_logged_model(
        run.experiment_id,
        REFUSED_IN_NAMES.sub("_", run.name) or "model",
        source_run_id=run.run_id,
        tags={"mlflow.note.content": page.text},
        params=client.get_run(run.run_id).data.params,
        model_type="pytorch",
    )
    client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, epoch)])
    try:
        with tempfile.TemporaryDirectory() as folder:
            description = describe(inputs, expected)
            mlflow.pytorch.save_model(
                module,
                f"{folder}/model",
                mlflow_model=Model(
                    run_id=run.run_id, model_id=logged.model_id, metadata={"dlcourse": description.as_dict()}
                ),
                signature=ModelSignature(_schema(inputs), _schema(expected)),
                input_example=inputs[:2].numpy(),
                pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES],
                serialization_format="pt2",
            )
            kept = max(2, MOST_BYTES // inputs[0].nbytes)
            np.savez_compressed(f"{folder}/model/{EXAMPLES}", inputs=inputs[:kept].numpy())
            client.log_model_artifacts(logged.model_id, f"{folder}/model")
        with stored_model(run.store, logged.model_id) as folder:
            served = mlflow.pyfunc.load_model(folder)
            is_classifier = description.kind == "classification"
            verify(module, served.predict, inputs, "mlflow.pyfunc", are_probabilities=is_classifier)
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    except BaseException:
        with suppress(MlflowException):  # if the store is unreachable, the first error says so
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    with run.attempt("the metrics of the model's page"):
        _link_metrics(run, logged.model_id, page)
    return f"models:/{logged.model_id}"


def _link_metrics(run: Run, model_id: str, page: ModelPage) -> None:
    """Show metrics of the run as metrics of the model.

    They are sent again with the same time and step, for which MLflow keeps one point in the run.
    """
    logged = [run.store.client.get_metric_history(run.run_id, name)[-1] for name in page.metrics]
    metrics = [
        Metric(
            each.key,
            each.value,
            each.timestamp,
            each.step,
            model_id=model_id,
            dataset_name=page.dataset,
            dataset_digest=page.digest,
        )
        for each in logged
    ]
    run.store.client.log_batch(run.run_id, metrics)


@contextmanager
def stored_model(store: Store, model_id: str) -> Iterator[str]:
    """The files of a logged model, as a folder that is there within the context."""
    location = store.location_of(store.client.get_logged_model(model_id))
    with tempfile.TemporaryDirectory() as folder:
        yield mlflow.artifacts.download_artifacts(location, dst_path=folder, tracking_uri=store.uri)


def load_model(store: Store, model_id: str) -> nn.Module:
    """Load a logged model as a module, with MLflow's public functions."""
    with stored_model(store, model_id) as folder:
        module: nn.Module = mlflow.pytorch.load_model(folder)
    return module


def _schema(values: Tensor) -> Schema:
    """N x ..., with any N."""
    return Schema([TensorSpec(np.dtype(str(values.dtype).removeprefix("torch.")), (-1, *values.shape[1:]))])
