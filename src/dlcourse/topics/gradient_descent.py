"""Gradient descent on one, two or three weights, with every step recorded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from torchmetrics import MeanSquaredError

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Rows
from dlcourse.errors import SettingsError
from dlcourse.evaluation import baselines
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.models.base import CourseModel
from dlcourse.models.convergence import assess_convergence
from dlcourse.models.trajectory import TrajectoryModel
from dlcourse.models.trajectory_figures import plot_trajectory
from dlcourse.reporting import figures
from dlcourse.topics import Topic


class DescentData(CourseData):
    """A few points, or none where the loss depends on the weights alone.

    Args:
        source: doubled is three points of y = 2 x; line is 50 points of y = 3 x + 0.8; nothing is for functions of the
            weights alone; pushes is for the saddle: four gradients that add up to 0, so that descent leaves the saddle
            point only by the noise of small batches.
        shuffle: Shuffle the rows in each epoch, instead of taking them in order.
        ask: Values of x for which the run reports y. null is 4 for doubled, and none for the others.
    """

    def __init__(
        self,
        *,
        source: Literal["doubled", "line", "nothing", "pushes"] = "doubled",
        shuffle: bool = False,
        ask: list[float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.source, self.shuffle = source, shuffle
        self.ask = ask if ask is not None else [4.0] if source == "doubled" else []

    def load(self) -> Rows:
        if self.source == "nothing":
            return Rows(torch.zeros(1, 1), torch.zeros(1, 0), "nothing but the weights")
        if self.source == "pushes":
            pushes = 0.1 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
            return Rows(pushes, torch.zeros(4, 0), "four pushes", ("push along x", "push along y"))
        if self.source == "line":
            x = torch.rand(50, 1, generator=torch.Generator().manual_seed(0))
            return Rows(x, 3 * x + 0.8, "50 points of y = 3 x + 0.8", ("x",), ("y",))
        x = torch.tensor([[1.0], [2.0], [3.0]])
        return Rows(x, 2 * x, "three points of y = 2 x", ("x",), ("y",))

    def train_order(self) -> Sampler[int]:
        return super().train_order() if self.shuffle else SequentialSampler(self.splits["train"])

    def queries(self) -> Tensor | None:
        return torch.tensor(self.ask)[:, None] if self.ask else None


@dataclass(frozen=True)
class Formula:
    """A function of x, N x columns, and of named weights, with values N x 1.

    ``source`` names the data that it goes with, and ``lowest`` its global minimum where it has others.
    """

    names: tuple[str, ...]
    value: Callable[..., Tensor]
    source: tuple[str, ...] = ("doubled", "line")
    lowest: float | None = None


FORMULAS = {
    "proportional": Formula(("w",), lambda x, w: w * x),
    "line": Formula(("w", "b"), lambda x, w, b: w * x + b),
    "quadratic": Formula(("w1", "w2", "b"), lambda x, w1, w2, b: w1 * x**2 + w2 * x + b),
    "theta-squared": Formula(("theta",), lambda x, theta: theta**2 + 0 * x, ("nothing",)),
    # It has a local minimum of 0.2941 at 0.9601, and the global minimum of -0.3054 at -1.0356.
    "two-minima": Formula(
        ("theta",), lambda x, theta: (theta**2 - 1) ** 2 + 0.3 * theta + 0 * x, ("nothing",), lowest=-0.305428
    ),
    "saddle": Formula(("x", "y"), lambda push, x, y: x**2 - y**2 + push[:, :1] * x + push[:, 1:] * y, ("pushes",)),
}


class FormulaNetwork(nn.Module):
    """A formula whose weights are parameters, each drawn from the standard normal distribution."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula
        for name in formula.names:
            self.register_parameter(name, nn.Parameter(torch.randn(())))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.formula.value(inputs, *self.parameters())


class Descent(TrajectoryModel):
    """Minimise the squared error of a formula in x, or the value of a function of the weights.

    Args:
        formula: proportional is y = w x; line y = w x + b; quadratic y = w1 x² + w2 x + b; linear-layer the line as
            ``nn.Linear``; theta-squared J = theta²; saddle z = x² - y²; two-minima J = (theta² - 1)² + 0.3 theta.
    """

    primary_metric = "mse"
    lower_is_better = frozenset({"loss", "mse"})

    def __init__(
        self,
        shape: list[int],
        outputs: int,
        *,
        formula: Literal[
            "proportional", "line", "quadratic", "linear-layer", "theta-squared", "saddle", "two-minima"
        ] = "proportional",
        **settings: Any,
    ) -> None:
        self.has_targets = outputs > 0
        self.primary_metric = "mse" if self.has_targets else "loss"
        super().__init__(shape, outputs, **settings)
        function = FORMULAS.get(formula, FORMULAS["line"])  # linear-layer goes with the data of line
        columns = 2 if function.source == ("pushes",) else 1
        if shape[0] != columns or self.has_targets != (function.source == ("doubled", "line")):
            raise SettingsError(f"--model.formula {formula} goes with --data.source {' or '.join(function.source)}")
        self.lowest = function.lowest
        self.begin(nn.Linear(1, 1) if formula == "linear-layer" else FormulaNetwork(function))

    def metrics(self) -> dict[str, Any]:
        return {"mse": MeanSquaredError()} if self.has_targets else {}

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs

    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1) if self.has_targets else outputs[:, 0]

    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {self.primary_metric: self.per_sample_loss(outputs, targets)}


def points_and_curve(model: CourseModel, data: CourseData, evaluation: Evaluation) -> Figure | None:
    """The points with the fitted formula and the least-squares line; None where there are no points."""
    if not data.rows.targets.numel():
        return None
    lines: dict[str, Callable[[Tensor], Tensor]] = {"fitted by gradient descent": model}
    lines["least squares"] = baselines.least_squares(data.rows.inputs, data.rows.targets)
    return figures.lines_through_points(data, lines)


TOPIC = Topic(
    name="gradient-descent",
    title="Gradient descent: every step of the way down",
    lesson="docs/gradient-descent.md",
    data=DescentData,
    model=Descent,
    baselines={"mean": baselines.mean, "least-squares": baselines.least_squares},
    monitor="val/loss",
    judge=assess_convergence,
    figures={"way-down": plot_trajectory, "points-and-curve": points_and_curve},
)
