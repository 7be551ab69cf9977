"""Watch for overfitting during a training."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from dlcourse.errors import CourseError
from dlcourse.evaluation.overfitting import Overfitting, _Epoch, compare_epochs
from dlcourse.evaluation.tasks import Task

GAP_ROWS = 1000
"""Training rows measured after each epoch, at the most: their mean is about as exact as the validation loss."""
GAP_BYTES = 256 * 2**20
"""The most memory that these may take: with larger inputs there are fewer."""


class OverfittingMonitor(Callback):
    """Keep the validation losses, row by row, of the best epoch and of the last, to compare them.

    With a ``task`` it watches any LightningModule with a ``validation_step``, in any Trainer: after each validation it
    has the loss of each row of the first validation loader, and of some `GAP_ROWS` training rows of the first epoch, in
    evaluation mode by passes of its own. It logs ``val/loss`` and the task's metrics, ``train/eval_loss`` and the
    primary one, in place of metrics of these names that the module logs itself.

    Without one it needs a `CourseModel`, whose ``validation_step`` does the same, and `CourseData`.

    Attributes:
        finding: The comparison of the two epochs; None without validation.
    """

    def __init__(self, task: Task | None = None) -> None:
        self.task = task
        self.lowest: _Epoch | None = None
        self.last: _Epoch | None = None
        self._rows: list[Tensor] = []
        self._measured: list[tuple[Tensor, Tensor]] = []
        self._targets: Tensor | None = None
        self._sample: list[Any] = []
        self._sampled_rows = self._sampled_bytes = 0

    @property
    def finding(self) -> Overfitting | None:
        return compare_epochs(self.lowest, self.last) if self.lowest and self.last else None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.task is None or self._sampled_rows >= GAP_ROWS or self._sampled_bytes >= GAP_BYTES:
            return
        if not self._sample:
            self._try(self.task, pl_module, batch)
        inputs, targets = self.task.split_batch(batch)
        self._sample.append(batch)
        self._sampled_rows += len(targets)
        self._sampled_bytes += inputs.nbytes if isinstance(inputs, Tensor) else 0

    def _try(self, task: Task, pl_module: L.LightningModule, batch: Any) -> None:
        """Raise what is wrong with batches or outputs before the first step; leaves the module as it is."""
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        with torch.no_grad():
            task.measured(pl_module, batch)
        for module, is_training in modes.items():
            module.training = is_training

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rows.clear()  # an epoch may have several validations, of which the last counts
        self._measured.clear()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx or trainer.sanity_checking:
            return
        if self.task is None:
            self._rows.append(outputs)
        else:
            self._measured.append(self.task.measured(pl_module, batch))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.task is None or not self._measured:
            return
        task = self.task
        outputs, targets = _together(self._measured)
        if self._targets is not None and not torch.equal(targets, self._targets):
            raise CourseError(
                "val_dataloader gives its rows in another order each time, so that epochs cannot be compared row by "
                "row: set its shuffle to False"
            )
        self._targets, predictions = targets, task.predictions(outputs)
        self._rows = [task.per_sample_loss(outputs, targets)]
        metrics = {"val/loss": self._rows[0].mean()}
        for name, metric in task.all_metrics().items():
            metrics[f"val/{name}"] = metric.to(outputs.device)(predictions, targets)
        outputs, targets = _together([task.measured(pl_module, batch) for batch in self._sample])
        values = {**task.per_sample_metrics(outputs, targets), "loss": task.per_sample_loss(outputs, targets)}
        metrics |= {
            f"train/eval_{name}": values[name].mean() for name in ("loss", task.primary_metric) if name in values
        }
        pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._rows:
            return
        losses = torch.cat(self._rows)
        if trainer.world_size > 1:
            losses = interleave(gather_all_tensors(losses))
        losses = losses.double().cpu()
        self._rows.clear()
        train_loss = float(trainer.callback_metrics["train/eval_loss"])
        self.last = _Epoch(trainer.current_epoch, losses, train_loss)
        if self.lowest is None or self.last.loss < self.lowest.loss:
            self.lowest = self.last

    def state_dict(self) -> dict[str, Any]:
        return {name: vars(epoch) for name in ("lowest", "last") if (epoch := getattr(self, name))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, epoch in state_dict.items():
            setattr(self, name, _Epoch(**epoch))


def _together(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    outputs, targets = zip(*batches, strict=True)
    return torch.cat(outputs), torch.cat(targets)


def interleave(shares: list[Tensor]) -> Tensor:
    """The N rows in order, from the shares of K processes: row i is in share i modulo K."""
    rows = torch.empty(sum(map(len, shares)), dtype=shares[0].dtype, device=shares[0].device)
    for rank, share in enumerate(shares):
        rows[rank :: len(shares)] = share
    return rows
