"""What a verb is asked for: a topic, and its settings from the topic's default experiment, a file, and arguments."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L

import dlcourse
from dlcourse import topics
from dlcourse.errors import SettingsError, suggestion
from dlcourse.evaluation.baselines import Baseline, of_task
from dlcourse.evaluation.tasks import TASKS, Task, TaskName
from dlcourse.models.base import CourseModel
from dlcourse.reporting.figures import of_outputs
from dlcourse.settings import (
    NonNegativeInt,
    Part,
    PositiveInt,
    Seed,
    Settings,
    SettingsParser,
    Several,
    nearest_folder,
)
from dlcourse.topics import Topic
from dlcourse.training.trainer import EPOCHS, check_options, make_trainer

NOT_SETTINGS = ("max_epochs", "monitor", "mode", "folder", "logger", "callbacks")
"""Arguments of `make_trainer` that the package itself gives; and ``max_epochs``, which a run always has."""
LIGHTNINGS: dict[str, tuple[Any, str]] = {
    "max_steps": (PositiveInt, "Largest number of optimiser steps; training stops at this or max_epochs."),
    "max_time": (str, "Longest time to train, as days:hours:minutes:seconds, such as 00:00:30:00."),
    "min_epochs": (PositiveInt, "Epochs before which nothing stops the training."),
    "min_steps": (PositiveInt, "Steps before which nothing stops the training."),
    "accumulate_grad_batches": (PositiveInt, "Batches whose gradients are added up before each step."),
    "gradient_clip_algorithm": (Literal["norm", "value"], "What gradient_clip_val limits: the norm, or each value."),
    "val_check_interval": (
        Part | Several,
        "Validate after this part of an epoch, or number of batches.",
    ),
    "check_val_every_n_epoch": (PositiveInt, "Validate after every so many epochs only."),
    "num_sanity_val_steps": (NonNegativeInt, "Validation batches to try before the training; 0 for none."),
    "limit_train_batches": (
        Part | Several,
        "Number or fraction of training batches to use.",
    ),
    "limit_val_batches": (Part | Several, "Number or fraction of validation batches to use."),
    "limit_test_batches": (Part | Several, "Number or fraction of test batches to use."),
    "log_every_n_steps": (PositiveInt, "Steps between values of metrics that are logged by step."),
    "enable_progress_bar": (bool, "Show the progress of the training."),
    "enable_model_summary": (bool, "Print the model's layers and their parameters."),
    "profiler": (Literal["simple", "advanced", "pytorch"], "Measure the time that each part of the training takes."),
    "detect_anomaly": (bool, "Find the operation whose gradient is NaN, which is slow."),
    "benchmark": (bool, "Let cuDNN try its algorithms and take the fastest."),
    "sync_batchnorm": (bool, "Compute batch statistics over all processes."),
    "reload_dataloaders_every_n_epochs": (NonNegativeInt, "Epochs after which dataloaders are made anew; 0 for never."),
}
"""Options of Lightning's Trainer that a run has only where they are given, with their types and what they do."""


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
        if names := [name for name, each in parameters.items() if name in values and each.default is each.empty]:
            demanded[group] = {name: values[name] for name in names}
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
    """The hyper-parameters that a module and its data have saved, and arguments of `make_trainer` over its defaults.

    Raises:
        SettingsError: The Trainer has no such option.
    """
    check_options(trainer)
    if taken := [name for name in NOT_SETTINGS if name in trainer and name != "max_epochs"]:
        raise SettingsError(f"trainer: {taken[0]} is the run's own, or an argument beside trainer: leave it out")
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
    parser.parser.add_argument(
        "--trainer.max_epochs", type=PositiveInt, default=EPOCHS, help="Largest number of epochs."
    )
    # jsonargparse finds some of Lightning's options in the code of `make_trainer`, with other types and defaults.
    further = inspect.signature(L.Trainer).parameters.keys() - inspect.signature(make_trainer).parameters.keys()
    parser.add_arguments(make_trainer, "trainer", skip=[*NOT_SETTINGS, *further])
    for name, (kind, description) in LIGHTNINGS.items():
        parser.add_optional(f"trainer.{name}", kind, description)
    if default := experiments_of(topic).get("default"):
        parser.set_defaults(default)
    return parser


def experiments_folder(topic: Topic) -> Path | None:
    """The nearest folder ``experiments/<topic>`` upwards, else the package's own, if there is one."""
    package = Path(dlcourse.__file__).parent
    packaged = (package / "experiments", package.parent.parent / "experiments")  # of a wheel, of the repository
    folders = [nearest_folder(f"experiments/{topic.name}"), *(place / topic.name for place in packaged)]
    return next((place for place in folders if place and place.is_dir()), None)


def experiments_of(topic: Topic) -> dict[str, Path]:
    """The YAML files of a topic's experiments by name."""
    folder = experiments_folder(topic)
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
