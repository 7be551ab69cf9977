"""What Lightning logs, in a run; and a run's curves in its checkpoints."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dlcourse.tracking.lightning_logger import Curve, RunLogger
from dlcourse.tracking.opening import open_store
from tests.finished import Finished


def test_metrics_have_the_epoch_as_their_step(project: Path) -> None:
    with open_store().start_run("metrics", "one", {}) as run:
        RunLogger(run, "refit/", by_epoch=True).log_metrics({"train/loss": torch.tensor(0.5), "epoch": 3}, step=120)  # type: ignore[dict-item]
    assert run.history == {"refit/train/loss": [(3, 0.5)]}


def test_a_module_of_ones_own_has_lightnings_steps(project: Path) -> None:
    with open_store().start_run("metrics", "one", {}) as run:
        logger = RunLogger(run)
        for step in (9, 19):
            logger.log_metrics({"loss": 1 / step, "epoch": 0}, step)
        logger.log_hyperparams({"lr": 0.1, "layers": [8, 8]})
    assert run.history == {"loss": [(9, 1 / 9), (19, 1 / 19)], "epoch": [(9, 0), (19, 0)]}
    assert run.store.client.get_run(run.run_id).data.params == {"lr": "0.1", "layers": "[8, 8]"}


def test_a_metric_by_step_has_its_steps_in_a_run_by_epoch_too(project: Path) -> None:
    with open_store().start_run("metrics", "one", {}) as run:
        logger = RunLogger(run, by_epoch=True)
        for step in (9, 19):
            logger.log_metrics({"loss_step": 1.0, "epoch": 0}, step)
        logger.log_metrics({"loss_epoch": 2.0, "epoch": 0}, 19)
        logger.finalize("success")
    assert run.history == {"loss_step": [(9, 1.0), (19, 1.0)], "loss_epoch": [(0, 2.0)]}


def test_other_loggers_have_the_epoch_too(project: Path) -> None:
    metrics = {"loss": 1.0, "epoch": 3}
    with open_store().start_run("metrics", "one", {}) as run:
        RunLogger(run, by_epoch=True).log_metrics(metrics, 40)
    assert metrics == {"loss": 1.0, "epoch": 3}


def test_a_training_has_a_value_for_each_epoch(finished: Finished) -> None:
    for name in ("train/loss", "val/mse", "lr", "samples_per_second"):
        assert [step for step, _ in finished.curve(name)] == [0, 1, 2], name
    assert finished.run.data.metrics["train/loss"] == finished.curve("train/loss")[-1][1]


def test_a_checkpoint_has_the_curves_with_the_epoch_that_the_logger_has_not_seen(project: Path) -> None:
    checkpoint: dict[str, Any] = {}
    trainer: Any = SimpleNamespace(current_epoch=2, callback_metrics={"loss": torch.tensor(1.0)})
    model: Any = None
    with open_store().start_run("metrics", "one", {}) as run:
        for epoch, loss in enumerate([3.0, 2.0]):
            run.log_metrics({"loss": loss, "lr": 0.1}, epoch)
        Curve(run).on_save_checkpoint(trainer, model, checkpoint)
    curves = {"loss": [(0, 3.0), (1, 2.0), (2, 1.0)], "lr": [(0, 0.1), (1, 0.1)]}
    assert checkpoint["dlcourse_curve"] == curves
    with open_store().start_run("metrics", "two", {}) as run:
        Curve(run).on_load_checkpoint(trainer, model, checkpoint)
    assert run.history == curves
