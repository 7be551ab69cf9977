"""Compare experiments, each trained with the same number of seeds, in one table and one figure."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from dlcourse.data.rows import SPLIT_NAMES, Split
from dlcourse.reporting.note import link, picture, run_page, table
from dlcourse.reporting.result import Result
from dlcourse.tracking.run import Run

FIGURE = "figures/comparison.png"


@dataclass(frozen=True)
class Comparison:
    """Results by experiment, one per seed. ``lost`` maps whatever is not in the store to the reason."""

    topic: str
    run_id: str
    results: dict[str, list[Result]]
    lost: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = self.lines
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([*(line.rstrip() for line in table), self.order])

    @property
    def lines(self) -> list[list[str]]:
        """The table: its head, and a line for each experiment, the best first."""
        metric, split = _chosen_by(self.results)
        seeds = len(next(iter(self.results.values())))
        choice = f"{SPLIT_NAMES[split]} {metric}"
        head = ["experiment", choice, f"spread of {seeds} seeds", f"test {metric}", "training loss", "verdict"]
        ranked = sorted(self.results.items(), key=lambda pair: _rank(pair[1], metric, split))
        return [head, *([name, *_cells(results, metric, split)] for name, results in ranked)]

    @property
    def order(self) -> str:
        """What the experiments are ranked by."""
        metric, split = _chosen_by(self.results)
        return f"ranked by {SPLIT_NAMES[split]} {metric}, the mean over the seeds"

    def note(self, run: Run) -> str:
        """The description of its run in Markdown: the table, with a link to each training, and the curves."""
        head, *lines = self.lines
        summary = f"**{lines[0][0]}** is first, {self.order}"
        for line in lines:
            pages = [run_page(run.experiment_id, each.run_id) for each in self.results[line[0]]]
            numbers = [link(str(number), page) for number, page in enumerate(pages, start=1)]
            line[0] = link(line[0], pages[0]) if len(pages) == 1 else f"{line[0]} ({' '.join(numbers)})"
        return "\n\n".join([summary, table(head, lines), picture(run, FIGURE)])

    @property
    def ok(self) -> bool:
        """Whether everything is in the store."""
        return not self.lost and not any(each.lost for results in self.results.values() for each in results)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain types for JSON."""
        results = {name: [each.as_dict() for each in results] for name, results in self.results.items()}
        return {"topic": self.topic, "run_id": self.run_id, "results": results, "lost": self.lost}


def _chosen_by(results: dict[str, list[Result]]) -> tuple[str, Split]:
    """The metric and the split that experiments are ranked by.

    Never the test rows: the validation rows, or the training rows if no experiment has any validation rows.
    """
    trained = [each for experiment in results.values() for each in experiment]
    metric = next((each for each in trained if each.verdict.sentence != "diverged"), trained[0]).primary_metric
    return metric, "val" if any(f"val/{metric}" in each.history for each in trained) else "train"


def _figures(results: list[Result], metric: str, split: Split) -> list[float]:
    """The metric of the kept weights, for each training that did not diverge."""
    figures = []
    for each in results:
        # After a refit the validation rows are training rows: take the value by which the epoch was chosen.
        if each.assessment is None:
            continue
        chosen = dict(each.history.get(f"{split}/{metric}", [])).get(int(each.metrics["best_epoch"]))
        evaluation = each.assessment.evaluations.get(split)
        figure = evaluation.metrics[metric] if evaluation else chosen
        if figure is not None:
            figures.append(figure)
    return figures


def _rank(results: list[Result], metric: str, split: Split) -> float:
    """Sort key, smaller for better experiments; infinite if one of the trainings cannot be ranked."""
    figures = _figures(results, metric, split)
    if len(figures) < len(results):
        return math.inf
    return statistics.mean(figures) * (1 if metric in results[0].fitted.task.lower_is_better else -1)


def _cells(results: list[Result], metric: str, split: Split) -> list[str]:
    values = _figures(results, metric, split)
    tested = [each.metrics[f"test/{metric}"] for each in results if f"test/{metric}" in each.metrics]
    losses = [each.history["train/loss"][-1][1] for each in results if each.history.get("train/loss")]
    spread = f"{min(values):.4g} to {max(values):.4g}" if values else ""
    means = [f"{statistics.mean(each):.4g}" if each else "none" for each in (values, tested, losses)]
    sentences = [each.verdict.sentence for each in results]
    counts = [(sentences.count(sentence), sentence) for sentence in dict.fromkeys(sentences)]
    said = "; ".join(sentence if count == len(sentences) else f"{count} x {sentence}" for count, sentence in counts)
    return [means[0], spread, *means[1:], said]


def plot_curves(results: dict[str, list[Result]]) -> Figure:
    """Training loss over the epochs: one colour per experiment, one line per seed."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, trained) in enumerate(results.items()):
        for number, result in enumerate(trained):
            points = result.history.get("train/loss", [])
            epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
            axes.plot(epochs, values, color=f"C{place % 10}", linewidth=1.2, label=name if number == 0 else None)
    axes.set(xlabel="epoch", ylabel="training loss", title="Training loss of the experiments")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
