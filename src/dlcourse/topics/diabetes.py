"""Diabetes: two classes from eight measurements, with logistic regression as the baseline to beat."""

import gzip
import tempfile
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import fetch_openml, load_diabetes
from torch import nn

from dlcourse.data import bundled
from dlcourse.data.datamodule import CourseData, data_folder
from dlcourse.data.downloads import answers_within, whole_file
from dlcourse.data.rows import Rows
from dlcourse.data.tables import read_table, two_classes
from dlcourse.errors import CourseError, SettingsError, one_line
from dlcourse.evaluation import baselines
from dlcourse.models.tasks import BinaryClassifier
from dlcourse.reporting import figures
from dlcourse.settings import Fraction, PositiveInt
from dlcourse.topics import Topic

FEATURES = (
    "pregnancies", "glucose", "blood pressure", "skin thickness", "insulin", "body mass index", "pedigree", "age",
)  # fmt: skip
CLASSES = ("not diabetic", "diabetic")
COURSE_FILE = bundled.FOLDER / "diabetes.csv.gz"


class DiabetesData(CourseData):
    """Eight measurements of a woman in each row. Class 1 is "diabetic", in every source.

    The course's file comes with the package: ``data/diabetes.csv.gz`` of hunkim/PyTorchZeroToAll (commit e5a260f),
    unchanged, with SHA-256 398214d0f6b7f4a722f598d8e424f28bc078abbd16ebdeea0f8e264492325aa4. Its label is inverted:
    1 is "not diabetic". It is inverted back here, so that 263 of the 759 women are diabetic.

    Args:
        source: course is the course's file, 759 rows scaled to [-1, 1]; pima is the same study from OpenML, 768 rows as
            measured; bundled is scikit-learn's own diabetes set, 442 rows, with the classes below and above the median
            of its target; file is --data.file. auto is file where one is named, else course.
        file: Your own CSV file: numbers, with the label in the last column. The larger of its two values is class 1. A
            first line may name the columns.
    """

    def __init__(
        self,
        *,
        source: Literal["auto", "course", "pima", "bundled", "file"] = "auto",
        file: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if source == "auto":
            source = "file" if file else "course"
        if (source == "file") != (file is not None):
            raise SettingsError("--data.source file and --data.file PATH go together: give both or neither")
        self.source, self.file = source, Path(file).expanduser().absolute() if file else None
        # Saved with the run, which may be resumed from another folder: so auto and relative paths are resolved.
        self.hparams["source"], self.hparams["file"] = source, str(self.file) if file else None

    def prepare_data(self) -> None:
        if self.source == "pima":
            try:
                read_table(self._pima_file())
            except CourseError:  # missing or damaged
                _write(_fetch_pima(), self._pima_file())

    def load(self) -> Rows:
        if self.source == "bundled":
            content = load_diabetes()
            above = content.target > np.median(content.target)
            classes = ("progression below the median", "progression above the median")
            return _rows(content.data, above, "scikit-learn's diabetes", tuple(content.feature_names), classes)
        if self.file:
            return _rows_of_file(self.file)
        path = COURSE_FILE if self.source == "course" else self._pima_file()
        values = read_table(path, columns=len(FEATURES) + 1).to_numpy()  # N x 9, the label last
        low, high = two_classes(path, values[:, -1])
        if self.source == "pima":
            return _rows(values[:, :-1], values[:, -1] == high, PIMA, FEATURES, CLASSES)
        # In the course's file 1 is "not diabetic".
        return _rows(values[:, :-1], values[:, -1] == low, "the course's diabetes.csv.gz", FEATURES, CLASSES)

    @staticmethod
    def _pima_file() -> Path:
        return data_folder() / "diabetes" / "pima.csv.gz"


PIMA = "OpenML's diabetes (Pima), data set 37"
PATIENCE_WITH_OPENML = 15.0
"""Timeout of each request in seconds."""


def _fetch_pima() -> bytes:
    """Download OpenML's data set 37, checked by its checksum, as a gzip-compressed CSV file; label 1 is diabetic.

    Raises:
        CourseError: It cannot be downloaded, or has changed.
    """
    # Not in scikit-learn's own cache, where it would leave incomplete downloads.
    try:
        with answers_within(PATIENCE_WITH_OPENML), tempfile.TemporaryDirectory() as folder:
            inputs, labels = fetch_openml(
                data_id=37, return_X_y=True, as_frame=False, parser="liac-arff", data_home=folder, n_retries=1
            )
        if inputs.shape[1] != len(FEATURES) or set(labels) != {"tested_negative", "tested_positive"}:
            raise ValueError("the data set has changed")
    except Exception as error:  # no network, a lost connection, a wrong checksum: each raises another type
        raise CourseError(
            f"{PIMA}, is not available ({_reason(error)}): use --data.source course, which comes with the package, or "
            "bundled (scikit-learn's), or --data.file with your own CSV file"
        ) from error
    frame = pd.DataFrame(inputs, columns=FEATURES).assign(diabetic=(labels == "tested_positive").astype(int))
    return gzip.compress(frame.to_csv(index=False).encode())


def _reason(error: Exception) -> str:
    message = one_line(error.reason if type(error) is URLError else error)[:120] or type(error).__name__
    return message if isinstance(error, OSError) else f"OpenML's response cannot be used: {message}"


def _write(content: bytes, path: Path) -> None:
    try:
        with whole_file(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise CourseError(
            f"{path} cannot be written ({error.strerror}): make room, or set DLCOURSE_DATA_DIR to another folder"
        ) from error


def _rows_of_file(path: Path) -> Rows:
    """The rows of --data.file. The larger label is class 1."""
    table = read_table(path)
    names, values = tuple(table), table.to_numpy()
    low, high = two_classes(path, values[:, -1])
    classes = (f"{names[-1]} {low:g}", f"{names[-1]} {high:g}")
    return _rows(values[:, :-1], values[:, -1] == high, str(path), names[:-1], classes)


def _rows(
    inputs: np.ndarray[Any, Any], is_class_1: np.ndarray[Any, Any], source: str, names: tuple[str, ...],
    classes: tuple[str, str],
) -> Rows:  # fmt: skip
    """From inputs, N x features in float64, and N booleans."""
    targets = torch.from_numpy(is_class_1.astype(np.int64))
    return Rows(torch.tensor(inputs, dtype=torch.float32), targets, source, names, classes=classes)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


class DiabetesNetwork(BinaryClassifier):
    """A small network of fully connected layers.

    Args:
        hidden: Units of each hidden layer.
        activation: Activation function of the hidden layers. The output's sigmoid is part of the loss.
        dropout: Probability that a hidden unit is set to 0 in a training step.
    """

    def __init__(
        self,
        shape: list[int],
        outputs: int,
        *,
        hidden: list[PositiveInt] = [16],  # noqa: B006  # read by jsonargparse, never changed
        activation: Literal["sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus"] = "tanh",
        dropout: Fraction = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(shape, outputs, **settings)
        layers: list[nn.Module] = []
        for before, after in zip([shape[0], *hidden], hidden, strict=False):
            layers += [nn.Linear(before, after), ACTIVATIONS[activation](), nn.Dropout(dropout)]
        self.network = nn.Sequential(*layers, nn.Linear([shape[0], *hidden][-1], outputs))


TOPIC = Topic(
    name="diabetes",
    title="Diabetes: two classes from eight measurements",
    lesson="docs/diabetes.md",
    data=DiabetesData,
    model=DiabetesNetwork,
    baselines={"majority": baselines.majority, "logistic-regression": baselines.logistic_regression},
    figures={
        "confusion-matrix": figures.confusion_matrix,
        "roc": figures.roc_curve,
        "precision-recall": figures.precision_recall_curve,
        "calibration": figures.calibration_curve,
    },
)
