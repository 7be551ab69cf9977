"""The Trainer factory, on modules of the course and on any other."""

import logging
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dlcourse.errors import SettingsError
from dlcourse.training.callbacks import checkpoints as checkpoints_module
from dlcourse.training.callbacks.divergence import Divergence
from dlcourse.training.hardware import choose_accelerator, choose_precision
from dlcourse.training.trainer import make_trainer
from tests.samples import Line, Noisy, Stuck, data_of, numbers


class Scripted(L.LightningModule):
    """Nothing of the course's: a module whose validation metric is written down beforehand, an epoch each."""

    def __init__(self, scores: list[float], pause: float = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.scores, self.pause = scores, pause

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        time.sleep(self.pause)
        return self.layer(batch[0]).square().mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("score", self.scores[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(rows: int = 12) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(rows, 2)), batch_size=4)


def run(module: L.LightningModule, **settings: Any) -> L.Trainer:
    trainer = make_trainer(accelerator="cpu", **settings)
    trainer.fit(module, loader(), loader())
    return trainer


class Count(Callback):
    """Counts what is trained on and validated on."""

    def __init__(self) -> None:
        self.train = self.val = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.train += 1

    def on_validation_batch_end(self, *args: Any) -> None:
        self.val += 1


# --- any module ---


def test_any_module_trains_and_keeps_its_best_and_last_weights(tmp_path: Path) -> None:
    run(Scripted([3.0, 1.0, 2.0, 2.5]), max_epochs=4, patience=None, monitor="score", folder=tmp_path)
    best, last = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert (best["epoch"], last["epoch"]) == (1, 3)
    assert not torch.equal(best["state_dict"]["layer.weight"], last["state_dict"]["layer.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_metric_that_is_to_rise_is_best_where_it_is_highest(tmp_path: Path) -> None:
    trainer = run(
        Scripted([0.1, 0.5, 0.9, 0.8, 0.7, 0.6]), max_epochs=6, patience=2, monitor="score", mode="max", folder=tmp_path
    )
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 2
    assert trainer.current_epoch == 5, "two epochs without improvement"


def test_without_a_metric_to_monitor_nothing_stops_it_and_only_the_last_weights_are_kept(tmp_path: Path) -> None:
    trainer = run(Scripted([1.0] * 5), max_epochs=5, patience=1, folder=tmp_path)
    assert trainer.current_epoch == 5
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(Scripted([1.0, 2.0]), max_epochs=2, monitor="score")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("patience", [1, 3])
def test_a_model_that_cannot_improve_stops_after_patience_and_one_epoch(patience: int) -> None:
    data = data_of(numbers())
    trainer = make_trainer(max_epochs=50, patience=patience, monitor="val/loss", accelerator="cpu")
    trainer.fit(Stuck(data.shape, data.outputs), datamodule=data)
    assert trainer.current_epoch == patience + 1


def test_an_improvement_smaller_than_min_delta_is_none() -> None:
    scores = [1.0 - 0.01 * epoch for epoch in range(20)]
    assert run(Scripted(scores), max_epochs=20, patience=2, min_delta=0.5, monitor="score").current_epoch == 3
    assert run(Scripted(scores), max_epochs=20, patience=2, monitor="score").current_epoch == 20


@pytest.mark.parametrize("patience", [None, 2])
def test_a_threshold_is_enough(patience: int | None) -> None:
    threshold = {"monitor": "score", "patience": patience, "max_epochs": 9}
    assert run(Scripted([3.0, 2.0, 1.0, 0.5]), stopping_threshold=1.5, **threshold).current_epoch == 3
    rising = run(Scripted([0.1, 0.5, 0.9, 0.8]), stopping_threshold=0.4, mode="max", **threshold)
    assert rising.current_epoch == 2


def test_fast_dev_run_is_one_batch_of_each_and_no_checkpoint(tmp_path: Path) -> None:
    count = Count()
    run(Scripted([1.0]), max_epochs=9, fast_dev_run=True, monitor="score", folder=tmp_path, callbacks=[count])
    assert (count.train, count.val) == (1, 1)
    assert list(tmp_path.iterdir()) == []


def test_limit_batches_is_of_each_split() -> None:
    count = Count()
    run(Scripted([1.0, 2.0, 3.0]), max_epochs=3, limit_batches=2, callbacks=[count])
    assert (count.train, count.val) == (3 * 2, 3 * 2)


def test_gradients_are_clipped_to_the_norm() -> None:
    def step(**settings: Any) -> float:
        torch.manual_seed(0)
        module = Scripted([1.0])
        before = torch.cat([each.detach().flatten().clone() for each in module.parameters()])
        run(module, max_epochs=1, limit_batches=1, **settings)
        after = torch.cat([each.detach().flatten() for each in module.parameters()])
        return float((after - before).norm())

    assert step() > 0.1 * 0.02
    assert step(gradient_clip_val=0.02) == pytest.approx(0.1 * 0.02, rel=1e-4), "learning rate times norm"


# --- repeatability ---


def weights(seed: int, epochs: int = 3) -> list[Tensor]:
    data = data_of(numbers(), batch_size=8)
    L.seed_everything(seed, workers=True, verbose=False)
    model = Noisy(data.shape, data.outputs)
    make_trainer(max_epochs=epochs, accelerator="cpu").fit(model, datamodule=data)
    return [each.detach() for each in model.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_same_seed_gives_the_same_weights_to_the_last_digit() -> None:
    once = weights(7)
    torch.rand(3)
    assert equal(once, weights(7))
    assert not equal(once, weights(8))


def test_every_epoch_has_its_own_order() -> None:
    class Orders(Callback):
        def __init__(self) -> None:
            self.seen: list[list[float]] = []

        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: list[Tensor], batch_idx: int
        ) -> None:
            self.seen.append(batch[1][:, 0].tolist())

    orders, data = Orders(), data_of(numbers(), batch_size=64)
    trainer = make_trainer(max_epochs=3, accelerator="cpu", callbacks=[orders])
    trainer.fit(Line(data.shape, data.outputs), datamodule=data)
    assert len({tuple(order) for order in orders.seen}) == 3
    assert len({tuple(sorted(order)) for order in orders.seen}) == 1


class PulledError(Exception):
    """The end of an interrupted training."""


class Unplug(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, place: int) -> None:
        if trainer.current_epoch == self.epoch and place == 1:
            raise PulledError


@pytest.mark.parametrize("seconds", [0, 1000], ids=["every epoch saved", "first epoch saved"])
@pytest.mark.parametrize(
    ("settings", "best_epoch", "epochs"),
    [
        ({"lr": 0.02, "optimizer": "adam", "schedule": "cosine"}, 9, 10),
        ({"lr": 1.0, "optimizer": "adam"}, 4, 8),  # best before it is interrupted, stopped early after that
    ],
    ids=["to the end", "stopped early"],
)
def test_an_interrupted_training_ends_where_the_uninterrupted_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    settings: dict[str, Any],
    best_epoch: int,
    epochs: int,
) -> None:
    monkeypatch.setattr(checkpoints_module, "SECONDS_BETWEEN_CHECKPOINTS", seconds)

    def fit(folder: Path, *callbacks: Callback, resumed: bool = False) -> dict[str, Any]:
        data = data_of(numbers(), batch_size=8)
        L.seed_everything(1, workers=True, verbose=False)
        model = Noisy(data.shape, data.outputs, **settings)
        trainer = make_trainer(
            max_epochs=10, patience=3, monitor="val/loss", accelerator="cpu", folder=folder, callbacks=callbacks
        )
        trainer.fit(model, datamodule=data, ckpt_path=folder / "last.ckpt" if resumed else None, weights_only=True)
        best = torch.load(folder / "best.ckpt", weights_only=True)
        stopping, (kept, _) = trainer.early_stopping_callback, trainer.checkpoint_callbacks
        assert isinstance(stopping, EarlyStopping)
        assert isinstance(kept, ModelCheckpoint)
        assert kept.best_model_score is not None
        return {
            "epochs": trainer.current_epoch,
            "last": [each.detach() for each in model.parameters()],
            "best": list(best["state_dict"].values()),
            "best epoch": best["epoch"],
            "best score": float(kept.best_model_score),
            "best score of stopping": float(stopping.best_score),
        }

    whole = fit(tmp_path / "whole")
    assert (whole["best epoch"], whole["epochs"]) == (best_epoch, epochs)
    with pytest.raises(PulledError):
        fit(tmp_path / "parts", Unplug(6))
    saved = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["epoch"]
    assert saved == (5 if seconds == 0 else 0)
    resumed = fit(tmp_path / "parts", resumed=True)
    for name in ("last", "best"):
        assert equal(whole.pop(name), resumed.pop(name)), f"{name} weights"
    assert resumed == whole


def test_pulling_the_plug_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints_module, "SECONDS_BETWEEN_CHECKPOINTS", 0)

    class Full(Callback):
        def on_save_checkpoint(self, trainer: L.Trainer, *rest: Any) -> None:
            if trainer.current_epoch == 2:
                monkeypatch.setattr(os, "replace", fail)

    def fail(*paths: Any) -> None:
        raise PulledError

    with pytest.raises(PulledError):
        run(Scripted([1.0] * 4), max_epochs=4, folder=tmp_path, callbacks=[Full()])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 1


# --- divergence ---


def diverged(lr: float, **settings: Any) -> tuple[Divergence, L.Trainer]:
    rows = numbers()
    data = data_of(rows, standardize=False, batch_size=8, **settings)
    torch.manual_seed(0)
    divergence = Divergence()
    trainer = make_trainer(max_epochs=200, patience=None, accelerator="cpu", callbacks=[divergence])
    trainer.fit(Line(data.shape, data.outputs, lr=lr), datamodule=data)
    return divergence, trainer


def test_a_loss_beyond_all_numbers_stops_the_training() -> None:
    divergence, trainer = diverged(lr=10.0)
    assert divergence.epoch is not None
    assert trainer.current_epoch == divergence.epoch + 1 <= 5
    assert not abs(divergence.loss) < float("inf")


def test_an_exploding_loss_stops_the_training() -> None:
    divergence, trainer = diverged(lr=0.012)
    assert divergence.epoch is not None
    assert trainer.current_epoch == divergence.epoch + 1
    assert 1e6 * divergence.first < divergence.loss < float("inf")


def test_a_training_that_converges_has_no_divergence() -> None:
    divergence, trainer = diverged(lr=0.0005)
    assert divergence.epoch is None
    assert trainer.current_epoch == 200


# --- hardware ---


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)


