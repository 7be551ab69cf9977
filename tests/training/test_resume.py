"""Resuming a run: what goes on as it was, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from dlcourse.cli import main
from tests.training.short_runs import on_file, refused, resumed, runs, trained, write_rows

pytestmark = pytest.mark.usefixtures("project")


# --- what may change ---


def test_what_a_resume_would_mix_or_ignore_is_refused_by_name() -> None:
    first = trained()
    changes: list[dict[str, Any]] = [
        {"data": {"split_seed": 1}},
        {"data": {"val_fraction": 0.3}},
        {"data": {"batch_size": 16}},
        {"model": {"hidden": [5]}},
        {"model": {"lr": 0.1}},
        {"model": {"optimizer": "sgd"}},
        {"trainer": {"gradient_clip_val": 1.0}},
        {"seed": 3},
    ]
    for change in changes:
        ((group, value),) = change.items()
        flag = f"--{group}.{next(iter(value))}" if isinstance(value, dict) else f"--{group}"
        trainer = {"max_epochs": 6, **change.pop("trainer", {})}
        refused(lambda: resumed(first, trainer=trainer, **change), "--resume", flag, "leave it out")  # noqa: B023


def test_a_resume_that_is_refused_ends_in_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    first = trained()
    capsys.readouterr()
    assert main(["train", "diabetes", "--resume", first.run_id, "--data.split_seed", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--data.split_seed was 0" in line
    assert runs() == [first.run_id]


def test_rows_that_have_changed_meanwhile_are_seen_from_their_fingerprint() -> None:
    path = write_rows("rows.csv", range(60))
    first = on_file(path)
    write_rows(path, range(1, 61))
    refused(lambda: resumed(first, trainer={"max_epochs": 6}), "rows", "restore them")


def test_the_same_rows_may_be_somewhere_else() -> None:
    first = on_file(write_rows("rows.csv", range(60)))
    Path("rows.csv").rename("moved.csv")
    longer = resumed(first, data={"file": "moved.csv"}, trainer={"max_epochs": 6})
    assert len(longer.history["train/loss"]) == 6


def test_a_refit_that_was_asked_for_is_asked_for_once() -> None:
    first = trained(refit=True)
    longer = resumed(first, trainer={"max_epochs": 6})
    assert longer.checkpoint is not None
    assert Path(longer.checkpoint).parent.name == "refit"


# --- how far it may go ---


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "triangle"])
def test_a_schedule_that_has_an_end_is_not_moved(schedule: str) -> None:
    first = trained(model={"schedule": schedule})
    for epochs in (2, 6):
        flags = "--trainer.max_epochs", "--model.schedule", "--init_from"
        refused(lambda: resumed(first, trainer={"max_epochs": epochs}), *flags)  # noqa: B023
    line = refused(lambda: resumed(first), "complete", "--init_from")
    assert "--trainer.max_epochs" not in line, "which cannot help"
    two = {"devices": 2, "strategy": "ddp", "accelerator": "cpu"}
    refused(lambda: resumed(first, trainer=two), "--trainer.devices")


STOPS: dict[str, Any] = {"max_epochs": 20, "patience": 2, "min_delta": 1e6}
"""After the first epoch nothing is an improvement: two more, and it stops."""


def test_a_run_that_stopped_early_goes_on_with_more_patience_and_by_nothing_else() -> None:
    first = trained(trainer=STOPS)
    assert len(first.history["train/loss"]) == 3
    refused(lambda: resumed(first, trainer={"max_epochs": 40}), "raise --trainer.patience", "--init_from")
    refused(lambda: resumed(first, trainer={"patience": 1}), "raise --trainer.patience")
    longer, whole = resumed(first, trainer={"patience": 4}), trained(trainer=STOPS | {"patience": 4})
    assert longer.history["val/loss"] == whole.history["val/loss"]
    assert len(whole.history["val/loss"]) == 5
    refused(lambda: resumed(longer, trainer={"max_epochs": 40}), "raise --trainer.patience")
    to_the_end = resumed(longer, trainer={"max_epochs": 7, "patience": None})
    assert len(to_the_end.history["val/loss"]) == 7
    again = resumed(to_the_end, trainer={"max_epochs": 9, "patience": 8})
    assert len(again.history["val/loss"]) == 9, "patience has been counted all the while"


@pytest.mark.parametrize("data", [{}, {"val_fraction": 0.0, "test_fraction": 0.0}], ids=["of val", "of train"])
def test_a_run_that_stopped_at_a_threshold_goes_on_with_another(data: dict[str, Any]) -> None:
    first = trained(data, trainer={"stopping_threshold": 1e6})
    assert len(first.history["train/loss"]) == 1
    refused(lambda: resumed(first, trainer={"max_epochs": 40}), "--trainer.stopping_threshold")
    assert len(resumed(first, trainer={"stopping_threshold": None}).history["train/loss"]) == 3
