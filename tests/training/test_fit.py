"""Carrying on with a run, and starting from another one's weights: what goes on as it was, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlcourse
from dlcourse import topics
from dlcourse.cli import main
from dlcourse.errors import CourseError
from dlcourse.reporting.result import Result
from tests.samples import two_classes

pytestmark = pytest.mark.usefixtures("project")

SMALL: dict[str, Any] = {"hidden": [4]}


def trained(data: dict[str, Any] | None = None, **arguments: Any) -> Result:
    """The diabetes network on scikit-learn's own rows, for three epochs."""
    trainer = {"max_epochs": 3, **arguments.pop("trainer", {})}
    model = SMALL | arguments.pop("model", {})
    return dlcourse.train(
        "diabetes", data={"source": "bundled", **(data or {})}, model=model, trainer=trainer, **arguments
    )


def resumed(run: Result, **arguments: Any) -> Result:
    return dlcourse.train("diabetes", resume=run.run_id, **arguments)


def runs() -> list[str]:
    """The ids of all trainings in the store."""
    client = dlcourse.open_store().client
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(experiments, "tags.`dlcourse.kind` = 'training'")
    return sorted(each.info.run_id for each in found)


def refused(call: Any, *parts: str) -> str:
    """The one line of what must be refused, which leaves no run behind."""
    before = runs()
    with pytest.raises(CourseError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line
    assert runs() == before, "no run was begun"
    return line


def write_rows(path: str, rows: range) -> str:
    """A CSV file of two features and a label, a row a number."""
    lines = [f"{number},{(7 * number) % 13},{int((7 * number) % 13 > 6)}" for number in rows]
    Path(path).write_text("\n".join(["a,b,label", *lines]) + "\n")
    return path


def on_file(path: str, **arguments: Any) -> Result:
    return trained(arguments.pop("data", {}) | {"source": "file", "file": path}, **arguments)


# --- what a run that is carried on may change ---


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


# --- starting from another run's weights ---


def split_of(**data: Any) -> Any:
    found = topics.find("diabetes").data(source="bundled", **data)
    found.setup("fit")
    return found.splits


def test_test_rows_that_the_weights_have_learned_are_refused_with_their_number() -> None:
    first = trained()
    learned, tested = split_of()["train"], split_of(split_seed=1)["test"]
    count = np.isin(tested.numpy(), learned.numpy()).sum()
    assert 0 < count < len(tested)
    refused(
        lambda: trained({"split_seed": 1}, init_from=first.run_id),
        f"{count} of the {len(tested)} test rows", "--init_from", first.run_id,
    )  # fmt: skip
    assert trained(init_from=first.run_id).run_id, "on the same split nothing is wrong"


def test_rows_are_known_again_in_another_data_set() -> None:
    first = on_file(write_rows("first.csv", range(60)))
    overlapping, others = write_rows("overlapping.csv", range(40, 140)), write_rows("others.csv", range(60, 160))
    refused(lambda: on_file(overlapping, init_from=first.run_id), "test rows were training rows")
    assert on_file(others, init_from=first.run_id).run_id


def test_what_weights_came_from_counts_as_well() -> None:
    mine, others = write_rows("mine.csv", range(60)), write_rows("others.csv", range(60, 160))
    first = on_file(mine)
    second = on_file(others, init_from=first.run_id)
    third = resumed(second, trainer={"max_epochs": 5})
    refused(lambda: on_file(mine, data={"split_seed": 1}, init_from=third.run_id), "test rows", first.run_id)


def test_weights_whose_origin_is_gone_might_have_learned_any_rows() -> None:
    first = trained()
    dlcourse.open_store().client.set_tag(first.run_id, "dlcourse.init_from", "0" * 32)
    refused(lambda: trained(init_from=first.run_id), "0" * 32, "gone")


def test_rows_that_cannot_be_had_any_more_might_be_any() -> None:
    first = on_file(write_rows("gone.csv", range(60)))
    others = write_rows("others.csv", range(60, 160))
    Path("gone.csv").unlink()
    refused(lambda: on_file(others, init_from=first.run_id), "cannot be had", "gone.csv")
    write_rows("gone.csv", range(200, 260))
    refused(lambda: on_file(others, init_from=first.run_id), "cannot be had", "others by now")


def test_a_refit_has_learned_the_validation_rows_too() -> None:
    without_test = {"test_fraction": 0.0}
    first = trained(without_test, refit=True)
    count = len(split_of(**without_test)["val"])
    refused(lambda: trained(without_test, init_from=first.run_id), f"{count} of the {count} validation rows")
    assert trained(without_test, init_from=trained(without_test).run_id).run_id


def test_what_is_chosen_by_learned_rows_is_told(caplog: pytest.LogCaptureFixture) -> None:
    first = trained({"val_fraction": 0.1})
    trained({"val_fraction": 0.3}, init_from=first.run_id)
    assert "validation rows were training rows" in caplog.text


def test_where_nothing_is_tested_nothing_can_leak() -> None:
    first = trained()
    assert trained({"val_fraction": 0.0, "test_fraction": 0.0}, init_from=first.run_id).verdict.eval_split == "train"


def test_contents_of_rows_are_the_same_wherever_they_are() -> None:

    rows = two_classes(20)
    turned = dataclasses.replace(rows, inputs=rows.inputs.flip(0), targets=rows.targets.flip(0))
    numbers = torch.arange(20)
    assert rows.contents(numbers) == turned.contents(numbers.flip(0))
    assert len(set(rows.contents(numbers))) == 20
    relabelled = dataclasses.replace(rows, targets=1 - rows.targets)
    assert not set(rows.contents(numbers)) & set(relabelled.contents(numbers))