@pytest.mark.parametrize("accelerator", ["cuda", "mps", "gpu"])
def test_an_accelerator_that_is_not_there_is_one_line(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    with pytest.raises(SettingsError) as caught:
        make_trainer(accelerator=accelerator)
    assert re.fullmatch(
        rf"--trainer\.accelerator {accelerator} is not there \(.*\): use auto or cpu", str(caught.value)
    )


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    assert choose_accelerator("auto") == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_accelerator("auto") == choose_accelerator("gpu") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_accelerator("auto") == choose_accelerator("gpu") == "cuda"
    assert choose_accelerator("cpu") == "cpu"


def test_more_devices_than_there_are_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=rf"^--trainer\.devices 4096 is too many.* {os.cpu_count()} CPU cores$"):
        make_trainer(accelerator="cpu", devices=4096)
    with_gpus(monkeypatch, count=2, bf16=True)
    with pytest.raises(SettingsError, match=r"^--trainer\.devices 3 is too many: this machine has 2 cuda devices$"):
        make_trainer(accelerator="cuda", devices=3)


def test_an_unknown_strategy_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^--trainer\.strategy dpp is unknown; did you mean ddp\?$"):
        make_trainer(accelerator="cpu", strategy="dpp")


def test_a_strategy_that_does_not_go_with_the_hardware_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^the Trainer cannot be made: [^\n]*$"):
        make_trainer(accelerator="cpu", strategy="fsdp")


