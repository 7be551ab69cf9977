"""What models of images have in common: how they are made fast, and what helps them to generalise."""

from abc import ABC
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Accuracy

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Batch
from dlcourse.errors import SettingsError
from dlcourse.images.convolutional_network import ConvolutionalNetwork
from dlcourse.models.tasks import Classifier
from dlcourse.ranges import Fraction, PositiveFloat

ROWS_OF_LR = 1024
STEPS_WORTH_COMPILING = 400
STEPS_OF_LOOKAHEAD = 5


class ImageClassifier(Classifier, ABC):
    """A classifier of images, N x C x H x W.

    Args:
        lr_per_1024_samples: State lr as the change that 1024 samples make over all the steps they take part in, so that
            it need not change with batch size and momentum (Jordan 2024, section 3.4); sgd and nesterov only.
        bias_lr_factor: By how much the learning rate of biases is larger; their weight decay is as much smaller. For
            sgd and nesterov only: Adam's steps are as long as its learning rate, whatever the gradient.
        label_smoothing: Share of each target that is spread over all classes, in training alone.
        lookahead: Average the weights: every fifth step a slow copy follows them, and they go on from there (Zhang et
            al. 2019); less and less as training goes on, so that the last weights are an average of many.
        test_flip: Measure the test rows a second time, on the mean of the outputs for each image and its mirror image;
            told apart as ``test/accuracy_flip``.
        channels_last: Keep the channels of a pixel side by side in memory, which convolutions are faster with.
        compile: Compile the training step (torch.compile): auto does on a CUDA GPU, where the training is long enough
            to repay the half minute that it takes; on a CPU the compiled step was the slower one.
    """

    extra_test_metrics = MappingProxyType({"accuracy_flip": "with each image and its mirror image together"})

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
        self.batch_rows = ROWS_OF_LR
        self.slow_weights: list[Tensor] = []
        self.flip_accuracy = Accuracy(task="multiclass", num_classes=outputs)

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        super().check_settings(settings)
        of_sgd = {"lr_per_1024_samples": False, "bias_lr_factor": 1}  # each with the value at which it does nothing
        set_here = [name for name, nothing in of_sgd.items() if settings.get(name, nothing) != nothing]
        if settings.get("optimizer") in ("adam", "adamw") and set_here:
            add = " ".join(f"--model.{name} {str(of_sgd[name]).lower()}" for name in set_here)
            raise SettingsError(
                f"--model.optimizer {settings['optimizer']} takes --model.lr as it is, and {' and '.join(set_here)} "
                f"would change it: add {add}"
            )

    @property
    def fixed_length_setting(self) -> str | None:
        return super().fixed_length_setting or ("--model.lookahead true" if self.lookahead else None)

    def prepare(self, data: CourseData) -> None:
        super().prepare(data)
        self.batch_rows = data.batch_size
        if isinstance(self.network, ConvolutionalNetwork):
            rows = data.splits["train"]
            self.network.whiten(self.standardised(data.rows.inputs[rows[:: max(len(rows) // 5000, 1)]]))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if stage == "fit" and self._is_to_compile():
            self.network.compile()

    def _is_to_compile(self) -> bool:
        if self.compiles != "auto":
            return self.compiles
        is_gpu = self.trainer.strategy.root_device.type == "cuda"
        return is_gpu and self.trainer.estimated_stepping_batches >= STEPS_WORTH_COMPILING

    def teardown(self, stage: str) -> None:
        self.network._compiled_call_impl = None
        self.network.to(memory_format=torch.contiguous_format)  # as torch.export wants the weights

    def forward(self, inputs: Tensor) -> Tensor:
        images = self.standardised(inputs)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        # Only training goes through what is compiled: measuring comes in other modes and sizes, each to be compiled.
        outputs: Tensor = self.network(images) if self.training else self.network.forward(images)
        return outputs

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
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
            self.log("test/accuracy_flip", self.flip_accuracy.compute())
            self.flip_accuracy.reset()

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Biases, of convolutions as of normalisation, apart from all other parameters."""
        lr, factor = self.lr, self.bias_lr_factor
        if self.lr_per_1024_samples:
            lr *= self.batch_rows * self.trainer.world_size / ROWS_OF_LR / (1 + 1 / (1 - self.momentum))
        trained = [(name, each) for name, each in self.named_parameters() if each.requires_grad]
        biases = [each for name, each in trained if name.endswith("bias")]
        others = [each for name, each in trained if not name.endswith("bias")]
        groups = [{"params": others, "lr": lr}]
        if biases:
            decay = self.weight_decay / factor
            groups.append({"params": biases, "lr": lr * factor, "weight_decay": decay})
        return groups

    def on_train_start(self) -> None:
        if self.lookahead:
            resumed = [weight.to(self.device) for weight in self.slow_weights]
            self.slow_weights = resumed or [weight.clone() for weight in self._weights()]
            self.last_step = int(self.trainer.estimated_stepping_batches)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.lookahead:
            return
        steps, last = self.trainer.global_step, self.last_step
        if steps % STEPS_OF_LOOKAHEAD and steps < last:
            return
        # By how much the copy stays where it is: hardly at first, at the end wholly.
        stays = 0.95**STEPS_OF_LOOKAHEAD * (steps / last) ** 3 if steps < last else 1.0
        weights = self._weights()
        torch._foreach_lerp_(self.slow_weights, weights, 1 - stays)
        torch._foreach_copy_(weights, self.slow_weights)

    def _weights(self) -> list[Tensor]:
        """Parameters, and the running means and variances."""
        return [each.detach() for each in self.network.state_dict().values() if each.is_floating_point()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["slow_weights"] = self.slow_weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.slow_weights = checkpoint["slow_weights"]  # before this model is on its device
