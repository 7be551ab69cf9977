"""The result of a training, and its card."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLIT_NAMES
from dlcourse.evaluation.assessment import Assessment
from dlcourse.evaluation.overfitting import Overfitting
from dlcourse.evaluation.verdict import Verdict
from dlcourse.reporting.card import in_columns
from dlcourse.training.start import rows_text

if TYPE_CHECKING:
    import lightning as L

    from dlcourse.evaluation.split_data import SplitData
    from dlcourse.export.model import Exported
    from dlcourse.training.fit import Fitted


@dataclass(frozen=True)
class Result:
    """The result of a training. Everything except ``fitted`` and ``assessment`` is also in the store.

    Attributes:
        view: The address of the topic's runs where the store is a server, else empty.
        metrics: The run's final metrics by name.
        primary_metric: The metric on the card, such as ``accuracy``.
        baseline_runs: The ids of the baselines' runs, by the baseline's name.
        answers: Predictions for ``data.queries()``, by input.
        checkpoint: The file with the kept weights; None if the training diverged.
        model_uri: The verified model in the store, ``models:/...``; None if there is none.
        overfitting: None without validation rows.
        published: Range and number of the published results with the same settings and rows, and whether this one is
            as expected; empty where none is published.
        lost: Whatever is not in the store, with the reason; complete when the run has ended.
        history: Every metric by epoch: (epoch, value).
        fitted: The trained model with its data, and how the training ended.
        assessment: Evaluations and baselines; None if the training diverged.
    """

    topic: str
    run_id: str
    run_name: str
    store: str
    view: str
    metrics: dict[str, float]
    primary_metric: str
    verdict: Verdict
    overfitting: Overfitting | None
    published: str
    baseline_runs: dict[str, str]
    answers: dict[str, float]
    checkpoint: str | None
    model_uri: str | None
    lost: dict[str, str]
    history: dict[str, list[tuple[int, float]]] = field(repr=False)
    fitted: "Fitted" = field(repr=False)
    assessment: Assessment | None = field(repr=False)
    exported: "Exported | None" = field(repr=False)

    @property
    def model(self) -> "L.LightningModule":
        """The model with the kept weights, on the CPU unless the training diverged."""
        return self.fitted.model

    @property
    def data(self) -> "SplitData":
        return self.fitted.data

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each of the final metrics that is a mean over the rows of the verdict."""
        if self.assessment is None:
            return {}
        evaluation = self.assessment.evaluation
        return {evaluation.final_name(name): interval for name, interval in evaluation.intervals.items()}

    @property
    def ok(self) -> bool:
        """Whether the training did not diverge and everything is in the store."""
        return not self.lost and self.assessment is not None

    @property
    def card(self) -> str:
        """The verdict and the main results as text, in about a dozen lines."""
        return in_columns(f"{self.topic}: {self.run_name}", card_lines(self))

    def __str__(self) -> str:
        return self.card

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain types for JSON."""
        left_out = ("verdict", "overfitting", "history", "fitted", "assessment", "exported")
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in left_out}
        overfitting = dataclasses.asdict(self.overfitting) if self.overfitting else None
        return {
            **plain,
            "intervals": self.intervals,
            "verdict": dataclasses.asdict(self.verdict),
            "overfitting": overfitting,
        }


def card_lines(result: Result) -> list[tuple[str, str]]:
    """Name and text of each line of a training's card."""
    fitted, verdict, data = result.fitted, result.verdict, result.data
    lines = [("verdict", verdict.sentence)]
    if verdict.advice:
        lines.append(("why", verdict.advice))
    if result.assessment:
        lines += _metric_lines(result, result.assessment)
    if result.published:
        lines.append(("published", result.published))
    lines.append(("data", rows_text(data)))
    if data.eval_split == "train":
        lines.append(("generalisation", "not measured: every row was a training row"))
    elif data.eval_split == "val":
        lines.append(("generalisation", "no test rows; these rows also chose the weights, so the metric is optimistic"))
    if result.overfitting:
        lines.append(("overfitting", str(result.overfitting)))
    if fitted.epochs:
        took = f"after {fitted.epochs} epochs (0 to {fitted.epochs - 1}) and {fitted.seconds:.1f} s"
        lines.append(("stopped", f"{fitted.why_stopped}, {took}; the weights of epoch {fitted.epoch} are kept"))
    if fitted.refitted:
        lines.append(("refit", f"trained again on training and validation rows, for {fitted.epoch + 1} epochs"))
    if isinstance(data, CourseData):
        asked, told = (*data.rows.feature_names, "input")[0], (*data.rows.target_names, "answer")[0]
        lines += [("answer", f"{asked} {question}: {told} {answer:.2f}") for question, answer in result.answers.items()]
    lines.append(("model", result.exported.text if result.exported else "none: a model that diverged is not saved"))
    lines.append(("run", f"{result.run_id} in {result.store}"))
    lines.append(("view", result.view or "make ui, or dlcourse ui"))
    if result.lost:
        lines.append(("not in the store", f"{', '.join(result.lost)} ({next(iter(result.lost.values()))})"))
    return lines


def _metric_lines(result: Result, assessment: Assessment) -> list[tuple[str, str]]:
    """The metrics on the split of the verdict, with 95 % intervals, and those of the baselines."""
    metric, evaluation = result.primary_metric, assessment.evaluation
    split, num_rows = SPLIT_NAMES[evaluation.split], len(evaluation.targets)
    text = f"{evaluation.metrics[metric]:.4g}"
    if metric in evaluation.intervals and evaluation.split != "train":
        low, high = evaluation.intervals[metric]
        text += f" (95 % interval {low:.4g} to {high:.4g}, {num_rows} rows)"
    lines = [(f"{split} {metric}", text)]
    for name, meaning in result.fitted.task.extra_test_metrics.items():
        if name in evaluation.metrics:
            lines.append(("also", f"{evaluation.metrics[name]:.4g} {meaning}"))
    if assessment.baselines:
        text = ", ".join(f"{name} {each.metrics[metric]:.4g}" for name, each in assessment.baselines.items())
        rows = len(result.data.baseline_rows()[1])
        if rows != result.data.num_rows("train"):
            text += f" (fitted to {rows} training rows)"
        lines.append(("baselines", f"{metric} of {text}"))
    if evaluation.split != "train":
        for name, differences in result.verdict.differences.items():
            text = ", ".join(
                f"{quantity} {each.rounded_like(evaluation.metrics[quantity])}"
                for quantity, each in differences.items()
            )
            lines.append((f"minus {name}", text))
    if assessment.shared_rows:
        lines.append(("duplicates", f"{assessment.shared_rows} of {num_rows} {split} rows are also training rows"))
    return lines
