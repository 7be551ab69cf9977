"""The trained model to MLflow and back, verified.

It is saved as a program of `torch.export` (MLflow's format pt2), which takes raw inputs, needs only torch to run, and
has no pickled code in it.
"""

import importlib.metadata
import logging
import tempfile
from contextlib import suppress
from dataclasses import dataclass

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

PACKAGES = ("mlflow", "torch", "numpy")
"""What a machine needs that loads the model."""
# float32 kernels of one program and another round differently.
RTOL, ATOL = 1e-4, 1e-5


class PredictionModule(nn.Module):
    """What is exported: raw inputs, N x shape, to predictions, N x outputs (values, or probabilities)."""

    def __init__(self, model: CourseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model.predictions(self.model(inputs))


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
        uri: The model's URI, ``models:/...``; None where it is not in the store, or not verified.
        text: What the card says of it.
    """

    uri: str | None
    text: str


def export_model(run: Run, model: CourseModel, inputs: Tensor, epoch: int) -> Exported:
    """Call `log_model` with the same arguments; whatever it raises is a warning, and in the text of the result."""
    try:
        if not run.reachable:
            raise CourseError(run.lost[WAITING])
        uri = log_model(run, model, inputs, epoch)
    except Exception as error:  # an export that fails must not cost the training
        log.warning("the model is not in the store: %s", reason(error))
        return Exported(None, f"not verified: {reason(error)[:120]}")
    return Exported(uri, f"{uri}, verified: loaded back, same answers on {len(inputs)} rows")


def log_model(run: Run, model: CourseModel, inputs: Tensor, epoch: int) -> str:
    """Log the model to the store, load it from there, and compare the predictions of the two.

    Moves ``model`` to the CPU, sets it to evaluation mode, and detaches it from its Trainer.

    Args:
        run: The run that the model comes from.
        model: The module with the weights to keep.
        inputs: Rows to compare the predictions of, N x shape; the first two are kept as the input example.
        epoch: The epoch of the weights.

    Returns:
        The model's URI, ``models:/...``.

    Raises:
        CourseError: The loaded model predicts something else.
        Exception: Whatever torch.export or MLflow raises. In either case the store marks the model as FAILED.
    """
    client = run.store.client
    inputs = inputs if len(inputs) > 1 else inputs.repeat(2, *[1] * (inputs.ndim - 1))  # torch.export fixes a size of 1
    model = model.cpu().eval()
    model.trainer = None  # torch.export would follow the reference
    module = PredictionModule(model).eval()
    with torch.no_grad():
        expected = module(inputs)
    logged = client.create_logged_model(run.experiment_id, "model", source_run_id=run.run_id, model_type="pytorch")
    client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, epoch)])
    try:
        with tempfile.TemporaryDirectory() as folder:
            mlflow.pytorch.save_model(
                module,
                f"{folder}/model",
                mlflow_model=Model(run_id=run.run_id, model_id=logged.model_id),
                signature=ModelSignature(_schema(inputs), _schema(expected)),
                input_example=inputs[:2].numpy(),
                pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES],
                serialization_format="pt2",
            )
            client.log_model_artifacts(logged.model_id, f"{folder}/model")
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        with torch.no_grad():
            predicted = load_model(run.store, logged.model_id)(inputs)
        if not torch.allclose(predicted, expected, rtol=RTOL, atol=ATOL):
            difference = float((predicted - expected).abs().max())
            raise CourseError(f"loaded back, its answers differ by up to {difference:.3g}")
    except BaseException:
        with suppress(MlflowException):  # where the store is gone, the first error says so
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    return f"models:/{logged.model_id}"


def load_model(store: Store, model_id: str) -> nn.Module:
    """A logged model as a module, loaded in the same way as MLflow's users would."""
    location = store.client.get_logged_model(model_id).artifact_location
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(location, dst_path=folder, tracking_uri=store.uri)
        module: nn.Module = mlflow.pytorch.load_model(path)
    return module


def _schema(values: Tensor) -> Schema:
    """N x ..., with any N."""
    return Schema([TensorSpec(np.dtype(str(values.dtype).removeprefix("torch.")), (-1, *values.shape[1:]))])
