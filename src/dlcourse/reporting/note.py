"""The descriptions of runs and models on MLflow's pages, in Markdown.

MLflow 3.17 and 3.18 show the first 100 pixels of a run's description until somebody clicks "Show more". The lower 60 of
them fade out, and links there cannot be clicked. Three lines of text and a small picture of the learning curves beside
them fit into that.
"""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dlcourse.data.rows import SPLIT_NAMES, Split
from dlcourse.evaluation.assessment import Assessment
from dlcourse.evaluation.overfitting import Overfitting
from dlcourse.evaluation.verdict import Verdict
from dlcourse.reporting.figures import COLOURS
from dlcourse.reporting.result import Result, card_lines
from dlcourse.topics import Topic
from dlcourse.tracking.environment import command_line
from dlcourse.tracking.run import Run

Points = Sequence[tuple[int, float]]

MOST_PIXELS = 680
"""A wider picture pushes the right column of a run's page, "About this run", out of a window of 1440 pixels."""
SMALL = (200, 92)
"""Width and height of the small picture in pixels: what three lines of text leave of a window of 1440 pixels."""
SMALL_CURVES = "figures/learning-curves-small.png"
# What the page shows elsewhere.
NOT_IN_NOTES = ("verdict", "run", "view")


def headline(
    verdict: Verdict,
    primary_metric: str,
    assessment: Assessment | None,
    overfitting: Overfitting | None,
    baselines: Mapping[str, str],
) -> list[str]:
    """Verdict, metric with baselines, and overfitting: a line each; of a training that diverged, why.

    Args:
        verdict: The verdict.
        primary_metric: The metric to tell.
        assessment: None if the training diverged.
        overfitting: None without validation rows.
        baselines: The address of each baseline's page, by the baseline's name.
    """
    first, colon, rest = verdict.sentence.partition(":")
    if not assessment:
        return [f"**{first}**: {verdict.advice}"]
    evaluation = assessment.evaluation
    metric = f"{SPLIT_NAMES[evaluation.split]} {primary_metric} **{evaluation.metrics[primary_metric]:.4g}**"
    if primary_metric in evaluation.intervals and evaluation.split != "train":
        low, high = evaluation.intervals[primary_metric]
        metric += f" ({low:.4g} to {high:.4g})"
    others = [
        f"{link(name, baselines.get(name))} {each.metrics[primary_metric]:.4g}"
        for name, each in assessment.baselines.items()
    ]
    return [
        f"**{first}**{colon}{rest}",
        "; ".join([metric, ", ".join(others)] if others else [metric]),
        _short(overfitting) if evaluation.split != "train" else "generalisation not measured: all are training rows",
    ]


def _short(overfitting: Overfitting | None) -> str:
    if overfitting is None:
        return "overfitting not measured: there are no validation rows"
    if overfitting.epoch is None:
        return "no overfitting seen"
    return f"overfitting from epoch {overfitting.epoch} on: validation loss rose by {overfitting.rise:.0%}"


def note_of(run: Run, topic: Topic, result: Result, lines: Sequence[str]) -> str:
    """A training's description: the headline's lines beside small curves, then large pictures and the whole card.

    Draws the small curves into the run's figures.
    """
    with run.attempt(SMALL_CURVES):
        small_curves(result.history, result.fitted.epoch).savefig(run.path(SMALL_CURVES), dpi=100)
    figures = ("learning-curves", *topic.figures)
    drawn = [name for name in figures if (run.folder / f"figures/{name}.png").is_file()][:2]
    entries = [f"**{name}**: {text}" for name, text in card_lines(result) if name not in NOT_IN_NOTES]
    entries.append(f"**command**: `{command_line()}`")
    if result.model_uri:
        models = f"#/experiments/{run.experiment_id}/models"
        page = link("its page", f"{models}/{result.model_uri.removeprefix('models:/')}")
        entries.append(f"**models**: {page}, {link('the metrics of all as bars', f'{models}?viewMode=CHART')}")
    return "\n\n".join(
        [
            # The table centres the text beside the picture: empty lines lift it to where it does not fade.
            table(["", ""], [["<br>".join([*lines, *["&nbsp;"] * (5 - _height(lines))]), picture(run, SMALL_CURVES)]]),
            "\n".join(picture(run, f"figures/{name}.png") for name in drawn),
            "\n".join(f"- {entry}" for entry in entries),
        ]
    )


def _height(lines: Sequence[str]) -> int:
    """How many lines these are on the page, beside the small picture in a window of 1440 pixels."""
    visible = [re.sub(r"\(#.*?\)|[*\[\]]", "", line) for line in lines]
    return sum(1 + len(line) // 85 for line in visible)


def small_curves(history: Mapping[str, Points], best_epoch: int) -> Figure:
    """The loss of training and validation rows over the epochs, with the kept epoch, as small as can be read."""
    width, height = SMALL
    figure = Figure(figsize=(width / 100, height / 100))
    # The page fades the bottom out: 22 pixels are left empty there, but for the axis.
    axes = figure.add_axes((30 / width, 22 / height, 1 - 34 / width, 1 - 36 / height))
    curves: dict[Split, Points] = {
        "train": history.get("train/eval_loss") or history.get("train/loss", ()),
        "val": history.get("val/loss", ()),
    }
    for (split, points), place in zip(curves.items(), (0.02, 0.48), strict=True):
        if points:
            colour, marker = COLOURS[split], "o" if len(points) < 3 else ""
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, marker=marker)
            text = f"{SPLIT_NAMES[split]} loss"
            axes.text(place, 1.05, text, color=colour, fontsize=7, transform=axes.transAxes)
    losses = [loss for points in curves.values() for _, loss in points]
    if losses and min(losses) > 0 and max(losses) > 10 * min(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.axvline(best_epoch, color="black", linestyle=":", linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(labelsize=6.5, length=2, pad=1)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def link(text: str, address: str | None) -> str:
    """A link, or the text alone without an address."""
    return f"[{text}]({address})" if address else text


def run_page(experiment_id: str, run_id: str) -> str:
    """The address of a run's page on MLflow's pages."""
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def picture(run: Run, path: str) -> str:
    """A picture among a run's artifacts."""
    return f"![{path}](get-artifact?path={quote(path, safe='')}&run_uuid={run.run_id})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
