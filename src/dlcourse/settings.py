"""From flags, a YAML file or keyword arguments to checked settings, with one line for whatever is wrong."""

import argparse
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Concatenate, Literal, NoReturn, ParamSpec, TypeVar, Union, cast, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from dlcourse import topics
from dlcourse.errors import CourseError, SettingsError, one_line, suggestion
from dlcourse.ranges import WORDS
from dlcourse.topics import Topic

P = ParamSpec("P")
R = TypeVar("R")

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

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

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
        raise argparse.ArgumentError(None, message) from ex

    def parse_flags(self, flags: Sequence[str]) -> Namespace:
        """Parse a command line; files come first, so that they give way to flags.

        ``--print_config`` prints the settings and ends the program, as ``--help`` does. What is printed is what every
        verb and `dlcourse.train` take as a file, so that arguments of one verb alone are not in it.
        """
        files, given = self._files_and_given(flags)
        for file in files:
            self._parse_file(file)
        joined = [f"--config={file}" for file in files]
        asked = [pair for pair in given if pair[0] != "--print_config"]
        joined += [flag if value is None else f"{flag}={value}" for flag, value in asked]
        values = {flag.removeprefix("--").removesuffix("+"): value for flag, value in asked}
        parsed = self._parsed(lambda: self.parse_args(joined), values, "--")
        if len(asked) < len(given):
            print(resolve(parsed)[0].as_yaml(), end="")
            self.exit()
        return parsed

    def parse_values(self, values: Mapping[str, Any], file: str | None = None) -> Namespace:
        """Parse nested keyword arguments, over those of a file where one is given."""
        base = self._parse_file(file) if file is not None else None
        flat = self._flat(values, "")
        nested = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
        return self._parsed(lambda: self.parse_object(nested, namespace=base), flat, "")

    def _parse_file(self, file: str) -> Namespace:
        where = f"--config {file}: "
        return self._parsed(lambda: self.parse_path(file), self._flat(_read(file), where), where)

    def _parsed(self, parse: Callable[[], Namespace], given: Mapping[str, Any], where: str) -> Namespace:
        try:
            return parse()
        except (ArgumentError, argparse.ArgumentError) as error:
            message = one_line(error)
            key, _, problem = message.removeprefix('Parser key "').partition('": ')
            if key not in given:
                raise SettingsError(message) from error
            raise SettingsError(self._refusal(key, given[key], where) or f"{where}{key}: {problem}") from error

    def add_json(self) -> None:
        """Show ``--json`` in the help; the command line itself acts on it."""
        text = "Print the result as one JSON object on stdout, and everything else on stderr."
        self.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=text)

    def _files_and_given(self, flags: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
        """The files of ``--config``, and every other flag with its last value, None where it takes none."""
        files: list[str] = []
        given: list[tuple[str, str | None]] = []
        waiting = list(flags)
        while waiting:
            word = waiting.pop(0)
            flag, equals, value = word.partition("=")
            flag = flag[:2] + flag[2:].replace("-", "_")  # --init-from is --init_from
            wanted = self._wanted(word, flag)
            if not wanted:
                if equals:
                    raise SettingsError(f"{flag} takes no value, and got {value}")
                given.append((flag, None))
                continue
            if not equals and waiting and not waiting[0].startswith("--"):
                value = waiting.pop(0)
            elif not equals and wanted == described(bool):
                value = "true"
            elif not value:
                raise SettingsError(f"{flag} needs a value: {wanted}")
            if flag == "--config":
                files.append(value)
            else:
                if not flag.endswith("+"):  # such as --data.ask+, each of which adds an entry to a list
                    given = [pair for pair in given if pair[0] != flag]
                given.append((flag, value))
        return files, given

    def _wanted(self, word: str, flag: str) -> str | None:
        """What the value of a flag looks like, None for one without; ``word`` is the flag as it was typed."""
        known = {option: action.dest for action in self._actions for option in action.option_strings}
        if not word.startswith("-"):
            raise SettingsError(f"unexpected {word!r} among the flags{self._see()}")
        if flag not in known:
            near = suggestion(flag, [option for option, name in known.items() if name not in GROUPS])
            raise SettingsError(f"unknown flag {flag}{near or self._see()}")
        if known[flag] in GROUPS:
            example = next(option for option in known if option.startswith(f"{flag}."))
            raise SettingsError(f"{flag} is a group of settings: set one of them, such as {example}")
        if flag == "--config":
            return "the path of a YAML file"
        types = self.types()
        return described(types[known[flag]]) if known[flag] in types else None

    def types(self) -> dict[str, Any]:
        """The type of every setting, by its dotted name."""
        hints = ((action.dest, getattr(action, "_typehint", None)) for action in self._actions)
        return {name: hint for name, hint in hints if hint is not None}

    def _flat(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Nested values by dotted name, each of which is a setting that may have such a value."""
        flat: dict[str, Any] = {}
        for key, value in values.items():
            if key not in GROUPS:
                named = {str(key): value}
            elif isinstance(value, Mapping):
                named = {f"{key}.{name}": each for name, each in value.items()}
            elif value is None:
                raise SettingsError(f"{where}{key} is empty: write a setting under it, or leave it out")
            else:
                raise SettingsError(f"{where}{key} must hold keys and values, not {_shown(value)}")
            if twice := next((name for name in named if name in flat), None):
                raise SettingsError(f"{where}{twice} is there twice: keep one")
            flat |= named
        types = self.types()
        for name, value in flat.items():
            if name not in types:
                near = suggestion(name, types if "." in name else [*types, *GROUPS])
                raise SettingsError(f"{where}unknown key {name}{near or self._see()}")
            # jsonargparse lets a null pass whatever the type is.
            if value is None and type(None) not in get_args(types[name]):
                raise SettingsError(str(self._refusal(name, value, where)))
        return flat

    def _refusal(self, key: str, value: Any, where: str) -> str | None:
        hint = self.types().get(key)
        if hint is None:
            return None
        near = suggestion(str(value), _choices(hint))
        return f"{where}{key} must be {described(hint)}, not {_shown(value)}{near}"

    def _see(self) -> str:
        return f"; see `{self.prog} --help`"


def described(hint: Any) -> str:
    """What a value of this type looks like, as the end of "it must be"."""
    if hint in WORDS:
        return WORDS[hint]
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else str(parts[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(described(part) for part in parts)
    if get_origin(hint) is list:
        numbers = isinstance(parts[0], type) and issubclass(parts[0], int | float)
        return "a list such as [1,2]" if numbers else "a list such as [one,two]"
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return plain.get(hint) or f"a {_words(getattr(hint, '__name__', str(hint)))}"


def settings_parser(topic: Topic, command: Callable[..., Any], prog: str) -> OneLineParser:
    """The parser of a command that trains: its own arguments, and those of data, model and Trainer."""
    from dlcourse.training.trainer import make_trainer

    parser = OneLineParser(prog=prog, description=topic.title)
    parser.add_argument("--config", action="config", help="YAML file with settings; flags go before it.")
    parser.add_json()
    parser.add_function_arguments(inspect.unwrap(command), None, as_group=False, skip={"asked", "config", *GROUPS})
    parser.add_class_arguments(topic.data, "data")
    parser.add_class_arguments(topic.model, "model", skip={"shape", "outputs"})
    outside: set[str | int] = {"monitor", "mode", "folder", "logger", "callbacks"}
    parser.add_function_arguments(make_trainer, "trainer", skip=outside)
    for action in parser._actions:
        if action.dest in GROUPS:
            action.help = argparse.SUPPRESS  # a whole group from a file: --config does that for all of them
    types = parser.types()
    for key in topic.defaults:
        if key not in types:
            near = suggestion(key, types)
            raise CourseError(f"topic {topic.name} has a default for {key}, which is none of its settings{near}")
    parser.set_defaults(dict(topic.defaults))
    return parser


@dataclass(frozen=True)
class Request:
    """What a verb was asked for: the values that it was given, over those of a file, over the topic's own.

    ``experiment`` are the settings before any of them was given. ``own`` are the verb's arguments that are no settings.
    """

    topic: Topic
    settings: Settings
    experiment: Settings
    own: dict[str, Any]
    file: str | None
    parser: OneLineParser
    parse: Callable[[str | None], Namespace]

    @property
    def name(self) -> str:
        """The experiment's."""
        return Path(self.file).stem if self.file else "default"

    def over(self, file: str) -> "Request":
        """The same over another file."""
        return request(self.topic, self.parser, self.parse, file)


def request(
    topic: Topic, parser: OneLineParser, parse: Callable[[str | None], Namespace], file: str | None = None
) -> Request:
    """What is asked for by what ``parse`` makes of a file, or of none; checked as far as that goes without data.

    Raises:
        SettingsError: Settings are wrong, or contradict each other.
    """
    parsed = parse(file)
    if parsed.get("config"):
        file = str(parsed.config[-1])
    settings, own = resolve(parsed)
    topic.model.check_settings(settings.model)
    experiment, _ = resolve(parser.parse_values({}, file))
    return Request(topic, settings, experiment, own, file, parser, parse)


def request_from_flags(topic: Topic, parser: OneLineParser, flags: Sequence[str]) -> Request:
    """What a command line asks for."""

    def parse(file: str | None) -> Namespace:
        return parser.parse_flags([*(["--config", file] if file else []), *flags])

    return request(topic, parser, parse)


def verb(
    name: str,
) -> Callable[[Callable[Concatenate[Request, P], R]], Callable[Concatenate[str | Topic, P], R]]:
    """Make a function that carries out a request one that is called with a topic and keyword arguments.

    An argument that was given counts, whatever its value: ``seed=0`` goes over a file's ``seed: 5``, though 0 is what
    it would be anyway. Within the function each argument that is no setting has its final value. ``name`` is the verb's
    on the command line.
    """

    def decorate(function: Callable[Concatenate[Request, P], R]) -> Callable[Concatenate[str | Topic, P], R]:
        declared = inspect.signature(function)

        @functools.wraps(function)
        def call(topic: str | Topic, /, *arguments: P.args, **named: P.kwargs) -> R:
            given = declared.bind(topic, *arguments, **named).arguments
            found = topic if isinstance(topic, Topic) else topics.find(topic)
            parser = settings_parser(found, function, f"dlcourse {name} {found.name}")
            file = str(given["config"]) if given.get("config") else None
            values = {key: value for key, value in given.items() if key not in ("asked", "config")}
            values = {key: value for key, value in values.items() if key not in GROUPS or value is not None}
            return perform(function, request(found, parser, functools.partial(parser.parse_values, values), file))

        first, *others = declared.parameters.values()
        first = inspect.Parameter("topic", inspect.Parameter.POSITIONAL_ONLY, annotation=str | Topic)
        vars(call)["__signature__"] = declared.replace(parameters=[first, *others])
        return call

    return decorate


def perform(function: Callable[..., R], asked: Request) -> R:
    """Carry out a verb, that of `verb` or the function in it, with arguments that are final."""
    return cast(R, inspect.unwrap(function)(asked, **asked.own))


def resolve(parsed: Namespace) -> tuple[Settings, dict[str, Any]]:
    """Settings, and what is left: the command's own arguments."""
    values = _plain(parsed.as_dict())
    values.pop("config", None)
    groups = {group: values.pop(group) for group in GROUPS}
    return Settings(**groups, seed=values.pop("seed")), values


def _read(file: str) -> Mapping[str, Any]:
    """The content of a YAML file with settings."""
    path = Path(file)
    if not path.is_file():
        known = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = suggestion(file, known) or (f"; there are {', '.join(known[:10])}" if known else "")
        raise SettingsError(f"--config {file} is no file{hint}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise SettingsError(f"--config {file}{place} is not valid YAML: {problem}") from error
    if values is None:
        raise SettingsError(f"--config {file} is empty: write at least one setting into it, or leave it out")
    if not isinstance(values, Mapping):
        raise SettingsError(f"--config {file} must hold keys and values, not a {type(values).__name__}")
    return values


class _UniqueKeys(yaml.SafeLoader):
    """YAML forbids a key to be there twice, and PyYAML takes the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in first:
                problem = f"{key.value} is there twice, first in line {first[name]}: keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            first[name] = line
        return super().construct_mapping(node, deep)


def _choices(hint: Any) -> list[str]:
    """The words that a type admits."""
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [choice for part in get_args(hint) for choice in _choices(part)]


def _shown(value: Any) -> str:
    """A value as it is written in YAML, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = one_line(value)
    return repr(text) if not text or " " in text else text


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


def nearest_folder(name: str, start: Path | None = None) -> Path | None:
    """The folder ``name`` in ``start`` (by default the current folder) or the nearest folder above that has one."""
    start = (start or Path.cwd()).absolute()
    return next((folder / name for folder in (start, *start.parents) if (folder / name).is_dir()), None)
