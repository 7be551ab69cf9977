"""From a trained model to the result of its run: evaluation, baselines, verdict, figures, export and report."""

from dataclasses import dataclass
from functools import partial

from dlcourse.data.datamodule import CourseData
from dlcourse.evaluation.assessment import Assessment, evaluate_splits, final_metrics, judge_model
from dlcourse.evaluation.baseline_runs import fingerprint_of, measure_baselines
from dlcourse.evaluation.predictions import PREDICTIONS, save_predictions
from dlcourse.evaluation.published import agreement
from dlcourse.evaluation.verdict import Verdict, diverged
from dlcourse.export.description import describe
from dlcourse.export.model import ModelPage, export_model
from dlcourse.reporting.note import headline, note_of, run_page
from dlcourse.reporting.report import answer_questions, draw_figures
from dlcourse.reporting.result import Result
from dlcourse.topics import Topic
from dlcourse.tracking.run import CONTEXTS, Run
from dlcourse.tracking.views import runs_address
from dlcourse.training.fit import Fitted, remedy
from dlcourse.training.hardware import described
from dlcourse.training.start import log_data


@dataclass(frozen=True)
class Measured:
    """What was measured of a trained model.

    Attributes:
        assessment: Evaluations and baselines; None if the training diverged.
        verdict: The verdict.
        metrics: The run's final metrics by name.
        baseline_runs: The ids of the baselines' runs, by the baseline's name.
        lines: Verdict, metric with baselines, and overfitting, in Markdown.
    """

    assessment: Assessment | None
    verdict: Verdict
    metrics: dict[str, float]
    baseline_runs: dict[str, str]
    lines: list[str]


def conclude(run: Run, topic: Topic, fitted: Fitted) -> Result:
    """Measure a trained model and present it in its run."""
    return present(run, topic, fitted, measure(run, topic, fitted))


def measure(run: Run, topic: Topic, fitted: Fitted) -> Measured:
    """Evaluate a trained model and its baselines, reach a verdict, and log all of that to the run."""
    task, data, divergence = fitted.task, fitted.data, fitted.divergence
    assessment: Assessment | None = None
    metrics, baseline_runs = dict[str, float](), dict[str, str]()
    if divergence.epoch is not None:
        verdict = diverged(divergence.epoch, divergence.loss, remedy(fitted))
        run.fail(f"diverged: {verdict.advice}")
    else:
        evaluations = evaluate_splits(fitted.trainer, fitted.model, task, data)
        evaluation = evaluations[data.eval_split]
        if not data.fingerprint:
            log_data(run, topic, data, evaluations)
            run.set_tags({"dlcourse.split": fingerprint_of(data, evaluation)})
        baselines, baseline_runs = measure_baselines(run, topic, data, task, evaluation)
        assessment = judge_model(topic, fitted.model, task, data, evaluations, baselines, run.history, fitted.epoch)
        metrics, verdict = final_metrics(task, assessment), assessment.verdict
        with run.attempt(PREDICTIONS):
            save_predictions(run.path(PREDICTIONS), task, data, evaluations)

    metrics |= {"best_epoch": float(fitted.epoch), "fit_seconds": fitted.seconds} if fitted.epochs else {}
    overfitting = fitted.overfitting if assessment else None
    pages = {baseline: run_page(run.experiment_id, run_id) for baseline, run_id in baseline_runs.items()}
    lines = headline(verdict, task.primary_metric, assessment, fitted.overfitting, pages)
    run.set_tags(
        {
            "verdict": verdict.text,
            "overfitting": str(overfitting or "not measured"),
            "dlcourse.hardware": described(fitted.trainer),
        }
    )
    run.log_metrics(metrics)
    return Measured(assessment, verdict, metrics, baseline_runs, lines)


def present(run: Run, topic: Topic, fitted: Fitted, measured: Measured) -> Result:
    """Draw the figures of a run, export its model, and write its page."""
    task, data, assessment = fitted.task, fitted.data, measured.assessment
    answers = answer_questions(run, fitted) if assessment else {}
    draw_figures(run, topic, fitted, assessment)
    exported = None
    if assessment:
        evaluation = assessment.evaluation
        page = ModelPage(
            text="<br>".join(measured.lines),
            metrics=list(evaluation.finals),
            dataset=f"{topic.name} ({CONTEXTS[evaluation.split]})",
            digest=data.digest(data.splits[evaluation.split]) if isinstance(data, CourseData) else evaluation.digest,
        )
        about = partial(
            describe,
            run=run,
            topic=topic.name,
            task=task,
            data=data,
            evaluation=evaluation,
            verdict=measured.verdict.sentence,
            module=type(fitted.model).__name__,
        )
        exported = export_model(run, fitted.model, task, data.example_inputs(), fitted.epoch, page, about)
    result = Result(
        topic=topic.name,
        run_id=run.run_id,
        run_name=run.name,
        store=run.store.shown,
        view=runs_address(run.store, run.experiment_id) if run.store.uri.startswith("http") else "",
        metrics=measured.metrics,
        verdict=measured.verdict,
        primary_metric=task.primary_metric,
        baseline_runs=measured.baseline_runs,
        answers=answers,
        checkpoint=str(fitted.checkpoint) if assessment and fitted.checkpoint else None,
        model_uri=exported.uri if exported else None,
        overfitting=fitted.overfitting,
        published=agreement(topic.name, run.params, run.tags, measured.metrics),
        lost=run.lost,
        history={key: list(points) for key, points in run.history.items()},
        fitted=fitted,
        assessment=assessment,
        exported=exported,
    )
    run.set_tags({"mlflow.note.content": note_of(run, topic, result, measured.lines)})
    return result
