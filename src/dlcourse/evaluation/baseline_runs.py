"""The baselines of a run, each a separate run in the store, evaluated once for the same rows, split and code."""

from contextlib import suppress

import numpy as np
import torch

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLITS
from dlcourse.evaluation import baselines
from dlcourse.evaluation.assessment import final_metrics, fitting_rows
from dlcourse.evaluation.evaluate import evaluate_outputs
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.models.base import CourseModel
from dlcourse.topics import Topic
from dlcourse.tracking.run import Run


def measure_baselines(run: Run, topic: Topic, data: CourseData, model: CourseModel) -> dict[str, Evaluation]:
    """Evaluate each of the topic's baselines on ``data.eval_split`` by the model's metrics.

    If the store has a baseline for these rows and this code, its outputs are read from there. Otherwise it is fitted,
    evaluated on every split, and saved as a separate run.
    """
    if not data.rows.targets.numel():  # the loss depends on the weights alone: there is nothing to predict
        return {}
    rows, store = fitting_rows(data), run.store
    key = {"dlcourse.split": data.fingerprint, "dlcourse.judge": f"{data.eval_split} {model.primary_metric}"}
    measured = {}
    run.write()
    with store.lock("baselines"):
        known = {}
        with suppress(Exception):  # without the store there is still a verdict
            if run.reachable:
                known = store.baselines(topic.name, *key.values())
        for name, baseline in topic.baselines.items():
            version = baselines.version(baseline)
            if (name, version) in known:
                outputs = torch.from_numpy(np.load(store.files_of(known[name, version]) / "outputs.npy"))
                measured[name] = evaluate_outputs(model, data, data.eval_split, outputs)
                continue
            predict = baseline(*rows)
            evaluations = {
                split: evaluate_outputs(model, data, split, predict(data.rows.inputs[data.splits[split]]))
                for split in SPLITS
                if len(data.splits[split])
            }
            measured[name] = evaluations[data.eval_split]
            tags = {
                "dlcourse.kind": "baseline",
                "dlcourse.baseline": name,
                "dlcourse.baseline_version": version,
                **key,
            }
            with store.start_run(topic.name, f"baseline: {name}", tags, watched=False, within=run) as part:
                part.log_metrics(final_metrics(evaluations.values()))
                with part.attempt("outputs.npy"):
                    np.save(part.path("outputs.npy"), measured[name].outputs.numpy())
    return measured
