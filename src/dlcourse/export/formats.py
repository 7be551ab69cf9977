"""The files that a model is given away as, how each is written, and how it is read without running code from it."""

import dataclasses
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dlcourse.errors import CourseError, SettingsError, one_line
from dlcourse.export.description import BATCH, Description, Values
from dlcourse.export.model import PredictionModule
from dlcourse.export.verification import Predict
from dlcourse.topics import Topic
from dlcourse.training.checkpoints import model_of, read_checkpoint
from dlcourse.training.fit import task_of

Format = Literal["safetensors", "checkpoint", "pt2", "onnx"]
SUFFIXES: dict[str, Format] = {".safetensors": "safetensors", ".ckpt": "checkpoint", ".pt2": "pt2", ".onnx": "onnx"}
KEY = "dlcourse"
"""Under which each file has its description, as JSON."""
FOR_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "slow_weights", "dlcourse_curve")
"""What a checkpoint has only for a training to be continued; of Adam twice the size of the weights."""

ONNX_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Source:
    """A trained model to give away.

    Attributes:
        description: What is known of it.
        module: From raw inputs, N x shape, to predictions; in evaluation mode and float32, on the CPU.
        rows: Real inputs, at least 2.
        checkpoint: Its Lightning checkpoint.
        topic: Its topic; None if its class is known to its author alone.
    """

    description: Description
    module: nn.Module
    rows: Tensor
    checkpoint: dict[str, Any]
    topic: Topic | None


@dataclass(frozen=True)
class Opened:
    """An exported model that was read from a file, or from the store.

    Attributes:
        description: What it says of itself.
        predict: From raw inputs, N x shape, to predictions, N x columns, or to probabilities, N x classes.
        runtime: The program that computes them.
    """

    description: Description
    predict: Predict
    runtime: str


class WithClasses(nn.Module):
    """A classifier's probabilities, N x classes, with the number of the most probable class of each row, N."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = self.module(inputs)
        return probabilities, probabilities.argmax(1)


def write(source: Source, form: Format, path: Path) -> Description:
    """Write the model into a file; returns the description that it has within."""
    if form in ("pt2", "onnx") and source.description.kind == "classification":
        probabilities, *_ = source.description.outputs
        outputs = [probabilities, Values("classes", "int64", [BATCH])]
        described = dataclasses.replace(source.description, outputs=outputs)
        source = dataclasses.replace(source, description=described, module=WithClasses(source.module).eval())
    WRITERS[form](source, json.dumps(source.description.as_dict()), path)
    return source.description


def _write_safetensors(source: Source, description: str, path: Path) -> None:
    weights = {name: value.contiguous().clone() for name, value in source.checkpoint["state_dict"].items()}
    save_file(weights, path, {KEY: description})


def _write_checkpoint(source: Source, description: str, path: Path) -> None:
    kept = {name: each for name, each in source.checkpoint.items() if name not in FOR_TRAINING}
    torch.save({**kept, KEY: description}, path)


def _write_pt2(source: Source, description: str, path: Path) -> None:
    with _quietly():
        torch.export.save(_program(source), path, extra_files={KEY: description})


def _write_onnx(source: Source, description: str, path: Path) -> None:
    check_onnx()
    pooling = torch.ops.aten.adaptive_max_pool2d.default
    with _quietly():
        exported = _program(source)
        if any(node.target is pooling for node in exported.graph.nodes):
            exported = exported.run_decompositions({pooling: _largest_pixels})
        program = torch.onnx.export(
            exported,
            input_names=["inputs"],
            output_names=[each.name for each in source.description.outputs],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert program is not None  # as it is without a file to write to
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # which has the lines of code that it comes from, with their paths
        program.model.metadata_props[KEY] = description
        program.save(path, external_data=False)


def _largest_pixels(images: Tensor, size: list[int]) -> Any:
    """The adaptive pooling of N x C x H x W to N x C x 1 x 1, which torch 2.8 has no ONNX function for."""
    if list(size) != [1, 1]:
        return NotImplemented  # as torch has it
    largest = images.amax((-2, -1), keepdim=True)
    return largest, torch.zeros_like(largest, dtype=torch.int64)  # where it was is not asked


WRITERS: dict[Format, Callable[[Source, str, Path], None]] = {
    "safetensors": _write_safetensors, "checkpoint": _write_checkpoint, "pt2": _write_pt2, "onnx": _write_onnx
}  # fmt: skip


def _program(source: Source) -> torch.export.ExportedProgram:
    """The model as a graph, for any number of rows; without the paths of the code that it comes from."""
    with torch.no_grad():
        program = torch.export.export(
            source.module, (source.rows[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def check_onnx() -> None:
    """Raises `SettingsError` if the packages for ONNX are not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(f"--format onnx needs {', '.join(missing)}: pip install 'dlcourse[onnx]'")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings that torch.export, torch.onnx and onnxscript have of their own code."""
    level = logging.getLogger("onnxscript").level
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.getLogger("onnxscript").setLevel(level)


# Reading


def open_file(path: Path, find: Callable[[str], Topic | None]) -> Opened:
    """An exported model in a file from anybody: nothing in it is run but its weights' arithmetic.

    Args:
        path: The file.
        find: From the name of a topic to the topic, which builds the network for weights; None if it is not known.

    Raises:
        SettingsError: It is not of a format that can be read safely.
        CourseError: It is damaged, or not an export of this package.
    """
    form = SUFFIXES.get(path.suffix.lower())
    if form == "pt2":
        raise SettingsError(
            f"{path}: a pt2 file can run any code when it is loaded; ask for the model as safetensors or ONNX, or name "
            "your own run by TOPIC and --run"
        )
    if form is None:
        raise SettingsError(f"{path}: a model's file ends with .safetensors, .ckpt or .onnx")
    if not path.is_file():
        raise SettingsError(f"there is no file {path}")
    if form == "onnx":
        return open_onnx(path)
    content = read_safetensors(path) if form == "safetensors" else read_checkpoint(path)
    description = described(path, content.get(KEY))
    topic = find(description.topic)
    if topic is None:
        raise CourseError(
            f"{path} has the weights of {description.module}, which only its author's code can build: "
            f"{description.module}.load_from_checkpoint, or ask for the model as ONNX"
        )
    return Opened(description, predictor(network(topic, content, path)), "torch")


def read_safetensors(path: Path) -> dict[str, Any]:
    """Weights and description of a file as a checkpoint has them; raises `CourseError` if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            description = (file.metadata() or {}).get(KEY)
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CourseError(f"{path} is no safetensors file, or damaged: {one_line(error)[:120]}") from error
    hyper_parameters = described(path, description).hyper_parameters
    return {"state_dict": weights, "hyper_parameters": hyper_parameters, KEY: description}


