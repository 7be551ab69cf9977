"""What the package costs: start-up, training and tracking beside a plain PyTorch loop, measured in one run.

    python -m benchmarks.run [--repeats 7] [--parts startup fit ...] [--against COMMIT ...] [--json FILE]

What is compared is measured in turns, so that a busy moment meets both. A figure is a median, with the smallest and
the largest of its n measurements beside it; a difference is that of each pair. A part that fails is named with its
reason, the others go on, and the exit status is then 1.

The part ``phases`` is whole commands, phase by phase. ``--against`` measures it of other commits as well, in turns.
"""

import argparse
import functools
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.phases import FUNCTIONS

EPOCHS = 100
RUNS = 2000
NOTES: dict[str, Any] = {"batch_size": 16, "val_fraction": 0.0, "test_fraction": 0.0, "standardize": False}
EXPERIMENT = Path(__file__).parent.parent / "experiments" / "height-weight" / "default.yaml"


@dataclass(frozen=True)
class Figure:
    """One thing measured n times. ``bound`` is what the median is to stay under."""

    name: str
    unit: str
    values: list[float]
    bound: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_dict(self) -> dict[str, Any]:
        spread = {"median": self.median, "min": min(self.values), "max": max(self.values), "n": len(self.values)}
        return asdict(self) | spread

    def __str__(self) -> str:
        text = f"{self.name:<58}{self.median:>8.3f}  {min(self.values):>8.3f} - {max(self.values):<8.3f} "
        text += f"{len(self.values):>3}  {self.unit:<3}"
        if self.bound is None:
            return text
        return f"{text} {'under' if self.median < self.bound else 'OVER'} {self.bound:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write a file of JSON where one is wanted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each thing (default 7)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default all)")
    parser.add_argument(
        "--against", nargs="+", metavar="COMMIT", default=[], help="commits to measure the phases of too"
    )
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    asked = parser.parse_args(arguments)
    logging.getLogger("dlcourse").setLevel(logging.WARNING)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    here = Path.cwd()
    machine, figures = describe_machine(), []
    failed: dict[str, str] = {}
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    print(f"\n{'':<58}{'median':>8}  {'smallest - largest':^19} {'n':>3}  unit")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            for part in asked.parts:
                os.chdir(tempfile.mkdtemp(dir=folder))
                try:
                    measure = functools.partial(phases, against=asked.against) if part == "phases" else PARTS[part]
                    for figure in measure(asked.repeats):
                        figures.append(figure)
                        print(figure, flush=True)
                except Exception as error:  # whatever stands in the way of one thing, the others can be measured
                    failed[part] = reason_of(error)
                    print(f"{part}: FAILED: {failed[part]}", flush=True)
        finally:
            os.chdir(here)
    if asked.json:
        content = {"machine": machine, "figures": [figure.as_dict() for figure in figures], "failed": failed}
        asked.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 1 if failed else 0


def reason_of(error: Exception) -> str:
    """In one line; of a process that failed, its own last line."""
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
    lines = (said.decode(errors="replace") if isinstance(said, bytes) else said or "").split("\n")
    told = [line for line in lines if line.strip()] or [str(error) or type(error).__name__]
    return " ".join(told[-1].split())


def describe_machine() -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "lightning", "mlflow"))
    return {
        "processor": f"{processor}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "versions": f"Python {platform.python_version()} {versions} dlcourse {importlib.metadata.version('dlcourse')}",
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "unknown",
    }


def startup(repeats: int) -> list[Figure]:
    """What a person waits for who asks for help."""
    bare, ours = paired(
        repeats, lambda: process_seconds("-c", "pass"), lambda: process_seconds("-m", "dlcourse", "--help")
    )
    return [
        Figure("python -c pass", "s", bare),
        Figure("dlcourse --help", "s", ours),
        Figure("dlcourse --help, beyond python -c pass", "s", differences(ours, bare), bound=0.5),
    ]


