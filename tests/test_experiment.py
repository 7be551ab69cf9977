"""One experiment from settings to verdict: the figures that it must reach, and that it repeats itself."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dlcourse
from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Rows
from dlcourse.errors import CourseError, SettingsError
from dlcourse.evaluation import baselines
from dlcourse.reporting.result import Result
from dlcourse.topics import Topic
from tests.conftest import EXPERIMENTS
from tests.samples import Kinds, Line, numbers

HEIGHT_WEIGHT = EXPERIMENTS / "height-weight"
QUICK: dict[str, Any] = {"max_epochs": 3}


def quick(**settings: Any) -> Result:
    trainer = QUICK | settings.pop("trainer", {})
    return dlcourse.train("height-weight", trainer=trainer, **settings)


def curve(result: Result) -> dict[str, list[tuple[int, float]]]:
    client = dlcourse.open_store().client
    names = ("train/loss", "val/loss", "train/mae", "lr")
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(result.run_id, name)] for name in names
    }


def test_same_seed_same_figures_to_the_last_digit(project: Path) -> None:
    first, second, other = (quick(seed=seed) for seed in (1, 1, 2))
    assert curve(first) == curve(second)
    timeless = [name for name in first.metrics if name != "fit_seconds"]
    assert [first.metrics[name] for name in timeless] == [second.metrics[name] for name in timeless]
    assert curve(first) != curve(other)
    assert first.metrics["test/mse"] != other.metrics["test/mse"]


def test_refit_trains_on_validation_rows_for_the_best_number_of_epochs(project: Path) -> None:
    result = quick(refit=True)
    assert result.data is not None
    assert {split: len(rows) for split, rows in result.data.splits.items()} == {"train": 80, "val": 0, "test": 20}
    assert result.metrics["best_epoch"] == 2
    history = dlcourse.open_store().client.get_metric_history(result.run_id, "refit/train/loss")
    assert [each.step for each in history] == [0, 1, 2]
    assert result.checkpoint is not None
    assert Path(result.checkpoint).parts[-2:] == ("refit", "last.ckpt")
    again = dlcourse.test("height-weight", run=result.run_id)
    assert again["test/mse"] == result.metrics["test/mse"]


def test_refit_without_validation_rows_is_refused(project: Path) -> None:
    with pytest.raises(SettingsError, match=r"--data\.val_fraction above 0"):
        quick(refit=True, data={"val_fraction": 0})


def test_testing_a_run_or_its_checkpoint_gives_the_figures_of_the_run(project: Path) -> None:
    result = quick(name="mine")
    expected = {name: value for name, value in result.metrics.items() if name.startswith("test/")}
    del expected["test/baseline_mse"]
    for measured in (
        dlcourse.test("height-weight", run="mine"),
        dlcourse.test("height-weight", checkpoint=result.checkpoint),
    ):
        assert measured.items() >= {**expected, **ends_of(result)}.items()


def ends_of(result: dlcourse.Result) -> dict[str, float]:
    """The ends of the intervals, as `test` has them."""
    intervals = result.intervals.items()
    return {f"{name}_low": low for name, (low, _) in intervals} | {
        f"{name}_high": high for name, (_, high) in intervals
    }


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_a_model_is_measured_in_the_precision_that_it_was_trained_in(project: Path, precision: str) -> None:
    result = quick(trainer={"precision": precision, "accelerator": "cpu"}, model={"lr": 0.0001})
    expected = {name: value for name, value in result.metrics.items() if name.startswith("test/")}
    del expected["test/baseline_mse"]
    Path(str(result.checkpoint)).rename("elsewhere.ckpt")
    measured = dlcourse.test("height-weight", checkpoint="elsewhere.ckpt")
    assert measured.items() >= expected.items(), "of itself it says how"


def test_a_run_is_not_tested_on_other_rows_than_it_had(project: Path) -> None:
    own = project / "own.csv"
    lines = [f"{number % 7},{number % 5},{number % 2}" for number in range(60)]
    own.write_text("\n".join(lines))
    result = dlcourse.train("diabetes", data={"file": str(own)}, trainer=QUICK)
    assert dlcourse.test("diabetes", run=result.run_id)["test/loss"] == result.metrics["test/loss"]
    own.write_text("\n".join(["6,4,0", *lines[1:]]))
    with pytest.raises(CourseError, match="have changed since"):
        dlcourse.test("diabetes", run=result.run_id)


def test_a_monitor_that_the_model_does_not_log_is_named_before_training(project: Path) -> None:
    import dataclasses

    from dlcourse import topics

    topic = dataclasses.replace(topics.find("height-weight"), monitor="val/msee")
    with pytest.raises(CourseError, match="monitors 'val/msee', which its model does not log; did you mean val/mse"):
        dlcourse.train(topic)


def test_a_resumed_run_that_is_complete_says_so(project: Path) -> None:
    result = quick()
    with pytest.raises(CourseError, match=r"complete after 3 epochs: raise --trainer\.max_epochs"):
        dlcourse.train("height-weight", resume=result.run_id)


def test_a_complete_run_is_carried_on_with_more_epochs(project: Path) -> None:
    longer = dlcourse.train("height-weight", resume=quick().run_id, trainer={"max_epochs": 6})
    assert curve(longer) == curve(quick(trainer={"max_epochs": 6}))


def test_result_as_json(project: Path) -> None:
    result = quick()
    content = json.loads(json.dumps(result.as_dict()))
    assert content["run_id"] == result.run_id
    difference = content["verdict"]["differences"]["least-squares"]["loss"]
    assert difference["comparison"] in ("better", "worse", "not told apart", "not tested")
    assert content["metrics"] == result.metrics


def test_name_tells_what_was_changed(project: Path) -> None:
    result = dlcourse.train(
        "height-weight", config=HEIGHT_WEIGHT / "lecture.yaml", model={"lr": 0.02}, trainer=QUICK, seed=7
    )
    assert result.run_name == "lecture, seed=7, model.lr=0.02, max_epochs=3"


def test_starting_from_another_runs_weights(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundled = {"source": "bundled"}
    first = dlcourse.train("diabetes", data=bundled, model={"hidden": [8]}, trainer=QUICK, name="first")
    again = dlcourse.train(
        "diabetes", data=bundled, model={"hidden": [8]}, trainer={"max_epochs": 1}, init_from="first"
    )
    fresh = dlcourse.train("diabetes", data=bundled, model={"hidden": [8]}, trainer={"max_epochs": 1})
    start = {result.run_id: dict(curve(result)["train/loss"])[0] for result in (first, again, fresh)}
    assert start[again.run_id] < start[fresh.run_id] == start[first.run_id]
    tags = dlcourse.open_store().client.get_run(again.run_id).data.tags
    assert tags["dlcourse.init_from"] == first.run_id


def test_weights_that_do_not_fit_are_named(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundled = {"source": "bundled"}
    dlcourse.train("diabetes", data=bundled, model={"hidden": [8]}, trainer=QUICK, name="first")
    with caplog.at_level("WARNING", logger="dlcourse"):
        dlcourse.train("diabetes", data=bundled, model={"hidden": [8, 4]}, trainer=QUICK, init_from="first")
    assert "left at its random initialisation: network.3.weight (4, 8): in the checkpoint (1, 8)" in caplog.text
    with pytest.raises(CourseError, match=r"no weight of that run fits this model; network\.0\.weight \(5, 10\)"):
        dlcourse.train("diabetes", data=bundled, model={"hidden": [5, 3]}, trainer=QUICK, init_from="first")


def test_tensorboard_beside_mlflow(project: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = dlcourse.train("height-weight", trainer={"max_epochs": 3, "tensorboard": True})
    (events,) = project.glob("mlruns/**/tensorboard/events.out.*")
    assert result.run_id in str(events)
    told = EventAccumulator(str(events)).Reload()
    assert [round(point.value, 3) for point in told.Scalars("val/loss")] == [
        round(value, 3) for _, value in result.history["val/loss"]
    ]


def test_tensorboard_of_folds_is_kept_with_each_of_them(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(project / "temporary"))
    settings = {"max_epochs": 2, "tensorboard": True}
    validated = dlcourse.train("height-weight", folds=2, trainer=settings)
    assert not list((project / "temporary").rglob("events.out.*"))
    store = dlcourse.open_store()
    wanted = f"tags.mlflow.parentRunId = '{validated.run_id}'"
    for fold in store.client.search_runs([store.experiment("height-weight")], wanted):
        kept = {path.relative_to(store.files_of(fold)).parts[0] for path in store.files_of(fold).rglob("*")}
        assert kept == {"tensorboard"}


def test_a_class_without_training_rows_costs_no_run(project: Path) -> None:
    class Rare(CourseData):
        def load(self) -> Rows:
            inputs = torch.linspace(-1, 1, 60)[:, None]
            targets = (inputs[:, 0] > 0).long()
            return Rows(inputs, targets, "a formula", classes=("below", "above", "never"))

    trivial = {"majority": baselines.majority, "logistic-regression": baselines.logistic_regression}
    topic = Topic("rare", "A class without rows", Rare, Kinds, trivial)
    result = dlcourse.train(topic, trainer=QUICK)
    assert result.lost == {}
    assert set(result.verdict.differences) == set(trivial)


def test_queries_need_no_names_of_features_and_answers(project: Path) -> None:
    class Nameless(CourseData):
        def load(self) -> Rows:
            return numbers()

        def queries(self) -> Tensor:
            return torch.tensor([[1.0, 2.0, 3.0]])

    topic = Topic("nameless", "Rows without names", Nameless, Line, {"mean": baselines.mean})
    result = dlcourse.train(topic, trainer=QUICK)
    assert result.lost == {}
    assert "answer" in result.card
    assert list(result.answers) == ["1"]


def test_tensorboard_without_its_package_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(SettingsError, match="needs the package tensorboard: pip install"):
        dlcourse.train("height-weight", trainer={"max_epochs": 3, "tensorboard": True})