def open_onnx(path: Path) -> Opened:
    """An ONNX file, run by onnxruntime on the CPU; files beside it are not read."""
    try:
        import onnxruntime
    except ImportError as error:
        raise SettingsError(f"{path}: ONNX files need onnxruntime: pip install 'dlcourse[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it would print its errors, beside raising them
    try:
        # Tensors in other files are looked for in a folder that is empty; by default in the current one.
        with tempfile.TemporaryDirectory() as nowhere:
            options.add_session_config_entry(ONNX_EXTERNAL_FOLDER, nowhere)
            session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a type for each reason
        raise CourseError(f"{path} is no ONNX file, or damaged: {one_line(error)[:120]}") from error
    description = described(path, session.get_modelmeta().custom_metadata_map.get(KEY))

    def predict(inputs: NDArray[np.generic]) -> NDArray[np.floating]:
        predictions: NDArray[np.floating] = session.run(None, {"inputs": inputs})[0]
        return predictions

    return Opened(description, predict, f"onnxruntime {onnxruntime.__version__}")


def described(path: Path, content: str | None) -> Description:
    """The description in a file; raises `CourseError` if there is none."""
    try:
        if content is None:
            raise CourseError("it does not describe itself: write it with dlcourse export")
        return Description.of(json.loads(content))
    except (CourseError, ValueError) as error:
        raise CourseError(f"{path} is no model that dlcourse has exported: {error}") from error


def network(topic: Topic, content: Mapping[str, Any], path: Path) -> nn.Module:
    """The module of a topic with the weights of a file: raw inputs to predictions."""
    model = model_of(topic, content, path)
    return PredictionModule(model.float().eval(), task_of(topic, model)).eval()


def predictor(module: nn.Module) -> Predict:
    """A module as a function of arrays."""

    def predict(inputs: NDArray[np.generic]) -> NDArray[np.floating]:
        with torch.no_grad():
            outputs = module(torch.from_numpy(inputs))
        predictions: NDArray[np.floating] = (outputs[0] if isinstance(outputs, tuple) else outputs).numpy()
        return predictions

    return predict


def written(source: Source, form: Format, path: Path) -> Opened:
    """A file that this process has written, opened by the runtime of its format."""
    if form == "onnx":
        return open_onnx(path)
    module: nn.Module
    if form == "pt2":
        module = torch.export.load(path).module()
        return Opened(source.description, predictor(module), f"torch.export of torch {torch.__version__}")
    content = read_safetensors(path) if form == "safetensors" else read_checkpoint(path)
    if source.topic:
        module = network(source.topic, content, path)
    else:  # its class is not known here, so its weights are put into the program of the store
        module = source.module
        module.load_state_dict({f"model.{name}": value for name, value in content["state_dict"].items()})
    return Opened(described(path, content.get(KEY)), predictor(module), f"torch {torch.__version__}")
