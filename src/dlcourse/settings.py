"""From flags, a YAML file or keyword arguments to checked settings, with one line for whatever is wrong."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from dlcourse.errors import SettingsError, one_line, suggestion
from dlcourse.topics import Topic

GROUPS = ("data", "model", "trainer")


@dataclass(frozen=True)
class Settings:
    """Every setting of a run, resolved: what `--print_config` shows and ``settings.yaml`` in the run holds."""

    data: dict[str, Any]
    model: dict[str, Any]
    trainer: dict[str, Any]
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "data": self.data, "model": self.model, "trainer": self.trainer}

    def flat(self) -> dict[str, Any]:
        """``model.lr`` and so on."""
        groups = {f"{group}.{name}": value for group in GROUPS for name, value in getattr(self, group).items()}
        return {"seed": self.seed, **groups}

    def changes(self, other: "Settings") -> dict[str, Any]:
        """The settings that are not as in ``other``."""
        before = other.flat()
        return {name: value for name, value in self.flat().items() if before.get(name) != value}


class OneLineParser(ArgumentParser):
    """An `ArgumentParser` that takes no shortened flag, lets a flag win over a file wherever it stands, and raises
    `SettingsError` with one line that names the flag and the nearest right one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, allow_abbrev=False, exit_on_error=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SettingsError(self._explained(message)) from ex

    def parse_flags(self, flags: Sequence[str]) -> Namespace:
        """Parse a command line; files come first, so that they give way to flags."""
        files, rest = _files_and_rest(flags)
        for file in files:
            self._check_file(file)
        self._check_flags(rest)
        rest = self._switched_on(rest)
        return self._parsed(lambda: self.parse_args([*(f"--config={file}" for file in files), *rest]))

    def parse_values(self, values: Mapping[str, Any], file: str | None = None) -> Namespace:
        """Parse nested keyword arguments, over those of a file where one is given."""
        base = None
        if file is not None:
            self._check_file(file)
            base = self._parsed(lambda: self.parse_path(file))
        self._check_keys(values, "")
        return self._parsed(lambda: self.parse_object(dict(values), cfg_base=base))

    def _parsed(self, parse: Callable[[], Namespace]) -> Namespace:
        try:
            return parse()
        except (ArgumentError, argparse.ArgumentError) as error:
            raise SettingsError(self._explained(str(error))) from error

    def _keys(self) -> list[str]:
        leaves = {action.dest for action in self._actions if action.option_strings}
        return sorted(leaves - {"help", "print_config", "config", *GROUPS})

    def _check_flags(self, flags: Sequence[str]) -> None:
        known = {option for action in self._actions for option in action.option_strings}
        takes_value = True
        for flag in flags:
            if flag.startswith("--"):
                name, given, _ = flag.partition("=")
                if name not in known and name.removesuffix("+") not in known:
                    raise SettingsError(f"unknown flag {name}{suggestion(name, known) or self._see()}")
                takes_value = not given
            elif not takes_value and not flag.startswith("-"):
                raise SettingsError(f"unexpected {flag!r} among the flags{self._see()}")
            else:
                takes_value = False

    def _switched_on(self, flags: Sequence[str]) -> list[str]:
        """A yes-or-no flag that stands alone means yes."""
        switches = {o for each in self._actions if getattr(each, "_typehint", None) is bool for o in each.option_strings}
        following = [*flags[1:], "--"]
        return [
            f"{flag}=true" if flag in switches and after.startswith("--") else flag
            for flag, after in zip(flags, following, strict=True)
        ]

    def _check_file(self, file: str) -> None:
        path = Path(file)
        if not path.is_file():
            known = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
            hint = suggestion(file, known) or (f"; there are {', '.join(known)}" if known else "")
            raise SettingsError(f"--config {file} is no file{hint}")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            mark = getattr(error, "problem_mark", None)
            place = f" line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or one_line(error)
            raise SettingsError(f"--config {file}{place} is not valid YAML: {problem}") from error
        if values is None:
            raise SettingsError(f"--config {file} is empty: write at least one setting into it, or leave it out")
        if not isinstance(values, dict):
            raise SettingsError(f"--config {file} must hold keys and values, not a {type(values).__name__}")
        self._check_keys(values, f"--config {file}: ")

    def _check_keys(self, values: Mapping[str, Any], where: str) -> None:
        known = self._keys()
        for key, value in values.items():
            inner = value if key in GROUPS else None
            if key in GROUPS and not isinstance(value, Mapping):
                raise SettingsError(f"{where}{key} must hold keys and values, not {value!r}")
            for name in [f"{key}.{each}" for each in inner] if inner is not None else [str(key)]:
                if name not in known:
                    raise SettingsError(f"{where}unknown key {name}{suggestion(name, known) or self._see()}")

    def _explained(self, message: str) -> str:
        """Jsonargparse's message, in one line and in words."""
        message = one_line(message)
        key, _, problem = message.removeprefix('Parser key "').partition('": ')
        if not problem:
            return message.replace("argument --", "--", 1)
        if restricted := re.search(r"Not of type (\w+): (.*) does not conform to restriction (.*)", problem):
            kind, value, bounds = restricted.groups()
            return f"--{key} {value} is out of range: it must be a {_words(kind)} ({bounds.replace('v', '', 1)})"
        if wrong := re.search(r"Not of type (\w+): .*?'(.*)'", problem):
            kind, value = wrong.groups()
            return f"--{key} {value!r} is no {_words(kind)}"
        if choice := re.search(r"Literal\[(.*?)\]\. Got value: (.*)", problem):
            choices, value = [each.strip("' ") for each in choice.group(1).split(",")], choice.group(2)
            return f"--{key} {value!r} is none of {', '.join(choices)}{suggestion(value, choices)}"
        return f"--{key}: {problem}"

    def _see(self) -> str:
        return f"; see `{self.prog} --help`"


