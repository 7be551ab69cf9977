"""The baselines of a run, each a separate run in the store, evaluated once for the same rows, split and code."""

from contextlib import suppress

import numpy as np
import torch

from dlcourse.data.datamodule import CourseData
from dlcourse.evaluation import baselines
from dlcourse.evaluation.assessment import fitting_rows
from dlcourse.evaluation.evaluate import evaluate_outputs
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.models.base import CourseModel
from dlcourse.reporting.phases import phase
from dlcourse.topics import Topic
from dlcourse.tracking.run import Run

GREY = "#9e9e9e"
"""Baselines stand apart from trainings, whose colours MLflow draws from their ids."""


def measure_baselines(
    run: Run, topic: Topic, data: CourseData, model: CourseModel
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """Evaluate each of the topic's baselines on ``data.eval_split`` by the model's metrics.

    Returns the evaluations and the ids of the baselines' runs, both by the baseline's name.

    If the store has a baseline for these rows and this code, its outputs are read from there. Otherwise it is fitted,
    evaluated, and saved as a separate run.
    """
    if not data.rows.targets.numel():  # the loss depends on the weights alone: there is nothing to predict
        return {}, {}
    rows, store = fitting_rows(data), run.store
    key = {"dlcourse.split": data.fingerprint, "dlcourse.judge": f"{data.eval_split} {model.primary_metric}"}
    measured, run_ids = {}, {}
    run.write()
    with store.lock("baselines"):
        known = {}
        with suppress(Exception):  # without the store there is still a verdict
            if run.reachable:
                known = store.baselines(topic.name, *key.values())
        for name, baseline in topic.baselines.items():
            version = baselines.version(baseline)
            if (name, version) in known:
                stored = known[name, version]
                outputs = torch.from_numpy(np.load(store.files_of(stored) / "outputs.npy"))
                measured[name] = evaluate_outputs(model, data, data.eval_split, outputs)
                run_ids[name] = stored.info.run_id
                continue
            with phase(f"fitting the baseline {name}"):
                outputs = baseline(*rows)(data.rows.inputs[data.splits[data.eval_split]])
            measured[name] = evaluate_outputs(model, data, data.eval_split, outputs)
            tags = {
                "dlcourse.kind": "baseline",
                "mlflow.runColor": GREY,
                "dlcourse.baseline": name,
                "dlcourse.baseline_version": version,
                **key,
            }
            with store.start_run(topic.name, f"baseline: {name}", tags, within=run) as part:
                part.log_metrics(measured[name].finals)
                with part.attempt("outputs.npy"):
                    np.save(part.path("outputs.npy"), measured[name].outputs.numpy())
            run_ids[name] = part.run_id
    return measured, {name: run_id for name, run_id in run_ids.items() if run_id}
