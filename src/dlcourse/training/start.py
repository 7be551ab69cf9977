"""Everything before the first step: load and split the data, load initial weights, and log the run's settings."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import lightning as L
from torch import Tensor

from dlcourse import __version__, topics
from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLIT_NAMES, SPLITS, Split, digest_of
from dlcourse.errors import CourseError, SettingsError
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.split_data import LoaderData, SplitData
from dlcourse.models.base import CourseModel
from dlcourse.reporting.phases import phase
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.run import Dataset, Run
from dlcourse.tracking.store import Store
from dlcourse.training.initial_weights import check_unseen, start_from
from dlcourse.training.request import Request
from dlcourse.training.resume import Resumed, check_changes, find_resume_point

log = logging.getLogger(__name__)


def load_data(topic: Topic, settings: Settings) -> tuple[SplitData, Settings]:
    """Load and split the topic's data; returns the settings with the resolved values of ``auto``."""
    data = topic.data(**settings.data)
    if not isinstance(data, CourseData):
        return as_split_data(topic, data), settings
    with phase("reading the data"):
        data.prepare_data()
        data.setup("fit")
    resolved = {name: data.hparams[name] for name in settings.data}
    return data, dataclasses.replace(settings, data=resolved)


def as_split_data(topic: Topic, datamodule: L.LightningDataModule) -> SplitData:
    """A topic's data as evaluation needs it; raises `SettingsError` if its batches cannot be told without a task."""
    if isinstance(datamodule, CourseData):
        return datamodule
    if topic.task is None:
        raise SettingsError(f"topic {topic.name}: {type(datamodule).__name__} is no CourseData, so it needs a task=")
    return LoaderData(datamodule, topic.task.split_batch, topic.task.classes)


def check_in_memory(topic: Topic, what: str) -> None:
    """Raises `SettingsError` if ``what`` cannot be done with the classes of the topic."""
    if not (issubclass(topic.data, CourseData) and issubclass(topic.model, CourseModel)):
        raise SettingsError(f"{what} needs a CourseData and a CourseModel, and {topic.name} has others")


def rows_text(data: SplitData) -> str:
    """The number of rows in each split, and the data set, as text."""
    sizes = {split: data.num_rows(split) for split in SPLITS if data.has(split)}
    counted = [" ".join([*([] if size is None else [str(size)]), SPLIT_NAMES[each]]) for each, size in sizes.items()]
    return f"{', '.join(counted)} rows of {data.origin}"


def log_start(
    run: Run, topic: Topic, data: SplitData, settings: Settings, splits: Mapping[Split, Tensor] | None = None
) -> None:
    """Log settings, data sets and packages to the run before the first step.

    ``splits`` are the row numbers of each data set, by default those of the data's splits. Data that is not in memory
    is known when it has been evaluated: see `log_data`.
    """
    datasets = {}
    if isinstance(data, CourseData):
        datasets = {
            split: Dataset(topic.name, data.digest(rows), data.origin, len(rows))
            for split, rows in (data.splits if splits is None else splits).items()
            if len(rows)
        }
    run.set_tags({"dlcourse.version": __version__})
    run.log_start(params=settings.flat(), settings=settings.as_yaml(), datasets=datasets)
    if run.name == run.part_name:  # not a part, whose rows are those of the whole
        log.info("%s: %s; run %s", topic.name, rows_text(data) if datasets else data.origin, run.run_id)


def log_data(run: Run, topic: Topic, data: SplitData, evaluations: Mapping[Split, Evaluation]) -> None:
    """Log the data sets of data that is not in memory, by the rows that were evaluated."""
    inputs, targets = data.baseline_rows()
    datasets: dict[Split, Dataset] = {
        "train": Dataset(topic.name, digest_of(inputs, targets), data.origin, data.num_rows("train") or len(targets))
    }
    for split, evaluation in evaluations.items():
        datasets[split] = Dataset(topic.name, evaluation.digest, data.origin, len(evaluation.targets))
    run.log_datasets(datasets)


def settings_of(run: str, topic: str | Topic) -> Path:
    """The file with the settings of a stored run, by its id or name; raises `CourseError` if there is none."""
    store = open_store()
    name = topic.name if isinstance(topic, Topic) else topics.find(topic).name
    return store.files_of(store.find_run(run, name)) / "settings.yaml"


def resume_run(
    store: Store, resume: str, request: Request, data: SplitData, model: L.LightningModule, processes: int
) -> tuple[Resumed, dict[str, str], str]:
    """The point from which to resume an interrupted run, the tags that the new run inherits, and the old run's name.

    Raises:
        SettingsError: The run cannot be resumed with these settings.
        CourseError: It is complete, has no checkpoint, or its rows have changed.
    """
    check_changes(request.settings, request.experiment, resume)
    old = store.find_run(resume, request.topic.name)
    name = str(old.info.run_name)
    if data.fingerprint and old.data.tags.get("dlcourse.split") != data.fingerprint:
        raise CourseError(
            f"{name} cannot be resumed: its rows or their split have changed ({data.origin}); restore them, or "
            "train again"
        )
    inherited = ("dlcourse.init_from", "dlcourse.refit")
    tags = {tag: old.data.tags[tag] for tag in inherited if tag in old.data.tags}
    tags["experiment"] = request.experiment_name(old.data.tags.get("experiment", name))
    files = store.files_of(old)
    point = find_resume_point(old, files, model, request.settings, request.experiment, processes)
    return point, {**tags, "dlcourse.resumed_from": old.info.run_id}, name


def load_initial_weights(store: Store, topic: Topic, run: str, data: SplitData, model: L.LightningModule) -> str:
    """Load the kept weights of a stored run into a model, as far as their shapes fit; returns the run's id.

    Raises:
        CourseError: There is no such run, no weight fits, or the weights were trained on rows that ``data`` would test
            them on.
    """
    if not isinstance(data, CourseData):
        raise SettingsError(f"--init_from compares rows in memory, and {topic.name} has no CourseData: leave it out")
    first = store.find_run(run, topic.name)
    check_unseen(store, topic, first, data)
    start_from(model, kept_checkpoint(store.files_of(first)))
    return str(first.info.run_id)


def kept_checkpoint(files: Path) -> Path:
    """The checkpoint with the kept weights in a run's folder; raises `CourseError` if there is none."""
    for name in ("refit/last", "best", "last"):
        if (path := files / "checkpoints" / f"{name}.ckpt").is_file():
            return path
    raise CourseError(
        "that run has no checkpoint: it ended before its first epoch, or is one of several seeds and not the best"
    )
