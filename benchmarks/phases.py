"""One command of `dlcourse`, whole, with the seconds that each of its phases takes.

    python benchmarks/phases.py FILE train height-weight ...

Run by `benchmarks.run` as a process of its own, with ``PYTHONPATH`` set to the sources to measure. It knows the phases
by the public functions that do their work, so that a commit is measured that does not measure itself: those of the
present code, and those of the past that went by other names.
"""

import functools
import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FUNCTIONS = {
    "settings and data": (
        "training.request.settings_parser", "training.request.resolve", "training.start.load_data",
        "settings.settings_parser", "settings.resolve", "experiment._prepared",
    ),
    "store": (
        "tracking.opening.open_store", "reporting.pages.prepare_pages", "training.start.log_start",
        "tracking.open_store", "reporting.log_start",
    ),
    "training": ("training.fit.run_fit", "distributed.carry_out"),
    "evaluation": (
        "evaluation.assessment.evaluate_splits", "evaluation.assessment.judge_model",
        "evaluating.evaluate", "verdict.judge",
    ),
    "baselines": ("evaluation.baseline_runs.measure_baselines", "experiment._baselines"),
    "figures": ("reporting.report.draw_figures", "reporting._draw"),
    "export": ("export.model.export_model", "exporting.log_model"),
}  # fmt: skip
"""The functions of each phase, by their names in the package. What none of them does belongs to no phase."""

seconds: Counter[str] = Counter()
current = ["import"]
since = time.perf_counter()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What is done within counts for this phase alone, and not for the one around it."""
    _count()
    current.append(name)
    try:
        yield
    finally:
        _count()
        current.pop()


def _count() -> None:
    global since
    now = time.perf_counter()
    seconds[current[-1]] += now - since
    since = now


def main(file: str, *command: str) -> int:
    cli, topics = importlib.import_module("dlcourse.cli"), importlib.import_module("dlcourse.topics")
    find = topics.find

    def find_and_measure(name: str) -> Any:
        """The last that is done before the first phase; what has not been imported by then is imported now."""
        topic = find(name)
        importlib.import_module("dlcourse.experiment")
        topics.find = find
        _measure_functions()
        _count()
        current[0] = "rest"
        return topic

    topics.find = find_and_measure
    sys.argv = ["dlcourse", *command]
    status: int = getattr(cli, "run", cli.main)()
    _count()
    Path(file).write_text(json.dumps(seconds), encoding="utf-8")
    return status


def _measure_functions() -> None:
    for name, functions in FUNCTIONS.items():
        for path in functions:
            with suppress(ImportError, AttributeError):  # of another commit
                module, _, function = f"dlcourse.{path}".rpartition(".")
                _replace(getattr(importlib.import_module(module), function), name)


def _replace(function: Callable[..., Any], name: str) -> None:
    """Measure a function in all modules that have imported it."""

    @functools.wraps(function)
    def measured(*arguments: Any, **settings: Any) -> Any:
        with phase(name):
            return function(*arguments, **settings)

    for module in [each for path, each in sys.modules.items() if path.startswith("dlcourse")]:
        for key, value in list(vars(module).items()):
            if value is function:
                setattr(module, key, measured)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
