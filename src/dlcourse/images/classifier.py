"""The base of all image classifiers: memory format, compilation, label smoothing, lookahead, mirrored test images."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Accuracy

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Batch
from dlcourse.errors import SettingsError
from dlcourse.images.convolutional_network import ConvolutionalNetwork
from dlcourse.models.lookahead import Lookahead
from dlcourse.models.tasks import Classifier
from dlcourse.settings import Fraction, PositiveFloat

SAMPLES_OF_LR = 1024
STEPS_WORTH_COMPILING = 400
"""Compiling takes half a minute: fewer steps do not repay it."""


class ImageClassifier(Classifier, ABC):
    """A classifier of images, N x C x H x W.

    Args:
        lr_per_1024_samples: lr is the learning rate of 1024 samples, over all the steps that momentum takes them
            through, so that it need not change with batch size and momentum (decoupled, in Jordan 2024, section 3.4);
            sgd and nesterov only.
        bias_lr_factor: The learning rate of biases is this many times larger, their weight decay as much smaller. For
            sgd and nesterov only: the length of Adam's steps does not depend on the gradient's.
        label_smoothing: Share of each target that is spread evenly over all classes, in training only.
        lookahead: Average the weights over the steps of the training (Zhang et al. 2019): every fifth step, slow
            weights move towards them, and training goes on from the slow weights.
        test_flip: Measure the test rows a second time, on the mean of the outputs for each image and its mirror image;
            logged as ``test/accuracy_flip``.
        channels_last: Store the channels of a pixel next to each other in memory, which makes convolutions faster.
        compile: Compile the training step (torch.compile): auto does on a CUDA GPU, if the training is long enough to
            repay the half minute that it takes; on the CPUs measured, the compiled step was slower.
    """

    extra_test_metrics = MappingProxyType({"accuracy_flip": "with each image and its mirror image together"})
    _compiled: Callable[[Tensor], Tensor] | None = None
    """The network's forward, compiled, while it trains."""

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        lr_per_1024_samples: bool = False,
        bias_lr_factor: PositiveFloat = 1.0,
        label_smoothing: Fraction = 0.0,
        lookahead: bool = False,
        test_flip: bool = False,
        channels_last: bool = True,
        compile: bool | Literal["auto"] = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(shape, outputs, **settings)
        self.lr_per_1024_samples, self.bias_lr_factor = lr_per_1024_samples, bias_lr_factor
        self.label_smoothing, self.lookahead = label_smoothing, lookahead
        self.test_flip, self.channels_last, self.compiles = test_flip, channels_last, compile
        self.batch_size = SAMPLES_OF_LR
        self.flip_accuracy = Accuracy(task="multiclass", num_classes=outputs)

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        super().check_settings(settings)
        off = {"lr_per_1024_samples": False, "bias_lr_factor": 1}  # the values at which sgd's own settings do nothing
        active = [name for name, value in off.items() if settings.get(name, value) != value]
        if settings.get("optimizer") in ("adam", "adamw") and active:
            add = " ".join(f"--model.{name} {str(off[name]).lower()}" for name in active)
            raise SettingsError(
                f"--model.optimizer {settings['optimizer']} takes --model.lr as it is, and {' and '.join(active)} "
                f"would change it: add {add}"
            )

    @property
    def total_steps_flag(self) -> str | None:
        return super().total_steps_flag or ("--model.lookahead true" if self.lookahead else None)

    def configure_callbacks(self) -> list[Callback]:
        return [Lookahead()] if self.lookahead else []

    def prepare(self, data: CourseData) -> None:
        super().prepare(data)
        self.batch_size = data.batch_size
        if isinstance(self.network, ConvolutionalNetwork):
            rows = data.splits["train"]
            sample = rows[:: max(len(rows) // 5000, 1)]  # some 5,000 images, as in airbench94
            self.network.whiten(self.standardised(data.rows.inputs[sample]))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if stage == "fit" and self._should_compile():
            # The bound method, not the module: a compiled module would have the weights under names of its own.
            self._compiled = torch.compile(self.network.forward)

    def _should_compile(self) -> bool:
        if self.compiles != "auto":
            return self.compiles
        is_gpu = self.trainer.strategy.root_device.type == "cuda"
        return is_gpu and self.trainer.estimated_stepping_batches >= STEPS_WORTH_COMPILING

    def teardown(self, stage: str) -> None:
        self._compiled = None
        self.network.to(memory_format=torch.contiguous_format)  # as torch.export needs the weights

    def forward(self, inputs: Tensor) -> Tensor:
        images = self.standardised(inputs)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        # Evaluation is not compiled: its mode and each of its batch sizes would be compiled anew.
        network = self._compiled if self._compiled and self.training else self.network
        return network(images)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.own_loss:
            return super().training_loss(outputs, targets)
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        outputs = super().test_step(batch, batch_idx)
        if self.test_flip:
            inputs, targets = batch
            self.flip_accuracy.update(outputs + self(inputs.flip(-1)).float(), targets)
        return outputs

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        if self.test_flip:
            self.log("test/accuracy_flip", self.flip_accuracy)

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The biases, of convolutions as of normalisation, and all other parameters."""
        lr, factor = self.lr, self.bias_lr_factor
        if self.lr_per_1024_samples:
            # As in airbench94, whose gradient is that of the samples' sum, not of their mean.
            lr *= self.batch_size * self.trainer.world_size / SAMPLES_OF_LR / (1 + 1 / (1 - self.momentum))
        trained = [(name, each) for name, each in self.named_parameters() if each.requires_grad]
        biases = [each for name, each in trained if name.endswith("bias")]
        weights = [each for name, each in trained if not name.endswith("bias")]
        groups = [{"params": weights, "lr": lr}]
        if biases:
            groups.append({"params": biases, "lr": lr * factor, "weight_decay": self.weight_decay / factor})
        return groups
