"""``dlcourse VERB TOPIC``. What needs no torch (help, versions, lists, mistakes) is answered without loading it."""

import dataclasses
import json
import logging
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

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

VERBS = {
    "train": "Train a topic's model, compare it with its baselines, and keep it all as a run.",
    "test": "Measure a run's model, or a checkpoint, on its test rows once more.",
    "compare": "Train several experiments of a topic, and show them side by side.",
    "overfit": "Try whether a topic's model can overfit_batch one batch: PASS or FAIL.",
    "doctor": "Look for what is wrong with this machine and the store, or with a topic.",
    "topics": "List the topics.",
    "ui": "Open MLflow's pages on the runs.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        Its exit status: 0 done, 1 failed or not wholly kept, 2 not understood, 130 and 143 interrupted, 141 where
        whoever reads the output has closed it.
    """
    try:
        status = _run(arguments)
        print(end="", flush=True)  # a reader that is gone shows here at the latest
    except BrokenPipeError:
        # Python writes what is left of the output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def _run(arguments: Sequence[str] | None) -> int:
    verb, *flags = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dlcourse").setLevel(logging.INFO)
    try:
        if verb in ("-h", "--help", "help"):
            print(_help())
        elif verb in ("-V", "--version", "version"):
            print(f"dlcourse {__version__}")
        elif verb not in VERBS:
            known = suggestion(verb, VERBS) or f"; there are {', '.join(VERBS)}"
            raise SettingsError(f"unknown verb {verb!r}{known}")
        else:
            commands: dict[str, Callable[[list[str]], int]] = {
                "train": _train,
                "test": _test,
                "compare": _compare,
                "overfit": _overfit,
                "doctor": _doctor,
                "topics": _topics,
                "ui": _ui,
            }
            return commands[verb](flags)
    except CourseError as error:
        _say(str(error), error)
        return error.exit_status
    except SystemExit as end:  # argparse, once it has printed what --help or --print_config asks for
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
    return 0


def _say(text: str, error: BaseException) -> None:
    """One line on stderr, with what the outermost run that was going on adds to it."""
    said = "; ".join([f"dlcourse: {text}", *getattr(error, "__notes__", [])[-1:]])
    print(without_password(said), file=sys.stderr)


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
    verbs = "\n".join(f"  {verb:<8}{text}" for verb, text in VERBS.items())
    return (
        "usage: dlcourse VERB [TOPIC] [FLAGS]\n\n"
        f"{verbs}\n\n{_topic_list()}\n\n"
        "`dlcourse train TOPIC --help` tells every setting of a topic."
    )


def _topic_list() -> str:
    titles = topics.titles()
    width = max(map(len, titles))
    return "\n".join(["topics:", *(f"  {name:<{width}}  {title}" for name, title in titles.items())])


def _topics(flags: list[str]) -> int:
    if flags:
        raise SettingsError(f"topics takes nothing more, and got {flags[0]!r}")
    for name, title in topics.titles().items():
        print(f"{name}\t{title}")
    return 0


def _topic(verb: str, flags: list[str]) -> tuple[topics.Topic | None, list[str]]:
    """The topic that a command line names and the flags after it; None where help is all that is wanted."""
    if not flags or flags[0].startswith("-"):
        if flags and flags[0] in ("-h", "--help"):
            print(f"usage: dlcourse {verb} TOPIC [FLAGS]\n\n{VERBS[verb]}\n\n{_topic_list()}")
            return None, []
        raise SettingsError(f"{verb} needs a topic before any flag: one of {', '.join(topics.titles())}")
    return topics.find(flags[0]), flags[1:]


def _train(flags: list[str]) -> int:
    topic, flags = _topic("train", flags)
    if topic is None:
        return 0
    from dlcourse.experiment import train_from_flags

    as_json = "--json" in flags
    result = train_from_flags(topic, [flag for flag in flags if flag != "--json"])
    print(result.card, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(_json(result.as_dict()))
    return 1 if result.lost or result.sentence == "diverged" else 0


def _test(flags: list[str]) -> int:
    topic, flags = _topic("test", flags)
    if topic is None:
        return 0
    from dlcourse.experiment import test
    from dlcourse.settings import OneLineParser

    parser = OneLineParser(prog=f"dlcourse test {topic.name}")
    parser.add_json()
    parser.add_function_arguments(test, None, as_group=False, skip={"topic"})
    asked = parser.parse_flags([flag for flag in flags if flag != "--json"])
    metrics = test(topic, run=asked.run, checkpoint=asked.checkpoint)
    print(_json(metrics) if "--json" in flags else "\n".join(f"{n}  {v:.6g}" for n, v in metrics.items()))
    return 0


def _compare(flags: list[str]) -> int:
    topic, flags = _topic("compare", flags)
    if topic is None:
        return 0
    from dlcourse.evaluation.comparison import compare_from_flags

    comparison = compare_from_flags(topic, [flag for flag in flags if flag != "--json"])
    print(comparison, file=sys.stderr if "--json" in flags else sys.stdout)
    if "--json" in flags:
        print(_json(comparison.as_dict()))
    is_kept = not comparison.lost and not any(each.lost for results in comparison.results.values() for each in results)
    return 0 if is_kept else 1


def _overfit(flags: list[str]) -> int:
    topic, flags = _topic("overfit", flags)
    if topic is None:
        return 0
    from dlcourse.experiment import overfit_from_flags

    memory = overfit_from_flags(topic, [flag for flag in flags if flag != "--json"])
    print(_json(dataclasses.asdict(memory)) if "--json" in flags else memory)
    return 0 if memory.passed and not memory.lost else 1


def _doctor(flags: list[str]) -> int:
    as_json = "--json" in flags
    flags = [flag for flag in flags if flag != "--json"]
    if flags and not flags[0].startswith("-"):
        topic = topics.find(flags[0])
        from dlcourse.doctor.topic import check_topic_from_flags

        findings = check_topic_from_flags(topic, flags[1:])
    else:
        from dlcourse.doctor.machine import check_machine
        from dlcourse.settings import OneLineParser

        parser = OneLineParser(prog="dlcourse doctor", description=f"{VERBS['doctor']} For a topic: doctor TOPIC.")
        parser.add_json()
        parser.add_function_arguments(check_machine, None, as_group=False)
        findings = check_machine(fix=parser.parse_flags(flags).fix)
    well = all(finding.ok for finding in findings)
    if as_json:
        print(json.dumps({"ok": well, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    else:
        width = max(len(finding.name) for finding in findings)
        print("\n".join(f"{finding.mark:<5}  {finding.name:<{width}}  {finding}" for finding in findings))
    return 0 if well else 1


def _json(value: object) -> str:
    """One line of JSON, with null for what JSON has no word for, such as the standard error of a single row."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), allow_nan=False)


def _ui(flags: list[str]) -> int:
    from dlcourse.settings import OneLineParser
    from dlcourse.tracking.ui import ui

    parser = OneLineParser(prog="dlcourse ui")
    parser.add_function_arguments(ui, None, as_group=False)
    asked = parser.parse_flags(flags)
    return ui(host=asked.host, port=asked.port)
