"""From the trained module to a model in MLflow, and back, verified.

The model is a program of `torch.export` (format pt2): it takes raw inputs, needs torch alone, and runs no pickled code.
"""

import importlib.metadata
import logging
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow.pytorch
import numpy as np
import torch
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from dlcourse.errors import CourseError
from dlcourse.models.base import CourseModel
from dlcourse.tracking.run import WAITING, Run, reason
from dlcourse.tracking.store import Store

log = logging.getLogger(__name__)


class PredictionModule(nn.Module):
    """What is exported: raw inputs to predictions (values, or probabilities)."""

    def __init__(self, model: CourseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model.predictions(self.model(inputs))


@dataclass(frozen=True)
class Exported:
    """A model in the store. ``uri`` is None, and ``text`` says why, where it is not there or not verified."""

    uri: str | None
    text: str


def export_model(run: Run, model: CourseModel, inputs: Tensor, epoch: int) -> Exported:
    """`log_model`, where a failure costs no more than the model in the store. Moves the model to the CPU."""
    try:
        if not run.reachable:
            raise CourseError(run.lost[WAITING])
        uri = log_model(run, model, inputs, epoch)
    except Exception as error:  # an export that fails must not cost the training
        log.warning("the model is not in the store: %s", reason(error))
        return Exported(None, f"not verified: {reason(error)[:120]}")
    return Exported(uri, f"{uri}, verified: loaded back, same answers on {len(inputs)} rows")


def log_model(run: Run, model: CourseModel, inputs: Tensor, epoch: int) -> str:
    """Put the model into the store, load it from there, and compare what it says of ``inputs`` with what it said.

    Args:
        run: The run the model comes from.
        model: The module with the weights to keep.
        inputs: Rows of the data, N x shape with N >= 2 (one row would fix the batch size).
        epoch: The epoch that the weights come from.

    Returns:
        The model's URI, ``models:/...``.

    Raises:
        CourseError: The loaded model says something else; it is then marked as failed in the store.
    """
    client = run.store.client
    inputs = inputs if len(inputs) > 1 else inputs.repeat(2, *[1] * (inputs.ndim - 1))
    model = model.cpu().eval()
    model.trainer = None  # no part of what is exported
    answers = PredictionModule(model).eval()
    with torch.no_grad():
        expected = answers(inputs)
    logged = client.create_logged_model(run.experiment_id, "model", source_run_id=run.run_id, model_type="pytorch")
    client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, epoch)])
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "model"
            mlflow.pytorch.save_model(
                answers,
                str(place),
                mlflow_model=Model(run_id=run.run_id, model_id=logged.model_id),
                signature=ModelSignature(_schema(inputs), _schema(expected)),
                input_example=inputs[:2].numpy(),
                pip_requirements=[
                    f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", "torch", "numpy")
                ],
                serialization_format="pt2",
            )
            client.log_model_artifacts(logged.model_id, str(place))
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        with torch.no_grad():
            loaded = load_model(run.store, logged.model_id)(inputs)
        if not torch.allclose(loaded, expected, rtol=1e-4, atol=1e-5):
            worst = float((loaded - expected).abs().max())
            raise CourseError(f"loaded back, its answers differ by up to {worst:.3g}")
    except BaseException:
        with suppress(MlflowException):  # where the store is gone, the first error says so
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    return f"models:/{logged.model_id}"


def load_model(store: Store, model_id: str) -> nn.Module:
    """A model of the store, as MLflow gives it to anyone."""
    place = store.client.get_logged_model(model_id).artifact_location
    with tempfile.TemporaryDirectory() as folder:
        local = mlflow.artifacts.download_artifacts(place, dst_path=folder, tracking_uri=store.uri)
        module: nn.Module = mlflow.pytorch.load_model(local)
    return module


def _schema(values: Tensor) -> Schema:
    return Schema([TensorSpec(np.dtype(str(values.dtype).removeprefix("torch.")), (-1, *values.shape[1:]))])
