"""Runs of the store as what is compared: one run, or all seeds of the same settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlcourse import __version__
from dlcourse.data.rows import SPLITS, Split
from dlcourse.errors import CourseError, one_line
from dlcourse.evaluation.predictions import PREDICTIONS, read_metrics, read_values
from dlcourse.tracking.run import as_params
from dlcourse.tracking.store import Store, StoredRun

SettingsKey = tuple[Any, ...]


@dataclass(frozen=True)
class Candidate:
    """Runs that differ in nothing but the seed; or a baseline.

    Attributes:
        name: A short name.
        runs: One finished run for each seed, in the order of the seeds.
        failures: The reason why there is no finished run, by the seed.
    """

    name: str
    runs: list[StoredRun]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> StoredRun:
        return self.runs[0]

    @property
    def is_finished(self) -> bool:
        """Whether there is a finished run; else ``runs`` is one that is not, and there are ``failures``."""
        return bool(self.first.info.status == "FINISHED")

    def metric(self, name: str) -> list[float]:
        """A final metric of each run that has it."""
        return [run.data.metrics[name] for run in self.runs if name in run.data.metrics]

    def tag(self, name: str) -> list[str]:
        """The different values of a tag."""
        return list(dict.fromkeys(run.data.tags.get(name, "") for run in self.runs))


def settings_key(run: StoredRun) -> SettingsKey:
    """What runs have in common that differ in nothing but the seed, on the same rows and in the same version."""
    tags = ("dlcourse.split", "dlcourse.version", "dlcourse.refit", "dlcourse.init_from")
    return (*sorted(_but_for_seed(run.data.params).items()), *(run.data.tags.get(tag, "") for tag in tags))


def is_same(run: StoredRun, settings: Mapping[str, object], split: str, refit: bool) -> bool:
    """Whether a run has these settings but for the seed, and was trained on these rows by this version.

    ``split`` is the fingerprint of the rows; empty if it is known only after they were evaluated.
    """
    tags = run.data.tags
    return (
        _but_for_seed(run.data.params) == _but_for_seed(as_params(settings))
        and tags.get("dlcourse.split") == (split or tags.get("dlcourse.split"))
        and tags.get("dlcourse.version") == __version__
        and tags.get("dlcourse.refit", "false") == str(refit).lower()
        and "dlcourse.init_from" not in tags
    )


def _but_for_seed(params: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in params.items() if name != "seed"}


def trainings(store: Store, experiment_id: str, query: str = "", last: int | None = None) -> Iterator[StoredRun]:
    """The runs of trainings, the newest first.

    Args:
        store: The store.
        experiment_id: MLflow's id of the topic's experiment.
        query: A condition in MLflow's syntax.
        last: How many of them.

    Raises:
        CourseError: MLflow does not understand the condition.
    """
    kind, token, left = "tags.`dlcourse.kind` = 'training'", None, last
    while left is None or left > 0:
        try:
            page = store.client.search_runs(
                [experiment_id],
                f"{kind} and {query}" if query else kind,
                order_by=["attributes.start_time DESC"],
                max_results=min(left or 1000, 1000),
                page_token=token,
            )
        except Exception as error:
            if query and getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                example = "\"metrics.`test/accuracy` > 0.8 and params.`model.lr` = '0.1'\""
                raise CourseError(f"--filter {query}: {one_line(error)[:200]}; an example is {example}") from error
            raise
        yield from page
        token = page.token
        left = None if left is None else left - len(page)
        if not token:
            return


def chosen_runs(store: Store, topic: str, names: Sequence[str]) -> list[Candidate]:
    """Each named run as a candidate of its own; one that was trained with several seeds with all of these.

    Raises:
        CourseError: There is no such run.
    """
    chosen = []
    for name in names:
        run = store.find_run(name, topic)
        if run.data.tags["dlcourse.kind"] == "seeds":
            children = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
            of_seeds = by_settings(trainings(store, run.info.experiment_id, children))
            chosen += [Candidate(str(run.info.run_name), each.runs, each.failures) for each in of_seeds]
        else:
            chosen.append(candidate({run.data.params.get("seed", ""): [run]}, str(run.info.run_name)))
    return chosen


def by_settings(runs: Iterator[StoredRun]) -> list[Candidate]:
    """Runs with the same settings together; of several with the same seed the newest that is finished counts."""
    groups: dict[SettingsKey, dict[str, list[StoredRun]]] = {}
    for run in runs:
        groups.setdefault(settings_key(run), {}).setdefault(run.data.params.get("seed", ""), []).append(run)
    candidates = [candidate(seeds) for seeds in groups.values()]
    return with_different_names(candidates)


def candidate(seeds: Mapping[str, Sequence[StoredRun]], name: str = "") -> Candidate:
    """Runs by seed, the newest first, as one candidate; named as their experiment unless there is a name."""
    finished: list[StoredRun] = []
    failures: dict[str, str] = {}
    unfinished: list[StoredRun] = []
    for seed in sorted(seeds, key=lambda seed: (len(seed), seed)):
        good = [run for run in seeds[seed] if run.info.status == "FINISHED"]
        if good:
            finished.append(good[0])
        else:
            failures[seed] = why_not_finished(seeds[seed][0])
            unfinished.append(seeds[seed][0])
    runs = finished or unfinished[:1]
    return Candidate(name or runs[0].data.tags.get("experiment") or str(runs[0].info.run_name), runs, failures)


def why_not_finished(run: StoredRun) -> str:
    """The status of a run that is not finished, and the reason if there is one."""
    reason = run.data.tags.get("dlcourse.error", "")
    return f"{run.info.status}: {reason}" if reason else str(run.info.status)


def with_different_names(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those with the same name get the beginning of their newest run's id as well."""
    names = [each.name for each in candidates]
    return [
        each if names.count(each.name) == 1 else
        Candidate(f"{each.name} ({each.first.info.run_id[:6]})", each.runs, each.failures)
        for each in candidates
    ]  # fmt: skip


