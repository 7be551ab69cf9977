"""Experiments side by side: each trained with as many seeds, in one table and one figure."""

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dlcourse.data.rows import SPLIT_NAMES, Split
from dlcourse.errors import SettingsError
from dlcourse.experiment import train, train_from_flags
from dlcourse.ranges import PositiveInt
from dlcourse.reporting.result import Result
from dlcourse.settings import OneLineParser, request_from_flags, settings_parser
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Results of several experiments, by name, a result a seed. ``lost`` is what is not in the store, and why."""

    topic: str
    run_id: str
    results: dict[str, list[Result]]
    lost: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        metric, split = _chosen_by(self.results)
        seeds = len(next(iter(self.results.values())))
        choice = f"{SPLIT_NAMES[split]} {metric}"
        head = ["experiment", choice, f"spread of {seeds} seeds", f"test {metric}", "training loss", "verdict"]
        ranked = sorted(self.results.items(), key=lambda pair: _rank(pair[1], metric, split))
        lines = [head, *([name, *_cells(results, metric, split)] for name, results in ranked)]
        widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([*(line.rstrip() for line in table), f"ranked by {choice}, the mean over the seeds"])

    def as_dict(self) -> dict[str, Any]:
        """All that JSON can hold."""
        results = {name: [each.as_dict() for each in results] for name, results in self.results.items()}
        return {"topic": self.topic, "run_id": self.run_id, "results": results, "lost": self.lost}


def compare(topic: Topic, files: Sequence[str], flags: Sequence[str] = (), seeds: PositiveInt = 1) -> Comparison:
    """Train experiments one after the other, and show them side by side.

    The comparison is a run of its own with the table as its note; the trainings are runs as always.

    Args:
        topic: The topic.
        files: YAML files, at least two.
        flags: Settings that go over every file's.
        seeds: How many seeds to train each with: from its own on, which is that of its flag, else its file's, else 0.

    Raises:
        SettingsError: There are not two files, or a setting cannot be taken.
    """
    if len(files) < 2:
        raise SettingsError(f"compare needs two files or more, and got {len(files)}: experiments/{topic.name}/*.yaml")
    names = [Path(file).stem for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"two files are called {twice[0]}: give each experiment a name of its own")
    parser = settings_parser(topic, train, f"dlcourse compare {topic.name}")
    first = {}
    for file in files:  # whatever is wrong is said before anything is trained
        first[file] = request_from_flags(topic, parser, ["--config", file, *flags]).settings.seed
        parser.parse_flags(["--config", file, *flags, "--seed", str(first[file] + seeds - 1)])
    tags = {"dlcourse.kind": "comparison"}
    with open_store().start_run(topic.name, f"compare: {', '.join(names)}"[:120], tags, watched=False) as run:
        results: dict[str, list[Result]] = {}
        finished: list[str] = []
        for name, file in zip(names, files, strict=True):
            numbers = range(first[file], first[file] + seeds)
            log.info("-- %s, seed%s %s", name, "s" * (seeds > 1), ", ".join(map(str, numbers)))
            results[name] = []
            for seed in numbers:
                run.advice = "start the command again"
                if finished:
                    run.advice += f"; these trainings are finished and kept: {', '.join(finished)}"
                result = train_from_flags(topic, ["--config", file, *flags, "--seed", str(seed)])
                if isinstance(result, Result):
                    results[name].append(result)
                    finished.append(f"{result.run_name} ({result.run_id})")
        comparison = Comparison(topic.name, run.run_id, results, run.lost)
        with run.attempt("figures/comparison.png"):
            curves_side_by_side(results).savefig(run.path("figures/comparison.png"), dpi=120)
        with run.attempt("comparison.txt"):
            run.path("comparison.txt").write_text(f"{comparison}\n", encoding="utf-8")
        run.set_tags({"mlflow.note.content": f"```\n{comparison}\n```"})
    return comparison


def compare_from_flags(topic: Topic, words: Sequence[str]) -> Comparison:
    """The same, from a command line: files first, then flags."""
    parser = OneLineParser(
        prog=f"dlcourse compare {topic.name} FILE FILE ...",
        description="Train several experiments, and show them side by side. Further flags are those of train.",
    )
    parser.add_json()
    parser.add_function_arguments(compare, None, as_group=False, skip={"topic", "files", "flags"})
    files = list(takewhile(lambda word: not word.startswith("-"), words))
    own: list[str] = []
    others: list[str] = []
    waiting = iter(words[len(files) :])
    for word in waiting:
        if word.partition("=")[0] == "--seeds":
            own += [word, *([] if "=" in word else islice(waiting, 1))]
        else:
            (own if word in ("-h", "--help") else others).append(word)
    return compare(topic, files, others, parser.parse_flags(own).seeds)


def _chosen_by(results: dict[str, list[Result]]) -> tuple[str, Split]:
    """The metric that experiments are ranked by, and the split.

    Validation rows, so that test rows do not choose; training rows where no experiment has any.
    """
    trained = [each for experiment in results.values() for each in experiment]
    metric = next((each for each in trained if each.sentence != "diverged"), trained[0]).primary_metric
    return metric, "val" if any(f"val/{metric}" in each.history for each in trained) else "train"


def _figures(results: list[Result], metric: str, split: Split) -> list[float]:
    """What each training that did not diverge came to, with the weights that are kept."""
    figures = []
    for each in results:
        # After a refit the validation rows are training rows: what counts is what they chose by.
        chosen = dict(each.history.get(f"{split}/{metric}", [])).get(int(each.metrics["best/epoch"]))
        figure = each.metrics.get(f"best/{split}_{metric}", chosen)
        if figure is not None and each.sentence != "diverged":
            figures.append(figure)
    return figures


def _rank(results: list[Result], metric: str, split: Split) -> float:
    """The better, the smaller; an experiment with a training that cannot be ranked comes last."""
    figures = _figures(results, metric, split)
    if len(figures) < len(results):
        return math.inf
    model = results[0].model
    return statistics.mean(figures) * (1 if model is None or metric in model.lower_is_better else -1)


def _cells(results: list[Result], metric: str, split: Split) -> list[str]:
    values = _figures(results, metric, split)
    tested = [each.metrics[f"test/{metric}"] for each in results if f"test/{metric}" in each.metrics]
    losses = [each.history["train/loss"][-1][1] for each in results if each.history.get("train/loss")]
    spread = f"{min(values):.4g} to {max(values):.4g}" if values else ""
    means = [f"{statistics.mean(each):.4g}" if each else "none" for each in (values, tested, losses)]
    sentences = [each.sentence for each in results]
    counts = [(sentences.count(sentence), sentence) for sentence in dict.fromkeys(sentences)]
    said = "; ".join(sentence if count == len(sentences) else f"{count} x {sentence}" for count, sentence in counts)
    return [means[0], spread, *means[1:], said]


def curves_side_by_side(results: dict[str, list[Result]]) -> Figure:
    """Training loss over the epochs: of each experiment a colour, of each seed a line."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, trained) in enumerate(results.items()):
        for number, result in enumerate(trained):
            points = result.history.get("train/loss", [])
            epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
            axes.plot(epochs, values, color=f"C{place % 10}", linewidth=1.2, label=name if number == 0 else None)
    axes.set(xlabel="epoch", ylabel="training loss", title="Experiments side by side")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
