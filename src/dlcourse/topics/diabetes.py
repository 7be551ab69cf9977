"""Diabetes: two classes from eight measurements, where a network has to earn its place beside logistic regression."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.datasets import fetch_openml, load_diabetes
from torch import nn

from dlcourse import baselines, figures
from dlcourse.data import CourseData, Rows, data_folder
from dlcourse.errors import CourseError, SettingsError, one_line
from dlcourse.learning import BinaryClassifier
from dlcourse.ranges import Fraction, PositiveInt
from dlcourse.tables import read_table, two_classes
from dlcourse.topics import Topic

FEATURES = (
    "pregnancies", "glucose", "blood pressure", "skin thickness", "insulin", "body mass index", "pedigree", "age",
)  # fmt: skip
CLASSES = ("not diabetic", "diabetic")


class DiabetesData(CourseData):
    """Eight measurements a row, and whether the woman was diabetic: class 1 in every source.

    Args:
        source: course is the course's file, 759 rows scaled to [-1, 1]; pima the same study from OpenML, 768 rows as
            measured; bundled scikit-learn's own diabetes set, 442 rows, with its target above the median; file is
            --data.file. auto is file where one is named, else course where the file is there, else pima.
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
            source = "file" if file else "course" if self._course_file().is_file() else "pima"
        if (source == "file") != (file is not None):
            raise SettingsError("--data.source file and --data.file PATH go together: give both or neither")
        self.source, self.file = source, file
        self.hparams["source"] = source  # what was meant by auto is part of the run

    def load(self) -> Rows:
        if self.source == "bundled":
            inputs, progression = load_diabetes(return_X_y=True)
            above = progression > np.median(progression)
            classes = ("progression below the median", "progression above the median")
            return _rows(inputs, above, "scikit-learn's diabetes", tuple(load_diabetes().feature_names), classes)
        if self.source == "pima":
            return _rows(*_pima(data_folder() / "openml"), "OpenML's diabetes (Pima), data set 37", FEATURES, CLASSES)
        if self.source == "course":
            table = read_table(self._course_file(), columns=9)
            two_classes(self._course_file(), table.values[:, -1])
            # The course's file has it turned round: its 1 is "not diabetic".
            return _rows(
                table.values[:, :-1], table.values[:, -1] == 0, "the course's diabetes.csv.gz", FEATURES, CLASSES
            )
        path = Path(str(self.file))
        table = read_table(path)
        low, high = two_classes(path, table.values[:, -1])
        names = table.names[:-1] or tuple(f"column {place}" for place in range(1, table.values.shape[1]))
        return _rows(table.values[:, :-1], table.values[:, -1] == high, str(path), names, (f"{low:g}", f"{high:g}"))

    def prepare_data(self) -> None:
        if self.source == "course" and not self._course_file().is_file():
            raise CourseError(f"there is no file {self._course_file()}: {_WAYS_OUT}")

    @staticmethod
    def _course_file() -> Path:
        return data_folder() / "diabetes" / "diabetes.csv.gz"


_WAYS_OUT = (
    "put it there, or take --data.source pima (OpenML, needs a network), --data.source bundled (needs nothing), "
    "or --data.file with a CSV file of your own"
)


def _pima(cache: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """OpenML's data set 37, checked against OpenML's checksum and kept in ``cache``."""
    try:
        inputs, labels = fetch_openml(
            data_id=37,
            return_X_y=True,
            as_frame=False,
            parser="liac-arff",
            data_home=str(cache),
            n_retries=1,
            delay=0.5,
        )
    except Exception as error:  # no network, a cut connection, a wrong checksum: each raises its own kind
        raise CourseError(f"OpenML's diabetes data cannot be had ({one_line(error)[:120]}): {_WAYS_OUT}") from error
    return inputs, labels == "tested_positive"


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
    pictures={
        "confusion-matrix": figures.confusion_matrix,
        "roc": figures.roc_curve,
        "precision-recall": figures.precision_recall_curve,
        "calibration": figures.calibration_curve,
    },
    defaults={
        "model.optimizer": "adam",
        "model.lr": 0.005,
        "model.weight_decay": 0.001,
        "trainer.patience": 20,
        "trainer.precision": "32-true",
    },
)
