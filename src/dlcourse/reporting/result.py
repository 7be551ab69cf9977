"""What a training came to: made once, complete, and frozen."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlcourse.evaluation.assessment import Assessment
from dlcourse.evaluation.overfitting import Overfitting
from dlcourse.evaluation.verdict import Verdict
from dlcourse.reporting.card import card_of

if TYPE_CHECKING:
    from dlcourse.data.datamodule import CourseData
    from dlcourse.export.model import Exported
    from dlcourse.models.base import CourseModel
    from dlcourse.training.fit import Fitted


@dataclass(frozen=True)
class Result:
    """What a training came to. All but ``fitted`` and ``assessment`` is in the store as well.

    Attributes:
        metrics: The run's final metrics by name.
        primary_metric: The metric that the card reports, such as ``accuracy``.
        answers: Predictions for what the data ask, by the input.
        checkpoint: The file with the kept weights; None where the training diverged.
        model_uri: The verified model in the store, ``models:/...``.
        overfitting: None where nothing was validated.
        lost: What is not in the store, and why; complete when the run has ended.
        history: Every metric by epoch: (epoch, value).
        fitted: The trained model with its data, and how the training ended.
        assessment: Evaluations and baselines; None where the training diverged.
    """

    topic: str
    run_id: str
    run_name: str
    store: str
    metrics: dict[str, float]
    primary_metric: str
    verdict: Verdict
    overfitting: Overfitting | None
    answers: dict[str, float]
    checkpoint: str | None
    model_uri: str | None
    lost: dict[str, str]
    history: dict[str, list[tuple[int, float]]] = field(repr=False)
    fitted: "Fitted" = field(repr=False)
    assessment: Assessment | None = field(repr=False)
    exported: "Exported | None" = field(repr=False)

    @property
    def model(self) -> "CourseModel":
        """The model with the weights that are kept, on the CPU unless the training diverged."""
        return self.fitted.model

    @property
    def data(self) -> "CourseData":
        return self.fitted.data

    @property
    def ok(self) -> bool:
        """Whether the training came to a model and everything is in the store."""
        return not self.lost and self.assessment is not None

    @property
    def eval_metric(self) -> str:
        """The name in `metrics` of the figure that the run is judged by."""
        prefix = "test/" if self.verdict.eval_split == "test" else f"best/{self.verdict.eval_split}_"
        return prefix + self.primary_metric

    @property
    def card(self) -> str:
        """The verdict for people, in a dozen lines."""
        return card_of(self)

    def __str__(self) -> str:
        return self.card

    def as_dict(self) -> dict[str, Any]:
        """All that JSON can hold."""
        left_out = ("verdict", "overfitting", "history", "fitted", "assessment", "exported")
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in left_out}
        overfitting = dataclasses.asdict(self.overfitting) if self.overfitting else None
        return {**plain, "verdict": dataclasses.asdict(self.verdict), "overfitting": overfitting}
