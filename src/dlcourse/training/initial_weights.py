"""Training itself: from a new model, or from where an interrupted run left off, to the weights that are kept."""

import logging
from collections.abc import Iterator
from pathlib import Path

import yaml

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLIT_NAMES
from dlcourse.errors import CourseError, one_line
from dlcourse.models.base import CourseModel
from dlcourse.topics import Topic
from dlcourse.tracking.store import Store, StoredRun
from dlcourse.training.checkpoints import read_checkpoint

log = logging.getLogger(__name__)


def start_from(model: CourseModel, checkpoint: Path) -> list[str]:
    """Load the weights of a checkpoint whose names and shapes are the model's, and tell of those that are not.

    Returns:
        A line for each weight that keeps its random start.

    Raises:
        CourseError: Not one weight fits.
    """
    weights = read_checkpoint(checkpoint)["state_dict"]
    own = {name: weight for name, weight in model.state_dict().items() if not name.startswith("input_")}
    fitting = {
        name: weights[name] for name, weight in own.items() if name in weights and weights[name].shape == weight.shape
    }
    left = [
        f"{name} {tuple(weight.shape)}: "
        + (f"there it is {tuple(weights[name].shape)}" if name in weights else "not there")
        for name, weight in own.items()
        if name not in fitting
    ]
    if not fitting:
        raise CourseError(f"no weight of that run fits this model; {left[0]}")
    model.load_state_dict(fitting, strict=False)
    log.info("starting from %d of %d weights", len(fitting), len(own))
    for line in left:
        log.warning("left at random: %s", line)
    return left


def check_unseen(store: Store, topic: Topic, first: StoredRun, data: CourseData) -> None:
    """Whether a run that starts from another one's weights would be judged by rows that these have learned.

    Those are the training rows of that run and of all whose weights it came from itself. Rows are compared by their
    contents, since data sets may share some.

    Raises:
        CourseError: It would, or it cannot be known.
    """
    for run in _behind(store, first):
        tags = run.data.tags
        refitted = tags.get("dlcourse.refit") == "true"
        if data.eval_split == "train" or (tags["dlcourse.split"] == data.fingerprint and not refitted):
            continue
        there = _data_of(store, topic, run)
        if refitted:
            there.refit()
        learned = set(there.rows.contents(there.splits["train"]))
        for split in ("test", "val"):
            rows = data.rows.contents(data.splits[split])
            seen = sum(row in learned for row in rows)
            told = f"{seen} of the {len(rows)} {SPLIT_NAMES[split]} rows were training rows of {run.info.run_name}"
            if seen and split == data.eval_split:
                raise CourseError(
                    f"--init_from {first.info.run_name}: {told} ({run.info.run_id}), whose weights know them: take the "
                    "data and the split of that run, or start from another one's weights"
                )
            if seen:
                log.warning("%s: what is chosen by them says little", told)


def _behind(store: Store, run: StoredRun) -> Iterator[StoredRun]:
    """A run, and all that its weights came from; a resumed run names what the first one started from."""
    yield run
    while origin := run.data.tags.get("dlcourse.init_from"):
        earlier = store.get_run(origin)
        if earlier is None:
            raise CourseError(
                f"the weights of {run.info.run_name} came from run {origin}, which is gone from the store, so that "
                "nobody knows which rows they have learned: start from another run's weights"
            )
        yield earlier
        run = earlier


def _data_of(store: Store, topic: Topic, run: StoredRun) -> CourseData:
    """The rows of a run, split as they were; raises `CourseError` where they cannot be had any more."""
    try:
        settings = yaml.safe_load((store.files_of(run) / "settings.yaml").read_text(encoding="utf-8"))
        data = topic.data(**settings["data"])
        data.prepare_data()
        data.setup("fit")
        if data.fingerprint != run.data.tags["dlcourse.split"]:
            raise CourseError("they are others by now")
    except Exception as error:  # whatever a topic's code raises
        raise CourseError(
            f"the rows that {run.info.run_name} ({run.info.run_id}) was trained on cannot be had any more "
            f"({one_line(error)[:200]}), so that nobody knows whether this run would be tested on them: put them back, "
            "or start from another run's weights"
        ) from error
    return data
