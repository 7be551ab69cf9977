"""Published results of the experiments, and whether a run agrees with them.

``docs/results.json`` has the metric of each experiment for each of several seeds, as `make reproduce` measured it.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

import dlcourse
from dlcourse import topics
from dlcourse.errors import CourseError
from dlcourse.evaluation.intervals import CONFIDENCE
from dlcourse.evaluation.stored import chosen_runs, trainings, why_not_finished
from dlcourse.reporting.card import in_columns
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.run import as_params
from dlcourse.tracking.store import Store, StoredRun

COMPUTING = ("trainer.accelerator", "trainer.strategy", "trainer.precision", "model.compile")
"""Settings that say what to compute with. Devices and nodes are not among them: each has a batch of its own."""
WITHOUT_EFFECT = (
    "seed",
    "data.ask", "data.file", "data.root",  # the fingerprint of the split says whether the rows are the same
    "trainer.tensorboard", "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.profiler",
)  # fmt: skip
# Where every seed gives the same, as with given first weights, processors still round differently: by 3e-7 of the value
# at the most where we looked (docs/results.md). This is the last of the four digits that a card shows.
TOLERANCE = 1e-4
"""Relative to the mean: half of the narrowest interval."""
PACKAGES = ("torch", "lightning")
NOT_SET, NOT_KNOWN = "not set", "not known"


@dataclass(frozen=True)
class Published:
    """What an experiment gave with several seeds.

    Attributes:
        topic: The topic's name.
        experiment: The experiment's name.
        metric: A final metric's name in a run, such as ``test/accuracy``.
        values: Its value by seed.
        settings: Those that have an effect, by dotted name, without the seed.
        computing: The settings that say what to compute with.
        data: Where the rows come from.
        split: The fingerprint of the rows and their split.
        hardware: Device, processor and precision.
        versions: Of dlcourse, torch and lightning.
        commit: That of dlcourse.
        date: The day, in UTC.
    """

    topic: str
    experiment: str
    metric: str
    values: dict[str, float]
    settings: dict[str, Any]
    computing: dict[str, Any]
    data: str
    split: str
    hardware: str
    versions: dict[str, str]
    commit: str
    date: str

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float:
        return statistics.stdev(self.values.values())

    @property
    def range(self) -> str:
        """The smallest and the largest value, as text."""
        low, high = min(self.values.values()), max(self.values.values())
        shown = f"{low:.4g} to {high:.4g}" if f"{low:.4g}" != f"{high:.4g}" else f"{low:.4g}"
        return f"{shown} over {len(self.values)} seeds"

    def expected(self, trainings: int = 1) -> tuple[float, float]:
        """The 95 % prediction interval of the mean of so many further trainings.

        ``mean +- t sd sqrt(1 / m + 1 / n)`` for n published values and m new ones (Hahn and Meeker 1991, Statistical
        Intervals). It takes the values of seeds to be normally distributed.
        """
        count = len(self.values)
        t = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
        half = max(t * self.std * (1 / trainings + 1 / count) ** 0.5, TOLERANCE * abs(self.mean))
        return self.mean - half, self.mean + half

    def answer(self, values: Sequence[float]) -> str:
        """Whether the mean of the values is as expected."""
        (low, high), mean = self.expected(len(values)), statistics.fmean(values)
        return "as expected" if low <= mean <= high else "lower than expected" if mean < low else "higher than expected"

    def differences(self, params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """What makes a run another experiment, with its value and the published one: settings, weights or rows."""
        mine = {name: value for name, value in params.items() if name not in (*COMPUTING, *WITHOUT_EFFECT)}
        differing = _differing(mine, as_params(self.settings))
        for name in ("refit", "init_from"):
            if f"dlcourse.{name}" in tags:
                differing[name] = (tags[f"dlcourse.{name}"], NOT_SET)
        split = tags.get("dlcourse.split", NOT_SET)
        if split != self.split and not any(name.startswith("data.") for name in differing):
            differing["rows or split"] = (split, self.split)
        return differing


def published_results(file: Path | None = None) -> list[Published]:
    """All published results: of a file, by default ``results.json`` of the wheel, or docs/ of the repository."""
    package = Path(dlcourse.__file__).parent
    packaged = (package / "results.json", package.parent.parent / "docs" / "results.json")
    file = file or next(place for place in packaged if place.is_file())
    entries = json.loads(file.read_text(encoding="utf-8"))
    return [Published(*name.split("/"), **entry) for name, entry in entries.items()]


def of_topic(topic: str) -> list[Published]:
    """The published results of a topic."""
    return [each for each in published_results() if each.topic == topic]


def agreement(topic: str, params: Mapping[str, str], tags: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Whether a training agrees with the published result of the same settings and rows; empty if there is none."""
    for each in of_topic(topic):
        if each.metric in metrics and not each.differences(params, tags):
            return f"{each.range}: {each.answer([metrics[each.metric]])}"
    return ""


