"""Height and weight: linear regression with one feature, by gradient descent."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_regression
from torch import Tensor, nn

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Rows
from dlcourse.evaluation import baselines
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.models.base import CourseModel
from dlcourse.models.tasks import Regressor
from dlcourse.reporting import figures
from dlcourse.topics import Topic

HEIGHTS = [160.0, 166.0, 172.0, 174.0, 180.0]
WEIGHTS = [56.3, 60.6, 65.1, 68.5, 75.0]
SLOPE_OF_MAKE_REGRESSION = 42.38550485581797
INTERCEPT_OF_MAKE_REGRESSION = 1.5


class HeightWeightData(CourseData):
    """A height and a weight in each row.

    Args:
        source: make_regression is 100 points near a known line, from scikit-learn; table is the course's five rows in
            centimetres and kilograms.
        ask: Heights, in the source's unit, for which the run reports the predicted weight. null is the course's own
            question, 176 cm, for table, and none for make_regression.
    """

    def __init__(
        self, *, source: Literal["make_regression", "table"] = "make_regression", ask: list[float] | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(**settings)
        self.source = source
        self.ask = ask if ask is not None else [176.0] if source == "table" else []

    def load(self) -> Rows:
        if self.source == "table":
            heights, weights = torch.tensor(HEIGHTS), torch.tensor(WEIGHTS)
            return Rows(heights[:, None], weights[:, None], "the course's table", ("height in cm",), ("weight in kg",))
        points, values, slope = make_regression(
            n_samples=100, n_features=1, noise=10, bias=INTERCEPT_OF_MAKE_REGRESSION, coef=True, random_state=0
        )
        assert abs(float(slope) - SLOPE_OF_MAKE_REGRESSION) < 1e-9, "scikit-learn's make_regression has changed"
        return Rows(
            torch.from_numpy(points).float(),
            torch.from_numpy(values).float()[:, None],
            "scikit-learn's make_regression",
            ("height",),
            ("weight",),
        )

    def queries(self) -> Tensor | None:
        return torch.tensor(self.ask)[:, None] if self.ask else None


class Line(Regressor):
    """weight = slope * height + intercept."""

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Linear(shape[0], outputs)


def fitted_line(model: CourseModel, data: CourseData, evaluation: Evaluation) -> Figure:
    """The points with the fitted line, the least-squares line of the training rows and, where known, the true one."""
    train = data.rows.inputs[data.splits["train"]], data.rows.targets[data.splits["train"]]
    lines: dict[str, Callable[[Tensor], Tensor]] = {
        "fitted by gradient descent": model,
        "least squares": baselines.least_squares(*train),
    }
    if isinstance(data, HeightWeightData) and data.source == "make_regression":
        lines["true"] = lambda rows: SLOPE_OF_MAKE_REGRESSION * rows + INTERCEPT_OF_MAKE_REGRESSION
    return figures.lines_through_points(data, lines)


TOPIC = Topic(
    name="height-weight",
    title="Height and weight: a straight line through points",
    lesson="docs/height-weight.md",
    data=HeightWeightData,
    model=Line,
    baselines={"mean": baselines.mean, "least-squares": baselines.least_squares, "ridge": baselines.ridge},
    figures={"fitted-line": fitted_line},
)
