"""Modules of other projects, trained by `make_trainer` as they are, with whatever Lightning's Trainer takes."""

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import mlflow
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger
from lightning.pytorch.plugins import MixedPrecision, TorchCheckpointIO
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy

from dlcourse.errors import SettingsError
from dlcourse.training.callbacks.divergence import Divergence, divergence_of
from dlcourse.training.trainer import make_trainer
from tests import foreign_modules as foreign
from tests.samples import Line, data_of, numbers
from tests.training.callbacks.test_lr_and_speed import Noting

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"
    ),  # Lightning's own
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
]


def trainer_of(**settings: Any) -> L.Trainer:
    torch.manual_seed(0)
    return make_trainer(**{"accelerator": "cpu", "max_epochs": 3, **settings})


def state(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / f"{name}.ckpt", weights_only=True)
    return content


def values(logger: Noting, name: str) -> list[float]:
    return [noted[name] for noted in logger.notes if name in noted]


# --- six modules ---


def test_an_autoencoder(tmp_path: Path) -> None:
    module, logger = foreign.LitAutoEncoder(), Noting()
    trainer = trainer_of(max_epochs=6, monitor="val_loss", folder=tmp_path, logger=logger)
    trainer.fit(module, datamodule=foreign.WavesDataModule())
    losses = values(logger, "val_loss")
    assert losses[-1] < 0.7 * losses[0]
    assert state(tmp_path, "best")["epoch"] == losses.index(min(losses))
    assert state(tmp_path, "last")["epoch"] == 5
    assert trainer.test(module, datamodule=foreign.WavesDataModule(), verbose=False)[0]["test_loss"] < losses[0]


def test_a_language_model(tmp_path: Path) -> None:
    logger = Noting()
    trainer = trainer_of(max_epochs=8, monitor="perplexity", patience=8, folder=tmp_path, logger=logger)
    trainer.fit(foreign.LanguageModel(), foreign.sequences(), foreign.sequences(32))
    perplexities = values(logger, "perplexity")
    assert perplexities[-1] < 0.7 * perplexities[0]
    assert divergence_of(trainer).loss < divergence_of(trainer).first
    assert all(speed > 0 for speed in values(logger, "samples_per_second"))


@pytest.mark.parametrize("kind", [foreign.GAN, foreign.GANThatReturnsLosses])
def test_two_optimisers_by_hand(tmp_path: Path, kind: type[foreign.GAN]) -> None:
    logger = Noting()
    trainer = trainer_of(monitor="g_loss", folder=tmp_path, logger=logger, log_every_n_steps=4)
    trainer.fit(kind(), foreign.circle())
    assert state(tmp_path, "last")["epoch"] == 2
    assert (tmp_path / "best.ckpt").is_file()
    assert divergence_of(trainer).epoch is None
    lr, loss = ([each["step"] for each in logger.notes if name in each] for name in ("lr", "g_loss"))
    assert lr == loss == [3, 7, 11], "batches, not the steps of both optimisers"


def test_several_validation_loaders(tmp_path: Path) -> None:
    trainer = trainer_of(max_epochs=5, monitor="accuracy/dataloader_idx_1", mode="max", folder=tmp_path)
    trainer.fit(foreign.BlobClassifier(), datamodule=foreign.BlobsDataModule())
    assert {"clean_loss", "noisy_loss", "accuracy/dataloader_idx_0"} <= trainer.callback_metrics.keys()
    assert state(tmp_path, "last")["epoch"] == 4
    assert (tmp_path / "best.ckpt").is_file()


def test_a_learning_rate_that_goes_by_a_metric(tmp_path: Path) -> None:
    logger = Noting()
    trainer = trainer_of(max_epochs=5, monitor="val_loss", folder=tmp_path, logger=logger)
    trainer.fit(foreign.PlateauRegressor(), foreign.records(), foreign.records(20))
    assert min(values(logger, "lr")) < 0.3 == values(logger, "lr")[0]
    assert all(speed > 0 for speed in values(logger, "samples_per_second")), "batches are dictionaries"


def test_an_endless_stream_is_validated_and_stopped_within_its_epoch(tmp_path: Path) -> None:
    logger = Noting()
    settings = {"monitor": "val_loss", "patience": 3, "min_delta": 0.02, "folder": tmp_path, "logger": logger}
    trainer = make_trainer(accelerator="cpu", max_steps=5000, val_check_interval=10, **settings)
    trainer.fit(foreign.StreamRegressor(), datamodule=foreign.StreamDataModule())
    losses = values(logger, "val_loss")
    assert len(losses) < 500
    assert min(losses[:-3]) - 0.02 <= min(losses[-3:]), "three validations without improvement"
    assert state(tmp_path, "best")["global_step"] == 10 * (losses.index(min(losses)) + 1)
    assert state(tmp_path, "last")["global_step"] == trainer.global_step == 10 * len(losses)