def settings_parser(topic: Topic, command: Callable[..., Any], prog: str) -> OneLineParser:
    """The parser of a command that trains: its own arguments, and those of data, model and Trainer."""
    from dlcourse.trainer import make_trainer

    parser = OneLineParser(prog=prog, description=topic.title)
    parser.add_argument("--config", action="config", help="YAML file with settings; flags go before it.")
    parser.add_function_arguments(command, None, as_group=False, skip={"topic", "config", *GROUPS})
    parser.add_class_arguments(topic.data, "data")
    parser.add_class_arguments(topic.model, "model", skip={"shape", "outputs"})
    outside: set[str | int] = {"monitor", "mode", "folder", "logger", "callbacks"}
    parser.add_function_arguments(make_trainer, "trainer", skip=outside)
    parser.set_defaults(dict(topic.defaults))
    return parser


def resolve(parsed: Namespace) -> tuple[Settings, dict[str, Any]]:
    """Settings, and what is left: the command's own arguments."""
    values = _plain(parsed.as_dict())
    values.pop("config", None)
    groups = {group: values.pop(group) for group in GROUPS}
    return Settings(**groups, seed=values.pop("seed")), values


def _files_and_rest(flags: Sequence[str]) -> tuple[list[str], list[str]]:
    files, rest, waiting = [], [], False
    for flag in flags:
        if waiting:
            files.append(flag)
            waiting = False
        elif flag == "--config":
            waiting = True
        elif flag.startswith("--config="):
            files.append(flag.removeprefix("--config="))
        else:
            rest.append(flag)
    if waiting:
        raise SettingsError("--config needs the path of a YAML file")
    return files, rest


def _plain(value: Any) -> Any:
    """Without jsonargparse's number types, which a checkpoint could not be loaded with."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _words(kind: str) -> str:
    """PositiveFloat -> positive float."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", kind).lower()
