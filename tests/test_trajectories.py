"""Every YAML file in experiments/ still trains as it did when `trajectories.json` was recorded.

For each file it holds the whole course of a training and what came of it: every epoch's metrics, the final figures,
those of the baselines, and the verdict. They are kept by processor and version of torch, since their kernels sum up in
other orders. On one that was recorded the comparison is exact, to the last bit of every number and to the last letter
of every text. On any other it goes by tolerances, which are explained at `near`.

Trainings of tables are those of the file, of 200 epochs at the most. Those of images are two batches and two epochs on
made-up images, or on the sample where the file says so, with narrower networks where a file's own take seconds.
Results of images depend on the number of threads: here it is one.

`python -m tests.test_trajectories` records anew: the processor and torch it runs on, and nothing else. Changes to the
file are to be read in the diff, and explained in the commit.
"""

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from threadpoolctl import threadpool_limits

import dlcourse
from tests.conftest import EXPERIMENTS
from tests.image_sets import write_cifar10, write_fashion_mnist, write_image_folder, write_weights

STORED = Path(__file__).with_name("trajectories.json")
RECORD = "RECORD_TRAJECTORIES"
MADE_UP = {"fashion-mnist": write_fashion_mnist, "cifar10": write_cifar10, "image-folder": write_image_folder}
FILES = sorted(EXPERIMENTS.glob("*/*.yaml"))
LONGEST = 200
NAME = "trajectory"
MEASURED = ("fit_seconds", "samples_per_second", "system/")
"""Metrics that the clock decides."""
TAGS = ("verdict", "overfitting", "split", "judge", "error")
RENAMED: dict[str, str] = {}
"""Metrics, tags (without ``dlcourse.``) and runs whose name is another by now: the name today, and the one stored."""

Runs = dict[str, dict[str, Any]]
"""By its name, what is known of each run: ``metrics`` with a value for each step, and ``texts``."""


def train(topic: str, file: Path, settings: dict[str, Any]) -> None:
    """The one place where the package is called; all else is read from the store."""
    dlcourse.train(topic, config=file, name=NAME, **settings)


