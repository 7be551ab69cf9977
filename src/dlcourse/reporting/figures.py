"""Figures for any model: pure functions that return a matplotlib Figure, without pyplot and its global state.

Those for topics take the model, its data and its evaluation, and only read from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from sklearn import metrics
from torch import Tensor

from dlcourse.data.rows import SPLIT_NAMES, SPLITS
from dlcourse.evaluation.intervals import interval_of_share
from dlcourse.evaluation.tasks import BinaryClassification, Classification, Regression

if TYPE_CHECKING:
    from dlcourse.data.datamodule import CourseData
    from dlcourse.evaluation.evaluation import Evaluation
    from dlcourse.evaluation.overfitting import Overfitting
    from dlcourse.evaluation.split_data import SplitData
    from dlcourse.evaluation.tasks import Task
    from dlcourse.topics import FigureFunction

COLOURS = {"train": "#1f77b4", "val": "#d95f02", "test": "#7570b3"}
MOST_CLASSES = 40
"""With more classes a confusion matrix shows only colours, since the numbers in its cells would overlap."""


def smoothed(values: Sequence[float], weight: float = 0.6) -> list[float]:
    """Exponential moving average with the bias correction of Adam (Kingma and Ba 2015, section 3).

    Each new value enters with weight (1 - ``weight``).
    """
    average, averages = 0.0, []
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        averages.append(average / (1 - weight**count))
    return averages


def learning_curves(
    history: Mapping[str, Sequence[tuple[int, float]]],
    metric: str = "loss",
    best_epoch: int | None = None,
    overfitting: Overfitting | None = None,
) -> Figure:
    """A metric of training and validation rows over the epochs, raw and smoothed (dashed), with the kept epoch.

    ``history`` has (epoch, value) by name. The training curve is ``train/eval_<metric>``, measured after each epoch in
    evaluation mode like the validation curve, or ``train/<metric>`` if there is none. Epochs of overfitting are shaded.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shown: list[float] = []
    for split in SPLITS[:2]:
        points = history.get(f"{split}/eval_{metric}") or history.get(f"{split}/{metric}", [])
        if not points:
            continue
        epochs, values = zip(*points, strict=True)
        shown += values
        marker = "o" if len(points) < 3 else ""
        colour, name = COLOURS[split], SPLIT_NAMES[split]
        axes.plot(epochs, values, color=colour, linewidth=1.6, marker=marker, label=name)
        axes.plot(epochs, smoothed(values), "--", color=colour, linewidth=1, alpha=0.7, label=f"{name}, smoothed")
    if best_epoch is not None:
        axes.axvline(best_epoch, color="black", linestyle=":", linewidth=1.2, label=f"weights kept: epoch {best_epoch}")
    if overfitting and overfitting.epoch is not None:
        last = max(step for name, points in history.items() if name.startswith("val/") for step, _ in points)
        axes.axvspan(overfitting.epoch, last, color="#d95f02", alpha=0.12, label="overfitting")
    if metric == "loss" and shown and min(shown) > 0 and max(shown) > 10 * min(shown):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(shown) < 1000 * min(shown) else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set(xlabel="epoch", ylabel=metric, title=f"Learning curves: {metric}")
    axes.grid(alpha=0.3)
    if shown:
        axes.legend()
    return figure


