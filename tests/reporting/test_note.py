"""The first lines of a description, and the small picture beside them."""

import dataclasses
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image

from dlcourse.data.rows import Split
from dlcourse.evaluation.assessment import Assessment
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.overfitting import Overfitting
from dlcourse.evaluation.verdict import Verdict, diverged
from dlcourse.reporting.note import SMALL, headline, small_curves, table
from tests.finished import Finished

LEARNED = Verdict("learned: not told apart from logistic-regression on these 152 test rows", True, "test", {}, {})
HISTORY = {
    "train/loss": [(epoch, 2.5 / (epoch + 1)) for epoch in range(6)],
    "train/eval_loss": [(epoch, 2.0 / (epoch + 1)) for epoch in range(6)],
    "val/loss": [(epoch, 3.0 / (epoch + 1)) for epoch in range(6)],
}


def evaluation(accuracy: float, split: Split = "test", rows: int = 152) -> Evaluation:
    right = (torch.arange(rows) < accuracy * rows).double()
    share = float(right.mean())
    return Evaluation(split, {"accuracy": share}, right, right, right, {"accuracy": right})


def assessment(split: Split = "test") -> Assessment:
    others = {"majority": evaluation(0.65, split), "logistic-regression": evaluation(0.717, split)}
    measured = evaluation(0.743, split)
    return Assessment({split: measured}, measured, others, LEARNED, 0)


def overfitting(epoch: int | None) -> Overfitting:
    return Overfitting(epoch, rise=0.081, fall=0.12, standard_errors=1.3, gap=0.04)


def shown(line: str) -> str:
    """A line without its Markdown."""
    for text, replacement in (("**", ""), ("[", ""), ("](#/runs/1)", "")):
        line = line.replace(text, replacement)
    return line


def test_verdict_metric_and_overfitting_in_three_short_lines() -> None:
    pages = {"logistic-regression": "#/runs/1"}
    lines = headline(LEARNED, "accuracy", assessment(), overfitting(1), pages)
    assert shown(lines[0]) == LEARNED.sentence
    assert shown(lines[1]).startswith("test accuracy 0.7434 (0.6686 to 0.8063); majority 0.6513, ")
    assert "[logistic-regression](#/runs/1) 0.7171" in lines[1]
    assert "epoch 1" in lines[2]
    assert "8%" in lines[2]
    assert len(lines) == 3
    assert max(len(shown(line)) for line in lines) < 90


@pytest.mark.parametrize(
    ("seen", "split", "said"),
    [(overfitting(None), "test", "no overfitting"), (None, "test", "overfitting not"), (None, "train", "generalis")],
)
def test_what_was_not_seen_or_not_measured(seen: Overfitting | None, split: Split, said: str) -> None:
    lines = headline(LEARNED, "accuracy", assessment(split), seen, {})
    assert lines[2].startswith(said)
    assert (" to " in lines[1]) == (split == "test"), "training rows have no interval"


def test_a_topic_without_baselines() -> None:
    alone = dataclasses.replace(assessment(), baselines={})
    assert headline(LEARNED, "accuracy", alone, None, {})[1] == "test accuracy **0.7434** (0.6686 to 0.8063)"


def test_a_training_that_diverged_says_first_why() -> None:
    verdict = diverged(3, 8e6, "lower --model.lr (0.25)")
    (line,) = headline(verdict, "accuracy", None, None, {})
    assert shown(line) == f"diverged: {verdict.advice}"


def test_a_description_begins_with_these_lines_beside_the_curves(finished: Finished) -> None:
    note = finished.run.data.tags["mlflow.note.content"]
    result = finished.result
    assert f"**{result.verdict.sentence.partition(':')[0]}**" in note.splitlines()[2]
    for name, run_id in result.baseline_runs.items():
        assert f"[{name}](#/experiments/{finished.run.info.experiment_id}/runs/{run_id})" in note.splitlines()[2]
    pictures = [line.rpartition("![figures/")[2].partition("]")[0] for line in note.splitlines() if "![" in line]
    assert pictures == ["learning-curves-small.png", "learning-curves.png", "fitted-line.png"]
    assert "```" not in note
    for picture in pictures[1:]:
        with Image.open(finished.files / "figures" / picture) as image:
            assert image.width <= 680


@pytest.mark.parametrize(
    "history", [HISTORY, {}, {"train/loss": [(0, 1.5)]}, {"train/loss": [(0, 1e6), (1, 2.0)]}], ids=len
)
def test_small_curves_have_their_size_whatever_they_show(history: dict[str, Any]) -> None:
    content = BytesIO()
    figure = small_curves(history, best_epoch=0)
    figure.savefig(content, format="png", dpi=100)
    with Image.open(content) as image:
        assert image.size == SMALL
    (axes,) = figure.axes
    assert len(axes.lines) == 1 + len({"train/loss", "val/loss"} & history.keys())


def test_small_curves_show_training_rows_in_evaluation_mode() -> None:
    (axes,) = small_curves(HISTORY, best_epoch=2).axes
    drawn = [list(map(float, line.get_ydata())) for line in axes.lines[:2]]
    assert drawn == [[value for _, value in HISTORY[name]] for name in ("train/eval_loss", "val/loss")]


def test_a_table() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
