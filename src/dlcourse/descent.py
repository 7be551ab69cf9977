"""Descents that can be followed: every weight on the way down, and where it ended."""

from abc import ABC
from collections.abc import Sequence
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call, grad, vmap

from dlcourse.data import Batch, CourseData
from dlcourse.errors import SettingsError
from dlcourse.evaluating import Evaluation
from dlcourse.learning import CourseModel
from dlcourse.verdict import Verdict

ARRIVED = 1e-4
"""Share of the way down, in loss; where no more than that is left, the descent has arrived."""
CRAWLING = 0.1
"""A descent that came no further than this share of its way crawls."""
LEVEL = 1e-9
"""Largest slope, as a share of the largest curvature, where the loss is level."""
PLAIN = {"weight": "w", "bias": "b"}


class FollowedModel(CourseModel, ABC):
    """A model of a few weights, each a number, whose run keeps all of them.

    Each epoch logs ``param/<name>``, and ``notes/loss``: the loss of the epoch's last batch, that is of all rows where
    they are one batch, and of the last row where rows come one at a time. ``path`` holds the same weights, W numbers an
    epoch, those of the start first.

    Args:
        start: The weights to start from, in the order in which they are logged; at random without.
        reduction: Minimise the mean of a batch's losses, or their sum.
        loss_after_step: Measure notes/loss after the step that the last batch leads to, not before it.
    """

    lowest: float | None = None
    """The lowest loss there is, where it is known and not every minimum has it."""

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        start: list[float] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        loss_after_step: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(shape, outputs, **settings)
        self.start, self.reduction, self.loss_after_step = start, reduction, loss_after_step
        self.path: list[list[float]] = []

    def begin(self, network: nn.Module) -> None:
        """Take this network, from the weights to start from."""
        self.network = network
        if self.start is None:
            return
        if len(self.start) != len(self.names):
            raise SettingsError(f"--model.start needs {len(self.names)} numbers ({', '.join(self.names)})")
        for weight, value in zip(self.network.parameters(), self.start, strict=True):
            nn.init.constant_(weight, value)

    @property
    def names(self) -> list[str]:
        """What the weights are called: ``w``, ``w1``, ``b`` and so on."""
        last = [name.rpartition(".")[2] for name, _ in self.network.named_parameters()]
        return [PLAIN.get(name, name) for name in last]

    def reduced(self, losses: Tensor) -> Tensor:
        return losses.mean() if self.reduction == "mean" else losses.sum()

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.reduced(self.row_losses(outputs, targets))

    def loss_at(self, point: Tensor, rows: Batch) -> Tensor:
        """What the loss of some rows is where the weights are ``point``, W numbers; as precise as those, and smooth."""
        named = zip(self.network.named_parameters(), point, strict=True)
        weights = {name: value.view(weight.shape) for (name, weight), value in named}
        inputs = (rows[0].to(point) - self.input_mean.to(point)) / self.input_deviation.to(point)
        return self.reduced(self.row_losses(functional_call(self.network, weights, inputs), rows[1]))

    def on_train_start(self) -> None:
        self.path = self.path or [self._place()]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._last = outputs["loss"], batch

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        loss, (inputs, targets) = self._last
        if self.loss_after_step:
            with torch.no_grad():
                loss = self.training_loss(self(inputs), targets)
        self.path.append(self._place())
        weights = {f"param/{name}": value for name, value in zip(self.names, self.path[-1], strict=True)}
        for logger in self.loggers:  # not by self.log, which would round to float32
            logger.log_metrics({"notes/loss": float(loss), **weights}, step=self.current_epoch)

    def _place(self) -> list[float]:
        return [weight.item() for weight in self.network.parameters()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["path"] = self.path

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.path = checkpoint["path"]


def exhaustive_search(model: FollowedModel, rows: Batch, points: Tensor) -> Tensor:
    """The loss of some rows at each of N points, N x W, in float64: N."""
    return vmap(lambda point: model.loss_at(point, rows))(points.double()).detach()


def where_it_ended(model: FollowedModel, data: CourseData) -> Verdict:
    """Judge a descent by slope and curvature of the loss where it ended.

    What is left of the way down is what a Newton step would gain (Boyd and Vandenberghe 2004, section 9.5.1), which for
    a squared error is the distance to least squares.
    """
    rows = _training_rows(data)
    start, end = (torch.tensor(point, dtype=torch.float64) for point in (model.path[0], model.path[-1]))

    def loss_at(point: Tensor) -> Tensor:
        return model.loss_at(point, rows)

    loss, slope = float(loss_at(end)), grad(loss_at)(end)
    bend = hessian(loss_at, end)  # type: ignore[no-untyped-call]
    curvatures, directions = torch.linalg.eigh(bend)
    slopes = directions.T @ slope
    epochs, steepest = len(model.path) - 1, float(curvatures.abs().max())

    def verdict(headline: str, advice: str = "") -> Verdict:
        return Verdict(headline, None, "train", {}, {}, advice)

    if float(curvatures[0]) < 0:
        if float(slope.abs().max()) <= LEVEL * steepest:
            advice = "without a slope there is no step: noise leaves it (--data.batch_size 1), or another --model.start"
            return verdict("stuck: at a saddle point", advice)
        return verdict("unfinished: the loss still falls", "it curves down the way it goes: no minimum is near")
    left = float((slopes.square() / curvatures.clamp(min=1e-12 * steepest)).sum()) / 2
    way = float(loss_at(start)) - loss
    share = way / (way + left) if left > 0 else 1.0
    if share < CRAWLING:
        advice = f"after {epochs} epochs {max(share, 0):.2%} of the way is done: raise --model.lr ({model.lr:g})"
        return verdict("unfinished: it crawls", advice)
    if share < 1 - ARRIVED:
        advice = f"after {epochs} epochs {share:.2%} of the way is done: raise --trainer.max_epochs or --model.lr"
        return verdict("unfinished: the loss still falls", advice)
    if model.lowest is not None and loss - model.lowest > ARRIVED * abs(way):
        advice = f"the loss is {loss:.4g}, and elsewhere {model.lowest:.4g}: momentum or another start may get there"
        return verdict("converged: at a minimum, but not the lowest", advice)
    return verdict("converged: at the minimum")


def _training_rows(data: CourseData) -> Batch:
    rows = data.splits["train"]
    return data.rows.inputs[rows], data.rows.targets[rows]


def way_down(model: FollowedModel, data: CourseData, judged: Evaluation) -> Figure:
    """The loss over one weight or two, with the way down on it; of more weights, each over the epochs."""
    path = torch.tensor(model.path, dtype=torch.float64)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    if path.shape[1] == 1:
        _over_one_weight(figure, model, _training_rows(data), path)
    elif path.shape[1] == 2:
        _over_two_weights(figure, model, _training_rows(data), path)
    else:
        axes = figure.add_subplot()
        for name, values in zip(model.names, path.T, strict=True):
            axes.plot(range(len(path)), values, label=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epochs", ylabel="weight", title="Weights on the way down")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _over_one_weight(figure: Figure, model: FollowedModel, rows: Batch, path: Tensor) -> None:
    ((low, high),) = _windows(path)
    points = torch.linspace(low, high, 401, dtype=torch.float64)[:, None]
    axes = figure.add_subplot()
    searched, losses = exhaustive_search(model, rows, points), exhaustive_search(model, rows, path)
    axes.plot(points[:, 0], searched, color="grey", label="loss, by exhaustive search")
    axes.plot(path[:, 0], losses, "o-", color="#d95f02", markersize=3, linewidth=1, label="the way down, by epochs")
    axes.plot(path[0, 0], losses[0], "s", color="black", label=f"start: {float(path[0, 0]):.4g}")
    axes.plot(path[-1, 0], losses[-1], "*", color="black", markersize=11, label=f"end: {float(path[-1, 0]):.4g}")
    lowest, highest = float(searched.min()), float(losses.max())
    margin = (highest - lowest) / 10 or 1.0  # what lies far above the way would flatten it
    axes.set(xlabel=model.names[0], ylabel="loss", title=f"The loss over {model.names[0]}")
    axes.set_ylim(lowest - margin, highest + 2 * margin)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center")


def _over_two_weights(figure: Figure, model: FollowedModel, rows: Batch, path: Tensor) -> None:
    """In space, and as seen from above."""
    figure.set_size_inches(11, 4.8)
    first, second = (torch.linspace(*window, 61, dtype=torch.float64) for window in _windows(path))
    grid = torch.cartesian_prod(first, second)
    surface = exhaustive_search(model, rows, grid).view(61, 61)
    x, y = grid[:, 0].view(61, 61), grid[:, 1].view(61, 61)
    losses = exhaustive_search(model, rows, path)
    end = f"end: {model.names[0]} {float(path[-1, 0]):.4g}, {model.names[1]} {float(path[-1, 1]):.4g}"
    space: Any = figure.add_subplot(1, 2, 1, projection="3d", computed_zorder=False)
    space.plot_surface(x.numpy(), y.numpy(), surface.numpy(), cmap="viridis", alpha=0.75, linewidth=0)
    space.plot(path[:, 0].numpy(), path[:, 1].numpy(), losses.numpy(), ".-", color="#d95f02", markersize=3, zorder=5)
    space.set(xlabel=model.names[0], ylabel=model.names[1], zlabel="loss", title="The loss over both weights")
    above = figure.add_subplot(1, 2, 2)
    lowest = float(surface.min())
    levels = lowest + (float(surface.max()) - lowest) * torch.linspace(0, 1, 16, dtype=torch.float64) ** 2
    lines = above.contour(x.numpy(), y.numpy(), surface.numpy(), levels=levels.tolist(), cmap="viridis")
    figure.colorbar(lines, ax=above, label="loss")
    above.plot(path[:, 0], path[:, 1], ".-", color="#d95f02", markersize=3, label="the way down")
    above.plot(path[0, 0], path[0, 1], "s", color="black", label="start")
    above.plot(path[-1, 0], path[-1, 1], "*", color="black", markersize=11, label=end)
    above.set(xlabel=model.names[0], ylabel=model.names[1], title="The same from above")
    above.legend()


def _windows(path: Tensor) -> list[tuple[float, float]]:
    """For each weight, from below the smallest value to above the largest, with the last one well inside.

    A weight that hardly moves is shown as widely as the one that moves most.
    """
    low, high, end = path.min(0).values, path.max(0).values, path[-1]
    spans = high - low
    spans = torch.where(spans < spans.max() / 10, spans.max(), spans)
    spans[spans == 0] = 1.0
    low, high = torch.minimum(low - spans / 4, end - spans * 0.7), torch.maximum(high + spans / 4, end + spans * 0.7)
    return list(zip(low.tolist(), high.tolist(), strict=True))
