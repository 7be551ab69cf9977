"""The run that is meant: the one that is named, or the best one by validation rows."""

from dataclasses import dataclass

from dlcourse import topics
from dlcourse.data.rows import SPLITS
from dlcourse.errors import CourseError
from dlcourse.evaluation.predictions import PREDICTIONS, read_metrics
from dlcourse.evaluation.stored import trainings, why_not_finished
from dlcourse.topics import Topic
from dlcourse.tracking.store import Store, StoredRun


@dataclass(frozen=True)
class Chosen:
    """A finished run that has a verified model.

    Attributes:
        experiment: The name of its MLflow experiment.
        topic: Its topic; None if it came by `train_module` or `evaluate_module`.
        run: The run.
        model_id: MLflow's id of its model.
        why: Why it is this one, in words.
        others: How many runs it was chosen from, itself included; 1 if it was named.
    """

    experiment: str
    topic: Topic | None
    run: StoredRun
    model_id: str
    why: str
    others: int = 1

    @property
    def name(self) -> str:
        return f"{self.run.info.run_name} ({self.run.info.run_id[:8]})"


def known_topic(store: Store, name: str | Topic) -> tuple[str, Topic | None]:
    """The name of an experiment, and its topic; None for one of `train_module` that the store has.

    Raises:
        SettingsError: There is neither.
    """
    if isinstance(name, Topic):
        return name.name, name
    if name not in topics.titles() and store.client.get_experiment_by_name(name):
        return name, None
    return name, topics.find(name)


def metrics_of(topic: Topic) -> tuple[str, dict[str, bool]]:
    """The topic's primary metric, and whether higher values of it are better."""
    task = topic.task or topic.model
    primary = getattr(task, "primary_metric", "loss")
    return primary, {primary: primary not in getattr(task, "lower_is_better", {"loss"})}


def choose(store: Store, name: str | Topic, run: str | None = None) -> Chosen:
    """The run that is named, else the best finished training on the default data and split of the topic.

    The best is that by the primary metric on validation rows, or on training rows where there are none. If nothing was
    trained on the default data, the rows are those of the newest training.

    Raises:
        SettingsError: There is no such topic or experiment.
        CourseError: There is no such run, it has not finished, or it has no model.
    """
    experiment, topic = known_topic(store, name)
    if run is not None:
        return _named(store, experiment, topic, run)
    finished = list(trainings(store, store.experiment(experiment), "attributes.status = 'FINISHED'"))
    by_default = [each for each in finished if _has_default_data(each)]
    newest = next(iter([*by_default, *finished]), None)
    split = newest.data.tags.get("dlcourse.split", "") if newest else ""
    rows = f"of its {'default experiment' if by_default else 'newest training'} in {store.shown}"
    same = [each for each in finished if each.data.tags.get("dlcourse.split") == split and _model_of(each)]
    if not same:
        none = f"{experiment} has no finished training with a model on the rows {rows}"
        raise CourseError(f"{none}: name one, as RUN or by --run")
    primary, higher = metrics_of(topic) if topic else _stored_metrics(store, same[0])
    for metric in (f"val/final_{primary}", f"train/final_{primary}"):
        measured = [each for each in same if metric in each.data.metrics]
        measured.sort(key=lambda each: each.data.metrics[metric], reverse=higher[primary])
        if best := next((each for each in measured if store.verified_model(_model_of(each))), None):
            why = f"the best of {len(measured)} by {metric} ({best.data.metrics[metric]:.4g}), on the rows {rows}"
            return Chosen(experiment, topic, best, _model_of(best), why, len(measured))
    raise CourseError(f"no training of {experiment} has val/final_{primary} to choose by: name one, as RUN or by --run")


def _has_default_data(run: StoredRun) -> bool:
    """Whether a run has the data settings of the topic's default experiment, by the name of its own."""
    name = run.data.tags.get("experiment", "")
    return name == "default" or (name.startswith("default, ") and " data." not in name)


def _named(store: Store, experiment: str, topic: Topic | None, name: str) -> Chosen:
    run = store.find_run(name, experiment)
    if run.data.tags["dlcourse.kind"] == "seeds":  # of its trainings the best has the model
        children = trainings(store, run.info.experiment_id, f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        run = next((each for each in children if _model_of(each)), run)
    shown = f"{run.info.run_name} ({run.info.run_id})"
    if run.info.status != "FINISHED":
        raise CourseError(f"{shown} has no model to take: it is {why_not_finished(run)}")
    if not _model_of(run) or not store.verified_model(_model_of(run)):
        raise CourseError(f"{shown} has no verified model: its export failed, or it is one of several seeds")
    return Chosen(experiment, topic, run, _model_of(run), "the named one")


def _model_of(run: StoredRun) -> str:
    """MLflow's id of the run's model; empty if it has none."""
    models = run.outputs.model_outputs if run.outputs else []
    return str(models[-1].model_id) if models else ""


def _stored_metrics(store: Store, run: StoredRun) -> tuple[str, dict[str, bool]]:
    """The primary metric of a run's outputs, and whether higher values of each metric are better."""
    if file := store.file_of(run, PREDICTIONS):
        for split in SPLITS:
            primary, higher = read_metrics(file, split)
            if higher:
                return primary, higher
    return "loss", {"loss": False}
