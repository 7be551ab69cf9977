"""``dlcourse VERB TOPIC``: one table of verbs. What needs no torch (help, lists, mistakes) is answered without it."""

import importlib
import json
import logging
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dlcourse import __version__, topics
from dlcourse.errors import (
    CourseError,
    Interrupted,
    SettingsError,
    is_foreign,
    one_line,
    suggestion,
    without_password,
)


@dataclass(frozen=True)
class Verb:
    """A typed function, as ``module:name``, and whether it takes a topic."""

    function: str
    text: str
    topic: Literal["needed", "optional", "none"] = "needed"


VERBS = {
    "train": Verb("experiment:train", "Train a topic's model, compare it with its baselines, and keep it as a run."),
    "test": Verb("evaluation.remeasure:test", "Measure a run's model, or a checkpoint, on its test rows once more."),
    "compare": Verb("experiment:compare", "Train several experiments of a topic, and show them side by side."),
    "overfit": Verb("training.overfit_batch:overfit", "Can a topic's model learn one batch by heart? PASS or FAIL."),
    "doctor": Verb("doctor.check:doctor", "Find what is wrong with this machine and store, or a topic.", "optional"),
    "topics": Verb("topics:titles", "List the topics.", "none"),
    "ui": Verb("tracking.ui:ui", "Open MLflow's pages on the runs.", "none"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        Its exit status: 0 done, 1 failed or not wholly kept, 2 not understood, 130 and 143 interrupted, 141 where
        whoever reads the output has closed it.
    """
    try:
        status = _guarded(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
        print(end="", flush=True)  # a reader that is gone shows here at the latest
    except BrokenPipeError:
        # Python writes what is left of the output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _guarded(arguments: list[str]) -> int:
    """Run a command line; whatever goes wrong is one line on stderr and an exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dlcourse").setLevel(logging.INFO)
    try:
        return _run(*arguments)
    except CourseError as error:
        _say(str(error), error)
        return error.exit_status
    except SystemExit as end:  # argparse, once it has printed the help
        return int(end.code or 0)
    except Interrupted as interrupted:
        _say(f"stopped by {interrupted}", interrupted)
        return 128 + interrupted.signum
    except KeyboardInterrupt:
        print("dlcourse: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        return _unforeseen(error)


def _run(name: str, *words: str) -> int:
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name in ("-V", "--version", "version"):
        print(f"dlcourse {__version__}")
        return 0
    if name not in VERBS:
        near = suggestion(name, VERBS) or f"; there are {', '.join(VERBS)}"
        raise SettingsError(f"unknown verb {name!r}{near}")
    verb, topic, flags = VERBS[name], None, list(words)
    if verb.topic != "none" and flags and not flags[0].startswith("-"):
        topic = topics.find(flags.pop(0))
    elif verb.topic == "needed":
        if flags[:1] in (["-h"], ["--help"]):
            print(f"usage: dlcourse {name} TOPIC [FLAGS]\n\n{verb.text}\n\n{_topic_list()}")
            return 0
        raise SettingsError(f"{name} needs a topic before any flag: one of {', '.join(topics.titles())}")
    return _call(name, verb, topic, flags)


def _call(name: str, verb: Verb, topic: topics.Topic | None, flags: list[str]) -> int:
    """Call a verb's function by what the flags give, and print what it returns."""
    module, _, attribute = verb.function.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(f"dlcourse.{module}"), attribute)
    values = _parsed(name, verb, function, topic, flags) if flags else {}
    as_json, is_only_shown = values.pop("json", False), values.pop("print_config", False)
    if topic:
        values["topic"] = topic
    if is_only_shown and topic:
        from dlcourse.training.request import resolve

        if values.get("resume"):
            raise SettingsError("--print_config shows the settings of a new training: leave --resume out")
        groups = {group: values.get(group) for group in ("config", "data", "model", "trainer", "seed")}
        print(resolve(topic, **groups).settings.as_yaml(), end="")
        return 0
    result = function(**values)
    if isinstance(result, int):  # the function has printed all there is to say
        return result
    if as_json:
        print(_json(result))
    if not as_json or hasattr(result, "ok"):
        print(_text(result), file=sys.stderr if as_json else sys.stdout)
    return 0 if getattr(result, "ok", True) else 1


def _parsed(
    name: str, verb: Verb, function: Callable[..., Any], topic: topics.Topic | None, flags: list[str]
) -> dict[str, Any]:
    from dlcourse.settings import SettingsParser

    parser = SettingsParser(f"dlcourse {name}", verb.text)
    if topic:
        from dlcourse.training.request import settings_parser

        parser = settings_parser(topic, name)
    parser.add_command(function)
    return parser.parse_flags(flags)


def _text(result: object) -> str:
    """A result for people; of names and figures a line each."""
    if not isinstance(result, Mapping):
        return str(result)
    lines = (
        f"{name}  {value:.6g}" if isinstance(value, float) else f"{name}\t{value}" for name, value in result.items()
    )
    return "\n".join(lines)


def _json(result: Any) -> str:
    """One line of JSON, with null for what JSON has no word for, such as the interval of a single row."""

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(result if isinstance(result, Mapping) else result.as_dict()), allow_nan=False)


def _say(text: str, error: BaseException) -> None:
    """One line on stderr, with what the outermost run that was going on adds to it."""
    line = "; ".join([f"dlcourse: {text}", *getattr(error, "__notes__", [])[-1:]])
    print(without_password(line), file=sys.stderr)


def _unforeseen(error: Exception) -> int:
    """One line and a file with the traceback; for an error in code that is not ours the traceback itself."""
    trace = without_password("".join(traceback.format_exception(error)))
    if is_foreign(error):
        print(trace, end="", file=sys.stderr)
        return 1
    if "the traceback is in" not in "".join(getattr(error, "__notes__", [])[-1:]):  # no run was there to keep it
        file = Path(tempfile.mkdtemp(prefix="dlcourse-")) / "traceback.txt"
        file.write_text(trace, encoding="utf-8")
        error.add_note(f"the traceback is in {file}")
    _say(f"{type(error).__name__}: {one_line(error)[:300]}", error)
    return 1


def _help() -> str:
    verbs = "\n".join(f"  {name:<9}{verb.text}" for name, verb in VERBS.items())
    return (
        f"usage: dlcourse VERB [TOPIC] [FLAGS]\n\n{verbs}\n\n{_topic_list()}\n\n"
        "`dlcourse train TOPIC --help` tells every setting of a topic."
    )


def _topic_list() -> str:
    titles = topics.titles()
    width = max(map(len, titles))
    return "\n".join(["topics:", *(f"  {name:<{width}}  {title}" for name, title in titles.items())])
