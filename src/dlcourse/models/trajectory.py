"""Models of a few weights, whose path through weight space is kept."""

from abc import ABC
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dlcourse.data.rows import Batch
from dlcourse.errors import SettingsError
from dlcourse.models.base import CourseModel

SHORT_NAMES = {"weight": "w", "bias": "b"}


class TrajectoryModel(CourseModel, ABC):
    """A model of a few weights, each a scalar, that logs all of them.

    Each epoch logs ``param/<name>`` and ``lecture/loss``, the loss of the epoch's last batch, as course notes print it.
    ``path`` has the initial weights and those after each epoch: epochs + 1 lists of W numbers. Checkpoints have it too.

    Args:
        start: The initial weights, in the order in which they are logged; random if not given.
        reduction: Minimise the mean of a batch's losses, or their sum.
        loss_after_step: Measure lecture/loss after the step on the last batch, not before it.
    """

    lowest: float | None = None
    """The loss at the global minimum, if it is known and there are local minima too."""

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
        """Set the network, and its weights to ``start``; raises `SettingsError` if that is not one number a weight."""
        self.network = network
        if self.start is None:
            return
        if len(self.start) != len(self.names):
            raise SettingsError(f"--model.start needs {len(self.names)} numbers ({', '.join(self.names)})")
        for weight, value in zip(self.network.parameters(), self.start, strict=True):
            nn.init.constant_(weight, value)

    @property
    def names(self) -> list[str]:
        """The names of the weights in logs and figures: ``w``, ``w1``, ``b`` and so on."""
        names = [name.rpartition(".")[2] for name, _ in self.network.named_parameters()]
        return [SHORT_NAMES.get(name, name) for name in names]

    def reduced(self, losses: Tensor) -> Tensor:
        return losses.mean() if self.reduction == "mean" else losses.sum()

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.reduced(self.per_sample_loss(outputs, targets))

    def loss_at(self, point: Tensor, rows: Batch) -> Tensor:
        """The loss of some rows at the weights ``point``, W numbers, in their precision; differentiable by them."""
        pairs = zip(self.network.named_parameters(), point, strict=True)
        weights = {name: value.view(weight.shape) for (name, weight), value in pairs}
        inputs = (rows[0].to(point) - self.input_mean.to(point)) / self.input_std.to(point)
        return self.reduced(self.per_sample_loss(functional_call(self.network, weights, inputs), rows[1]))

    def on_train_start(self) -> None:
        self.path = self.path or [self._weights()]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._last = outputs["loss"], batch

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        loss, (inputs, targets) = self._last
        if self.loss_after_step:
            with torch.no_grad():
                loss = self.training_loss(self(inputs), targets)
        self.path.append(self._weights())
        weights = {f"param/{name}": value for name, value in zip(self.names, self.path[-1], strict=True)}
        for logger in self.loggers:  # not by self.log, which would round to float32
            logger.log_metrics({"lecture/loss": float(loss), **weights}, step=self.current_epoch)

    def _weights(self) -> list[float]:
        return [weight.item() for weight in self.network.parameters()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["path"] = self.path

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.path = checkpoint["path"]


def exhaustive_search(model: TrajectoryModel, rows: Batch, points: Tensor) -> Tensor:
    """The loss of some rows at each of N points, N x W: N numbers in float64."""
    return vmap(lambda point: model.loss_at(point, rows))(points.double()).detach()
