"""What a verb is asked for: a topic, and its settings from the topic's default experiment, a file, and arguments."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

import dlcourse
from dlcourse import topics
from dlcourse.errors import SettingsError, suggestion
from dlcourse.evaluation.baselines import Baseline, of_task
from dlcourse.evaluation.tasks import TASKS, Task, TaskName
from dlcourse.models.base import CourseModel
from dlcourse.reporting.figures import of_outputs
from dlcourse.settings import Seed, Settings, SettingsParser, nearest_folder
from dlcourse.topics import Topic
from dlcourse.training.trainer import make_trainer

NOT_SETTINGS = ("monitor", "mode", "folder", "logger", "callbacks")
"""Arguments of `make_trainer` that the package itself gives."""


@dataclass(frozen=True)
class Request:
    """A topic with its settings, resolved.

    ``experiment`` are the settings of the file alone, before any argument; ``name`` is the file's, else ``default``.
    """

    topic: Topic
    settings: Settings
    experiment: Settings
    name: str

    @property
    def run_name(self) -> str:
        """The experiment's name and the settings that were changed, 120 characters at the most."""
        return _with(self.name, self.settings.changes(self.experiment))[:120]

    def experiment_name(self, name: str | None = None) -> str:
        """What runs that differ in the seed alone have in common: the experiment and the settings that were changed.

        ``name`` stands in place of the file's, as where a run is resumed.
        """
        changes = self.settings.changes(self.experiment)
        return _with(name or self.name, {key: value for key, value in changes.items() if key != "seed"})[:500]


def _with(name: str, changes: Mapping[str, Any]) -> str:
    return ", ".join([name, *(f"{key.removeprefix('trainer.')}={value}" for key, value in changes.items())])


def resolve(
    topic: str | Topic,
    config: str | Path | Sequence[str] | None,
    data: Mapping[str, Any] | None,
    model: Mapping[str, Any] | None,
    trainer: Mapping[str, Any] | None,
    seed: int | None,
) -> Request:
    """The settings of a run: the topic's default experiment, a file's over those, and the arguments over all.

    Args:
        topic: A topic's name, or a `Topic` of one's own.
        config: YAML files, or names of the topic's experiments, each over the one before.
        data: Settings of the topic's data, by name; None gives none.
        model: Settings of the topic's model.
        trainer: Settings of the Trainer, as `make_trainer` has them.
        seed: Seed of weights and batches.

    Raises:
        SettingsError: There is no such topic, file or setting, or a value cannot be taken.
    """
    topic = topic if isinstance(topic, Topic) else topics.find(topic)
    parser = settings_parser(topic, "train")
    names = [config] if isinstance(config, str | Path) else list(config or [])
    files = [find_experiment(topic, each) for each in names]
    groups = {"data": data, "model": model, "trainer": trainer, "seed": seed}
    given = {name: value for name, value in groups.items() if value is not None}
    settings = Settings(**parser.resolve(files, given))
    if issubclass(topic.model, CourseModel):
        topic.model.check_settings(settings.model)
    experiment = Settings(**parser.resolve(files, _without_defaults(topic, given)))
    return Request(topic, settings, experiment, files[-1].stem if names else "default")


def _without_defaults(topic: Topic, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Those settings that the classes of data and model demand, since they have no default for them."""
    demanded = {}
    for group, kind in (("data", topic.data), ("model", topic.model)):
        parameters = inspect.signature(kind).parameters
        values = given.get(group, {})
        demanded[group] = {
            name: values[name] for name, each in parameters.items() if name in values and each.default is each.empty
        }
    return demanded


def topic_of(
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    task: Task | TaskName,
    baselines: Mapping[str, Baseline] | None,
    name: str | None,
) -> Topic:
    """A topic made of a module and its data, both without settings.

    Raises:
        SettingsError: There is no such task, or no baseline for it.
    """
    if isinstance(task, str):
        if task not in TASKS:
            raise SettingsError(f"task: there is no {task!r}; there are {', '.join(TASKS)}, or a Task of your own")
        task = TASKS[task]()
    chosen = of_task(task) if baselines is None else baselines
    if not chosen:
        raise SettingsError("baselines: the verdict needs one at least, the trivial one first")
    name = name or re.sub("(?<=[a-z0-9])(?=[A-Z])", "-", type(module).__name__).lower()
    title = f"{type(module).__name__} on {type(datamodule).__name__}"
    return Topic(name, title, type(datamodule), type(module), chosen, task=task, figures=of_outputs(task))


def settings_of_objects(
    module: L.LightningModule, datamodule: L.LightningDataModule, trainer: Mapping[str, Any], seed: int
) -> Settings:
    """The hyper-parameters that a module and its data have saved, and arguments of `make_trainer` over its defaults."""
    defaults = {
        name: each.default
        for name, each in inspect.signature(make_trainer).parameters.items()
        if name not in NOT_SETTINGS and each.default is not each.empty
    }
    return Settings(dict(datamodule.hparams), dict(module.hparams), {**defaults, **trainer}, seed)


def settings_parser(topic: Topic, verb: str) -> SettingsParser:
    """The parser of a topic's settings: the arguments of its data, its model and the Trainer, and the seed.

    Its defaults are those of the topic's ``default.yaml``, if there is one, else of the classes.
    """
    parser = SettingsParser(f"dlcourse {verb} {topic.name}", topic.title)
    parser.parser.add_argument(
        "--seed", type=Seed, default=0, help="Seed of weights and batches; the split has its own."
    )
    parser.add_arguments(topic.data, "data")
    of_data = ("shape", "outputs") if issubclass(topic.model, CourseModel) else ()
    parser.add_arguments(topic.model, "model", skip=of_data)
    parser.add_arguments(make_trainer, "trainer", skip=NOT_SETTINGS)
    if default := experiments_of(topic).get("default"):
        parser.set_defaults(default)
    return parser


def experiments_of(topic: Topic) -> dict[str, Path]:
    """The YAML files of a topic by name: of the nearest ``experiments/<topic>`` upwards, else the package's own."""
    package = Path(dlcourse.__file__).parent
    packaged = (package / "experiments", package.parent.parent / "experiments")  # of a wheel, of the repository
    folders = [nearest_folder(f"experiments/{topic.name}"), *(place / topic.name for place in packaged)]
    folder = next((place for place in folders if place and place.is_dir()), None)
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def find_experiment(topic: Topic, config: str | Path) -> Path:
    """The file of that path, or the topic's experiment of that name.

    Raises:
        SettingsError: There is neither.
    """
    if Path(config).is_file():
        return Path(config)
    experiments = experiments_of(topic)
    if str(config) in experiments:
        return experiments[str(config)]
    beside = [str(file) for file in Path(config).parent.glob("*.yaml")]
    near = suggestion(str(config), [*experiments, *beside])
    raise SettingsError(
        f"--config {config} is neither a file nor an experiment of {topic.name}"
        f"{near or '; there are ' + ', '.join([*beside, *experiments][:10])}"
    )
