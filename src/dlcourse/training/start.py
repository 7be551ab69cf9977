"""Everything before the first step: load and split the data, load initial weights, and log the run's settings."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dlcourse import topics
from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLIT_NAMES, SPLITS, Split
from dlcourse.errors import CourseError
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


def load_data(topic: Topic, settings: Settings) -> tuple[CourseData, Settings]:
    """Load and split the topic's data; returns the settings with the resolved values of ``auto``."""
    data = topic.data(**settings.data)
    with phase("reading the data"):
        data.prepare_data()
        data.setup("fit")
    resolved = {name: data.hparams[name] for name in settings.data}
    return data, dataclasses.replace(settings, data=resolved)


def rows_text(data: CourseData) -> str:
    """The number of rows in each split, and the data set, as text."""
    sizes = ", ".join(f"{len(data.splits[each])} {SPLIT_NAMES[each]}" for each in SPLITS if len(data.splits[each]))
    return f"{sizes} rows of {data.rows.source}"


def log_start(
    run: Run, topic: Topic, data: CourseData, settings: Settings, splits: Mapping[Split, Tensor] | None = None
) -> None:
    """Log settings, data sets and packages to the run before the first step.

    ``splits`` are the row numbers of each data set, by default those of the data's splits.
    """
    splits = data.splits if splits is None else splits
    run.log_start(
        params=settings.flat(),
        settings=settings.as_yaml(),
        datasets={
            split: Dataset(topic.name, data.digest(rows), data.rows.source, len(rows))
            for split, rows in splits.items()
            if len(rows)
        },
    )
    log.info("%s: %s; run %s", topic.name, rows_text(data), run.run_id)


def settings_of(run: str, topic: str | Topic) -> Path:
    """The file with the settings of a stored run, by its id or name; raises `CourseError` if there is none."""
    store = open_store()
    name = topic.name if isinstance(topic, Topic) else topics.find(topic).name
    return store.files_of(store.find_run(run, name)) / "settings.yaml"


def resume_run(
    store: Store, resume: str, request: Request, data: CourseData, model: CourseModel, processes: int
) -> tuple[Resumed, dict[str, str], str]:
    """The point from which to resume an interrupted run, the tags that the new run inherits, and the old run's name.

    Raises:
        SettingsError: The run cannot be resumed with these settings.
        CourseError: It is complete, has no checkpoint, or its rows have changed.
    """
    check_changes(request.settings, request.experiment, resume)
    old = store.find_run(resume, request.topic.name)
    name = str(old.info.run_name)
    if old.data.tags.get("dlcourse.split") != data.fingerprint:
        raise CourseError(
            f"{name} cannot be resumed: its rows or their split have changed ({data.rows.source}); restore them, or "
            "train again"
        )
    inherited = ("dlcourse.init_from", "dlcourse.refit")
    tags = {tag: old.data.tags[tag] for tag in inherited if tag in old.data.tags}
    tags["experiment"] = request.experiment_name(old.data.tags.get("experiment", name))
    files = store.files_of(old)
    point = find_resume_point(old, files, model, request.settings, request.experiment, processes)
    return point, {**tags, "dlcourse.resumed_from": old.info.run_id}, name


def load_initial_weights(store: Store, topic: Topic, run: str, data: CourseData, model: CourseModel) -> str:
    """Load the kept weights of a stored run into a model, as far as their shapes fit; returns the run's id.

    Raises:
        CourseError: There is no such run, no weight fits, or the weights were trained on rows that ``data`` would test
            them on.
    """
    first = store.find_run(run, topic.name)
    check_unseen(store, topic, first, data)
    start_from(model, kept_checkpoint(store.files_of(first)))
    return str(first.info.run_id)


def kept_checkpoint(files: Path) -> Path:
    """The checkpoint with the kept weights in a run's folder; raises `CourseError` if there is none."""
    for name in ("refit/last", "best", "last"):
        if (path := files / "checkpoints" / f"{name}.ckpt").is_file():
            return path
    raise CourseError("that run has no checkpoint: it ended before its first epoch")