def test_a_training_is_resumed_within_an_epoch_that_never_ends(tmp_path: Path) -> None:
    for steps in (35, 70):
        logger = Noting()
        last = str(tmp_path / "last.ckpt") if steps == 70 else None
        trainer = make_trainer(
            accelerator="cpu", max_steps=steps, val_check_interval=10, folder=tmp_path, logger=logger
        )
        with warnings.catch_warnings(action="ignore"):  # the folder is not empty, as it should be
            trainer.fit(foreign.StreamRegressor(), datamodule=foreign.StreamDataModule(), ckpt_path=last)
        assert state(tmp_path, "last")["global_step"] == trainer.global_step == steps
        assert [noted["step"] for noted in logger.notes if "lr" in noted] == [steps - 1]


def test_a_stream_that_ends_is_an_epoch(tmp_path: Path) -> None:
    trainer = trainer_of(monitor="val_loss", folder=tmp_path)
    trainer.fit(foreign.StreamRegressor(), datamodule=foreign.StreamDataModule(80))
    assert (trainer.current_epoch, trainer.global_step) == (3, 30)
    assert state(tmp_path, "last")["epoch"] == 2


# --- when to stop, and when to validate ---


def fit_waves(**settings: Any) -> L.Trainer:
    """Train the autoencoder, on 8 batches an epoch."""
    trainer = trainer_of(**settings)
    trainer.fit(foreign.LitAutoEncoder(), datamodule=foreign.WavesDataModule())
    return trainer


def test_steps_are_enough(tmp_path: Path) -> None:
    trainer = fit_waves(max_epochs=None, max_steps=101, limit_batches=1, patience=None, folder=tmp_path)
    assert (trainer.global_step, trainer.current_epoch) == (101, 101), "more than the usual 100 epochs"
    assert state(tmp_path, "last")["global_step"] == 101


def test_a_training_may_end_before_its_first_validation(tmp_path: Path) -> None:
    trainer = fit_waves(max_epochs=None, max_steps=3, monitor="val_loss", folder=tmp_path)
    assert trainer.global_step == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_time_is_enough(tmp_path: Path) -> None:
    trainer = fit_waves(max_epochs=None, max_time={"seconds": 0.1}, monitor="val_loss", folder=tmp_path)
    timer = next(each for each in trainer.callbacks if isinstance(each, Timer))  # type: ignore[attr-defined]
    assert (trainer.max_epochs, timer.time_elapsed() >= 0.1) == (-1, True)
    assert state(tmp_path, "last")["global_step"] == trainer.global_step


def test_gradients_of_several_batches_are_one_step() -> None:
    logger = Noting()
    assert fit_waves(accumulate_grad_batches=4, logger=logger).global_step == 3 * 2
    assert [noted["step"] for noted in logger.notes if "lr" in noted] == [1, 3, 5]


def test_patience_counts_validations_where_these_are_not_epochs(tmp_path: Path) -> None:
    often = fit_waves(val_check_interval=0.25, monitor="val_loss", patience=2, min_delta=1e9, folder=tmp_path / "often")
    assert often.global_step == 3 * 2, "the first validation, and two without an improvement"
    assert state(tmp_path / "often", "best")["global_step"] == 6
    settings: dict[str, Any] = {"check_val_every_n_epoch": 2, "max_epochs": 20, "folder": tmp_path / "rarely"}
    rarely = fit_waves(monitor="val_loss", patience=2, min_delta=1e9, **settings)
    assert rarely.current_epoch == 3 * 2
    assert state(tmp_path / "rarely", "best")["epoch"] in (1, 3, 5)


@pytest.mark.parametrize("options", [{}, {"check_val_every_n_epoch": 2}, {"val_check_interval": 0.5}])
def test_a_metric_that_is_not_logged_is_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"^monitor is 'val_los', .* did you mean val_loss\?$"):
        fit_waves(monitor="val_los", **options)


def test_a_training_metric_can_be_monitored(tmp_path: Path) -> None:
    fit_waves(monitor="train_loss", folder=tmp_path, check_val_every_n_epoch=2, limit_val_batches=0)
    assert (tmp_path / "best.ckpt").is_file(), "without any validation"


# --- what is decided here can be decided otherwise ---


@pytest.fixture
def tracking_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A store for Lightning's MLFlowLogger, which makes it that of the whole process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    yield f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # as it was before


def test_loggers_of_lightning(tmp_path: Path, tracking_uri: str) -> None:
    csv = CSVLogger(tmp_path, name="csv", version="")
    theirs = MLFlowLogger("theirs", tracking_uri=tracking_uri, artifact_location=str(tmp_path))
    fit_waves(max_epochs=2, logger=[csv, theirs], log_every_n_steps=4)
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0]
    assert {"val_loss", "train_loss", "lr", "epoch"} <= set(header.split(","))
    history = theirs.experiment.get_metric_history(theirs.run_id, "train_loss")
    assert [each.step for each in history] == [3, 7, 11, 15]


def test_lightnings_own_choice_of_a_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(trainer_of(logger=True).loggers) == 1
    assert trainer_of(logger=False).loggers == trainer_of().loggers == []


def test_a_profiler_and_a_summary_of_the_model_are_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    profiler = SimpleProfiler()
    fit_waves(max_epochs=1, profiler=profiler, enable_model_summary=True)
    assert "run_training_batch" in caplog.text
    assert "decoder" in caplog.text + capsys.readouterr().out


