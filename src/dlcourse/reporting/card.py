"""The card: a run's verdict and figures for people, in a dozen short lines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlcourse.reporting.figures import NAMES
from dlcourse.training.start import rows_text

if TYPE_CHECKING:
    from dlcourse.evaluation.assessment import Assessment
    from dlcourse.reporting.result import Result

Lines = list[tuple[str, str]]
"""A name and a text each."""


def card_of(result: "Result") -> str:
    """A training's card."""
    fitted, verdict, data = result.fitted, result.verdict, result.data
    lines: Lines = [("verdict", verdict.sentence)]
    if verdict.advice:
        lines.append(("why", verdict.advice))
    if result.assessment:
        lines += _metric_lines(result, result.assessment)
    lines.append(("data", rows_text(data)))
    if data.eval_split == "train":
        lines.append(("generalisation", "not measured: every row was a training row"))
    elif data.eval_split == "val":
        lines.append(("generalisation", "no test rows, and these rows chose the weights: the figure flatters"))
    if result.overfitting:
        lines.append(("overfitting", str(result.overfitting)))
    stopped = (
        f"{fitted.why_stopped}, after {fitted.epochs} epochs (0 to {fitted.epochs - 1}) and {fitted.seconds:.1f} s"
    )
    lines.append(("stopped", f"{stopped}; the weights of epoch {fitted.epoch} are kept"))
    if fitted.refitted:
        lines.append(("refit", f"anew on training and validation rows, for {fitted.epoch + 1} epochs"))
    asked, told = (*data.rows.features, "input")[0], (*data.rows.answers, "answer")[0]
    lines += [("answer", f"{asked} {question}: {told} {answer:.2f}") for question, answer in result.answers.items()]
    lines.append(("model", result.exported.text if result.exported else "none, since there is nothing in it to use"))
    lines.append(("run", f"{result.run_id} in {result.store}"))
    lines.append(("look", "make ui, or dlcourse ui"))
    if result.lost:
        lines.append(("not in the store", f"{', '.join(result.lost)} ({next(iter(result.lost.values()))})"))
    return in_columns(f"{result.topic}: {result.run_name}", lines)


def in_columns(title: str, lines: Sequence[tuple[str, str]]) -> str:
    """A title, and below it a line for each name and text, the texts in one column."""
    width = max(len(name) for name, _ in lines if name != "not in the store")
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in lines)])


def _metric_lines(result: "Result", assessment: "Assessment") -> Lines:
    """The metrics of the rows the model is judged by, with 95 % intervals, and the baselines' beside them."""
    metric, evaluation = result.primary_metric, assessment.evaluation
    split, num_rows = NAMES[evaluation.split], len(evaluation.targets)
    text = f"{evaluation.metrics[metric]:.4g}"
    if metric in evaluation.intervals and evaluation.split != "train":
        low, high = evaluation.intervals[metric]
        text += f" (95 % interval {low:.4g} to {high:.4g}, {num_rows} rows)"
    lines = [(f"{split} {metric}", text)]
    for name, meaning in result.model.extra_test_metrics.items():
        if name in evaluation.metrics:
            lines.append(("also", f"{evaluation.metrics[name]:.4g} {meaning}"))
    if assessment.baselines:
        text = ", ".join(f"{name} {each.metrics[metric]:.4g}" for name, each in assessment.baselines.items())
        lines.append(("baselines", f"{metric} of {text}"))
    if evaluation.split != "train":
        for name, differences in result.verdict.differences.items():
            text = ", ".join(
                f"{quantity} {each.rounded_like(evaluation.metrics[quantity])}"
                for quantity, each in differences.items()
            )
            lines.append((f"minus {name}", text))
    if assessment.shared_rows:
        lines.append(("duplicates", f"{assessment.shared_rows} of {num_rows} {split} rows are training rows again"))
    return lines
