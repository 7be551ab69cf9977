"""The space of a sweep: a YAML file with a range, or choices, for each setting to choose.

```yaml
model.lr: {low: 0.001, high: 0.1, log: true}
model.hidden: {choices: [[8], [16], [16, 16]]}
data.batch_size: {low: 16, high: 64, step: 16}
```
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import Trial

from dlcourse.errors import SettingsError, suggestion
from dlcourse.settings import read_yaml, shown
from dlcourse.topics import Topic
from dlcourse.training.request import Request, experiments_folder, resolve, settings_parser

EXAMPLE = "write {low: 0.001, high: 0.1, log: true} or {choices: [16, 32]}"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; whole ones if the setting is a whole number."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Trial, name: str) -> float:
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, int(self.high), step=int(self.step or 1), log=self.log)
        return self.setting(trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log))

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]

    def setting(self, param: float) -> float:
        """A number of six digits, that somebody can type: not 0.30000000000000004."""
        return param if isinstance(self.low, int) else float(f"{param:.6g}")

    def __str__(self) -> str:
        how = ", logarithmic" if self.log else f" in steps of {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{how}"


@dataclass(frozen=True)
class Choices:
    """Some values. The study has their texts, since a database takes no list for a parameter."""

    values: list[Any]

    def suggest(self, trial: Trial, name: str) -> Any:
        return self.setting(trial.suggest_categorical(name, [shown(value) for value in self.values]))

    @property
    def ends(self) -> list[Any]:
        return self.values

    def setting(self, param: Any) -> Any:
        return next(value for value in self.values if shown(value) == param)

    def __str__(self) -> str:
        return ", ".join(map(shown, self.values))


@dataclass(frozen=True)
class Space:
    """The settings that a sweep chooses, by dotted name, from a file."""

    file: Path
    settings: dict[str, Range | Choices]

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """A trial's settings, drawn by the study's sampler."""
        return {name: each.suggest(trial, name) for name, each in self.settings.items()}

    def settings_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that the parameters of a trial stand for."""
        return {name: each.setting(params[name]) for name, each in self.settings.items()}


def find_space(topic: Topic, space: str | Path) -> Path:
    """The file of that path, or of that name in the folder ``sweeps`` of the topic's experiments.

    Raises:
        SettingsError: There is neither.
    """
    if Path(space).is_file():
        return Path(space)
    folder = experiments_folder(topic)
    spaces = {file.stem: file for file in sorted(folder.glob("sweeps/*.yaml"))} if folder else {}
    if str(space) in spaces:
        return spaces[str(space)]
    there = f"; there are {', '.join(spaces)}" if spaces else f": write it into experiments/{topic.name}/sweeps/"
    raise SettingsError(
        f"--space {space} is neither a file nor a space of {topic.name}{suggestion(str(space), spaces) or there}"
    )


def read_space(file: Path, request: Request) -> Space:
    """The space in a file, checked before anything is trained.

    Raises:
        SettingsError: A key is no setting of the topic, or one that was asked for by a flag, or has no valid range.
    """
    entries = read_yaml(file, "--space", "model.lr: {low: 0.001, high: 0.1}")
    names = [name for name in settings_parser(request.topic, "sweep").names() if "." in name]
    flags = request.settings.changes(request.experiment)
    for name, entry in entries.items():
        where = f"--space {file}: {name}"
        if name not in names:
            near = suggestion(str(name), names) or ", such as model.lr"
            raise SettingsError(f"{where} is no setting of {request.topic.name} to choose{near}")
        if name in flags:
            raise SettingsError(f"{where} is chosen by the sweep: leave --{name} out")
        _check_keys(where, entry)
    ends = {name: each.get("choices") or [each["low"], each["high"]] for name, each in entries.items()}
    space = {}
    for name, entry in entries.items():
        values = [_checked(f"--space {file}", request, ends, name, value) for value in ends[name]]
        space[name] = Choices(values) if "choices" in entry else _range(f"--space {file}: {name}", entry, *values)
    return Space(file, space)


def _check_keys(where: str, entry: object) -> None:
    """Raises `SettingsError` unless an entry has the keys of a range, or choices."""
    if not isinstance(entry, Mapping) or not ("choices" in entry or {"low", "high"} <= entry.keys()):
        raise SettingsError(f"{where} needs low and high, or choices: {EXAMPLE}")
    allowed = ("choices",) if "choices" in entry else ("low", "high", "log", "step")
    if wrong := [str(key) for key in entry if key not in allowed]:
        raise SettingsError(f"{where}: {wrong[0]} cannot be beside {allowed[0]}: {EXAMPLE}")
    choices = entry.get("choices")
    if "choices" in entry and (not isinstance(choices, list) or len(set(map(shown, choices))) < max(2, len(choices))):
        raise SettingsError(f"{where}: choices must be a list of different values, such as [16, 32]")


def _checked(where: str, request: Request, ends: Mapping[str, list[Any]], name: str, value: Any) -> Any:
    """A value as `resolve` takes it, beside the last value of each other setting of the space.

    So what two settings cannot be together is refused as well.
    """
    settings = request.settings.over({other: values[-1] for other, values in ends.items()} | {name: value})
    try:
        groups = (settings.data, settings.model, settings.trainer, settings.seed)
        return resolve(request.topic, None, *groups).settings.flat()[name]
    except SettingsError as error:
        raise SettingsError(f"{where}: {name}: {error}") from error


def _range(where: str, entry: Mapping[str, Any], low: Any, high: Any) -> Range:
    """The range of an entry whose ends are checked; Optuna's own checks are errors and warnings of several lines."""
    log, step = entry.get("log", False), entry.get("step")
    if not _are_numbers(low, high):
        raise SettingsError(f"{where}: low and high must be numbers; write other values as choices")
    if not isinstance(log, bool):
        raise SettingsError(f"{where}: log must be true or false, not {shown(log)}")
    if low >= high:
        raise SettingsError(f"{where}: low must be below high, and {low:g} is not below {high:g}")
    if log and (low <= 0 or step is not None):
        raise SettingsError(f"{where}: log needs low above 0, and no step")
    if step is None:
        return Range(low, high, log)
    is_whole = isinstance(low, int)
    if not _are_numbers(step) or step <= 0 or (is_whole and not isinstance(step, int)):
        raise SettingsError(f"{where}: step must be a {'whole ' * is_whole}number above 0, not {shown(step)}")
    if abs((high - low) / step - round((high - low) / step)) > 1e-8:
        raise SettingsError(f"{where}: no steps of {step:g} lead from {low:g} to {high:g}: change high or step")
    return Range(low, high, log, step)


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