def imports(repeats: int) -> list[Figure]:
    """What every training waits for first."""
    modules = ["torch", "lightning", "mlflow", "dlcourse.experiment"]
    measured = paired(repeats, *[lambda each=each: process_seconds("-c", f"import {each}") for each in modules])
    return [Figure(f"python -c 'import {each}'", "s", values) for each, values in zip(modules, measured, strict=True)]


def fit(repeats: int) -> list[Figure]:
    """100 epochs with the settings of the course notes: a plain loop, and the same under the package's Trainer."""
    bare_fit()
    our_fit()
    bare, ours = paired(repeats, bare_fit, our_fit)
    return [
        Figure(f"fit of {EPOCHS} epochs, plain PyTorch loop", "s", bare),
        Figure(f"fit of {EPOCHS} epochs, dlcourse", "s", ours, bound=2.0),
        Figure("fit, dlcourse beyond the plain loop", "s", differences(ours, bare)),
        Figure("  a step", "ms", [each / EPOCHS / 7 * 1000 for each in differences(ours, bare)]),
    ]


def tracking(repeats: int) -> list[Figure]:
    """What tracking adds to an epoch."""
    store = make_store()
    untracked, tracked = paired(repeats, our_fit, lambda: our_fit(store))
    per_epoch = [each / EPOCHS * 1000 for each in differences(tracked, untracked)]
    writes = log_batch_milliseconds(store, 50 * repeats)
    return [
        Figure(f"fit of {EPOCHS} epochs, dlcourse with tracking", "s", tracked, bound=2.0),
        Figure("tracking an epoch: fit with and without it", "ms", per_epoch),
        Figure("one log_batch of an epoch's metrics", "ms", writes),
    ]


def command(repeats: int) -> list[Figure]:
    """The default training as it is typed, in a new store each time: baselines, pictures, model loaded back."""
    store = make_store()

    def train() -> float:
        project = Path(tempfile.mkdtemp(dir=Path.cwd()))
        (project / "mlruns").mkdir()
        shutil.copy(store, project / "mlruns" / "mlflow.db")
        return process_seconds("-m", "dlcourse", "train", "height-weight", "--config", str(EXPERIMENT), folder=project)

    loaded, whole = paired(repeats, lambda: process_seconds("-c", "import dlcourse.experiment"), train)
    return [
        Figure("dlcourse train height-weight", "s", whole),
        Figure("dlcourse train height-weight, beyond the imports", "s", differences(whole, loaded), bound=8.0),
    ]


COMMANDS = {"height-weight": "default", "fashion-mnist": "quick"}
"""The experiment of each topic whose training is measured by phases."""


def phases(repeats: int, against: Sequence[str] = ()) -> Iterator[Figure]:
    """Where the time of a whole training goes, in a store that exists but knows no baselines yet."""
    here, root = Path.cwd(), EXPERIMENT.parent.parent.parent
    made = make_store().absolute()
    prepare("fashion-mnist")  # decoded before
    with ExitStack() as checkouts:
        trees = {"": root}
        trees |= {f", {commit}": checkouts.enter_context(checkout(root, commit, here / commit)) for commit in against}
        for tree in trees.values():  # compiles its modules
            process_seconds("-c", "import dlcourse.experiment", folder=here, sources=tree / "src")
        for topic, experiment in COMMANDS.items():
            rounds = [
                [by_phase(made, here, tree, topic, experiment) for tree in trees.values()] for _ in range(repeats)
            ]
            for name in rounds[0][0]:
                for place, label in enumerate(trees):
                    values = [each[place].get(name, 0.0) for each in rounds]
                    yield Figure(f"{topic} {experiment}: {name}{label}", "s", values)


@contextmanager
def checkout(root: Path, commit: str, folder: Path) -> Iterator[Path]:
    """The files of another commit of this repository, in a folder that is removed at the end."""
    git = ["git", "-C", str(root), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder), commit], capture_output=True, check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], capture_output=True, check=True)


