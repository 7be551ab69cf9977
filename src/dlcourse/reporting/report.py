"""What a run shows beside its metrics: figures, and the answers to what the data ask."""

from collections.abc import Callable
from functools import partial

import torch
from matplotlib.figure import Figure

from dlcourse.evaluation.assessment import Assessment
from dlcourse.reporting.figures import learning_curves
from dlcourse.topics import Topic
from dlcourse.tracking.run import Run
from dlcourse.training.fit import Fitted


def draw_figures(run: Run, topic: Topic, fitted: Fitted, assessment: Assessment | None) -> None:
    """Draw the learning curves and, of a model that was assessed, the topic's figures into ``figures/`` of the run.

    A figure that fails is recorded as lost and costs nothing else. The model is moved to the CPU.
    """
    plots: dict[str, Callable[[], Figure | None]] = {
        "learning-curves": lambda: learning_curves(run.history, "loss", fitted.epoch, fitted.overfitting)
    }
    if "train/accuracy" in run.history:
        plots["accuracy-curves"] = lambda: learning_curves(run.history, "accuracy", fitted.epoch)
    if assessment:
        fitted.model.cpu().eval()
        arguments = fitted.model, fitted.data, assessment.evaluation
        plots |= {name: partial(draw, *arguments) for name, draw in topic.figures.items()}
    for name, draw in plots.items():
        with run.attempt(f"figures/{name}.png"):
            if figure := draw():
                figure.savefig(run.path(f"figures/{name}.png"), dpi=120)


def answer_questions(run: Run, fitted: Fitted) -> dict[str, float]:
    """The model's predictions for what the data ask, by the input; logged as ``answer/<input>``."""
    answers: dict[str, float] = {}
    with run.attempt("answers"):
        queries = fitted.data.queries()  # K x shape
        if queries is not None:
            with torch.no_grad():
                outputs = fitted.model.cpu().eval()(queries)
            predictions = fitted.model.predictions(outputs).view(len(queries), -1)  # K x columns
            pairs = zip(queries, predictions, strict=True)
            answers = {f"{float(question[0]):g}": float(prediction[0]) for question, prediction in pairs}
    # 1e+06 is no name for MLflow, 1e06 is one.
    run.log_metrics({f"answer/{question.replace('+', '')}": answer for question, answer in answers.items()})
    return answers
