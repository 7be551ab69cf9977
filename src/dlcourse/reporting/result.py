"""What a run leaves behind: figures, the model, and a card that says it all in a dozen lines."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from dlcourse.data.datamodule import CourseData
from dlcourse.evaluation.overfitting import Overfitting
from dlcourse.evaluation.verdict import Verdict
from dlcourse.models.base import CourseModel


@dataclass
class Result:
    """What a training came to. ``model`` and ``data`` are there to go on with; the rest is in the store as well."""

    topic: str
    run_id: str
    run_name: str
    store: str
    metrics: dict[str, float]
    verdict: Verdict
    summary: str
    checkpoint: str | None = None
    model_uri: str | None = None
    answers: dict[str, float] = field(default_factory=dict)
    overfitting: Overfitting | None = None
    primary_metric: str = "loss"
    lost: dict[str, str] = field(default_factory=dict)
    """What is not in the store, and why."""
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict, repr=False)
    model: CourseModel | None = field(default=None, repr=False)
    data: CourseData | None = field(default=None, repr=False)

    @property
    def sentence(self) -> str:
        return self.verdict.sentence

    @property
    def card(self) -> str:
        """The verdict for people, and what of the run is not in the store."""
        if not self.lost:
            return self.summary
        return f"{self.summary}\n  not in the store: {', '.join(self.lost)} ({next(iter(self.lost.values()))})"

    @property
    def eval_metric(self) -> str:
        """Which of the metrics the run is judged by."""
        prefix = "test/" if self.verdict.eval_split == "test" else f"best/{self.verdict.eval_split}_"
        return prefix + self.primary_metric

    def as_dict(self) -> dict[str, Any]:
        """All that JSON can hold."""
        kept = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(self)
            if each.name not in ("summary", "model", "data", "history", "verdict", "overfitting")
        }
        overfitting = dataclasses.asdict(self.overfitting) if self.overfitting else None
        return {**kept, "verdict": dataclasses.asdict(self.verdict), "overfitting": overfitting}
