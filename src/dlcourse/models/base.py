"""Models: one step behind the three stages, metrics, optimiser and schedule."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from inspect import signature
from types import MappingProxyType
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torchmetrics import MeanMetric, MetricCollection

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Batch, Split
from dlcourse.errors import SettingsError
from dlcourse.ranges import Fraction, NonNegativeFloat, PositiveFloat

TRIANGLE = (0.0, 0.23, 1.0), (0.2, 1.0, 0.07)
"""Shares of the training, and of the highest learning rate that is had there."""
BATCHES_COUNTED_TOGETHER = 100


class CourseModel(L.LightningModule, ABC):
    """A network with its loss, metrics, optimiser and schedule.

    The positional arguments come from the data; what follows the star are the settings. A subclass builds
    ``self.network``, which gets standardised inputs (N x shape) and gives N x outputs.

    Args:
        shape: Shape of one input, as ``data.shape`` gives it.
        outputs: Numbers the network gives for one input, as ``data.outputs`` gives it.
        optimizer: Stochastic gradient descent, the same with Nesterov's momentum, Adam (Kingma and Ba 2015) or AdamW
            (Loshchilov and Hutter 2019).
        lr: Learning rate.
        momentum: Momentum of SGD, with which a step is up to 1 / (1 - momentum) times as long; Adam and AdamW have
            their own.
        weight_decay: L2 penalty; lr_per_1024_samples from the gradient in AdamW.
        schedule: Learning rate over the training: constant, a half cosine down to 0, up and down (one_cycle, Smith and
            Topin 2018), or the same in straight lines (triangle).
    """

    network: nn.Module
    primary_metric: str
    """The one of `per_sample_metrics` that a run's result is reported in."""
    lower_is_better: frozenset[str] = frozenset({"loss"})
    """The metrics of which less is better."""
    extra_test_metrics: Mapping[str, str] = MappingProxyType({})
    """Metrics of the test rows that a run's card tells on lines of their own, where they were measured, and what they
    are."""

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        optimizer: Literal["sgd", "nesterov", "adam", "adamw"] = "sgd",
        lr: PositiveFloat = 0.01,
        momentum: Fraction = 0.0,
        weight_decay: NonNegativeFloat = 0.0,
        schedule: Literal["constant", "cosine", "one_cycle", "triangle"] = "constant",
    ) -> None:
        super().__init__()
        self.shape, self.outputs = list(shape), outputs
        self.optimizer, self.lr, self.momentum, self.weight_decay = optimizer, lr, momentum, weight_decay
        self.schedule = schedule
        self.save_hyperparameters()
        self.check_settings(self.hparams)
        scaling_shape = [shape[0], *(1 for _ in shape[1:])]
        self.input_mean: Tensor
        self.input_std: Tensor
        self.register_buffer("input_mean", torch.zeros(scaling_shape))
        self.register_buffer("input_std", torch.ones(scaling_shape))
        collection = MetricCollection(
            {"loss": MeanMetric(nan_strategy="disable"), **self.metrics()}, compute_groups=False
        )
        self.train_metrics = collection.clone("train/")
        self.val_metrics = collection.clone("val/")
        self.test_metrics = collection.clone("test/")
        # Of training rows in evaluation mode, only what the gap is told in: each metric costs time every epoch.
        self.gap_metrics = MetricCollection(
            {name: metric for name, metric in collection.items() if name in ("loss", self.primary_metric)},
            prefix="gap/train_",
            compute_groups=False,
        ).clone()
        self._uncounted: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning's note of the hook it is in, some thirty times a step
            object.__setattr__(self, name, value)  # a module would see each time whether that is a parameter
        else:
            super().__setattr__(name, value)

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """Raises `SettingsError` where settings contradict each other; asked before any data is loaded."""
        if settings.get("optimizer") == "nesterov" and settings.get("momentum") == 0:
            raise SettingsError("--model.optimizer nesterov needs --model.momentum above 0, such as 0.9")

    @property
    def fixed_length_setting(self) -> str | None:
        """The setting that lays out all steps of a training before the first one; None where it can be lengthened."""
        return None if self.schedule == "constant" else f"--model.schedule {self.schedule}"

    @abstractmethod
    def metrics(self) -> dict[str, Any]:
        """The torchmetrics to be kept beside the loss, by name; each takes (predictions, targets)."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """What a user wants: a regression's values, a classifier's probabilities."""

    @abstractmethod
    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, N; their mean is what is minimised."""

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What a training step minimises: the mean of those losses, unless a model is regularised by it."""
        return self.per_sample_loss(outputs, targets).mean()

    @abstractmethod
    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Metrics that are means over rows, before the mean: the N values whose spread gives a standard error."""

    def prepare(self, data: CourseData) -> None:
        """Take over what is measured on the training rows before any step: by what inputs are standardised."""
        self.set_scaling(*data.scaling)

    def set_scaling(self, mean: Tensor, std: Tensor) -> None:
        """Standardise inputs by these from now on; kept with the weights, so that a model takes raw inputs."""
        self.input_mean.copy_(mean.view_as(self.input_mean))
        self.input_std.copy_(std.view_as(self.input_std))

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, CourseData):
            self.prepare(data)

    def standardised(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.input_mean.dtype, copy=True).sub_(self.input_mean).div_(self.input_std)

    def forward(self, inputs: Tensor) -> Tensor:
        """Raw inputs, N x shape, to the network's outputs, N x outputs."""
        outputs: Tensor = self.network(self.standardised(inputs))
        return outputs

    def metric_names(self, split: Split) -> list[str]:
        """What a training logs for a split: ``val/loss`` and so on."""
        return [f"{split}/{name}" for name in ("loss", *self.metrics())]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        outputs = self(inputs)
        loss = self.training_loss(outputs, targets)
        self._count(self.train_metrics, loss, outputs, targets)
        return loss

    training_step.__signature__ = signature(training_step)  # type: ignore[attr-defined]  # asked for at each step

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Measure validation rows, or with ``dataloader_idx`` 1 training rows for the gap; gives the rows' losses."""
        return self._measure(batch, self.gap_metrics if dataloader_idx else self.val_metrics)[0]

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._measure(batch, self.test_metrics)[1]

    def _measure(self, batch: Batch, metrics: MetricCollection) -> tuple[Tensor, Tensor]:
        """Each row's loss and outputs."""
        inputs, targets = batch
        outputs = self(inputs)
        losses = self.per_sample_loss(outputs, targets)
        self._count(metrics, losses.mean(), outputs, targets)
        return losses, as_float32(outputs)

    def _count(self, metrics: MetricCollection, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Keep a batch to be counted with the next ones: that costs as much for many as for one."""
        waiting = self._uncounted[str(metrics.prefix)]
        waiting.append((loss.detach(), outputs.detach(), targets))
        if len(waiting) == BATCHES_COUNTED_TOGETHER:
            self._count_waiting(metrics)

    def _count_waiting(self, metrics: MetricCollection) -> None:
        """Count what was kept, on its device and without waiting for it."""
        waiting = self._uncounted.pop(str(metrics.prefix), None)
        if not waiting:
            return
        losses, outputs, targets = zip(*waiting, strict=True)
        rows = torch.tensor([len(each) for each in targets], device=losses[0].device)
        predictions, answers = self.predictions(as_float32(torch.cat(outputs))), torch.cat(targets)
        for name, metric in metrics.items(keep_base=True):
            if name == "loss":
                # A row for each row of a batch: as it lets NaN pass, MeanMetric forgets the weights it is given.
                metric.update(torch.repeat_interleave(torch.stack(losses), rows, output_size=len(answers)))
            else:
                metric.update(predictions, answers)

    def on_fit_start(self) -> None:
        self._uncounted.clear()  # of a training that was interrupted

    def on_train_epoch_end(self) -> None:
        self._log(self.train_metrics)

    def on_validation_epoch_end(self) -> None:
        measured = self._log(self.val_metrics)
        if str(self.gap_metrics.prefix) in self._uncounted or self.gap_metrics["loss"].update_called:
            trained = self._log(self.gap_metrics)
            names = [name.removeprefix("gap/train_") for name in trained]
            gaps = {f"gap/{name}": measured[f"val/{name}"] - trained[f"gap/train_{name}"] for name in names}
            self.log_dict(gaps, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        self._log(self.test_metrics)

    def _log(self, metrics: MetricCollection) -> dict[str, Tensor]:
        self._count_waiting(metrics)
        values: dict[str, Tensor] = metrics.compute()
        self.log_dict(values, sync_dist=True)  # of all processes already, but Lightning cannot know and would warn
        metrics.reset()
        return values

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The parameters to train, in groups with what they have settings of their own in."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val:  # Lightning takes its time to find that there is nothing to do
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups, decay = self.optimizer_groups(), self.weight_decay
        fused = not self.trainer.gradient_clip_val  # faster; but in mixed precision its gradients cannot be clipped
        optimizer: torch.optim.Optimizer
        if self.optimizer in ("sgd", "nesterov"):
            nesterov = self.optimizer == "nesterov"
            optimizer = torch.optim.SGD(
                groups, self.lr, self.momentum, weight_decay=decay, nesterov=nesterov, fused=fused
            )
        else:
            kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
            optimizer = kind(groups, self.lr, weight_decay=decay, fused=fused)
        if self.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule: lr_scheduler.LRScheduler
        if self.schedule == "cosine":
            schedule = lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        elif self.schedule == "triangle":
            schedule = lr_scheduler.LambdaLR(optimizer, lambda step: float(np.interp(step / steps, *TRIANGLE)))
        else:
            schedule = lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def as_float32(outputs: Tensor) -> Tensor:
    """Outputs to measure: in float32 where a network computed in less."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()
