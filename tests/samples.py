"""Small data sets and models for the tests of the parts."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from sklearn.datasets import load_iris, make_classification
from torch import Tensor, nn

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Rows
from dlcourse.models.tasks import BinaryClassifier, Classifier, Regressor


class Given(CourseData):
    given: ClassVar[Rows]

    def load(self) -> Rows:
        return self.given


def data_of(rows: Rows, **settings: Any) -> CourseData:
    """Data made of rows at hand."""
    kind = type("Data", (Given,), {"given": rows})
    data: CourseData = kind(**settings)
    return data


def numbers(count: int = 50, features: int = 3, seed: int = 0) -> Rows:
    """A noisy linear regression on features of different scales."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, features, generator=generator) * torch.arange(1, features + 1) + 5
    targets = inputs @ torch.arange(1.0, features + 1)[:, None] + torch.randn(count, 1, generator=generator)
    return Rows(inputs, targets, "made for a test")


def two_classes(count: int = 150) -> Rows:
    inputs, labels = make_classification(count, 5, flip_y=0.2, random_state=0)
    return Rows(torch.from_numpy(inputs).float(), torch.from_numpy(labels), "made for a test", classes=("no", "yes"))


def iris() -> Rows:
    """120 flowers of three kinds: 50, 50 and 20."""
    content = load_iris()
    inputs, labels = torch.from_numpy(content.data[:120]).float(), torch.from_numpy(content.target[:120])
    return Rows(inputs, labels, "iris", classes=tuple(content.target_names))


def labelled(labels: Sequence[int]) -> Rows:
    """One row a label, each input its own row number."""
    inputs = torch.arange(len(labels), dtype=torch.float32)[:, None]
    names = tuple(str(number) for number in range(max(labels) + 1))
    return Rows(inputs, torch.tensor(labels), "made for a test", classes=names)


class Line(Regressor):
    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Linear(shape[0], outputs)


class Noisy(Regressor):
    """A network whose training draws random numbers in every step."""

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Sequential(nn.Linear(shape[0], 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, outputs))


class YesOrNo(BinaryClassifier):
    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Linear(shape[0], outputs)


class Kinds(Classifier):
    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Linear(shape[0], outputs)


class Stuck(Regressor):
    """A model that cannot improve: its output is 0 whatever its weight."""

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = Nothing()


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return 0 * self.weight * inputs[:, :1]
