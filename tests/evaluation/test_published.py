"""Published results, and runs beside them: runs are written as trainings leave them, in milliseconds."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from mlflow.entities import Metric

from dlcourse.cli import main
from dlcourse.evaluation.published import WITHOUT_EFFECT, Published, agreement, of_topic, published_results
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.run import as_params
from dlcourse.training.request import resolve
from tests.made_runs import write

Capture = pytest.CaptureFixture[str]
RESULTS = published_results()
DEFAULT = next(each for each in RESULTS if (each.topic, each.experiment) == ("diabetes", "default"))


def made(
    value: float | None = DEFAULT.mean,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    of: Published = DEFAULT,
) -> str:
    """The id of a finished run with the published settings, but for the given parameters and tags."""
    settings = as_params({"seed": 0, **of.settings, **of.computing, **(params or {})})
    of_run = {
        "dlcourse.kind": "training",
        "dlcourse.split": of.split,
        "dlcourse.hardware": of.hardware,
        "dlcourse.version": of.versions["dlcourse"],
        "experiment": of.experiment,
    }
    metrics = [] if value is None else [Metric(of.metric, value, 0, 0)]
    return write(open_store(), of.topic, of.experiment, {**of_run, **(tags or {})}, settings, metrics)


def checked(capsys: Capture, *words: str, status: int) -> dict[str, object]:
    """What ``dlcourse check diabetes --json`` prints."""
    capsys.readouterr()
    assert main(["check", "diabetes", "--json", *words]) == status
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def refused(capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    assert main(["check", *words]) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    return shown.err


# --- the interval ---


def test_the_interval_holds_what_it_says_of_new_trainings() -> None:
    """Of 95 % of normally distributed values, or means of three, whatever the number of published ones."""
    draw = random.Random(0)
    for published, new in ((3, 1), (10, 1), (10, 3)):
        hits = 0
        for _ in range(1500):
            one = replace(DEFAULT, values={str(seed): draw.gauss(10, 1) for seed in range(published)})
            hits += one.answer([draw.gauss(10, 1) for _ in range(new)]) == "as expected"
        assert hits / 1500 == pytest.approx(0.95, abs=0.02)  # 3.5 standard errors


def test_where_all_seeds_agree_rounding_is_expected() -> None:
    same = replace(DEFAULT, values=dict.fromkeys("0123", 2.0))
    answers = [same.answer([value]) for value in (1.999, 1.9999, 2.0001, 2.001)]
    assert answers == ["lower than expected", "as expected", "as expected", "higher than expected"]
    assert same.range == "2 over 4 seeds"


# --- the file ---


@pytest.mark.parametrize("each", RESULTS, ids=lambda each: f"{each.topic}/{each.experiment}")
def test_published_settings_are_those_of_the_experiments(each: Published) -> None:
    """An experiment that was changed needs `make reproduce`."""
    now = resolve(each.topic, each.experiment, None, None, None, None).settings.flat()
    kept = {**each.settings, **each.computing}
    assert {*kept, *WITHOUT_EFFECT} >= now.keys() >= kept.keys()
    when_read = {name for name, value in now.items() if value in ("auto", None)}  # may be resolved by the data
    assert [name for name in kept if name not in when_read and kept[name] != now[name]] == []
    assert len(each.values) >= 5
    assert "dirty" not in each.commit


# --- the verb ---


def test_a_result_as_expected(project: object, capsys: Capture) -> None:
    run = made()
    answer = checked(capsys, run[:8], status=0)
    assert (answer["answer"], answer["runs"], answer["differences"]) == ("as expected", [run], {})
    assert main(["check", "diabetes"]) == 0, "the newest"
    assert f"over {len(DEFAULT.values)} seeds" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "answer"), [(0.1, "lower than expected"), (0.99, "higher than expected")])
def test_a_result_outside_the_interval(project: object, capsys: Capture, value: float, answer: str) -> None:
    made(value, tags={"dlcourse.hardware": "abacus"})
    told = checked(capsys, status=1)
    assert told["answer"] == answer
    assert told["circumstances"]["hardware"] == {"run": "abacus", "published": DEFAULT.hardware}  # type: ignore[index]


def test_other_settings_rows_or_weights_are_not_the_published_experiment(project: object, capsys: Capture) -> None:
    others: dict[str, tuple[dict[str, object], dict[str, str]]] = {
        "model.lr": ({"model.lr": 0.1}, {}),
        "data.val_fraction": ({"data.val_fraction": 0.1}, {"dlcourse.split": "another"}),
        "rows or split": ({}, {"dlcourse.split": "another"}),
        "trainer.devices": ({"trainer.devices": 2}, {}),
        "refit": ({}, {"dlcourse.refit": "true"}),
        "init_from": ({}, {"dlcourse.init_from": "c0ffee"}),
    }
    for name, (params, tags) in others.items():
        told = checked(capsys, made(params=params, tags=tags), status=1)
        assert told["answer"] == "not the published experiment"
        assert list(told["differences"]) == [name]  # type: ignore[call-overload]
    assert main(["check", "diabetes", "default"]) == 1
    assert agreement("diabetes", {"seed": "0"}, {}, {DEFAULT.metric: 1.0}) == ""


def test_what_only_says_where_to_compute_is_told_beside_the_answer(project: object, capsys: Capture) -> None:
    told = checked(capsys, made(params={"trainer.precision": "64-true", "trainer.tensorboard": True}), status=0)
    assert "trainer.precision" in told["circumstances"]  # type: ignore[operator]
    assert "trainer.tensorboard" not in told["circumstances"]  # type: ignore[operator]


def test_the_nearest_experiment_is_taken_and_that_of_the_tag_if_several_are(project: object, capsys: Capture) -> None:
    names = ("relu", "sigmoid")  # they differ in the activation and in the number of epochs
    relu, sigmoid = (next(each for each in of_topic("diabetes") if each.experiment == name) for name in names)
    for each in (relu, sigmoid):
        told = checked(capsys, made(params={"model.activation": "other"}, of=each), status=1)
        assert told["experiment"] == f"diabetes/{each.experiment}"
        between = {"model.activation": "sigmoid", "trainer.max_epochs": 1000}
        told = checked(capsys, made(params=between, of=each), status=1)
        assert told["experiment"] == f"diabetes/{each.experiment}", "both are as near: the tag decides"
    told = checked(capsys, made(sigmoid.mean, sigmoid.settings, of=relu), status=0)
    assert told["experiment"] == "diabetes/sigmoid", "whatever the tag"


def test_of_several_seeds_the_mean_is_checked(project: object, capsys: Capture) -> None:
    store = open_store()
    parent = write(store, "diabetes", "default, 2 seeds", {"dlcourse.kind": "seeds"}, {}, [])
    within = {"mlflow.parentRunId": parent}
    children = [made(value, {"seed": seed}, within) for seed, value in enumerate((0.5, 2 * DEFAULT.mean - 0.5))]
    for words in ([], ["default, 2 seeds"], [parent]):
        told = checked(capsys, *words, status=0)
        assert (told["runs"], told["value"]) == (children, pytest.approx(DEFAULT.mean))
    assert checked(capsys, children[0], status=1)["answer"] == "lower than expected"


def test_what_cannot_be_checked_is_one_line(project: object, capsys: Capture) -> None:
    assert "diabetes has no finished training" in refused(capsys, "diabetes")
    assert "diabetes" in refused(capsys, "image-folder"), "names what is published"
    store, ended = open_store(), {}
    for status in ("FAILED", "KILLED"):
        ended[status] = made(tags={"dlcourse.error": "out of tea"})
        store.client.set_terminated(ended[status], status)
        assert f"{status}: out of tea" in refused(capsys, "diabetes", ended[status])
    assert "no finished training" in refused(capsys, "diabetes")
    assert "no run 'nothing'" in refused(capsys, "diabetes", "nothing")
    without = made(None)
    assert DEFAULT.metric in refused(capsys, "diabetes", without)
    store.client.delete_run(without)
    assert "no run" in refused(capsys, "diabetes", without)