def test_gradients_are_clipped_by_value() -> None:
    def largest(**settings: Any) -> float:
        class After(foreign.LitAutoEncoder):
            def on_before_zero_grad(self, optimizer: Any) -> None:
                grads = [each.grad.abs().max() for each in self.parameters() if each.grad is not None]
                found.extend(map(float, grads))

        found: list[float] = []
        trainer = trainer_of(max_epochs=1, **settings)
        trainer.fit(After(), datamodule=foreign.WavesDataModule())
        return max(found)

    assert largest() > 1e-3
    assert largest(gradient_clip_val=1e-3, gradient_clip_algorithm="value") == pytest.approx(1e-3)


def test_plugins_of_ones_own_stand_beside_ours(tmp_path: Path) -> None:
    class Noticed(TorchCheckpointIO):
        saved = 0

        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            Noticed.saved += 1
            super().save_checkpoint(*args, **kwargs)

    fit_waves(plugins=[Noticed()], folder=tmp_path)
    assert Noticed.saved
    assert (tmp_path / "last.ckpt").is_file()
    trainer = trainer_of(plugins=MixedPrecision("bf16-mixed", "cpu"), precision="32-true")
    assert trainer.precision == "bf16-mixed"


@pytest.mark.filterwarnings(r"ignore:You are trying to `self.log\(\)` but `Trainer\(barebones=True\)`")
@pytest.mark.parametrize(
    "options",
    [
        {"enable_progress_bar": False},
        {"callbacks": TQDMProgressBar(refresh_rate=0)},
        {"callbacks": [EarlyStopping("val_loss"), ModelCheckpoint(save_top_k=0)], "num_sanity_val_steps": 2},
        {"barebones": True},
        {"devices": "1", "strategy": SingleDeviceStrategy("cpu"), "precision": "bf16-mixed"},
        {"devices": "auto", "limit_train_batches": 0.5, "limit_batches": 2, "deterministic": "warn", "fast_dev_run": 2},
    ],
    ids=lambda options: ",".join(options),
)
def test_whatever_lightning_takes(options: dict[str, Any], tmp_path: Path) -> None:
    assert fit_waves(**options, default_root_dir=tmp_path).state.status == "finished"


def test_a_limit_of_one_split_goes_before_that_of_all() -> None:
    trainer = fit_waves(limit_batches=1, limit_train_batches=0.5)
    assert (trainer.num_training_batches, trainer.num_val_batches) == (4, [1])


@pytest.mark.parametrize(
    ("name", "near"), [("accumulate_grad_batch", "accumulate_grad_batches"), ("patince", "patience")]
)
def test_an_option_that_nobody_has_is_one_line(name: str, near: str) -> None:
    with pytest.raises(SettingsError, match=rf"^[^\n]* {name}; did you mean {near}\?$"):
        make_trainer(**{name: 4})


def test_an_option_that_cannot_be_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^the Trainer cannot be made: [^\n]*$"):
        make_trainer(accelerator="cpu", gradient_clip_algorithm="nrom")


def test_every_option_of_lightnings_trainer_is_accepted() -> None:
    ours = inspect.signature(make_trainer).parameters
    defaults = {
        name: each.default for name, each in inspect.signature(L.Trainer).parameters.items() if name not in ours
    }
    assert isinstance(make_trainer(accelerator="cpu", **{**defaults, "enable_checkpointing": False}), L.Trainer)


# --- warnings ---


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def test_warnings_that_may_be_true_are_heard(many_cores: None, tmp_path: Path) -> None:
    def warned(fit: Callable[[], object]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit()
        return [str(each.message) for each in caught if "lightning" in each.filename]

    def course() -> None:
        data = data_of(numbers(), batch_size=16)
        trainer_of(folder=tmp_path, logger=Noting()).fit(Line(data.shape, data.outputs), datamodule=data)

    tmp_path.joinpath("old").touch()
    before = warnings.filters[:]
    heard = " ".join(warned(lambda: fit_waves(folder=tmp_path, logger=Noting())))
    for reason in ("does not have many workers", "smaller than the logging interval", "exists and is not empty"):
        assert reason in heard
    assert warned(course) == [], "of the course's own data they are not true"
    assert [each for each in warnings.filters if each not in before and "workers" in str(each)] == []


# --- callbacks alone ---


def test_divergence_in_a_trainer_of_lightnings_own() -> None:
    divergence = Divergence()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=50, callbacks=[divergence], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(foreign.StreamRegressor(lr=50.0), datamodule=foreign.StreamDataModule(80))
    assert divergence.epoch is not None
    assert trainer.current_epoch < 50


def test_divergence_is_seen_in_an_epoch_that_never_ends() -> None:
    divergence = Divergence()
    trainer = trainer_of(max_epochs=None, max_steps=5000, limit_val_batches=0, callbacks=[divergence])
    trainer.fit(foreign.StreamRegressor(lr=50.0), datamodule=foreign.StreamDataModule())
    assert (divergence.epoch, trainer.global_step) == (0, 1000)