def lines_through_points(data: CourseData, lines: Mapping[str, Callable[[Tensor], Tensor]]) -> Figure:
    """Rows of one feature and one target as points, coloured by split, and up to three functions of N x 1 as lines."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for split in SPLITS:
        rows = data.splits[split]
        if len(rows):
            points = data.rows.inputs[rows, 0], data.rows.targets[rows, 0]
            axes.scatter(
                *points, s=18, color=COLOURS[split], alpha=0.7, label=f"{SPLIT_NAMES[split]} rows ({len(rows)})"
            )
    values = data.rows.inputs[:, 0]
    grid = torch.from_numpy(np.linspace(float(values.min()), float(values.max()), 200)).float()[:, None]  # 200 x 1
    # Colours, widths, z-orders and styles that keep all lines visible where they coincide.
    styles = (("black", 1.5, 3, "-"), ("#66a61e", 6, 2, "-"), ("#e7298a", 2.5, 4, ":"))
    for (name, line), (colour, width, depth, style) in zip(lines.items(), styles, strict=False):
        with torch.no_grad():
            values = line(grid)[:, 0]
        axes.plot(grid[:, 0], values, style, color=colour, linewidth=width, zorder=depth, label=name)
    names = {"xlabel": (*data.rows.feature_names, "input")[0], "ylabel": (*data.rows.target_names, "target")[0]}
    axes.set(**names, title="Points and lines")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def names_of_classes(data: SplitData, evaluation: Evaluation) -> Sequence[str]:
    """The names of the classes; their numbers where they have none."""
    return data.class_names or [str(number) for number in range(max(evaluation.outputs.shape[1], 2))]


def confusion_matrix(model: Task, data: SplitData, evaluation: Evaluation) -> Figure:
    """The number of rows of each true class that were predicted as each class, and its share of the true class."""
    outputs, classes = evaluation.outputs, names_of_classes(data, evaluation)
    predictions = (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)
    labels = np.arange(len(classes))
    counts = metrics.confusion_matrix(
        evaluation.targets.numpy(), predictions.numpy(), labels=labels
    )  # true x predicted
    side = 0.5 * min(len(classes), MOST_CLASSES)
    figure = Figure(figsize=(3.5 + side, 3 + side), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true, predicted in np.ndindex(*counts.shape) if len(classes) <= MOST_CLASSES else ():
        count, share = int(counts[true, predicted]), float(shares[true, predicted])
        colour = "white" if share > 0.5 else "black"
        text = f"{count}\n{share:.0%}" if count else "0"
        axes.text(predicted, true, text, ha="center", va="center", color=colour if share >= 0.005 else "grey")
    every = math.ceil(len(classes) / MOST_CLASSES)
    ticks = range(0, len(classes), every)
    axes.set_xticks(ticks, classes[::every], rotation=30, ha="right")
    axes.set_yticks(ticks, classes[::every])
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion matrix, {SPLIT_NAMES[evaluation.split]} rows")
    return figure


def class_accuracy(model: Task, data: SplitData, evaluation: Evaluation) -> Figure:
    """The accuracy of each class with its 95 % interval (Wilson), the best class on top."""
    right, targets = evaluation.scores["accuracy"].numpy(), evaluation.targets.numpy()
    classes = np.unique(targets)
    counts, rows = np.bincount(targets, right)[classes], np.bincount(targets)[classes]
    order = np.argsort(counts / rows, kind="stable")
    classes, counts, rows = classes[order], counts[order], rows[order]
    figure = Figure(figsize=(7, 1.4 + 0.35 * len(classes)), layout="constrained")
    axes = figure.add_subplot()
    names = [names_of_classes(data, evaluation)[each] for each in classes]
    errors = _errors(counts, rows)
    axes.barh(names, counts / rows, xerr=errors, capsize=3, color=COLOURS["train"], alpha=0.8)
    for position, (share, below, above) in enumerate(zip(counts / rows, *errors, strict=True)):
        left, colour = (0.01, "white") if share - below > 0.12 else (share + above + 0.02, "black")
        axes.text(left, position, f"{share:.1%}", va="center", color=colour)
    axes.axvline(right.mean(), color="black", linestyle=":", linewidth=1.2)
    title = f"Accuracy by class, {SPLIT_NAMES[evaluation.split]} rows (dotted: all rows, {right.mean():.1%})"
    axes.set(xlabel="accuracy, with 95 % interval", xlim=(0, 1.02), title=title)
    return figure


def predicted_and_true(model: Task, data: SplitData, evaluation: Evaluation) -> Figure:
    """The predictions of the first target against its values, and the line where both are equal."""
    true, predicted = evaluation.targets[:, 0].numpy(), evaluation.outputs[:, 0].numpy()
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(true, predicted, s=12, alpha=0.5, color=COLOURS["train"])
    axes.axline((float(true.mean()), float(true.mean())), slope=1, linestyle=":", color="grey", label="perfect")
    axes.set(xlabel="target", ylabel="prediction", title=f"Predictions, {SPLIT_NAMES[evaluation.split]} rows")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def of_outputs(task: Task) -> dict[str, FigureFunction]:
    """The figures that need nothing but outputs and targets, for any model of a task."""
    draw: dict[str, Callable[[Task, SplitData, Evaluation], Figure]] = {}
    if isinstance(task, Regression):
        draw = {"predicted-and-true": predicted_and_true}
    elif isinstance(task, BinaryClassification):
        draw = {"confusion-matrix": confusion_matrix, "roc": roc_curve, "calibration": calibration_curve}
    elif isinstance(task, Classification):
        draw = {"confusion-matrix": confusion_matrix, "class-accuracy": class_accuracy}

    def by_task(figure: Callable[[Task, SplitData, Evaluation], Figure]) -> FigureFunction:
        return lambda model, data, evaluation: figure(task, data, evaluation)

    return {name: by_task(figure) for name, figure in draw.items()}


def _errors(counts: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The distances from the proportions ``counts / rows``, N, to the ends of their 95 % intervals: 2 x N."""
    ends = np.array([interval_of_share(int(count), int(n)) for count, n in zip(counts, rows, strict=True)])
    errors: np.ndarray[Any, Any] = np.abs(ends.T - counts / rows)
    return errors


