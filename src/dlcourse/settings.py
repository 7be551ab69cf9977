"""Settings from flags, YAML files and keyword arguments, checked by type and range. Every error is one line.

jsonargparse reads the signatures of a topic's classes and of `make_trainer`, and checks every value by its type.
"""

import argparse
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from dlcourse.errors import SettingsError, one_line, suggestion

if TYPE_CHECKING:
    Fraction = float
    NonNegativeFloat = float
    NonNegativeInt = int
    Part = float
    PositiveFloat = float
    PositiveInt = int
    Seed = int
    Several = int
else:
    from jsonargparse.typing import NonNegativeInt, OpenUnitInterval, PositiveInt, restricted_number_type

    # jsonargparse's own positive and non-negative floats accept infinity.
    Fraction = restricted_number_type("Fraction", float, [(">=", 0), ("<", 1)])
    NonNegativeFloat = restricted_number_type("NonNegativeNumber", float, [(">=", 0), ("<", float("inf"))])
    PositiveFloat = restricted_number_type("PositiveNumber", float, [(">", 0), ("<", float("inf"))])
    # Lightning takes 1.0 for everything and 1 for a single batch, and jsonargparse takes one for the other.
    Part = OpenUnitInterval
    Several = restricted_number_type("Several", int, [(">", 1)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # numpy accepts no larger seed

GROUPS = ("data", "model", "trainer")
RENAMED = {"decoupled": "lr_per_1024_samples"}
"""Old and present names of renamed model settings: files and checkpoints of earlier versions are still read."""
SWITCHES = ("--help", "--json", "--print_config")
"""Flags without a value."""
JSON_HELP = "Print the result as one JSON object on stdout, and everything else on stderr."


@dataclass(frozen=True)
class Settings:
    """All resolved settings of a run, as in its ``settings.yaml`` and in the output of ``--print_config``."""

    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def as_yaml(self) -> str:
        groups = {"seed": self.seed, "data": self.data, "model": self.model, "trainer": self.trainer}
        plain_groups = json.loads(json.dumps(groups, default=str))  # a module may be given objects, as a profiler
        return yaml.safe_dump(plain_groups, sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, Any]:
        """The settings by dotted name, such as ``model.lr``."""
        groups = {f"{group}.{name}": value for group in GROUPS for name, value in getattr(self, group).items()}
        return {"seed": self.seed, **groups}

    def over(self, values: Mapping[str, Any]) -> "Settings":
        """These settings with other values, by dotted name."""
        groups: dict[str, dict[str, Any]] = {group: dict(getattr(self, group)) for group in GROUPS}
        for name, value in values.items():
            group, _, key = name.partition(".")
            groups[group][key] = value
        return Settings(**groups, seed=self.seed)

    def without(self, names: Collection[str]) -> "Settings":
        """These settings but for those of some dotted names."""
        groups: dict[str, dict[str, Any]] = {
            group: {key: value for key, value in getattr(self, group).items() if f"{group}.{key}" not in names}
            for group in GROUPS
        }
        return Settings(**groups, seed=self.seed)

    def changes(self, before: "Settings") -> dict[str, Any]:
        """The settings that differ from those of ``before``, with their new values."""
        old = before.flat()
        return {name: value for name, value in self.flat().items() if old.get(name) != value}


class SettingsParser:
    """A parser of settings: from a command line, from YAML files, and from keyword arguments.

    Args:
        prog: The command's name in the help.
        description: What the command does.
    """

    def __init__(self, prog: str, description: str = "") -> None:
        self.parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
        self.optional: list[str] = []
        self.collects = False
        """Whether all words without a flag are ``inputs``, and all flags that are not known ``features``."""

    def add_arguments(self, function: Callable[..., Any], group: str | None = None, skip: Sequence[str] = ()) -> None:
        """Add the keyword arguments of a function or class as flags ``--name`` or ``--group.name``."""
        if isinstance(function, type):
            self.parser.add_class_arguments(function, group, as_group=False, skip=set(skip))
        else:
            self.parser.add_function_arguments(function, group, as_group=False, skip=set(skip))

    def add_optional(self, name: str, kind: Any, description: str) -> None:
        """Add a setting of some type that has no default: it is among the resolved settings only where it is given."""
        self.parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=description)
        self.optional.append(name)

    def add_command(self, function: Callable[..., Any]) -> None:
        """Add a verb's own arguments: keywords of its function that are not settings, and ``runs`` without a flag."""
        names = inspect.signature(function).parameters
        positional = [name for name, each in names.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
        if "runs" in names:
            described = "YAML files or names of the topic's experiments, and names or ids of runs."
            self.parser.add_argument("runs", nargs="*", help=described)
        if "features" in names:
            self.collects = True
            described = "Pictures, folders of pictures, CSV files, or numbers for a model of one input."
            self.parser.add_argument("inputs", nargs="*", default=[], help=described)
            self.parser.epilog = "One row as flags, each named after an input without its unit: --body_mass_index 28.1"
        if "run" in positional:
            described = "Name or id of a run, or the beginning of its id; without it one is chosen."
            self.parser.add_argument("run", nargs="?", help=described)
        if "trainer" in names:
            self.parser.add_argument("--print_config", action="store_true", help="Print the settings and exit.")
        if "config" in names:
            self.parser.add_argument("--config", help="A YAML file, or the name of one of the topic's experiments.")
        self.parser.add_argument("--json", action="store_true", help=JSON_HELP)
        self.add_arguments(function, skip=[*positional, "config", "features", "seed", *GROUPS])

    def set_defaults(self, file: Path) -> None:
        """Take the settings of a YAML file for defaults; raises `SettingsError` as `resolve` does."""
        self.parser.set_defaults(Settings(**self.resolve([file], {})).flat())

    def names(self) -> list[str]:
        """Every setting by its dotted name."""
        return self._names(self.parser.get_defaults())

    def _names(self, settings: Namespace) -> list[str]:
        return [*dict.fromkeys([*(str(name) for name, _ in settings.items()), *self.optional])]

    def parse_flags(self, words: Sequence[str]) -> dict[str, Any]:
        """The values on a command line, nested by group, without defaults.

        ``--config`` may be given several times; its values are the list ``config``.

        Raises:
            SettingsError: A flag is unknown, or a value is invalid.
        """
        files, flags, collected = self._sorted(words)
        is_shown = "--print_config" in flags  # jsonargparse knows that flag, and would print other settings as well
        flags = [flag for flag in flags if flag != "--print_config"]
        try:
            values = self.parser.parse_args(flags, defaults=False)
        except (ArgumentError, argparse.ArgumentError) as error:
            typed = dict(flag.removeprefix("--").partition("=")[::2] for flag in flags)
            raise SettingsError(explanation(self.parser, error, typed, "--")) from error
        given: dict[str, Any] = plain(values)
        given |= ({"config": files} if files else {}) | ({"print_config": True} if is_shown else {})
        return given | (collected if self.collects else {})

    def resolve(self, files: Sequence[Path], values: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults, overridden by each file in turn and then by ``values``.

        Raises:
            SettingsError: A key is unknown, or a value is invalid.
        """
        settings = self.parser.get_defaults()
        for file in files:
            settings = self._over(settings, read_yaml(file), f"--config {file}: ")
        if values or not files:  # else all is checked already
            settings = self._over(settings, values, "")
        resolved: dict[str, Any] = plain(settings)
        return resolved

    def _over(self, base: Namespace, values: Mapping[str, Any], where: str) -> Namespace:
        flat = self._flat(values, self._names(base), where)
        nested = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
        try:
            parsed: Namespace = self.parser.parse_object(nested, namespace=base)
        except (ArgumentError, argparse.ArgumentError) as error:
            raise SettingsError(explanation(self.parser, error, flat, where)) from error
        return parsed

    def _flat(self, values: Mapping[str, Any], names: Sequence[str], where: str) -> dict[str, Any]:
        """Values by dotted name; raises `SettingsError` for an unknown name, or for null if that is not allowed."""
        flat: dict[str, Any] = {}
        for key, value in values.items():
            if key in GROUPS and not isinstance(value, Mapping):
                raise SettingsError(f"{where}{key} must hold keys and values, not {shown(value)}")
            pairs = {f"{key}.{name}": each for name, each in value.items()} if key in GROUPS else {str(key): value}
            if twice := sorted(pairs.keys() & flat.keys()):
                raise SettingsError(f"{where}{twice[0]} is set twice: keep one")
            flat |= pairs
        for name, value in flat.items():
            if name not in names:
                near = suggestion(name, names if "." in name else [*names, *GROUPS])
                raise SettingsError(f"{where}unknown key {name}{near or self._see_help()}")
            if value is None and "null" not in (words := wanted(self.parser, name)):  # jsonargparse accepts it
                raise SettingsError(f"{where}{name} must be {words}, not null")
        return flat

    def _sorted(self, words: Sequence[str]) -> tuple[list[str], list[str], dict[str, Any]]:
        """Files and flags (``--name=value``), separated, so that flags override files in any order on the command line.

        ``--init-from`` means ``--init_from``, and a boolean flag without a value means true. The third are ``inputs``
        and ``features``, if they are collected.
        """
        files, flags, waiting = list[str](), list[str](), list(words)
        inputs, features = list[str](), dict[str, str]()
        known = {name: wanted(self.parser, name) for name in self.names()}
        known |= {} if self.collects else {"config": "a YAML file"}
        while waiting:
            word = waiting.pop(0)
            if not word.startswith("--") or word in SWITCHES:
                (inputs if self.collects and word not in ("-h", *SWITCHES) else flags).append(word)
                continue
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if present := RENAMED.get(name.removeprefix("model.")):
                raise SettingsError(f"--{name} is called --model.{present} now")
            is_known = name.removesuffix("+") in known  # --data.ask+ adds an entry to a list
            if not is_known and not self.collects:
                right = [] if name in GROUPS else [*(f"--{each}" for each in known), *SWITCHES]
                near = suggestion(f"--{name}", right)
                raise SettingsError(f"unknown flag --{name}{near or self._see_help()}")
            kind = known.get(name.removesuffix("+"), "a number")
            is_switch = kind == "true or false"
            # Where words without a flag are inputs, the next one is the switch's only if it is its value.
            next_is_value = not (is_switch and self.collects) or waiting[:1] in (["true"], ["false"])
            if not equals and waiting and not waiting[0].startswith("--") and next_is_value:
                value = waiting.pop(0)
            elif not equals and is_switch:
                value = "true"
            elif not value:
                raise SettingsError(f"--{name} needs a value: {kind}")
            if name == "config":
                files.append(value)
            elif is_known:
                flags.append(f"--{name}={value}")
            else:
                features[name] = value
        return files, flags, {"inputs": inputs, "features": features}

    def _see_help(self) -> str:
        return f"; see `{self.parser.prog} --help`"


def explanation(parser: ArgumentParser, error: Exception, values: Mapping[str, Any], where: str) -> str:
    """One line for an error of jsonargparse: the setting, what it must be, and its value.

    jsonargparse's own messages name Python types, over several lines. So the setting is taken from its message, and the
    type from the parser's actions. Both are private to jsonargparse, and used only here and in `_hint`.
    """
    message = one_line(error)
    match = re.match(r'Parser key "([\w.]+)"', message)
    if match is None or match[1] not in values or not (words := wanted(parser, match[1])):
        return where.removesuffix("--") + message
    value = values[match[1]]
    near = suggestion(str(value), _choices(_hint(parser, match[1])))
    return f"{where}{match[1]} must be {words}, not {shown(value)}{near}"


def wanted(parser: ArgumentParser, name: str) -> str:
    """What the value of a setting must be, in words that continue "it must be"."""
    return described(_hint(parser, name))


def _hint(parser: ArgumentParser, name: str) -> Any:
    return next((getattr(action, "_typehint", None) for action in parser._actions if action.dest == name), None)


def described(hint: Any) -> str:
    """A type in words; empty for a type that is not listed here."""
    ranges: dict[object, str] = {
        Fraction: "a number of at least 0 and below 1",
        NonNegativeFloat: "a number of at least 0",
        NonNegativeInt: "a whole number of at least 0",
        Part: "a number between 0 and 1",
        PositiveFloat: "a number above 0",
        PositiveInt: "a whole number above 0",
        Seed: "a whole number from 0 to 4294967295",
        Several: "a whole number above 1",
    }
    plain_types = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else str(parts[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(described(part) for part in parts)
    if get_origin(hint) is list:
        return "a list such as [1,2]" if "number" in described(parts[0]) else "a list such as [one,two]"
    return "null" if hint is type(None) else ranges.get(hint) or plain_types.get(hint, "")


def _choices(hint: Any) -> list[str]:
    """The strings that a type allows."""
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [choice for part in get_args(hint) for choice in _choices(part)]


def shown(value: Any) -> str:
    """A value as in YAML, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = one_line(value)
    return repr(text) if not text or " " in text else text


def plain(values: Any) -> Any:
    """Values as plain Python types: with jsonargparse's own, a checkpoint could not be loaded."""
    if isinstance(values, Namespace):
        values = values.as_dict()
    if isinstance(values, dict):
        return {key: plain(each) for key, each in values.items()}
    if isinstance(values, list):
        return [plain(each) for each in values]
    return next((kind(values) for kind in (bool, int, float, str) if isinstance(values, kind)), values)


def read_yaml(file: Path | str, flag: str = "--config", example: str = "model: {lr: 0.1}") -> Mapping[str, Any]:
    """The content of a YAML file that a flag names; raises `SettingsError` if it cannot be read or is no mapping."""
    try:
        values = yaml.load(Path(file).read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise SettingsError(f"{flag} {file}{place} is not valid YAML: {problem}") from error
    if not isinstance(values, Mapping) or not values:
        kind = "is empty" if not values else f"holds a {type(values).__name__}"
        raise SettingsError(f"{flag} {file} {kind}: write keys and values into it, such as {example}")
    model = values.get("model")
    if not isinstance(model, Mapping):
        return values
    return {**values, "model": {RENAMED.get(name, name): value for name, value in model.items()}}


class _UniqueKeys(yaml.SafeLoader):
    """YAML forbids duplicate keys, but PyYAML silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is set twice", key.start_mark)
            keys |= {name} if name else set()
        return super().construct_mapping(node, deep)


def nearest_folder(name: str, start: Path | None = None) -> Path | None:
    """The folder ``name`` in ``start`` (by default the current folder), or in the nearest parent that has one."""
    start = (start or Path.cwd()).absolute()
    return next((folder / name for folder in (start, *start.parents) if (folder / name).is_dir()), None)