def test_precision_is_bf16_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 1, bf16=True)
    assert choose_precision("auto", "cuda") == "bf16-mixed"
    with_gpus(monkeypatch, 1, bf16=False)
    assert choose_precision("auto", "cuda") == "32-true"
    assert choose_precision("auto", "cpu") == "32-true"
    assert choose_precision("auto", "mps") == "32-true"


@pytest.mark.parametrize(
    ("wanted", "accelerator", "used"),
    [
        ("16-mixed", "cpu", "bf16-mixed"),
        ("16-mixed", "cpu", "32-true"),
        ("bf16-mixed", "cpu", "32-true"),
        ("bf16-mixed", "cuda", "16-mixed"),
        ("bf16-true", "cuda", "16-mixed"),
        ("64-true", "mps", "32-true"),
    ],
)
def test_a_precision_that_is_not_to_be_had_falls_back_and_says_so(
    wanted: Any, accelerator: str, used: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_gpus(monkeypatch, 1, bf16=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: used == "bf16-mixed")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision(wanted, accelerator) == used
    assert caplog.messages == [
        f"--trainer.precision {wanted} is not to be had on this {accelerator}: using {used}",
    ]


@pytest.mark.parametrize("wanted", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_a_precision_that_the_cpu_has_is_used_in_silence(
    wanted: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_precision(wanted, "cpu") == wanted
    assert caplog.messages == []


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "16-mixed"])
def test_training_runs_in_other_precisions(precision: Any) -> None:
    data = data_of(numbers())
    trainer = make_trainer(max_epochs=2, accelerator="cpu", precision=precision, monitor="val/loss")
    trainer.fit(Noisy(data.shape, data.outputs), datamodule=data)
    assert float(trainer.callback_metrics["train/loss"]) > 0


# --- progress ---


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """A real terminal as stderr; what is given tells all that it has shown.

    No fixture: pytest puts its own stderr back between a test's fixtures and its body.
    """
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        yield lambda: "".join(all_of(ours))
    os.close(ours)


def all_of(terminal: int) -> Iterator[str]:
    """What a terminal has been told: it does not pass everything on at once."""
    while select.select([terminal], [], [], 0.3)[0]:
        yield os.read(terminal, 65536).decode()


def test_on_a_terminal_a_bar_shows_the_remaining_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dlcourse")
    with terminal(monkeypatch) as read:
        run(Scripted([1.0] * 4, pause=0.05), max_epochs=4)
        shown = read()
    assert re.search(r"\d+/12 \[00:0\d<00:0\d", shown), shown
    assert shown.rstrip(" ").endswith("\r"), "the bar is cleared in the end"
    assert not [message for message in caplog.messages if message.startswith("epoch")]


def test_bar_is_cleared_when_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fail(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise PulledError

    with terminal(monkeypatch) as read:
        with pytest.raises(PulledError):
            run(Scripted([1.0]), max_epochs=1, callbacks=[Fail()])
        shown = read()
    assert "0/3" in shown
    assert shown.rstrip(" ").endswith("\r")


def test_elsewhere_an_epoch_is_one_line(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO, "dlcourse")
    data = data_of(numbers())
    make_trainer(max_epochs=11, patience=None, accelerator="cpu").fit(Line(data.shape, 1), datamodule=data)
    assert len(caplog.messages) == 11
    for epoch, message in enumerate(caplog.messages):
        assert re.fullmatch(rf"epoch {epoch:>2}/10  train/loss \S+  val/loss \S+", message)
    assert capfd.readouterr() == ("", "")


def test_line_of_any_module_has_its_own_metrics(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dlcourse")
    run(Scripted([0.5, 0.25]), max_epochs=2)
    assert caplog.messages == ["epoch 0/1  score 0.5", "epoch 1/1  score 0.25"]


class Noting(Logger):
    """Keeps what it is told."""

    name = version = "notes"

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.notes.append(metrics | {"step": -1 if step is None else step})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_learning_rate_and_speed_are_logged() -> None:
    data = data_of(numbers())
    logger = Noting()
    trainer = make_trainer(max_epochs=2, accelerator="cpu", logger=logger)
    trainer.fit(Line(data.shape, data.outputs, lr=0.03), datamodule=data)
    assert [noted["lr"] for noted in logger.notes if "lr" in noted] == pytest.approx([0.03, 0.03])
    assert all(noted["samples_per_second"] > 0 for noted in logger.notes if "lr" in noted)
    own, others = (
        [(noted["epoch"], noted["step"]) for noted in logger.notes if name in noted] for name in ("lr", "train/loss")
    )
    assert own == others == [(0, others[0][1]), (1, others[1][1])]
