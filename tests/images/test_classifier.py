"""What models of images have in common, each beside a plain computation of the same."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from dlcourse.cli import main
from dlcourse.data.datamodule import CourseData
from dlcourse.errors import SettingsError
from dlcourse.export.model import PredictionModule
from dlcourse.images.classifier import STEPS_WORTH_COMPILING, ImageClassifier
from dlcourse.models.lookahead import STEPS_OF_LOOKAHEAD, Lookahead
from dlcourse.training.trainer import make_trainer
from tests.image_sets import Small, pictures

pytestmark = pytest.mark.usefixtures("project")

NESTEROV: dict[str, Any] = {"optimizer": "nesterov", "momentum": 0.85, "lr": 0.05, "compile": False}


def fitted(
    data: CourseData, *callbacks: Callback, epochs: int = 2, folder: Path | None = None, **settings: Any
) -> tuple[Small, L.Trainer]:
    """Trained anew, or from what ``last.ckpt`` in the folder holds."""
    L.seed_everything(0, workers=True, verbose=False)
    model = Small(data.shape, data.outputs, **(NESTEROV | settings))
    trainer = make_trainer(
        max_epochs=epochs, patience=None, accelerator="cpu", folder=folder, callbacks=list(callbacks)
    )
    last = folder / "last.ckpt" if folder and (folder / "last.ckpt").exists() else None
    trainer.fit(model, datamodule=data, ckpt_path=last, weights_only=True)
    return model.eval(), trainer


def weights(model: nn.Module) -> list[Tensor]:
    return [each.detach().clone() for each in model.state_dict().values() if each.is_floating_point()]


# Loss


def test_labels_are_smoothed_in_training_alone() -> None:
    model = Small([3, 8, 8], 4, label_smoothing=0.2)
    outputs, targets = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    spread = 0.8 * F.one_hot(targets, 4) + 0.2 / 4
    by_hand = -(spread * outputs.log_softmax(1)).sum(1).mean()
    batch = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), targets
    assert torch.allclose(model.training_loss(outputs, targets), by_hand)
    assert torch.allclose(model.per_sample_loss(outputs, targets), F.cross_entropy(outputs, targets, reduction="none"))
    with torch.no_grad():
        trained = model.train().training_step(batch, 0)
        smoothed = model.training_loss(model.train()(batch[0]), targets)
        plain = model.eval().validation_step(batch, 0)
    assert float(trained) == pytest.approx(float(smoothed), rel=1e-4)
    assert plain.shape == (6,)
    with torch.no_grad():
        assert torch.allclose(plain, model.per_sample_loss(model(batch[0]), targets))


# Learning rates


@pytest.mark.parametrize(("batch_size", "momentum"), [(16, 0.85), (32, 0.85), (16, 0.0)])
def test_learning_rate_is_that_of_1024_samples(batch_size: int, momentum: float) -> None:
    model, trainer = fitted(
        pictures(batch_size=batch_size), epochs=1, lr=10.0, momentum=momentum, optimizer="sgd", lr_per_1024_samples=True
    )
    # The code of airbench94: the gradient of the rows' sum, with lr / (1024 * (1 + 1 / (1 - momentum))).
    of_the_sum = 10.0 / (1024 * (1 + 1 / (1 - momentum)))
    (others, biases) = trainer.optimizers[0].param_groups
    assert others["lr"] == biases["lr"] == pytest.approx(of_the_sum * batch_size)
    assert model.lr == 10.0


def test_biases_have_a_learning_rate_of_their_own_and_the_same_decay_a_step() -> None:
    _, trainer = fitted(pictures(), epochs=1, bias_lr_factor=8.0, weight_decay=0.01)
    others, biases = trainer.optimizers[0].param_groups
    assert (others["lr"], biases["lr"]) == pytest.approx((0.05, 0.4))
    assert biases["lr"] * biases["weight_decay"] == pytest.approx(others["lr"] * others["weight_decay"])
    assert sorted(len(each["params"]) for each in (others, biases)) == [3, 3]
    assert all(each.ndim == 1 for each in biases["params"])


def test_a_model_without_biases_has_one_group() -> None:
    class WithoutBias(ImageClassifier):
        def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
            super().__init__(shape, outputs, **settings)
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(192, outputs, bias=False))

    (group,) = WithoutBias([3, 8, 8], 4, lr=0.3).optimizer_groups()
    assert (group["lr"], len(group["params"])) == (0.3, 1)


ADAM_ON_CIFAR10 = ["--model.optimizer", "adam", "--model.lr", "0.001"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (ADAM_ON_CIFAR10, "add --model.lr_per_1024_samples false --model.bias_lr_factor 1"),
        ([*ADAM_ON_CIFAR10, "--model.lr_per_1024_samples", "false"], "add --model.bias_lr_factor 1"),
        (["--model.momentum", "0"], "--model.optimizer nesterov needs --model.momentum above 0"),
        (["--model.momentum", "1"], "--model.momentum must be a number of at least 0 and below 1"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "overfit", "doctor"])
def test_learning_rates_that_make_no_sense_are_refused_before_any_data_is_loaded(
    project: Path, capsys: pytest.CaptureFixture[str], verb: str, flags: list[str], named: str
) -> None:
    assert main([verb, "cifar10", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not (project / "data").exists(), "no image was looked for"


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_takes_the_learning_rate_as_it_is(optimizer: str) -> None:
    _, trainer = fitted(pictures(), epochs=1, optimizer=optimizer, lr=0.001)
    assert {group["lr"] for group in trainer.optimizers[0].param_groups} == {0.001}
    for setting, value in {"lr_per_1024_samples": True, "bias_lr_factor": 64.0}.items():
        with pytest.raises(SettingsError, match=f"--model.optimizer {optimizer} .*--model.{setting} "):
            Small([3, 8, 8], 4, optimizer=optimizer, **{setting: value})


# Lookahead


def test_lookahead_lays_the_steps_of_a_training_out() -> None:
    assert Small([3, 8, 8], 4).total_steps_flag is None
    assert Small([3, 8, 8], 4, lookahead=True).total_steps_flag == "--model.lookahead true"
    assert Small([3, 8, 8], 4, schedule="cosine").total_steps_flag == "--model.schedule cosine"


class ByHand(Callback):
    """The same by hand: what training made of the weights before each averaging, and what they ought to be then."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.slow, self.steps, self.checked = weights(pl_module.network), 0, 0  # type: ignore[arg-type]
        self.last = int(trainer.estimated_stepping_batches)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.steps and self.steps % STEPS_OF_LOOKAHEAD == 0:
            self._check(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        if self.steps % STEPS_OF_LOOKAHEAD == 0 or self.steps == self.last:
            decay = 0.95**5 * (self.steps / self.last) ** 3 if self.steps < self.last else 1.0
            fast = weights(pl_module.network)  # type: ignore[arg-type]
            self.slow = [decay * old + (1 - decay) * new for old, new in zip(self.slow, fast, strict=True)]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.steps == self.last:
            self._check(pl_module)

    def _check(self, model: L.LightningModule) -> None:
        self.checked += 1
        for here, expected in zip(weights(model.network), self.slow, strict=True):  # type: ignore[arg-type]
            assert torch.allclose(here, expected, rtol=1e-4, atol=1e-6)


def test_lookahead_averages_every_fifth_step_and_ends_with_the_average() -> None:
    by_hand = ByHand()
    model, trainer = fitted(pictures(), by_hand, epochs=3, lookahead=True, lr=0.2)  # 12 steps
    assert by_hand.checked == 3
    lookahead = next(each for each in trainer.callbacks if isinstance(each, Lookahead))  # type: ignore[attr-defined]
    slow_weights = lookahead.slow_weights
    assert all(torch.equal(here, slow) for here, slow in zip(weights(model.network), slow_weights, strict=True))
    without, _ = fitted(pictures(), epochs=3, lr=0.2)
    assert not torch.allclose(weights(model.network)[0], weights(without.network)[0])


class PulledError(Exception):
    pass


class Unplug(Callback):
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise PulledError


def test_an_interrupted_training_ends_where_the_uninterrupted_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlcourse.training.callbacks.checkpoints.SECONDS_BETWEEN_CHECKPOINTS", 0)
    settings: dict[str, Any] = {
        "lookahead": True,
        "lr": 0.2,
        "schedule": "triangle",
        "label_smoothing": 0.1,
        "epochs": 4,
    }
    whole, _ = fitted(pictures(cutout=2), folder=tmp_path / "whole", **settings)
    with pytest.raises(PulledError):
        fitted(pictures(cutout=2), Unplug(), folder=tmp_path / "parts", **settings)
    saved = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 1
    assert not torch.equal(saved["slow_weights"][0], saved["state_dict"]["network.0.weight"]), (
        "they are apart just then"
    )
    resumed, _ = fitted(pictures(cutout=2), folder=tmp_path / "parts", **settings)
    for mine, theirs in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(mine, theirs)


# Testing


def test_mirrored_test_images_are_measured_apart() -> None:
    data = pictures()
    model, trainer = fitted(data, epochs=3, test_flip=True)
    measured = trainer.test(model, datamodule=data, verbose=False)[0]
    rows = data.rows.inputs[data.splits["test"]], data.rows.targets[data.splits["test"]]
    with torch.no_grad():
        plain, mirrored = model(rows[0]), model(rows[0].flip(-1))
    assert measured["test/accuracy"] == pytest.approx(float((plain.argmax(1) == rows[1]).float().mean()))
    both = ((plain + mirrored).argmax(1) == rows[1]).float().mean()
    assert measured["test/accuracy_flip"] == pytest.approx(float(both))
    again = trainer.test(model, datamodule=data, verbose=False)[0]
    assert again == measured, "counted anew each time"


def test_without_it_they_are_not_measured() -> None:
    data = pictures()
    model, trainer = fitted(data, epochs=1)
    assert "test/accuracy_flip" not in trainer.test(model, datamodule=data, verbose=False)[0]


# Speed


def strides(model: nn.Module) -> set[bool]:
    return {each.is_contiguous() for each in model.parameters()}


class Formats(Callback):
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.kernel = pl_module.network[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index,union-attr]


def test_channels_last_changes_the_order_in_memory_and_no_outputs() -> None:
    seen = Formats()
    first, _ = fitted(pictures(), seen, channels_last=True)
    assert seen.kernel
    second, _ = fitted(pictures(), seen, channels_last=False)
    assert not seen.kernel
    images = pictures().rows.inputs
    with torch.no_grad():
        assert torch.allclose(first(images), second(images), rtol=1e-3, atol=1e-4)
    assert strides(first) == strides(second) == {True}, "what is exported is in plain order"


@pytest.mark.parametrize(("asked", "device", "is_to"), [
    (True, "cpu", True), (False, "cuda", False), ("auto", "cpu", False), ("auto", "cuda", True),
])  # fmt: skip
def test_auto_compiles_long_trainings_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, asked: Any, device: str, is_to: bool
) -> None:
    def compiles(steps: int) -> bool:
        model = Small([3, 8, 8], 4, compile=asked)
        strategy = SimpleNamespace(root_device=torch.device(device))
        model._trainer = SimpleNamespace(strategy=strategy, estimated_stepping_batches=steps)  # type: ignore[assignment]
        return model._should_compile()

    assert compiles(STEPS_WORTH_COMPILING) == is_to
    if asked == "auto":
        assert not compiles(STEPS_WORTH_COMPILING - 1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_compiled_steps_are_those_of_eager_ones_and_leave_a_model_that_exports() -> None:
    compiled, _ = fitted(pictures(batch_size=20), epochs=1, compile=True)
    eager, _ = fitted(pictures(batch_size=20), epochs=1, compile=False)
    for mine, theirs in zip(weights(compiled), weights(eager), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    images = pictures().rows.inputs[:5]
    compiled.trainer = None
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(PredictionModule(compiled, compiled).eval(), (images[:2],), dynamic_shapes=(batch,))
    with torch.no_grad():
        assert torch.allclose(program.module()(images), compiled.predictions(compiled(images)), atol=1e-5)
