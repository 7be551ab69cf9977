"""Find and list the topics.

A topic is one file with one ``Topic(...)`` at module level: in this folder, or in any package that registers it in the
entry-point group ``dlcourse.topics``. Names and titles are read from the source, so listing them imports no library.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dlcourse.errors import CourseError, SettingsError, one_line, suggestion

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.callbacks import Callback
    from matplotlib.figure import Figure
    from torchmetrics import Metric

    from dlcourse.evaluation.baselines import Baseline
    from dlcourse.evaluation.evaluation import Evaluation
    from dlcourse.evaluation.tasks import PerSampleLoss, Task
    from dlcourse.evaluation.verdict import Verdict

    Judge = Callable[[Any, Any], Verdict]
    FigureFunction = Callable[[Any, Any, Evaluation], Figure | None]


@dataclass(frozen=True)
class Topic:
    """A topic: its data, model, baselines and figures.

    ``data`` and ``model`` may be any LightningDataModule and LightningModule: then the topic has a ``task``, which says
    what the model's outputs mean. Those of `CourseData` and `CourseModel` say it themselves.

    ``name`` and ``title`` must be string literals. The first baseline is the trivial one (mean, majority): a model has
    learned something if it beats that one. It is worth using only if it beats the others as well.
    """

    name: str
    title: str
    data: type[L.LightningDataModule]
    model: type[L.LightningModule]
    baselines: Mapping[str, Baseline]
    task: Task | None = None
    loss: PerSampleLoss | None = None
    """The loss of each row, from outputs and targets to N numbers, in place of the task's."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """Further torchmetrics of predictions and targets; their ``higher_is_better`` says which direction is better."""
    callbacks: Callable[[], Sequence[Callback]] = tuple
    """Makes further callbacks for each training."""
    monitor: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    figures: Mapping[str, FigureFunction] = field(default_factory=dict)
    """A figure function may return None if there is nothing to show."""
    judge: Judge | None = None
    """Replaces the comparison with the trivial baseline, for topics with too few rows for it."""
    lesson: str = ""
    """Where to read about it, such as ``docs/diabetes.md``."""


def titles() -> dict[str, str]:
    """Every topic's name and title, in alphabetical order."""
    found = {}
    for name, source in sorted(_sources().items()):
        try:
            found[name] = _declared(source if isinstance(source, Path) else _file_of(source)).get("title", "")
        except (ImportError, OSError, SyntaxError, ValueError) as error:
            found[name] = f"(cannot be read: {one_line(error)})"
    return found


def find(name: str) -> Topic:
    """The topic of that name; raises `SettingsError` with the nearest name if there is none."""
    check_name(name)
    source = _sources()[name]
    if isinstance(source, Path):
        module = importlib.import_module(f"{__name__}.{source.stem}")
        topic = next(value for value in vars(module).values() if isinstance(value, Topic))
    else:
        try:
            topic = source.load()
        except Exception as error:  # whatever a user's code raises
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise CourseError(f"topic {name!r} ({source.value}) cannot be loaded: {reason}") from error
        if not isinstance(topic, Topic):
            raise CourseError(f"topic {name!r}: {source.value} is no Topic but a {type(topic).__name__}")
    if topic.name != name:
        raise CourseError(f"topic {name!r} calls itself {topic.name!r}: give both the same name")
    return topic


def check_name(name: str) -> None:
    """Raises `SettingsError` with the nearest name if no topic is called that. Imports no topic."""
    sources = _sources()
    if name not in sources:
        known = suggestion(str(name), sources) or f"; the topics are {', '.join(sorted(sources))}"
        raise SettingsError(f"no topic is called {name!r}{known}")


def _sources() -> dict[str, Path | EntryPoint]:
    own = {path.stem.replace("_", "-"): path for path in Path(__file__).parent.glob("[!_]*.py")}
    return own | {entry.name: entry for entry in entry_points(group="dlcourse.topics")}


def _file_of(entry: EntryPoint) -> Path:
    """The source file of an entry point, found without importing its packages."""
    first, *inner = entry.module.split(".")
    spec = importlib.util.find_spec(first)
    for name in inner:
        spec = PathFinder.find_spec(name, spec.submodule_search_locations) if spec else None
    if spec is None or not spec.origin:
        raise ModuleNotFoundError(f"no module named {entry.module!r}")
    return Path(spec.origin)


def _declared(path: Path) -> dict[str, str]:
    """The string arguments of the file's ``Topic(...)``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Topic":
            return {
                argument.arg: argument.value.value
                for argument in node.keywords
                if argument.arg and isinstance(argument.value, ast.Constant) and isinstance(argument.value.value, str)
            }
    return {}
