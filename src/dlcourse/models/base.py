"""The base of all models: one step behind training, validation and test, and what it logs."""

from abc import ABC
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Batch, Split
from dlcourse.errors import SettingsError
from dlcourse.evaluation.tasks import Task, as_float32
from dlcourse.models.optimizers import OptimizerName, ScheduleName, make_optimizer, make_schedule
from dlcourse.settings import Fraction, NonNegativeFloat, PositiveFloat


class CourseModel(L.LightningModule, Task, ABC):
    """A network with its loss, metrics, optimiser and schedule: a LightningModule that is its own `Task`.

    The positional arguments come from the data; the keyword arguments are the settings. A subclass builds
    ``self.network``, from standardised inputs (N x shape) to outputs (N x outputs).

    Args:
        shape: Shape of one input, as ``data.shape`` gives it.
        outputs: Outputs of the network for one input, as ``data.outputs`` gives it.
        optimizer: Stochastic gradient descent, the same with Nesterov's momentum, Adam (Kingma and Ba 2015) or AdamW
            (Loshchilov and Hutter 2019).
        lr: Learning rate.
        momentum: Momentum of SGD, with which a step is up to 1 / (1 - momentum) times as long; Adam and AdamW have
            their own.
        weight_decay: L2 penalty; in AdamW decoupled from the gradient.
        schedule: Learning rate over the training: constant, a half cosine down to 0, up and down (one_cycle, Smith and
            Topin 2018), or the same in straight lines (triangle).
    """

    network: nn.Module

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        optimizer: OptimizerName = "sgd",
        lr: PositiveFloat = 0.01,
        momentum: Fraction = 0.0,
        weight_decay: NonNegativeFloat = 0.0,
        schedule: ScheduleName = "constant",
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
        self.measure_also({})

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """Raises `SettingsError` if settings contradict each other; called before any data is loaded."""
        if settings.get("optimizer") == "nesterov" and settings.get("momentum") == 0:
            raise SettingsError("--model.optimizer nesterov needs --model.momentum above 0, such as 0.9")

    @property
    def total_steps_flag(self) -> str | None:
        """The flag by which each step depends on the total number of steps, such as ``--model.schedule cosine``.

        None where there is no such setting: then a resumed training may be made longer or shorter.
        """
        return None if self.schedule == "constant" else f"--model.schedule {self.schedule}"

    def measure_also(self, metrics: Mapping[str, Metric]) -> None:
        super().measure_also(metrics)
        # A NaN loss must be seen, not left out of the mean: and looking for it would wait for the GPU in each step.
        named: dict[str, Metric | MetricCollection] = {
            "loss": MeanMetric(nan_strategy="disable"), **self.all_metrics()
        }  # fmt: skip
        collection = MetricCollection(named, compute_groups=False)
        self.train_metrics = collection.clone("train/")
        self.val_metrics = collection.clone("val/")
        self.test_metrics = collection.clone("test/")
        # Training rows in evaluation mode: only two metrics, since each costs time every epoch.
        few = {name: named[name] for name in ("loss", self.primary_metric) if name in named}
        self.train_eval_metrics = MetricCollection(few, prefix="train/eval_", compute_groups=False).clone()

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar that a training step minimises: the mean of `per_sample_loss`, unless a subclass overrides it."""
        return self.per_sample_loss(outputs, targets).mean()

    def prepare(self, data: CourseData) -> None:
        """Set what is computed from the training rows before the first step: the scaling of the inputs."""
        self.set_scaling(*data.scaling)

    def set_scaling(self, mean: Tensor, std: Tensor) -> None:
        """Standardise inputs by this mean and standard deviation from now on.

        They are buffers, saved with the weights, so that the model takes raw inputs.
        """
        self.input_mean.copy_(mean.view_as(self.input_mean))
        self.input_std.copy_(std.view_as(self.input_std))

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, CourseData):
            self.prepare(data)

    @cached_property
    def takes_ids(self) -> bool:
        """Whether integers are token ids, which have no scale: whether the network looks them up in an embedding."""
        return any(isinstance(layer, nn.Embedding | nn.EmbeddingBag) for layer in self.network.modules())

    def standardised(self, inputs: Tensor) -> Tensor:
        if not inputs.is_floating_point() and self.takes_ids:
            return inputs
        return inputs.to(self.input_mean.dtype, copy=True).sub_(self.input_mean).div_(self.input_std)

    def forward(self, inputs: Tensor) -> Tensor:
        """Raw inputs, N x shape, to the network's outputs, N x outputs."""
        outputs: Tensor = self.network(self.standardised(inputs))
        return outputs

    def metric_names(self, split: Split) -> list[str]:
        """The names under which a split's metrics are logged: ``val/loss`` and so on."""
        return [f"{split}/{name}" for name in ("loss", *self.all_metrics())]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        outputs = self(inputs)
        loss = self.training_loss(outputs, targets)
        self._update(self.train_metrics, loss, outputs, targets)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Measure validation rows, or with ``dataloader_idx`` 1 training rows; returns N losses."""
        losses, _ = self._evaluation_step(batch, self.train_eval_metrics if dataloader_idx else self.val_metrics)
        return losses

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Measure test rows; returns the outputs, N x outputs, in float32 or more."""
        _, outputs = self._evaluation_step(batch, self.test_metrics)
        return outputs

    def _evaluation_step(self, batch: Batch, metrics: MetricCollection) -> tuple[Tensor, Tensor]:
        """Each row's loss, N, and its outputs."""
        inputs, targets = batch
        outputs = self(inputs)
        losses = self.per_sample_loss(outputs, targets)
        self._update(metrics, losses.mean(), outputs, targets)
        return losses, as_float32(outputs)

    def _update(self, metrics: MetricCollection, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        predictions = self.predictions(as_float32(outputs.detach()))
        # Each metric takes the arguments that it names. The loss counts once a row: the last batch may be smaller.
        metrics.update(preds=predictions, target=targets, value=loss.detach().expand(len(targets)))

    def on_fit_start(self) -> None:
        for metrics in (self.train_metrics, self.val_metrics, self.train_eval_metrics):
            metrics.reset()  # they may hold batches of a training that was interrupted

    # Metrics are updated in each step and logged once an epoch: Lightning then computes them, over all processes, and
    # resets them.

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.train_metrics)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.val_metrics)
        if self.train_eval_metrics["loss"].update_called:  # training rows were measured as well
            self.log_dict(self.train_eval_metrics)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics)

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The parameters to train, in the groups of `torch.optim` where they differ in learning rate or decay."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = make_optimizer(
            self.optimizer,
            self.optimizer_groups(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=not self.trainer.gradient_clip_val,
        )
        if self.schedule == "constant":
            return optimizer
        total_steps = int(self.trainer.estimated_stepping_batches)
        schedule = make_schedule(self.schedule, optimizer, lr=self.lr, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
