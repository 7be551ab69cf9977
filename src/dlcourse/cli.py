"""``dlcourse VERB TOPIC``: one table of verbs. Help, lists and wrong commands are answered without importing torch."""

import atexit
import gc
import importlib
import inspect
import json
import logging
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    printable,
    suggestion,
    without_password,
)


@dataclass(frozen=True)
class Verb:
    """A command: its function as ``module:name``, its help text, and whether it takes a topic."""

    function: str
    text: str
    topic: Literal["needed", "stored", "optional", "none"] = "needed"
    """Stored: a topic, or an experiment that the store has."""
    usage: str = "TOPIC [FLAGS]"


VERBS = {
    "train": Verb("experiment:train", "Train a topic's model, compare it with its baselines, and save it as a run."),
    "test": Verb("evaluation.remeasure:test", "Evaluate a run's model, or a checkpoint, on its test rows again."),
    "compare": Verb(
        "experiment:compare", "Compare runs and experiments of a topic: which is better, and is it real?", "stored"
    ),
    "check": Verb("evaluation.published:check", "Check if a run's result is the published one of its experiment."),
    "export": Verb(
        "export.exporting:export", "Write a run's model into a file that others can use, and verify it.", "stored"
    ),
    "predict": Verb(
        "export.predict:predict",
        "Predict by a topic's best model, or one in a file: pictures, CSV files or numbers.",
        "stored",
        "TOPIC|FILE [INPUT ...] [--NAME VALUE ...] [FLAGS]\n\n"
        "  dlcourse predict fashion-mnist boot.png pictures/         pictures, and folders of pictures\n"
        "  dlcourse predict diabetes patients.csv                    the rows of a CSV file\n"
        "  dlcourse predict height-weight --run table 176 180        numbers, if the model takes one a row\n"
        "  dlcourse predict height-weight --run table --height 176   one row, each number by its name\n"
        "  dlcourse predict exports/diabetes.onnx patients.csv       by a model that `dlcourse export` has written\n\n"
        "`dlcourse predict TOPIC --help` lists the flags.",
    ),
    "overfit": Verb("training.overfit_batch:overfit", "Check if a topic's model can overfit one batch: PASS or FAIL."),
    "sweep": Verb("evaluation.sweep:sweep", "Choose settings by Optuna, and compare the best with the default."),
    "promote": Verb(
        "export.registry:promote",
        "Make a run's model the topic's champion, if it is better by more than chance.",
        "stored",
    ),
    "serve": Verb("export.serve:serve", "Answer requests by the topic's champion, until Ctrl-C.", "stored"),
    "doctor": Verb("doctor.check:doctor", "Check this machine and the store, or a topic, for problems.", "optional"),
    "topics": Verb("topics:titles", "List the topics.", "none"),
    "ui": Verb("reporting.pages:ui", "Open the MLflow UI with the runs.", "none"),
}


def run() -> int:
    """`main` as the program of this process, which ends at once: by `os._exit`, after the libraries' exit handlers.

    Python would first take half a million objects apart, one by one: 1.5 to 2 s after the last line of a training.
    """
    status = 1

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(end)  # before any library registers a handler: the first that is registered is called last
    status = main()
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit status: 0 success, 1 failed or not everything was saved, 2 a wrong command, 130 and 143 interrupted,
        141 the reader of the output has closed the pipe.
    """
    try:
        status = _guarded(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
        print(end="", flush=True)  # raises BrokenPipeError if the reader has closed the pipe
    except BrokenPipeError:
        # Python flushes stdout again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    finally:
        gc.unfreeze()
    return status


def _guarded(arguments: list[str]) -> int:
    """Run a command line; any error becomes one line on stderr and an exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dlcourse").setLevel(logging.INFO)
    try:
        return _run(*arguments)
    except CourseError as error:
        _say(str(error), error)
        return error.exit_status
    except SystemExit as end:  # argparse exits after it has printed the help
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
        near = suggestion(name, VERBS) or f"; the verbs are {', '.join(VERBS)}"
        raise SettingsError(f"unknown verb {name!r}{near}")
    verb, topic, flags = VERBS[name], None, list(words)
    if verb.topic != "none" and flags and not flags[0].startswith("-"):
        topic = flags.pop(0)
        if verb.topic != "stored":
            topics.check_name(topic)
    elif verb.topic in ("needed", "stored"):
        if flags[:1] in (["-h"], ["--help"]):
            print(f"usage: dlcourse {name} {verb.usage}\n\n{verb.text}\n\n{_topic_list()}")
            return 0
        needed = "a topic or a file" if "FILE" in verb.usage else "a topic"
        raise SettingsError(f"{name} needs {needed} before any flag: one of {', '.join(topics.titles())}")
    return _call(name, verb, topic, flags)