def by_phase(store: Path, folder: Path, tree: Path, topic: str, experiment: str) -> dict[str, float]:
    """The seconds of each phase of one training by the sources of a tree, and of all together."""
    project = Path(tempfile.mkdtemp(dir=folder))
    (project / "mlruns").mkdir()
    shutil.copy(store, project / "mlruns" / "mlflow.db")
    config, wrapper = tree / "experiments" / topic / f"{experiment}.yaml", Path(__file__).parent / "phases.py"
    command = [str(wrapper), "phases.json", "train", topic, "--config", str(config)]
    data = os.environ.get("DLCOURSE_DATA_DIR") or str(EXPERIMENT.parent.parent.parent / "data")
    whole = process_seconds(*command, folder=project, sources=tree / "src", data=data)
    seconds: dict[str, float] = json.loads((project / "phases.json").read_text(encoding="utf-8"))
    # Python itself starts before the first of them, and ends after the last.
    seconds["start and end of Python"] = whole - sum(seconds.values())
    return {name: seconds.get(name, 0.0) for name in ("import", *FUNCTIONS, *seconds)} | {"whole": whole}


def store(repeats: int) -> list[Figure]:
    """Opening a store that is there, and making one, which happens once a project."""
    program = "import dlcourse.tracking.opening as t, time; s = time.perf_counter(); t.open_store(); "
    program += "print(time.perf_counter() - s)"

    def opening(folder: Path) -> float:
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder)
        return float(told.stdout)

    made = make_store().parent.parent
    there, new = paired(repeats, lambda: opening(made), lambda: opening(Path(tempfile.mkdtemp(dir=Path.cwd()))))
    return [
        Figure("opening a store", "s", there),
        Figure("making a store, beyond opening one", "s", differences(new, there)),
    ]


def views(repeats: int) -> list[Figure]:
    """What a topic's saved views add to its first training, and to each later one."""
    from dlcourse import topics
    from dlcourse.reporting.pages import prepare_pages
    from dlcourse.tracking.opening import open_store

    made, topic = make_store(), topics.find("diabetes")

    def seconds(is_new: bool, with_views: bool) -> float:
        project = Path(tempfile.mkdtemp(dir=Path.cwd()))
        (project / "mlruns").mkdir()
        shutil.copy(made, project / "mlruns" / "mlflow.db")
        kept = open_store(project)
        kept.client.search_experiments()  # opens the database
        if not is_new:
            prepare_pages(kept, topic)
        started = time.perf_counter()
        if with_views:
            prepare_pages(kept, topic)
        kept.experiment(topic.name)
        return time.perf_counter() - started

    kinds = [(True, True), (True, False), (False, True), (False, False)]
    new, new_without, known, known_without = paired(repeats, *[lambda each=each: seconds(*each) for each in kinds])
    return [
        Figure("saved views of a new experiment", "s", differences(new, new_without), bound=0.1),
        Figure("saved views of an experiment that has them", "s", differences(known, known_without), bound=0.1),
    ]


def compare(repeats: int) -> Iterator[Figure]:
    """Comparing the newest of 2,000 runs, and all of them; memory with a tenth of the points beside it."""
    from benchmarks.stored_runs import compare_last, make_runs

    folders = {epochs: Path.cwd() / str(epochs) for epochs in (100, 10)}
    for epochs, folder in folders.items():
        make_runs(folder, RUNS, epochs)
    newest = [compare_last(folders[100], 20)[0] for _ in range(repeats)]
    yield Figure(f"compare --last 20 of {RUNS} runs, beyond the imports", "s", newest, bound=3.0)
    rounds = [{epochs: compare_last(folder, RUNS) for epochs, folder in folders.items()} for _ in range(repeats)]
    yield Figure(
        f"compare all of {RUNS} runs of 100 epochs, beyond the imports", "s", [each[100][0] for each in rounds]
    )
    for epochs in folders:
        values = [each[epochs][1] for each in rounds]
        yield Figure(f"  peak memory, {epochs} epochs each", "GiB", values)


