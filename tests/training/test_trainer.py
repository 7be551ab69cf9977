"""The Trainer factory, on modules of the course and on any other."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dlcourse.training.trainer import make_trainer
from tests.samples import Line, Noisy, Stuck, data_of, numbers
from tests.training.scripted import Scripted, run


class Count(Callback):
    """Counts what is trained on and validated on."""

    def __init__(self) -> None:
        self.train = self.val = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.train += 1

    def on_validation_batch_end(self, *args: Any) -> None:
        self.val += 1


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
