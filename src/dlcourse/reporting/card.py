"""What a run leaves behind: figures, the model, and a card that says it all in a dozen lines."""

import logging
import math
from collections.abc import Callable
from functools import partial

import torch
from matplotlib.figure import Figure

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLITS
from dlcourse.errors import CourseError
from dlcourse.evaluation.assessment import Assessment
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.verdict import Verdict
from dlcourse.export.model import log_model
from dlcourse.models.base import CourseModel
from dlcourse.reporting import figures
from dlcourse.reporting.result import Result
from dlcourse.settings import Settings
from dlcourse.topics import Topic
from dlcourse.tracking.run import WAITING, Run, reason
from dlcourse.training.fit import Fitted

log = logging.getLogger(__name__)


def log_start(run: Run, topic: Topic, data: CourseData, settings: Settings) -> None:
    """Settings, rows, packages: what is known before the first step."""
    run.log_start(
        params=settings.flat(),
        settings=settings.as_yaml(),
        dataset=topic.name,
        digest=data.rows.digest,
        source=data.rows.source,
        num_rows={split: len(data.splits[split]) for split in SPLITS},
    )
    log.info("%s: %s; run %s", topic.name, _rows_of(data), run.run_id)


def _rows_of(data: CourseData) -> str:
    sizes = ", ".join(f"{len(data.splits[each])} {figures.NAMES[each]}" for each in SPLITS if len(data.splits[each]))
    return f"{sizes} rows of {data.rows.source}"


def named(evaluation: Evaluation) -> dict[str, float]:
    """A run's final figures: of the test rows ``test/...``, of the others ``best/...``, with 95 % intervals.

    What these rows cannot tell, such as the AUROC of a single class, is left out.
    """
    prefix = "test/" if evaluation.split == "test" else f"best/{evaluation.split}_"
    metrics = {f"{prefix}{name}": value for name, value in evaluation.metrics.items() if math.isfinite(value)}
    for name, (low, high) in evaluation.intervals.items():
        metrics |= {f"{prefix}{name}_low": low, f"{prefix}{name}_high": high}
    return metrics


def finish(
    topic: Topic,
    run: Run,
    fitted: Fitted,
    verdict: Verdict,
    assessment: Assessment | None,
) -> Result:
    """Write the verdict first, then figures and model to the run; each may fail without the others.

    There is no assessment of a training that diverged.
    """
    run.set_tags(
        {
            "dlcourse.verdict": verdict.sentence,
            "dlcourse.learned": "unknown" if verdict.learned is None else str(verdict.learned).lower(),
            "dlcourse.overfitting": str(fitted.overfitting or "not measured"),
        }
    )
    evaluations = assessment.evaluations.values() if assessment else ()
    metrics = {name: value for each in evaluations for name, value in named(each).items()}
    metrics |= {"best/epoch": float(fitted.epoch), "fit_seconds": fitted.seconds}
    result = Result(
        topic.name, run.run_id, run.name, run.store.shown, metrics, verdict, "", model=fitted.model, data=fitted.data
    )
    result.overfitting, result.primary_metric = fitted.overfitting, fitted.model.primary_metric
    result.history = {name: list(points) for name, points in run.history.items()}
    result.lost = run.lost
    run.log_metrics(metrics)
    model_line = "none, since there is nothing in it to use"
    if verdict.sentence != "diverged":
        result.checkpoint = str(fitted.checkpoint) if fitted.checkpoint else None
        with run.attempt("answers"):
            result.answers = _answers(fitted)
        # 1e+06 is no name for MLflow, 1e06 is one.
        run.log_metrics({f"answer/{asked.replace('+', '')}": value for asked, value in result.answers.items()})
    else:
        run.fail(f"diverged: {verdict.advice}")
    _draw(topic, run, fitted, assessment)
    if verdict.sentence != "diverged":
        rows = fitted.data.rows.inputs[fitted.data.splits[fitted.data.eval_split][:256]]
        try:
            if not run.reachable:
                raise CourseError(run.lost[WAITING])
            result.model_uri = log_model(run, fitted.model, rows, fitted.epoch)
            model_line = f"{result.model_uri}, verified: loaded back, same answers on {len(rows)} rows"
        except Exception as error:  # an export that fails must not cost the training
            log.warning("the model is not in the store: %s", reason(error))
            model_line = f"not verified: {reason(error)[:120]}"
    result.summary = _card(result, run, fitted, assessment, model_line)
    run.set_tags(
        {
            "mlflow.note.content": f"```\n{result.card}\n```",
            "dlcourse.verified": str(result.model_uri is not None).lower(),
        }
    )
    return result


