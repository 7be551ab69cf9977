"""Figures of a run, and predictions for the queries of its data."""

from collections.abc import Callable
from functools import partial

import torch
from matplotlib.figure import Figure

from dlcourse.data.datamodule import CourseData
from dlcourse.evaluation.assessment import Assessment
from dlcourse.reporting.figures import learning_curves
from dlcourse.reporting.note import MOST_PIXELS
from dlcourse.reporting.phases import phase
from dlcourse.topics import Topic
from dlcourse.tracking.run import Run
from dlcourse.training.fit import Fitted


def draw_figures(run: Run, topic: Topic, fitted: Fitted, assessment: Assessment | None) -> None:
    """Draw the learning curves and, if there is an assessment, the topic's figures into ``figures/`` of the run.

    A figure that fails is recorded as lost, and the others are still drawn. With an assessment, moves the model to the
    CPU and sets it to evaluation mode.
    """
    plots: dict[str, Callable[[], Figure | None]] = {
        "learning-curves": lambda: learning_curves(run.history, "loss", fitted.epoch, fitted.overfitting)
    }
    for metric in ("accuracy", *fitted.task.further_metrics):
        if f"val/{metric}" in run.history or f"train/{metric}" in run.history:
            plots[f"{metric}-curves"] = partial(learning_curves, run.history, metric, fitted.epoch)
    if assessment:
        fitted.model.cpu().eval()
        arguments = fitted.model, fitted.data, assessment.evaluation
        plots |= {name: partial(draw, *arguments) for name, draw in topic.figures.items()}
    with phase("drawing figures", len(plots)) as bar:
        for name, draw in plots.items():
            with run.attempt(f"figures/{name}.png"):
                if figure := draw():
                    dpi = min(120, MOST_PIXELS / figure.get_figwidth())
                    figure.savefig(run.path(f"figures/{name}.png"), dpi=dpi)
            bar.update()


def answer_questions(run: Run, fitted: Fitted) -> dict[str, float]:
    """The predictions for ``data.queries()``, by input. Moves the model to the CPU."""
    answers: dict[str, float] = {}
    with run.attempt("answers"):
        queries = fitted.data.queries() if isinstance(fitted.data, CourseData) else None  # K x shape
        if queries is not None:
            with torch.no_grad():
                outputs = fitted.model.cpu().eval()(queries)
            predictions = fitted.task.predictions(outputs).view(len(queries), -1)  # K x columns
            pairs = zip(queries, predictions, strict=True)
            answers = {f"{float(question[0]):g}": float(prediction[0]) for question, prediction in pairs}
    return answers
