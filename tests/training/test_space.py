"""Spaces of sweeps: what a file may hold, what is refused, and that every setting drawn is one that a flag may have."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from dlcourse import topics
from dlcourse.errors import SettingsError
from dlcourse.training.request import Request, resolve
from dlcourse.training.space import Choices, Range, Space, find_space, read_space
from tests.conftest import EXPERIMENTS

SPACES = sorted(EXPERIMENTS.glob("*/sweeps/*.yaml"))


def request_for(topic: str = "diabetes", **groups: Any) -> Request:
    return resolve(topic, None, groups.get("data"), groups.get("model"), groups.get("trainer"), None)


def space_of(folder: Path, entries: Any, **groups: Any) -> Space:
    file = folder / "space.yaml"
    file.write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries), encoding="utf-8")
    return read_space(file, request_for(**groups))


def test_ranges_have_the_types_of_their_settings(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {
            "model.lr": {"low": 1, "high": 2},
            "data.batch_size": {"low": 16, "high": 64, "step": 16},
            "model.hidden": {"choices": [[4], [8, 8]]},
        },
    )
    assert space.settings == {
        "model.lr": Range(1.0, 2.0),
        "data.batch_size": Range(16, 64, step=16),
        "model.hidden": Choices([[4], [8, 8]]),
    }
    assert isinstance(space.settings["model.lr"].ends[0], float)


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.parent.parent.name)
def test_what_is_drawn_may_be_set_and_comes_back_from_the_study(file: Path) -> None:
    request = request_for(file.parent.parent.name)
    space = read_space(file, request)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        trial = study.ask()
        drawn = space.suggest(trial)
        assert drawn.keys() == space.settings.keys()
        assert space.settings_of(study.trials[trial.number].params) == drawn
        settings = request.settings.over(drawn)
        again = resolve(request.topic, None, settings.data, settings.model, settings.trainer, settings.seed)
        assert again.settings == settings


def test_no_more_digits_than_somebody_would_type() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    steps = Range(0.0, 0.5, step=0.1)
    drawn = {steps.suggest(study.ask(), "model.dropout") for _ in range(40)}
    assert drawn == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"model.lrr": {"low": 1, "high": 2}}, "did you mean model.lr?"),
        ({"seed": {"low": 1, "high": 2}}, "seed is no setting"),
        ({"model.lr": 3}, "model.lr needs low and high, or choices"),
        ({"model.lr": {"low": 1}}, "model.lr needs low and high, or choices"),
        ({"model.lr": {"low": 1, "high": 2, "setp": 3}}, "setp"),
        ({"model.lr": {"low": 1, "high": 2, "choices": [1, 2]}}, "low"),
        ({"model.lr": {"low": -1, "high": 2}}, "a number above 0, not -1"),
        ({"model.lr": {"low": 1, "high": "much"}}, "a number above 0, not much"),
        ({"model.lr": {"low": 2, "high": 2}}, "low must be below high"),
        ({"model.lr": {"low": 1, "high": 2, "log": "yes please"}}, "log must be true or false"),
        ({"model.lr": {"low": 1, "high": 2, "log": True, "step": 0.5}}, "log needs"),
        ({"model.dropout": {"low": 0, "high": 0.5, "log": True}}, "log needs"),
        ({"model.dropout": {"low": 0, "high": 0.5, "step": -0.1}}, "step must be a number above 0"),
        ({"data.batch_size": {"low": 1.5, "high": 3}}, "a whole number above 0, not 1.5"),
        ({"data.batch_size": {"low": 1, "high": 9, "step": 0.5}}, "step must be a whole number"),
        ({"data.batch_size": {"low": 1, "high": 8, "step": 2}}, "no steps of 2"),
        ({"data.standardize": {"low": False, "high": True}}, "must be numbers"),
        ({"model.activation": {"choices": ["relu", "tan"]}}, "did you mean tanh?"),
        ({"model.activation": {"choices": ["relu"]}}, "a list of different values"),
        ({"model.activation": {"choices": ["relu", "relu"]}}, "a list of different values"),
        ({"model.activation": {"choices": "relu"}}, "a list of different values"),
        ({"model.optimizer": {"choices": ["sgd", "nesterov"]}}, "--model.momentum above 0"),
        ("", "is empty"),
        ("model.lr: [", "line 1"),
    ],
)
def test_what_is_refused(entries: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        space_of(tmp_path, entries)
    line = str(caught.value)
    assert named in line
    assert line.startswith(f"--space {tmp_path / 'space.yaml'}")
    assert "\n" not in line


def test_what_a_flag_has_set_is_not_chosen_as_well(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"leave --model\.lr out"):
        space_of(tmp_path, {"model.lr": {"low": 1, "high": 2}}, model={"lr": 0.5})


def test_spaces_are_found_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = topics.find("diabetes")
    assert find_space(topic, "default") == EXPERIMENTS / "diabetes" / "sweeps" / "default.yaml"
    assert find_space(topic, SPACES[0]) == SPACES[0]
    with pytest.raises(SettingsError, match=r"--space defualt .* did you mean default\?"):
        find_space(topic, "defualt")
    with pytest.raises(SettingsError, match="experiments/study-hours/sweeps/"):
        find_space(topics.find("study-hours"), "default")
