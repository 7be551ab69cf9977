"""Watch for overfitting during a training."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from dlcourse.evaluation.overfitting import Overfitting, _Epoch, compare_epochs


class OverfittingMonitor(Callback):
    """Keep the validation losses, row by row, of the best epoch and of the last, to compare them.

    Needs a model whose ``validation_step`` returns the N losses of its batch and that logs ``train/eval_loss``, and two
    validation dataloaders, validation rows and training rows, as `CourseModel` and `CourseData` have them.
    """

    def __init__(self) -> None:
        self.lowest: _Epoch | None = None
        self.last: _Epoch | None = None
        self._rows: list[Tensor] = []

    @property
    def finding(self) -> Overfitting | None:
        """The comparison of the two epochs; None without validation."""
        return compare_epochs(self.lowest, self.last) if self.lowest and self.last else None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 0:
            self._rows.append(outputs)

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


def interleave(shares: list[Tensor]) -> Tensor:
    """The N rows in order, from the shares of K processes: row i is in share i modulo K."""
    rows = torch.empty(sum(map(len, shares)), dtype=shares[0].dtype, device=shares[0].device)
    for rank, share in enumerate(shares):
        rows[rank :: len(shares)] = share
    return rows
