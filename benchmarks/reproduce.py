"""Train published experiments anew, and keep what each seed gives in docs/results.json.

    python -m benchmarks.reproduce [TOPIC/EXPERIMENT ...] [--seeds 10] [--results FILE]

Without names, those that are in the file already. Runs go to a temporary folder. The file is written after each
experiment, so that a stop loses one at the most. `dlcourse check` and each training's card compare runs with it.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

import dlcourse
from dlcourse.evaluation.evaluation import final_name
from dlcourse.evaluation.published import COMPUTING, WITHOUT_EFFECT, Published, published_results, versions_of
from dlcourse.evaluation.repeated import Repeated
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import StoredRun
from dlcourse.training.request import resolve
from dlcourse.training.start import load_data

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results.json"


def reproduce(name: str, seeds: int, commit: str) -> Published:
    """Train ``topic/experiment`` with seeds 0, 1, ... in the current folder's store.

    Where every row is a training row, the metric is the loss, which is what such a training is about.

    Raises:
        SettingsError: There is no such topic or experiment, or it has a single seed.
        CourseError: Fewer than two trainings did not diverge.
    """
    topic, _, experiment = name.partition("/")
    result = dlcourse.train(topic, config=experiment, seed=0, seeds=seeds)
    assert isinstance(result, Repeated)
    runs = [open_store().client.get_run(run_id) for run_id in result.runs.values()]
    metric = "loss" if result.eval_split == "train" else result.primary_metric
    return published(topic, experiment, final_name(result.eval_split, metric), runs, commit)


def published(topic: str, experiment: str, metric: str, runs: Sequence[StoredRun], commit: str) -> Published:
    """What runs of the current folder's store, which differ in the seed alone, gave."""
    first = runs[0]
    data, settings = load_data(dlcourse.topics.find(topic), resolve(topic, experiment, None, None, None, None).settings)
    assert data.fingerprint == first.data.tags["dlcourse.split"]
    values = {run.data.params["seed"]: run.data.metrics[metric] for run in runs if metric in run.data.metrics}
    return Published(
        topic=topic,
        experiment=experiment,
        metric=metric,
        values=values,
        settings={name: each for name, each in settings.flat().items() if name not in (*COMPUTING, *WITHOUT_EFFECT)},
        computing={name: each for name, each in settings.flat().items() if name in COMPUTING},
        data=data.origin,
        split=data.fingerprint,
        hardware=first.data.tags["dlcourse.hardware"],
        versions=versions_of(open_store(), first),
        commit=commit,
        date=time.strftime("%Y-%m-%d", time.gmtime(first.info.start_time / 1000)),
    )


def commit() -> str:
    """The commit of this repository; with ``-dirty`` where sources or experiments differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
    differing = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src", "experiments"], check=False).returncode
    return head.stdout.strip() + "-dirty" * differing


def keep(result: Published, file: Path) -> None:
    """Write a result to the file, in place of an older one of the same experiment."""
    results = {(each.topic, each.experiment): each for each in (published_results(file) if file.is_file() else [])}
    results[result.topic, result.experiment] = result
    entries = {}
    for names in sorted(results):
        fields = dataclasses.asdict(results[names])
        entries["/".join(names)] = {name: each for name, each in fields.items() if name not in ("topic", "experiment")}
    file.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TOPIC/EXPERIMENT")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    file, sources = asked.results.absolute(), commit()
    names = asked.names or [f"{each.topic}/{each.experiment}" for each in published_results(file)]
    os.environ.setdefault("DLCOURSE_DATA_DIR", str(ROOT / "data"))
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, chdir(folder):
        (Path(folder) / "mlruns").mkdir()
        for name in names:
            result = reproduce(name, asked.seeds, sources)
            keep(result, file)
            print(f"{name}: {result.metric} {result.range}, mean {result.mean:.4g}", flush=True)


if __name__ == "__main__":
    main()