def shrunk(topic: str, file: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings that make a training short; where it needs images, they are made."""
    if topic not in MADE_UP:
        epochs = yaml.safe_load(file.read_text(encoding="utf-8"))["trainer"]["max_epochs"]
        return {"trainer": {"max_epochs": min(epochs, LONGEST), "accelerator": "cpu"}}
    torch.manual_seed(0)
    MADE_UP[topic](project / "data", monkeypatch, train=60, test=20)
    data: dict[str, Any] = {"batch_size": 20}
    model: dict[str, Any] = {"compile": False}
    if topic == "image-folder":
        write_weights("resnet18", project / "weights", monkeypatch)
    else:
        data["val_rows"] = 20
    if file.stem in ("best", "sample"):
        model["widths"] = [16, 32, 32]
    if file.stem == "pretrained":
        data["size"] = 64
    trainer = {"max_epochs": 2, "limit_batches": 2, "accelerator": "cpu"}
    return {"data": data, "model": model, "trainer": trainer}


def kept(project: Path) -> Runs:
    """What the project's store has, but for what differs from run to run."""
    client = MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")
    found: Runs = {}
    for run in client.search_runs([each.experiment_id for each in client.search_experiments()]):
        metrics = {}
        for name in sorted(run.data.metrics):
            if name.startswith(MEASURED):
                continue
            points = sorted((each.step, each.value) for each in client.get_metric_history(run.info.run_id, name))
            assert [step for step, _ in points] == list(range(len(points))), f"steps of {name}"
            metrics[RENAMED.get(name, name)] = [value for _, value in points]
        tags = {name.removeprefix("dlcourse."): value for name, value in run.data.tags.items()}
        tags = {RENAMED.get(name, name): value for name, value in tags.items()}
        texts = {"status": run.info.status} | {name: tags[name] for name in TAGS if name in tags}
        if "verdict" in texts:
            texts["verdict"] = texts["verdict"].partition(" (")[0]  # the metrics that differ are compared themselves
        name = str(run.info.run_name)
        found[RENAMED.get(name, name)] = {"metrics": metrics, "texts": texts}
    return dict(sorted(found.items()))


def processor() -> str:
    """What the last bits depend on: the processor's kind, what torch makes of it, and torch."""
    kind = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        told = re.findall(r"(?m)^(?:vendor_id|cpu family|model)\s*: (.*)$", cpuinfo.read_text().partition("\n\n")[0])
        kind = " ".join(told) or kind
    return f"{kind}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def same(topic: str, name: str, then: float, now: float) -> bool:
    """To the last bit."""
    return then.hex() == now.hex()


def near(topic: str, name: str, then: float, now: float) -> bool:
    """As near as another processor comes.

    Measured on the recorded one, with torch and its libraries held to AVX2. Figures of tables differ by less than 1e-5
    in their 200 epochs, which leaves room for ten times as much. Networks on images amplify a last bit within a few
    steps: the losses of a ResNet differ by 0.02 in its second epoch, those of the others by 0.001. Most of these train
    in bfloat16 there; a processor that lacks it trains them in float32, which was not measured. One of the
    few rows may change sides, which is 0.1 in an accuracy and more at the ends of its interval. Which of two nearly
    equal epochs is the best one may change.
    """
    if name == "best_epoch":
        return True
    if topic not in MADE_UP:
        return math.isclose(then, now, rel_tol=1e-4, abs_tol=1e-5)
    return math.isclose(then, now, rel_tol=0.05, abs_tol=0.05 if "loss" in name else 0.25)


def differences(topic: str, then: Runs, now: Runs, is_known: bool) -> Iterator[str]:
    """A line for each thing that is not as it was.

    On an unknown processor texts are compared up to their first colon or semicolon: after it come numbers. One epoch
    more or less before an early stop is none there either.
    """
    if then.keys() != now.keys():
        yield f"the runs were {', '.join(then)}, are {', '.join(now)}"
        return
    is_as_before = same if is_known else near
    for run, old in then.items():
        new = now[run]
        for kind in ("metrics", "texts"):
            if changed := sorted(old[kind].keys() ^ new[kind].keys()):
                yield f"{run}: {kind} that were not there, or are not there: {', '.join(changed)}"
        for name in old["texts"].keys() & new["texts"].keys():
            texts = [old["texts"][name], new["texts"][name]]
            if len({text if is_known else re.split("[:;]", text)[0] for text in texts}) == 2:
                yield f"{run}: {name} was {texts[0]!r}, is {texts[1]!r}"
        for name in old["metrics"].keys() & new["metrics"].keys():
            before, after = old["metrics"][name], new["metrics"][name]
            if is_known and len(before) != len(after):
                yield f"{run}: {name} had {len(before)} values, has {len(after)}"
            for step, values in enumerate(zip(before, after, strict=False)):
                if not is_as_before(topic, name, *values):
                    yield f"{run}: {name} was {values[0]!r} at step {step}, is {values[1]!r}"
                    break


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For torch, and for what the baselines are fitted with."""
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_trains_as_before(project: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topic, name = file.parent.name, f"{file.parent.name}/{file.stem}"
    train(topic, file, shrunk(topic, file, project, monkeypatch))
    now, key = kept(project), processor()
    stored: dict[str, dict[str, Runs]] = json.loads(STORED.read_text(encoding="utf-8"))
    if os.environ.get(RECORD):
        stored.setdefault(key, {})[name] = now
        STORED.write_text(as_lines(stored), encoding="utf-8")
        return
    then = stored[key if key in stored else next(iter(stored))][name]
    found = sorted(differences(topic, then, now, key in stored))
    assert not found, f"as recorded on {key if key in stored else 'another processor'}:\n" + "\n".join(found)


def test_each_file_is_stored_and_nothing_else() -> None:
    names = sorted(f"{file.parent.name}/{file.stem}" for file in FILES)
    for key, known in json.loads(STORED.read_text(encoding="utf-8")).items():
        assert list(known) == names, key


def as_lines(stored: dict[str, dict[str, Runs]]) -> str:
    """JSON with a line for each file, so that a diff shows which ones have changed."""
    parts = []
    for key, known in sorted(stored.items()):
        lines = [f"{json.dumps(name)}:{json.dumps(known[name], separators=(',', ':'))}" for name in sorted(known)]
        parts.append(f"{json.dumps(key)}:{{\n" + ",\n".join(lines) + "\n}")
    return "{" + ",\n".join(parts) + "}\n"


if __name__ == "__main__":
    command = [sys.executable, "-m", "pytest", __file__, "--numprocesses", "0", "--quiet"]
    sys.exit(subprocess.call(command, env=os.environ | {RECORD: "1"}))