def _call(name: str, verb: Verb, topic_name: str | None, flags: list[str]) -> int:
    """Call a verb's function with the values of the flags, and print its result."""
    module, _, attribute = verb.function.partition(":")
    with _importing(f"dlcourse.{module}"):
        function: Callable[..., Any] = getattr(importlib.import_module(f"dlcourse.{module}"), attribute)
        is_known = topic_name is not None and (verb.topic != "stored" or topic_name in topics.titles())
        topic = topics.find(topic_name) if topic_name and is_known else None
    values = _parsed(name, verb, function, topic, flags) if flags else {}
    as_json, is_only_shown = values.pop("json", False), values.pop("print_config", False)
    if topic_name:
        values[next(iter(inspect.signature(function).parameters))] = topic or topic_name  # "topic", or "model"
    if is_only_shown and topic:
        from dlcourse.training.request import resolve

        if values.get("resume"):
            raise SettingsError("--print_config shows the settings of a new training: leave --resume out")
        groups = {group: values.get(group) for group in ("config", "data", "model", "trainer", "seed")}
        print(resolve(topic, **groups).settings.as_yaml(), end="")
        return 0
    with _lines_above_bars():
        result = function(**values)
    if isinstance(result, int):  # the function has printed its own output
        return result
    if as_json:
        print(_json(result))
    if not as_json or hasattr(result, "ok"):
        print(_text(result), file=sys.stderr if as_json else sys.stdout)
    return 0 if getattr(result, "ok", True) else 1


@contextmanager
def _importing(module: str) -> Iterator[None]:
    """Say at once what is imported: it takes longer than a short training."""
    is_first_process = os.environ.get("LOCAL_RANK", "0") == "0"  # of a training on several devices
    if module in sys.modules or not is_first_process:
        yield
        return
    from dlcourse.reporting.phases import phase  # imports tqdm, which help and lists do without

    # The libraries make half a million objects that stay. Looking for garbage among them takes 1 s of 5 here, and as
    # much again later.
    gc.disable()
    try:
        with phase("importing torch, Lightning and MLflow", after=0):
            yield
    finally:
        gc.freeze()  # until `main` ends
        gc.enable()


def _lines_above_bars() -> AbstractContextManager[None]:
    """On a terminal, print log messages above the bar that is shown, and not into it."""
    if not sys.stderr.isatty():
        return nullcontext()
    from tqdm.contrib.logging import logging_redirect_tqdm

    return logging_redirect_tqdm()


def _parsed(
    name: str, verb: Verb, function: Callable[..., Any], topic: topics.Topic | None, flags: list[str]
) -> dict[str, Any]:
    from dlcourse.settings import SettingsParser

    parser = SettingsParser(f"dlcourse {name}{f' {topic.name}' if topic else ''}", verb.text)
    if topic and "trainer" in inspect.signature(function).parameters:  # others have no settings
        from dlcourse.training.request import settings_parser

        parser = settings_parser(topic, name)
    parser.add_command(function)
    return parser.parse_flags(flags)


def _text(result: object) -> str:
    """A result as readable text; a mapping has one line per name and value."""
    if not isinstance(result, Mapping):
        return str(result)
    lines = (
        f"{name}  {value:.6g}" if isinstance(value, float) else f"{name}\t{value}" for name, value in result.items()
    )
    return "\n".join(lines)


def _json(result: Any) -> str:
    """One line of JSON, with null for NaN and infinity, such as the interval of a single row."""

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(result if isinstance(result, Mapping) else result.as_dict()), allow_nan=False)


def _say(text: str, error: BaseException) -> None:
    """Print one line on stderr, with the note that the outermost run has added to the error."""
    line = "; ".join([f"dlcourse: {text}", *getattr(error, "__notes__", [])[-1:]])
    print(printable(without_password(line)), file=sys.stderr)


def _unforeseen(error: Exception) -> int:
    """Print one line and write the traceback to a file; for errors in a user's own code, print the traceback."""
    trace = without_password("".join(traceback.format_exception(error)))
    if is_foreign(error):
        print(trace, end="", file=sys.stderr)
        return 1
    if "the traceback is in" not in "".join(getattr(error, "__notes__", [])[-1:]):  # no run has saved it
        file = Path(tempfile.mkdtemp(prefix="dlcourse-")) / "traceback.txt"
        file.write_text(trace, encoding="utf-8")
        error.add_note(f"the traceback is in {file}")
    _say(f"{type(error).__name__}: {one_line(error)[:300]}", error)
    return 1


def _help() -> str:
    verbs = "\n".join(f"  {name:<9}{verb.text}" for name, verb in VERBS.items())
    return (
        f"usage: dlcourse VERB [TOPIC] [FLAGS]\n\n{verbs}\n\n{_topic_list()}\n\n"
        "`dlcourse train TOPIC --help` lists every setting of a topic."
    )


def _topic_list() -> str:
    titles = topics.titles()
    width = max(map(len, titles))
    return "\n".join(["topics:", *(f"  {name:<{width}}  {title}" for name, title in titles.items())])