@dataclass(frozen=True)
class Check:
    """A run beside the published result of its experiment.

    Attributes:
        published: The published result.
        run_name: The run's name.
        runs: The id of the run, or of each seed's.
        store: The store.
        values: The metric, for each seed of the run.
        differences: What makes it another experiment, with its value and the published one.
        circumstances: What else differs: versions, hardware, and settings that say what to compute with.
    """

    published: Published
    run_name: str
    runs: list[str]
    store: str
    values: list[float]
    differences: dict[str, tuple[str, str]]
    circumstances: dict[str, tuple[str, str]]

    @property
    def answer(self) -> str:
        return "not the published experiment" if self.differences else self.published.answer(self.values)

    @property
    def ok(self) -> bool:
        """Whether the run is the published experiment, with a result as expected."""
        return self.answer == "as expected"

    def __str__(self) -> str:
        published, count = self.published, len(self.values)
        low, high = published.expected(count)
        new = "one more training" if count == 1 else f"the mean of {count} more"
        lines = [
            ("answer", self.answer),
            *((name, _beside(pair)) for name, pair in self.differences.items()),
            (published.metric, f"{statistics.fmean(self.values):.4g}" + f", mean of {count} seeds" * (count > 1)),
            ("published", f"{published.range} (mean {published.mean:.4g}, standard deviation {published.std:.2g})"),
            ("expected", f"{low:.4g} to {high:.4g} (95 % prediction interval of {new})"),
            *((f"other {name}", _beside(pair)) for name, pair in self.circumstances.items()),
            ("run", f"{self.runs[0] if count == 1 else f'{count} seeds'} in {self.store}"),
        ]
        return in_columns(f"{published.topic}/{published.experiment}: {self.run_name}", lines)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain types for JSON."""
        low, high = self.published.expected(len(self.values))
        return {
            "answer": self.answer,
            "experiment": f"{self.published.topic}/{self.published.experiment}",
            "metric": self.published.metric,
            "value": statistics.fmean(self.values),
            "published": {"values": self.published.values, "mean": self.published.mean, "std": self.published.std},
            "expected": [low, high],
            **{
                name: {key: {"run": mine, "published": its} for key, (mine, its) in pairs.items()}
                for name, pairs in (("differences", self.differences), ("circumstances", self.circumstances))
            },
            "run_name": self.run_name,
            "runs": self.runs,
            "store": self.store,
        }


def check(topic: str | Topic, run: str | None = None) -> Check:
    """Check whether a run's result is the published one of its experiment. Writes nothing to the store.

    Args:
        topic: A topic's name, or your own `Topic`.
        run: Id or name of the run, by default the newest finished training; of several seeds, their mean is checked.

    Raises:
        CourseError: Nothing is published of the topic, or there is no such run, or it has not finished.
    """
    name = (topic if isinstance(topic, Topic) else topics.find(topic)).name
    candidates = of_topic(name)
    if not candidates:
        known = dict.fromkeys(each.topic for each in published_results())
        raise CourseError(f"nothing is published of {name}, only of {', '.join(known)}")
    store = open_store()
    (chosen, *_) = chosen_runs(store, name, [run or _newest(store, name)])
    first, shown = chosen.first, f"{chosen.name} ({chosen.first.info.run_id})"
    if not chosen.is_finished:
        raise CourseError(f"{shown} is {why_not_finished(first)}: choose a run that has finished")
    experiment = first.data.tags.get("experiment", "").partition(",")[0]
    differences = {each.experiment: each.differences(first.data.params, first.data.tags) for each in candidates}
    nearest = min(candidates, key=lambda each: (len(differences[each.experiment]), each.experiment != experiment))
    differing = differences[nearest.experiment]
    values = chosen.metric(nearest.metric)
    if not values:
        others = "".join(f"; it has {key} {_beside(pair)}" for key, pair in list(differing.items())[:1])
        raise CourseError(f"{shown} has no {nearest.metric}, by which {name}/{nearest.experiment} is published{others}")
    ids = [str(each.info.run_id) for each in chosen.runs]
    return Check(nearest, chosen.name, ids, store.shown, values, differing, _circumstances(store, first, nearest))


def _newest(store: Store, topic: str) -> str:
    """The id of the newest finished training; if it is one of several seeds, of all of these."""
    run = next(trainings(store, store.experiment(topic), "attributes.status = 'FINISHED'", last=1), None)
    if run is None:
        raise CourseError(f"{topic} has no finished training in {store.shown}: start one with dlcourse train {topic}")
    return str(run.data.tags.get("mlflow.parentRunId", run.info.run_id))


def _circumstances(store: Store, run: StoredRun, published: Published) -> dict[str, tuple[str, str]]:
    """What differs without making the run another experiment, with its value and the published one."""
    settings = {name: value for name, value in run.data.params.items() if name in COMPUTING}
    mine = settings | {"hardware": run.data.tags.get("dlcourse.hardware", NOT_KNOWN)} | versions_of(store, run)
    return _differing(mine, as_params(published.computing) | {"hardware": published.hardware} | published.versions)


def versions_of(store: Store, run: StoredRun) -> dict[str, str]:
    """The versions of dlcourse, torch and lightning that a run was trained with."""
    file = store.file_of(run, "environment.txt")
    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    packages = {name: version for name, _, version in (line.partition("==") for line in lines)}
    version = run.data.tags.get("dlcourse.version", NOT_KNOWN)
    return {"dlcourse": version} | {name: packages.get(name, NOT_KNOWN) for name in PACKAGES}


def _differing(mine: Mapping[str, str], others: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Both values of each name that has not the same in both."""
    pairs = {name: (mine.get(name, NOT_SET), others.get(name, NOT_SET)) for name in {**others, **mine}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _beside(pair: tuple[str, str]) -> str:
    return f"{pair[0]} (published {pair[1]})"
