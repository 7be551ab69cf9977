"""The baselines of a run, each a separate run in the store, evaluated once for the same rows, split and code."""

from contextlib import suppress

from dlcourse.data.rows import digest_of
from dlcourse.evaluation import baselines
from dlcourse.evaluation.assessment import fit_baselines
from dlcourse.evaluation.evaluate import evaluate_outputs
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.predictions import PREDICTIONS, read_values, save_predictions
from dlcourse.evaluation.split_data import SplitData
from dlcourse.evaluation.tasks import Task
from dlcourse.topics import Topic
from dlcourse.tracking.run import Run

GREY = "#9e9e9e"
"""Baselines stand apart from trainings, whose colours MLflow draws from their ids."""


def fingerprint_of(data: SplitData, evaluation: Evaluation) -> str:
    """A digest of the rows and splits: the data's own, or one of the evaluated and the training rows."""
    return data.fingerprint or f"{evaluation.digest[:8]}{digest_of(*data.baseline_rows())[:8]}"


def measure_baselines(
    run: Run, topic: Topic, data: SplitData, task: Task, evaluation: Evaluation
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Evaluate each of the topic's baselines on the rows of ``evaluation`` by the task's metrics.

    Returns the evaluations and the ids of the baselines' runs, both by the baseline's name.

    If the store has a baseline for these rows and this code, its outputs are read from there. Otherwise it is fitted,
    evaluated, and saved as a separate run.
    """
    split, store = evaluation.split, run.store
    if not evaluation.targets.numel():  # the loss depends on the weights alone: there is nothing to predict
        return {}, {}
    key = {"dlcourse.split": fingerprint_of(data, evaluation), "dlcourse.judge": f"{split} {task.primary_metric}"}
    measured, run_ids = {}, {}
    run.write()
    with store.lock("baselines"):
        known = {}
        with suppress(Exception):  # without the store there is still a verdict
            if run.reachable:
                known = store.baselines(topic.name, *key.values())
        versions = {name: baselines.version(each) for name, each in topic.baselines.items()}
        for name, version in versions.items():
            stored = known.get((name, version))
            if stored and (file := store.file_of(stored, PREDICTIONS)):
                outputs = read_values(file, f"{split}_outputs")
                measured[name] = evaluate_outputs(task, split, outputs, evaluation.targets)
                run_ids[name] = stored.info.run_id
        missing = {name: each for name, each in topic.baselines.items() if name not in measured}
        for name, fitted in fit_baselines(missing, task, data, evaluation).items():
            measured[name] = fitted
            tags = {
                "dlcourse.kind": "baseline",
                "mlflow.runColor": GREY,
                "dlcourse.baseline": name,
                "dlcourse.baseline_version": versions[name],
                **key,
            }
            with store.start_run(topic.name, f"baseline: {name}", tags, within=run) as part:
                part.log_metrics(fitted.finals)
                with part.attempt(PREDICTIONS):
                    save_predictions(part.path(PREDICTIONS), task, data, {split: fitted}, exactly=True)
            run_ids[name] = part.run_id
    names = [name for name in topic.baselines if name in measured]
    return {name: measured[name] for name in names}, {name: run_ids[name] for name in names if run_ids[name]}