def _probabilities(model: Task, evaluation: Evaluation) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Targets and probabilities of class 1, N each."""
    return evaluation.targets.numpy(), model.predictions(evaluation.outputs).numpy()


def _unit_square(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    return figure, axes


def _of_one_class(axes: Axes, names: Sequence[str], targets: np.ndarray[Any, Any]) -> bool:
    """Whether all rows are of one class, so that there is no curve; if so, writes that into the figure."""
    classes = np.unique(targets)
    if len(classes) == 1:
        axes.text(0.5, 0.5, f"every row is of class {names[classes[0]]}", ha="center")
    return len(classes) == 1


def roc_curve(model: Task, data: SplitData, evaluation: Evaluation) -> Figure:
    """True against false positive rate over all thresholds, with the area under the curve."""
    targets, probabilities = _probabilities(model, evaluation)
    title = f"ROC, {SPLIT_NAMES[evaluation.split]} rows"
    figure, axes = _unit_square(title, "false positive rate", "true positive rate (sensitivity)")
    if _of_one_class(axes, names_of_classes(data, evaluation), targets):
        return figure
    false, true, _ = metrics.roc_curve(targets, probabilities)
    axes.plot([0, 1], [0, 1], ":", color="grey", label="chance")
    axes.plot(false, true, color=COLOURS["train"], label=f"AUROC {metrics.auc(false, true):.3f}")
    axes.legend(loc="lower right")
    return figure


def precision_recall_curve(model: Task, data: SplitData, evaluation: Evaluation) -> Figure:
    """Precision against recall over all thresholds, with the average precision."""
    targets, probabilities = _probabilities(model, evaluation)
    figure, axes = _unit_square(f"Precision and recall, {SPLIT_NAMES[evaluation.split]} rows", "recall", "precision")
    if _of_one_class(axes, names_of_classes(data, evaluation), targets):
        return figure
    precision, recall, _ = metrics.precision_recall_curve(targets, probabilities)
    defined = recall > 0  # scikit-learn adds a last point with recall 0 and precision 1, which no threshold gives
    share, positive = targets.mean(), names_of_classes(data, evaluation)[1]
    axes.axhline(share, linestyle=":", color="grey", label=f"chance: share of {positive}, {share:.2f}")
    average = metrics.average_precision_score(targets, probabilities)
    label = f"average precision {average:.3f}"
    axes.step(recall[defined], precision[defined], where="post", color=COLOURS["train"], label=label)
    axes.legend(loc="lower left")
    return figure


def calibration_curve(model: Task, data: SplitData, evaluation: Evaluation) -> Figure:
    """Observed share of class 1 in each fifth of the rows, by predicted probability, with its 95 % interval.

    scikit-learn's ``calibration_curve`` does not return the numbers of rows, which the intervals need.
    """
    targets, probabilities = _probabilities(model, evaluation)
    title, positive = f"Calibration, {SPLIT_NAMES[evaluation.split]} rows", names_of_classes(data, evaluation)[1]
    figure, axes = _unit_square(title, f"predicted probability of {positive}", f"observed share of {positive}")
    axes.plot([0, 1], [0, 1], ":", color="grey", label="perfect")
    groups = np.array_split(np.argsort(probabilities), min(5, len(targets)))
    predicted = [probabilities[group].mean() for group in groups]
    counts = np.array([targets[group].sum() for group in groups])
    rows = np.array([len(group) for group in groups])
    label = "fifths of the rows, with 95 % interval"
    errors = _errors(counts, rows)
    axes.errorbar(predicted, counts / rows, errors, marker="o", capsize=3, color=COLOURS["train"], label=label)
    axes.legend(loc="upper left")
    return figure
