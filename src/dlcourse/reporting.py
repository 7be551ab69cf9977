"""What a run leaves behind: figures, pictures, the model, and a card that says it all in a dozen lines."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dlcourse import figures
from dlcourse.data import SPLITS, CourseData
from dlcourse.errors import one_line
from dlcourse.evaluating import Evaluation
from dlcourse.exporting import log_model
from dlcourse.fitting import Fitted
from dlcourse.learning import CourseModel
from dlcourse.overfitting import Overfitting
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking import Run, environment
from dlcourse.verdict import Verdict

log = logging.getLogger(__name__)


@dataclass
class Result:
    """What a training came to. ``model`` and ``data`` are there to go on with; the rest is in the store as well."""

    topic: str
    run_id: str
    run_name: str
    store: str
    metrics: dict[str, float]
    verdict: Verdict
    card: str
    checkpoint: str | None = None
    model_uri: str | None = None
    answers: dict[str, float] = field(default_factory=dict)
    overfitting: Overfitting | None = None
    headline_metric: str = "loss"
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict, repr=False)
    model: CourseModel | None = field(default=None, repr=False)
    data: CourseData | None = field(default=None, repr=False)

    @property
    def headline(self) -> str:
        return self.verdict.headline

    @property
    def judged_metric(self) -> str:
        """Which of the metrics the run is judged by."""
        prefix = "test/" if self.verdict.judged == "test" else f"best/{self.verdict.judged}_"
        return prefix + self.headline_metric

    def as_dict(self) -> dict[str, Any]:
        """All that JSON can hold."""
        kept = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(self)
            if each.name not in ("card", "model", "data", "history", "verdict", "overfitting")
        }
        overfitting = dataclasses.asdict(self.overfitting) if self.overfitting else None
        return {**kept, "verdict": dataclasses.asdict(self.verdict), "overfitting": overfitting}


def log_start(run: Run, topic: Topic, data: CourseData, settings: Settings) -> None:
    """Settings, rows, packages: what is known before the first step."""
    run.log_params(settings.flat())
    sizes = {split: len(data.splits[split]) for split in SPLITS}
    run.log_rows(topic.name, data.rows.digest, data.rows.source, sizes)
    run.path("settings.yaml").write_text(settings.as_yaml(), encoding="utf-8")
    run.path("environment.txt").write_text(environment(), encoding="utf-8")
    log.info("%s: %s; run %s", topic.name, _rows_of(data), run.run_id)


def _rows_of(data: CourseData) -> str:
    sizes = ", ".join(f"{len(data.splits[each])} {figures.NAMES[each]}" for each in SPLITS if len(data.splits[each]))
    return f"{sizes} rows of {data.rows.source}"


def named(evaluation: Evaluation) -> dict[str, float]:
    """A run's final figures: of the test rows ``test/...``, of the others ``best/...``, with standard errors.

    What these rows cannot tell, such as the AUROC of a single class, is left out.
    """
    prefix = "test/" if evaluation.split == "test" else f"best/{evaluation.split}_"
    metrics = {f"{prefix}{name}": value for name, value in evaluation.metrics.items() if math.isfinite(value)}
    errors = evaluation.standard_errors.items()
    return metrics | {f"{prefix}{name}_standard_error": value for name, value in errors if name in evaluation.metrics}


def finish(
    topic: Topic,
    run: Run,
    fitted: Fitted,
    verdict: Verdict,
    evaluations: list[Evaluation],
    baselines: Mapping[str, Evaluation],
) -> Result:
    """Write figures, pictures, model and verdict to the run."""
    metrics = {name: value for each in evaluations for name, value in named(each).items()}
    metrics |= {"best/epoch": float(fitted.epoch), "fit_seconds": fitted.seconds}
    result = Result(
        topic.name, run.run_id, run.name, run.store.shown, metrics, verdict, "", model=fitted.model, data=fitted.data
    )
    result.overfitting, result.headline_metric = fitted.overfitting, fitted.model.headline
    result.history = {name: list(points) for name, points in run.history.items()}
    run.log_metrics(metrics)
    _draw(topic, run, fitted, verdict, evaluations)
    model_line = "none, since there is nothing in it to use"
    if verdict.headline != "diverged":
        result.checkpoint = str(fitted.checkpoint) if fitted.checkpoint else None
        result.answers = _answers(fitted)
        run.log_metrics({f"answer/{question}": value for question, value in result.answers.items()})
        rows = fitted.data.rows.inputs[fitted.data.splits[fitted.data.judged][:256]]
        try:
            result.model_uri = log_model(run, fitted.model, rows, fitted.epoch)
            model_line = f"{result.model_uri}, verified: loaded back, same answers on {len(rows)} rows"
        except Exception as error:  # an export that fails must not cost the training
            log.warning("the model is not in the store: %s", one_line(error)[:300])
            model_line = f"not verified: {one_line(error)[:120]}"
    else:
        run.fail(f"diverged: {verdict.advice}")
    result.card = _card(result, run, fitted, evaluations, baselines, model_line)
    run.set_tags(
        {
            "mlflow.note.content": f"```\n{result.card}\n```",
            "dlcourse.verdict": verdict.headline,
            "dlcourse.learned": str(verdict.learned).lower(),
            "dlcourse.overfitting": str(fitted.overfitting or "not measured"),
            "dlcourse.verified": str(result.model_uri is not None).lower(),
        }
    )
    return result


def _draw(topic: Topic, run: Run, fitted: Fitted, verdict: Verdict, evaluations: list[Evaluation]) -> None:
    pictures = {"learning-curves": figures.learning_curves(run.history, "loss", fitted.epoch, fitted.overfitting)}
    if "train/accuracy" in run.history:
        pictures["accuracy-curves"] = figures.learning_curves(run.history, "accuracy", fitted.epoch)
    if verdict.headline != "diverged":
        judged = next(each for each in evaluations if each.split == fitted.data.judged)
        fitted.model.cpu().eval()
        for name, draw in topic.pictures.items():
            if picture := draw(fitted.model, fitted.data, judged):
                pictures[name] = picture
    for name, figure in pictures.items():
        figure.savefig(run.path(f"figures/{name}.png"), dpi=120)


def _answers(fitted: Fitted) -> dict[str, float]:
    questions = fitted.data.questions()
    if questions is None:
        return {}
    with torch.no_grad():
        answers = fitted.model.predictions(fitted.model.cpu().eval()(questions)).view(len(questions), -1)
    return {f"{float(asked[0]):g}": float(answer[0]) for asked, answer in zip(questions, answers, strict=True)}


def _card(
    result: Result,
    run: Run,
    fitted: Fitted,
    evaluations: list[Evaluation],
    baselines: Mapping[str, Evaluation],
    model_line: str,
) -> str:
    """The verdict for people: a dozen short lines."""
    data, verdict, headline = fitted.data, result.verdict, fitted.model.headline
    lines = [("verdict", verdict.headline)]
    if verdict.advice:
        lines.append(("why", verdict.advice))
    measured = [each for each in evaluations if each.split == data.judged]
    for each in measured:
        error = each.standard_errors.get(headline, float("nan"))
        text = f"{each.metrics[headline]:.4g}"
        if math.isfinite(error):
            text += f" ± {error:.2g} (mean and standard error of {len(each.targets)} rows)"
        lines.append((f"{figures.NAMES[each.split]} {headline}", text))
        for name, what in fitted.model.told_apart.items():
            if name in each.metrics:
                lines.append(("apart", f"{each.metrics[name]:.4g} {what}"))
    lines.append(("data", _rows_of(data)))
    if baselines:
        text = ", ".join(f"{name} {each.metrics[headline]:.4g}" for name, each in baselines.items())
        lines.append(("baselines", f"{headline} of {text}"))
    if data.judged == "train":
        lines.append(("generalisation", "not measured: every row was a training row"))
    elif data.judged == "val":
        lines.append(("generalisation", "no test rows, and these rows chose the weights: the figure flatters"))
    if fitted.overfitting:
        lines.append(("overfitting", str(fitted.overfitting)))
    stopped = (
        f"{fitted.why_stopped}, after {fitted.epochs} epochs (0 to {fitted.epochs - 1}) and {fitted.seconds:.1f} s"
    )
    lines.append(("stopped", f"{stopped}; the weights of epoch {fitted.epoch} are kept"))
    if fitted.refitted:
        lines.append(("refit", f"anew on training and validation rows, for {fitted.epoch + 1} epochs"))
    for question, answer in result.answers.items():
        lines.append(("answer", f"{data.rows.features[0]} {question}: {data.rows.answers[0]} {answer:.2f}"))
    lines.append(("model", model_line))
    lines.append(("run", f"{run.run_id} in {run.store.shown}"))
    lines.append(("look", "make ui, or dlcourse ui"))
    width = max(len(name) for name, _ in lines)
    return "\n".join([f"{result.topic}: {run.name}", *(f"  {name:<{width}}  {text}" for name, text in lines)])
