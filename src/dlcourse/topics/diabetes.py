"""Diabetes: two classes from eight measurements, where a network has to earn its place beside logistic regression."""

import gzip
import tempfile
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
import torch
from sklearn.datasets import fetch_openml, load_diabetes
from torch import nn

from dlcourse.data import bundled as datasets
from dlcourse.data.datamodule import CourseData, data_folder
from dlcourse.data.downloads import answers_within, whole_file
from dlcourse.data.rows import Rows
from dlcourse.data.tables import read_table, two_classes
from dlcourse.errors import CourseError, SettingsError, one_line
from dlcourse.evaluation import baselines
from dlcourse.models.tasks import BinaryClassifier
from dlcourse.ranges import Fraction, PositiveInt
from dlcourse.reporting import figures
from dlcourse.topics import Topic

FEATURES = (
    "pregnancies", "glucose", "blood pressure", "skin thickness", "insulin", "body mass index", "pedigree", "age",
)  # fmt: skip
CLASSES = ("not diabetic", "diabetic")
COURSE_FILE = datasets.FOLDER / "diabetes.csv.gz"


class DiabetesData(CourseData):
    """Eight measurements a row, and whether the woman was diabetic: class 1 in every source.

    The course's file comes with the package: ``data/diabetes.csv.gz`` of hunkim/PyTorchZeroToAll (commit e5a260f),
    unchanged, with SHA-256 398214d0f6b7f4a722f598d8e424f28bc078abbd16ebdeea0f8e264492325aa4. Its label is inverted:
    1 is "not diabetic". It is turned round here, so that 263 of the 759 women are diabetic.

    Args:
        source: course is the course's file, 759 rows scaled to [-1, 1]; pima the same study from OpenML, 768 rows as
            measured; bundled scikit-learn's own diabetes set, 442 rows, with its target above the median; file is
            --data.file. auto is file where one is named, else course.
        file: A CSV file of one's own: numbers, the label (two values) in the last column.
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
        # What was meant, by auto and seen from here, is part of the run, wherever it is carried on.
        self.hparams["source"], self.hparams["file"] = source, str(self.file) if file else None

    def prepare_data(self) -> None:
        if self.source == "pima":
            try:
                read_table(self._pima_file())
            except CourseError:  # it is not there, or damaged
                _keep(_fetch_pima(), self._pima_file())

    def load(self) -> Rows:
        if self.source == "bundled":
            content = load_diabetes()
            above = content.target > np.median(content.target)
            classes = ("progression below the median", "progression above the median")
            return _rows(content.data, above, "scikit-learn's diabetes", tuple(content.feature_names), classes)
        if self.file:
            return _rows_of_own(self.file)
        path = COURSE_FILE if self.source == "course" else self._pima_file()
        values = read_table(path, columns=len(FEATURES) + 1).values
        low, high = two_classes(path, values[:, -1])
        if self.source == "pima":
            return _rows(values[:, :-1], values[:, -1] == high, PIMA, FEATURES, CLASSES)
        # Inverted: there 1 is "not diabetic".
        return _rows(values[:, :-1], values[:, -1] == low, "the course's diabetes.csv.gz", FEATURES, CLASSES)

    @staticmethod
    def _pima_file() -> Path:
        return data_folder() / "diabetes" / "pima.csv.gz"


PIMA = "OpenML's diabetes (Pima), data set 37"
PATIENCE_WITH_OPENML = 15.0
"""Seconds for each answer."""


def _fetch_pima() -> bytes:
    """OpenML's data set 37, checked against its checksum, as a gzip-compressed CSV file; class 1 is diabetic.

    Raises:
        CourseError: It cannot be had, or is not what it should be.
    """
    # What comes is kept in a folder of its own: scikit-learn leaves what was cut off in its cache.
    try:
        with answers_within(PATIENCE_WITH_OPENML), tempfile.TemporaryDirectory() as folder:
            inputs, labels = fetch_openml(
                data_id=37, return_X_y=True, as_frame=False, parser="liac-arff", data_home=folder, n_retries=1
            )
        if inputs.shape[1] != len(FEATURES) or set(labels) != {"tested_negative", "tested_positive"}:
            raise ValueError("it is another data set than it was")
    except Exception as error:  # no network, a cut connection, a wrong checksum: each raises its own kind
        raise CourseError(
            f"{PIMA}, cannot be had ({_reason(error)}): take --data.source course, which comes with the package, or "
            "bundled (scikit-learn's), or --data.file with a CSV file of your own"
        ) from error
    lines = [",".join([*FEATURES, "diabetic"])]
    for row, label in zip(inputs.tolist(), labels, strict=True):
        lines.append(",".join([*map(repr, row), "1" if label == "tested_positive" else "0"]))
    return gzip.compress("\n".join([*lines, ""]).encode(), mtime=0)


def _reason(error: Exception) -> str:
    if "md5" in str(error):
        return "it was cut off or damaged on its way: its checksum is wrong"
    said = one_line(error.reason if type(error) is URLError else error)[:120] or type(error).__name__
    return said if isinstance(error, OSError) else f"OpenML's answer cannot be used: {said}"


def _keep(content: bytes, place: Path) -> None:
    try:
        with whole_file(place) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise CourseError(
            f"{place} cannot be written ({error.strerror}): make room, or set DLCOURSE_DATA_DIR to another folder"
        ) from error


def _rows_of_own(path: Path) -> Rows:
    """The rows of --data.file. The larger label is class 1."""
    table = read_table(path)
    low, high = two_classes(path, table.values[:, -1])
    names = table.names or (*(f"column {place}" for place in range(1, table.values.shape[1])), "label")
    classes = (f"{names[-1]} {low:g}", f"{names[-1]} {high:g}")
    return _rows(table.values[:, :-1], table.values[:, -1] == high, str(path), names[:-1], classes)


def _rows(
    inputs: np.ndarray[Any, Any], positive: np.ndarray[Any, Any], source: str, features: tuple[str, ...],
    classes: tuple[str, str],
) -> Rows:  # fmt: skip
    targets = torch.from_numpy(positive.astype(np.int64))
    return Rows(torch.from_numpy(inputs).float(), targets, source, features, classes=classes)


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
        activation: What each hidden layer ends in. The output's sigmoid is part of the loss.
        dropout: Share of hidden units left out at random in training.
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