def _draw(topic: Topic, run: Run, fitted: Fitted, assessment: Assessment | None) -> None:
    plots: dict[str, Callable[[], Figure | None]] = {
        "learning-curves": lambda: figures.learning_curves(run.history, "loss", fitted.epoch, fitted.overfitting)
    }
    if "train/accuracy" in run.history:
        plots["accuracy-curves"] = lambda: figures.learning_curves(run.history, "accuracy", fitted.epoch)
    if assessment:
        fitted.model.cpu().eval()
        evaluation = fitted.model, fitted.data, assessment.evaluation
        plots |= {name: partial(draw, *evaluation) for name, draw in topic.figures.items()}
    for name, draw in plots.items():
        with run.attempt(f"figures/{name}.png"):
            if figure := draw():
                figure.savefig(run.path(f"figures/{name}.png"), dpi=120)


def _answers(fitted: Fitted) -> dict[str, float]:
    questions = fitted.data.questions()
    if questions is None:
        return {}
    with torch.no_grad():
        answers = fitted.model.predictions(fitted.model.cpu().eval()(questions)).view(len(questions), -1)
    return {f"{float(asked[0]):g}": float(answer[0]) for asked, answer in zip(questions, answers, strict=True)}


def _card(result: Result, run: Run, fitted: Fitted, assessment: Assessment | None, model_line: str) -> str:
    """The verdict for people: a dozen short lines."""
    data, verdict, sentence = fitted.data, result.verdict, fitted.model.primary_metric
    lines = [("verdict", verdict.sentence)]
    if verdict.advice:
        lines.append(("why", verdict.advice))
    if assessment:
        lines += _figures(fitted.model, assessment, sentence)
    lines.append(("data", _rows_of(data)))
    if data.eval_split == "train":
        lines.append(("generalisation", "not measured: every row was a training row"))
    elif data.eval_split == "val":
        lines.append(("generalisation", "no test rows, and these rows chose the weights: the figure flatters"))
    if fitted.overfitting:
        lines.append(("overfitting", str(fitted.overfitting)))
    stopped = (
        f"{fitted.why_stopped}, after {fitted.epochs} epochs (0 to {fitted.epochs - 1}) and {fitted.seconds:.1f} s"
    )
    lines.append(("stopped", f"{stopped}; the weights of epoch {fitted.epoch} are kept"))
    if fitted.refitted:
        lines.append(("refit", f"anew on training and validation rows, for {fitted.epoch + 1} epochs"))
    asked, told = (*data.rows.features, "input")[0], (*data.rows.answers, "answer")[0]
    lines += [("answer", f"{asked} {question}: {told} {answer:.2f}") for question, answer in result.answers.items()]
    lines.append(("model", model_line))
    lines.append(("run", f"{run.run_id} in {run.store.shown}"))
    lines.append(("look", "make ui, or dlcourse ui"))
    width = max(len(name) for name, _ in lines)
    return "\n".join([f"{result.topic}: {run.name}", *(f"  {name:<{width}}  {text}" for name, text in lines)])


def _figures(model: CourseModel, assessment: Assessment, metric: str) -> list[tuple[str, str]]:
    """The evaluation rows' figures, each with its 95 % interval, and the baselines' beside them."""
    evaluation, rows = assessment.evaluation, len(assessment.evaluation.targets)
    text = f"{evaluation.metrics[metric]:.4g}"
    if metric in evaluation.intervals and evaluation.split != "train":
        low, high = evaluation.intervals[metric]
        text += f" (95 % interval {low:.4g} to {high:.4g}, {rows} rows)"
    lines = [(f"{figures.NAMES[evaluation.split]} {metric}", text)]
    for name, what in model.extra_test_metrics.items():
        if name in evaluation.metrics:
            lines.append(("apart", f"{evaluation.metrics[name]:.4g} {what}"))
    if assessment.baselines:
        text = ", ".join(f"{name} {each.metrics[metric]:.4g}" for name, each in assessment.baselines.items())
        lines.append(("baselines", f"{metric} of {text}"))
    differences = {} if evaluation.split == "train" else assessment.verdict.differences
    for name, theirs in differences.items():
        text = ", ".join(
            f"{quantity} {each.rounded_like(evaluation.metrics[quantity])}" for quantity, each in theirs.items()
        )
        lines.append((f"minus {name}", text))
    if assessment.shared_rows:
        text = f"{assessment.shared_rows} of {rows} {figures.NAMES[evaluation.split]} rows are training rows again"
        lines.append(("duplicates", text))
    return lines
