"""Start from the weights of another run, unless they have been trained on rows that this run is tested on."""

import logging
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import yaml

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLIT_NAMES
from dlcourse.errors import CourseError, one_line
from dlcourse.topics import Topic
from dlcourse.tracking.store import Store, StoredRun
from dlcourse.training.checkpoints import read_checkpoint

log = logging.getLogger(__name__)


def start_from(model: L.LightningModule, checkpoint: Path) -> list[str]:
    """Load those weights of a checkpoint that the model has too, by name and shape. Logs how many, and which not.

    Returns:
        A line for each weight that keeps its random initialisation.

    Raises:
        CourseError: No weight fits.
    """
    saved = read_checkpoint(checkpoint)["state_dict"]
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("input_")}
    fitting, left = {}, []
    for name, weight in weights.items():
        if name in saved and saved[name].shape == weight.shape:
            fitting[name] = saved[name]
        else:
            why = f"in the checkpoint {tuple(saved[name].shape)}" if name in saved else "not in the checkpoint"
            left.append(f"{name} {tuple(weight.shape)}: {why}")
    if not fitting:
        raise CourseError(f"no weight of that run fits this model; {left[0]}")
    model.load_state_dict(fitting, strict=False)
    log.info("starting from %d of %d weights", len(fitting), len(weights))
    for line in left:
        log.warning("left at its random initialisation: %s", line)
    return left


def check_unseen(store: Store, topic: Topic, first: StoredRun, data: CourseData) -> None:
    """Refuse weights that have been trained on rows that this run would be evaluated on.

    These are the training rows of the run that the weights come from, and of all runs that its own weights came from.
    Rows are compared by their contents, since different data sets may share some. Validation rows that were training
    rows are only warned of, if the run is evaluated on test rows.

    Raises:
        CourseError: There are such rows, or the training rows cannot be loaded any more.
    """
    for run in _origins(store, first):
        if data.eval_split == "train" or _has_split(run, data.fingerprint):
            continue
        learned = _learned(store, topic, run)
        for split in ("test", "val"):
            rows = data.rows.contents(data.splits[split])
            seen = sum(row in learned for row in rows)
            finding = f"{seen} of the {len(rows)} {SPLIT_NAMES[split]} rows were training rows of {run.info.run_name}"
            if seen and split == data.eval_split:
                raise CourseError(
                    f"--init_from {first.info.run_name}: {finding} ({run.info.run_id}), so its weights know them: use "
                    "the data and the split of that run, or start from the weights of another run"
                )
            if seen:
                log.warning("%s: early stopping on them says little", finding)


def check_validation_unseen(store: Store, topic: Topic, run: StoredRun) -> None:
    """Refuse a run whose initial weights had been trained on rows that it was validated on.

    Raises:
        CourseError: They had, or it cannot be shown that they had not.
    """
    _, *origins = _origins(store, run)
    others = [each for each in origins if not _has_split(each, run.data.tags["dlcourse.split"])]
    if not others:
        return
    data = _data_of(store, topic, run)
    rows = data.rows.contents(data.splits["val"])
    for each in others:
        learned = _learned(store, topic, each)
        if seen := sum(row in learned for row in rows):
            raise CourseError(
                f"{seen} of the {len(rows)} validation rows of {run.info.run_name} were training rows of "
                f"{each.info.run_name} ({each.info.run_id}), which its initial weights came from"
            )


def _has_split(run: StoredRun, fingerprint: str) -> bool:
    """Whether a run was trained on the training rows of this split, and no others."""
    tags = run.data.tags
    return tags["dlcourse.split"] == fingerprint and tags.get("dlcourse.refit") != "true"


def _learned(store: Store, topic: Topic, run: StoredRun) -> set[bytes]:
    """The contents of the rows that a run was trained on."""
    data = _data_of(store, topic, run)
    if run.data.tags.get("dlcourse.refit") == "true":
        data.refit()
    return set(data.rows.contents(data.splits["train"]))


def _origins(store: Store, run: StoredRun) -> Iterator[StoredRun]:
    """A run, the run that its weights came from, and so on. A resumed run names the origin of the one it resumed."""
    yield run
    while origin := run.data.tags.get("dlcourse.init_from"):
        earlier = store.get_run(origin)
        if earlier is None:
            raise CourseError(
                f"the weights of {run.info.run_name} came from run {origin}, which is gone from the store, so the rows "
                "that they were trained on are unknown: start from the weights of another run"
            )
        yield earlier
        run = earlier


def _data_of(store: Store, topic: Topic, run: StoredRun) -> CourseData:
    """The rows of a run with their split; raises `CourseError` if they cannot be loaded any more."""
    try:
        settings = yaml.safe_load((store.files_of(run) / "settings.yaml").read_text(encoding="utf-8"))
        data = topic.data(**settings["data"])
        assert isinstance(data, CourseData)
        data.prepare_data()
        data.setup("fit")
        if data.fingerprint != run.data.tags["dlcourse.split"]:
            raise CourseError("they have changed")
    except Exception as error:  # whatever a topic's code raises
        raise CourseError(
            f"the rows that {run.info.run_name} ({run.info.run_id}) was trained on cannot be loaded any more "
            f"({one_line(error)[:200]}), so a run with its weights might be tested on them: restore them, or start "
            "from the weights of another run"
        ) from error
    return data