def export(repeats: int) -> Iterator[Figure]:
    """Writing a trained model in each format and verifying it, in a new process each time."""
    from benchmarks.exports import TRAININGS, seconds, train

    for topic in TRAININGS:
        folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
        run = train(topic, folder)
        forms = ("safetensors", "checkpoint", "pt2", "onnx")
        measured = paired(repeats, *[functools.partial(seconds, topic, run, form, folder) for form in forms])
        for form, values in zip(forms, measured, strict=True):
            bound = 2.0 if topic == "diabetes" else 10.0
            yield Figure(f"{topic} as {form}, beyond the imports", "s", values, bound)


def serving(repeats: int) -> Iterator[Figure]:
    """Requests of one row to served champions, from eight clients at once."""
    from benchmarks.serving import CLIENTS, REQUESTS, TRAININGS, measure, served

    for topic in TRAININGS:
        folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
        with served(topic, folder) as (port, body):
            measure(port, body)  # the first requests are slower
            rounds = [measure(port, body) for _ in range(repeats)]
        asked = f"{topic}: {REQUESTS} requests, {CLIENTS} clients"
        yield Figure(f"{asked}: answers a second", "1/s", [each.per_second for each in rounds])
        yield Figure("  median", "ms", [each.median for each in rounds])
        yield Figure("  99th percentile", "ms", [each.percentile_99 for each in rounds])


def fashion_mnist(repeats: int) -> list[Figure]:
    """The notes' network on all of FashionMNIST, beside the notes' own loop."""
    prepare("fashion-mnist")
    of = in_turns(repeats, "notes-loop", "tensor-loop", "our-notes")
    return [
        Figure("fashion-mnist lecture, an epoch: the notes' own loop", "s", of("notes-loop")),
        Figure("fashion-mnist lecture, an epoch: slices of a tensor", "s", of("tensor-loop")),
        Figure("fashion-mnist lecture, an epoch: dlcourse", "s", of("our-notes")),
        Figure("  over slices of a tensor", "x", ratios(of("our-notes"), of("tensor-loop")), bound=1.6),
        Figure("  share of the notes' own loop", "x", ratios(of("our-notes"), of("notes-loop")), bound=0.25),
    ]


def cifar10(repeats: int) -> list[Figure]:
    """The default network on all of CIFAR-10, beside what people write otherwise."""
    prepare("cifar10")
    of = in_turns(repeats, "plain", "ours", "ours-compiled", "ours-float32")
    return [
        Figure("cifar10: plain Lightning", "1/s", of("plain")),
        Figure("cifar10: dlcourse", "1/s", of("ours")),
        Figure("cifar10: dlcourse, compiled", "1/s", of("ours-compiled")),
        Figure("cifar10: dlcourse, float32", "1/s", of("ours-float32")),
        Figure("  plain Lightning's share of dlcourse", "x", ratios(of("plain"), of("ours")), bound=0.25),
        Figure("cifar10: process start to first step, plain Lightning", "s", of("plain", 1)),
        Figure("cifar10: process start to first step, dlcourse", "s", of("ours", 1)),
        Figure("cifar10: peak memory, plain Lightning", "GiB", of("plain", 2)),
        Figure("cifar10: peak memory, dlcourse", "GiB", of("ours", 2), bound=2.5),
    ]


def prepare(topic: str) -> None:
    """Have a whole image set there, and say so: figures of a sample would not compare with those of other machines."""
    from benchmarks.images import whole

    os.chdir(EXPERIMENT.parent.parent.parent)  # whose data folder it is
    print(f"{topic}: {len(whole(topic).rows.targets)} images, the whole set", flush=True)


def in_turns(repeats: int, *names: str) -> Callable[..., list[float]]:
    """Measure each thing in turn, again and again; what comes gives one of the numbers of a thing, of each turn."""
    from benchmarks.images import measured

    rounds = [{name: measured(name) for name in names} for _ in range(repeats)]
    return lambda name, place=0: [each[name][place] for each in rounds]


