"""Checkpoints: what an interrupted training leaves, and where it ends once it is resumed."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from dlcourse.training.callbacks import checkpoints as checkpoints_module
from dlcourse.training.trainer import make_trainer
from tests.samples import Noisy, data_of, numbers
from tests.training.scripted import PulledError, Scripted, run


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


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