def baselines_of(store: Store, experiment_id: str, split: str) -> list[Candidate]:
    """The baselines that were measured on these rows; of each name the newest."""
    query = f"tags.`dlcourse.kind` = 'baseline' and tags.`dlcourse.split` = '{split}' "
    query += "and attributes.status = 'FINISHED'"
    runs = store.client.search_runs([experiment_id], query, order_by=["attributes.start_time DESC"])
    newest: dict[str, StoredRun] = {}
    for run in runs:
        newest.setdefault(run.data.tags["dlcourse.baseline"], run)
    return [Candidate(name, [run]) for name, run in newest.items()]


@dataclass(frozen=True)
class Outputs:
    """The files with the outputs of a candidate's runs, read one array at a time."""

    files: list[Path]

    @classmethod
    def of(cls, store: Store, each: Candidate) -> "Outputs | None":
        """None if one of the runs has none, as those of an older version, or its file is gone."""
        files = [store.file_of(run, PREDICTIONS) for run in each.runs]
        present = [file for file in files if file]
        return cls(present) if len(present) == len(files) else None

    def metrics(self) -> tuple[Split, str, dict[str, bool]]:
        """The split of the verdict, the primary metric, and for each metric of rows whether higher is better."""
        for split in reversed(SPLITS):
            primary, higher = read_metrics(self.files[0], split)
            if higher:
                return split, primary, higher
        raise CourseError(f"{self.files[0]} has no outputs: it is damaged; train that run again")

    def values(self, split: Split, metric: str) -> Tensor | None:
        """The metric of each row, seeds x rows, float64; None if they are not there."""
        try:
            return torch.stack([read_values(file, f"{split}_{metric}").double() for file in self.files])
        except KeyError:
            return None