PARTS: dict[str, Callable[[int], Iterable[Figure]]] = {
    "startup": startup,
    "imports": imports,
    "fit": fit,
    "tracking": tracking,
    "command": command,
    "phases": phases,
    "store": store,
    "views": views,
    "compare": compare,
    "export": export,
    "serving": serving,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
}


def paired(repeats: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Measure each thing in turn, again and again."""
    rounds = [[measure() for measure in measures] for _ in range(repeats)]
    return [list(values) for values in zip(*rounds, strict=True)]


def differences(values: list[float], others: list[float]) -> list[float]:
    return [value - other for value, other in zip(values, others, strict=True)]


def ratios(values: list[float], others: list[float]) -> list[float]:
    return [value / other for value, other in zip(values, others, strict=True)]


def process_seconds(
    *arguments: str, folder: Path | None = None, sources: Path | None = None, data: str | None = None
) -> float:
    """How long Python takes; with the package from other ``sources`` than those that are installed."""
    changed = {"PYTHONPATH": str(sources) if sources else None, "DLCOURSE_DATA_DIR": data}
    environment = os.environ | {name: value for name, value in changed.items() if value}
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, cwd=folder, env=environment)
    return time.perf_counter() - started


def bare_fit() -> float:
    """The loop that the notes write by hand, on the same rows; seconds."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from dlcourse.topics.height_weight import HeightWeightData

    torch.manual_seed(0)
    rows = HeightWeightData(**NOTES).rows
    batches = DataLoader(TensorDataset(rows.inputs, rows.targets), batch_size=NOTES["batch_size"], shuffle=True)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    criterion = torch.nn.MSELoss()
    started = time.perf_counter()
    for _ in range(EPOCHS):
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
    return time.perf_counter() - started


def our_fit(database: Path | None = None) -> float:
    """The same by `make_trainer`, with metrics and checkpoints, and with a store as a tracked run; seconds."""
    import lightning as L

    from dlcourse.topics.height_weight import HeightWeightData, Line
    from dlcourse.tracking.lightning_logger import Curve, RunLogger
    from dlcourse.tracking.opening import open_store
    from dlcourse.training.callbacks.overfitting import OverfittingMonitor
    from dlcourse.training.trainer import make_trainer

    L.seed_everything(0, verbose=False)
    data = HeightWeightData(**NOTES)
    model = Line(data.shape, data.outputs, lr=0.01)
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "accelerator": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        if database is None:
            trainer = make_trainer(**settings, folder=folder, callbacks=[OverfittingMonitor()])
            started = time.perf_counter()
            trainer.fit(model, datamodule=data)
            return time.perf_counter() - started
        with open_store(database.parent.parent).start_run("benchmark", "fit", {}, watched=False) as run:
            callbacks = [OverfittingMonitor(), Curve(run)]
            trainer = make_trainer(**settings, folder=folder, logger=RunLogger(run, by_epoch=True), callbacks=callbacks)
            started = time.perf_counter()
            trainer.fit(model, datamodule=data)
            run.write()
            return time.perf_counter() - started


def log_batch_milliseconds(database: Path, count: int) -> list[float]:
    """A write of an epoch's eight metrics, ``count`` times."""
    from mlflow.entities import Metric

    from dlcourse.tracking.opening import open_store

    times = []
    tracked = open_store(database.parent.parent)
    with tracked.start_run("benchmark", "writes", {}, watched=False) as run:
        for epoch in range(count):
            metrics = [Metric(f"train/figure {number}", 1.0, 0, epoch) for number in range(8)]
            started = time.perf_counter()
            tracked.client.log_batch(run.run_id, metrics=metrics)
            times.append((time.perf_counter() - started) * 1000)
    return times


def make_store() -> Path:
    """A new store beside what else is made in the current folder; the path of its database."""
    from dlcourse.tracking.opening import open_store

    made = open_store(Path("made")).folder
    assert made is not None
    return made / "mlflow.db"


if __name__ == "__main__":
    sys.exit(main())
