"""Study hours: logistic regression on three points."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Rows
from dlcourse.evaluation import baselines
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.models.convergence import assess_convergence
from dlcourse.models.tasks import BinaryClassifier
from dlcourse.models.trajectory import TrajectoryModel
from dlcourse.models.trajectory_figures import plot_trajectory
from dlcourse.reporting.figures import COLOURS
from dlcourse.topics import Topic


class StudyHoursData(CourseData):
    """Hours of study, and whether the examination was passed: not after 1 and 2 hours, but after 3.

    Args:
        ask: Hours for which the run reports the probability of passing.
    """

    def __init__(self, *, ask: list[float] = [4.0], **settings: Any) -> None:  # noqa: B006  # read by jsonargparse
        super().__init__(**settings)
        self.ask = ask

    def load(self) -> Rows:
        hours, passed = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1])
        return Rows(
            hours, passed, "the course's three points", ("hours",), ("probability of passing",), ("fail", "pass")
        )

    def queries(self) -> Tensor | None:
        return torch.tensor(self.ask)[:, None] if self.ask else None


class StudyHours(TrajectoryModel, BinaryClassifier):
    """P(pass) = sigmoid(w hours + b)."""

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.begin(nn.Linear(shape[0], outputs))


def probability_curve(model: StudyHours, data: CourseData, evaluation: Evaluation) -> Figure:
    """P(pass) from 0 to 10 hours, with the hours at which it is one half."""
    hours = torch.from_numpy(np.linspace(0, 10, 401)).float()[:, None]  # 401 x 1
    with torch.no_grad():
        probabilities = model.predictions(model(hours))
    w, b = model.path[-1]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(hours[:, 0], probabilities, color="black", linewidth=1.6, label=f"sigmoid({w:.3f} hours {b:+.3f})")
    axes.scatter(data.rows.inputs[:, 0], data.rows.targets, s=36, color=COLOURS["train"], zorder=3, label="the points")
    axes.axhline(0.5, color="grey", linestyle=":", linewidth=1.2)
    if w > 0 and 0 <= -b / w <= 10:
        label = f"one half at {-b / w:.2f} hours"
        axes.plot(-b / w, 0.5, "o", color="#d95f02", markersize=9, zorder=4, label=label)
        axes.axvline(-b / w, color="#d95f02", linestyle=":", linewidth=1.2)
    axes.set(xlabel="hours of study", ylabel="probability of passing", ylim=(-0.05, 1.05), title="Pass or fail")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


TOPIC = Topic(
    name="study-hours",
    title="Study hours: pass or fail, by logistic regression on three points",
    lesson="docs/study-hours.md",
    data=StudyHoursData,
    model=StudyHours,
    baselines={"majority": baselines.majority, "logistic-regression": baselines.logistic_regression},
    judge=assess_convergence,
    figures={"probability": probability_curve, "way-down": plot_trajectory},
)
