"""Predict by a trained model: that of a run, or one in a file."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dlcourse import topics
from dlcourse.errors import CourseError, SettingsError, one_line, printable, some_of
from dlcourse.evaluation.chosen import Chosen, choose, known_topic
from dlcourse.export.description import Column, Description
from dlcourse.export.exporting import source_of
from dlcourse.export.formats import SUFFIXES, Opened, open_file, predictor
from dlcourse.export.reading import Input, Inputs, read_inputs, with_unit
from dlcourse.export.registry import champion
from dlcourse.images.figures import predicted_images
from dlcourse.reporting.card import in_columns
from dlcourse.reporting.fonts import LONGEST, short_names, write_plainly
from dlcourse.reporting.phases import phase
from dlcourse.settings import PositiveInt
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store

BATCH_SIZE = 256
"""The largest batch that exports are verified with."""
MOST_PICTURES = 40
"""In a figure: five lines."""
FLAGS = ("run", "top", "csv", "plot", "invert", "json", "help")


@dataclass(frozen=True)
class Predictions:
    """What a model says of some inputs.

    Attributes:
        description: What is known of the model.
        why: Why it is this model, or the file that has it.
        inputs: What it was asked about, with warnings.
        values: N x columns, or N x classes probabilities.
        top: How many classes of each input are shown.
        files: The files that were written, by their flags.
    """

    description: Description
    why: str
    inputs: Inputs
    values: NDArray[np.floating]
    top: int
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every picture could be read."""
        return not self.inputs.unread

    @property
    def is_classifier(self) -> bool:
        return self.description.kind == "classification"

    @property
    def columns(self) -> list[Column]:
        """The values that a regression predicts."""
        described = self.description.outputs[0].columns
        return described or [Column(f"output {place + 1}") for place in range(self.values.shape[1])]

    def __str__(self) -> str:
        about = self.description
        rows = zip(self.inputs.names, self._classes() if self.is_classifier else self._values(), strict=True)
        of_training = ", the rows that it was trained on" * about.quality.metric.startswith("train/")
        below = [
            *([] if self.is_classifier else [("error", self._error())]),
            ("quality", f"{about.quality}{of_training}"),
            *(("warning", text) for text in self.inputs.warnings),
            *([("not read", some_of(self.inputs.unread))] if self.inputs.unread else []),
            *((flag, str(file)) for flag, file in self.files.items()),
        ]
        run = f"{about.run['name']} ({about.run['id'][:8]})"
        card = in_columns(f"{about.topic}: {run}, {self.why}", list(rows))
        return printable(f"{card}\n{in_columns('', below)}")

    def _classes(self) -> list[str]:
        """The most probable classes of each input, with their probabilities."""
        order = np.argsort(-self.values, 1, kind="stable")[:, : self.top]  # N x top
        names = self.description.classes
        width = max(len(names[number]) for number in order.flat)
        return [
            "   ".join(f"{names[number]:<{width}} {_percent(row[number]):>6}" for number in numbers)
            for numbers, row in zip(order, self.values, strict=True)
        ]

    def _values(self) -> list[str]:
        return [
            ", ".join(_value(column, value) for column, value in zip(self.columns, row, strict=True))
            for row in self.values
        ]

    def _error(self) -> str:
        if all(column.error is not None for column in self.columns):
            return "for 95 % of rows like the test rows, the true value is within ±"
        return "how far off a prediction may be is not known: the run has no test rows, or fewer than 19"

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain types for JSON."""
        about = self.description
        return {
            "model": about.topic,
            "run": {**about.run, "why": self.why},
            "quality": dataclasses.asdict(about.quality),
            "predictions": [
                {"input": name, **self._plain(row)} for name, row in zip(self.inputs.names, self.values, strict=True)
            ],
            "warnings": self.inputs.warnings,
            "unread": self.inputs.unread,
        }

    def _plain(self, row: NDArray[np.floating]) -> dict[str, Any]:
        values = row.tolist()
        if self.is_classifier:
            classes = self.description.classes
            return {"class": classes[row.argmax()], "probabilities": dict(zip(classes, values, strict=True))}
        pairs = zip(self.columns, values, strict=True)
        return {
            "values": {each.name: {"value": value, "unit": each.unit, "error": each.error} for each, value in pairs}
        }

    def as_table(self) -> pd.DataFrame:
        """A row for each input: all probabilities, or all values with their errors where they are known."""
        table = pd.DataFrame({"input": self.inputs.names})
        if self.is_classifier:
            names = self.description.classes
            table["class"] = [names[number] for number in self.values.argmax(1)]
            return pd.concat([table, pd.DataFrame(self.values, columns=names)], axis=1)
        for place, column in enumerate(self.columns):
            name = f"{column.name} in {column.unit}" if column.unit else column.name
            table[name] = self.values[:, place]
            if column.error is not None:
                table[f"error of {name}"] = column.error
        return table

    def figure(self) -> Figure:
        """The first `MOST_PICTURES` pictures as the model sees them, with what it predicts."""
        count = min(len(self.values), MOST_PICTURES)
        classes = tuple(self.description.classes)
        if self.is_classifier:
            names = short_names(classes)
            texts = [f"{names[row.argmax()]}, {_percent(row.max())}" for row in self.values[:count]]
        else:
            texts = self._values()[:count]
        texts = [f"{_short(name)}\n{text}" for name, text in zip(self.inputs.names, texts, strict=False)]
        left_out = f" (the first {count} of {len(self.values)} pictures)" * (count < len(self.values))
        title = f"{self.description.topic}, as the model of run {self.description.run['id'][:8]} sees it{left_out}"
        figure = predicted_images(torch.from_numpy(self.inputs.values[:count]), texts, title)
        write_plainly(figure, classes)
        return figure


def predict(
    model: str | Path | Topic,
    inputs: Sequence[Input] = (),
    *,
    features: Mapping[str, float | str] | None = None,
    run: str | None = None,
    top: PositiveInt = 3,
    csv: Path | None = None,
    plot: Path | None = None,
    invert: bool = False,
) -> Predictions:
    """Predict by a topic's best model, or one in a file. Nothing in a file is run but its weights' arithmetic.

    Args:
        model: A topic's name, or your own `Topic`; the name of an experiment of `train_module`; or a file that
            `export` has written: .safetensors, .ckpt or .onnx.
        inputs: Pictures and folders of pictures; or CSV files; or numbers, if the model takes one a row.
        features: One row by the names of its columns, such as ``{"height": 176}``.
        run: Id or name of the run; by default the champion's, if one was promoted, else the best by validation rows.
        top: How many classes to show of each input; --json and --csv have all.
        csv: A file for a table with all probabilities.
        plot: A file for a figure of the pictures with their predictions.
        invert: Invert the pictures: for models that were trained on light things on dark.

    Raises:
        SettingsError: There is no such model, it takes other inputs, or a file cannot be written there.
        CourseError: A file is damaged, or its values are not finite; nothing is written.
    """
    files = {flag: file for flag, file in (("csv", csv), ("plot", plot)) if file}
    _check_files(files, inputs)
    opened, why = _open(model, run)
    about = opened.description
    if plot and not about.inputs.are_images:
        raise SettingsError(f"--plot shows pictures, and {about.topic} takes none: leave it out")
    rows = read_inputs(about, inputs, features or {}, FLAGS, invert)
    predictions = Predictions(about, why, rows, _predicted(opened, rows.values), top, files)
    try:
        if csv:
            predictions.as_table().to_csv(csv, index=False)
        if plot:
            with phase("drawing the pictures"):
                predictions.figure().savefig(plot, dpi=150)
    except OSError as error:
        raise SettingsError(f"{error.filename} cannot be written: {one_line(error.strerror or error)}") from error
    return predictions


def _check_files(files: Mapping[str, Path], inputs: Sequence[Input]) -> None:
    """Raises `SettingsError` for a file that cannot be written, or that is to be read."""
    for flag, file in files.items():
        if not file.absolute().parent.is_dir():
            raise SettingsError(f"--{flag} {file}: there is no folder {file.parent}")
        if file.is_dir() or str(file) in map(str, inputs):
            raise SettingsError(f"--{flag} {file} is {'a folder' if file.is_dir() else 'an input'}: name another file")
    known = Figure().canvas.get_supported_filetypes()
    if "plot" in files and files["plot"].suffix.lower().removeprefix(".") not in known:
        raise SettingsError(f"--plot {files['plot']}: a figure's file ends with one of {', '.join(known)}")


def _open(model: str | Path | Topic, run: str | None) -> tuple[Opened, str]:
    """The model, and why it is this one."""
    if not isinstance(model, Topic) and Path(model).suffix.lower() in SUFFIXES:
        if run is not None:
            raise SettingsError(f"--run names a run of a topic, and {model} is a file: leave one of them out")
        return open_file(Path(model), _known_topic), f"from {model}"
    store = open_store()
    chosen = _chosen(store, model if isinstance(model, Topic) else str(model), run)
    source = source_of(store, chosen)
    return Opened(source.description, predictor(source.module), "torch"), chosen.why


def _chosen(store: Store, model: str | Topic, run: str | None) -> Chosen:
    """The run that is named, else the champion's, else the best one."""
    name, topic = known_topic(store, model)
    current = champion(store, name) if run is None else None
    if current is None:
        return choose(store, model, run)
    stored = store.get_run(current.run_id)
    is_there = stored is not None and stored.info.lifecycle_stage != "deleted"
    if stored is None or not is_there or not store.verified_model(current.model_id):
        raise CourseError(f"run or model of {name}'s champion are gone from {store.shown}: name another run by --run")
    return Chosen(name, topic, stored, current.model_id, f"the champion, version {current.version}")


def _known_topic(name: str) -> Topic | None:
    return topics.find(name) if name in topics.titles() else None


def _predicted(opened: Opened, values: NDArray[np.generic]) -> NDArray[np.floating]:
    """The predictions for all rows, N x columns or N x classes.

    Raises:
        CourseError: The model does not take such rows, so that a file describes another one; or it predicts no numbers.
    """
    about = opened.description
    with phase(f"predicting {len(values)} rows", -(-len(values) // BATCH_SIZE)) as bar:
        parts = []
        for start in range(0, len(values), BATCH_SIZE):
            try:
                parts.append(opened.predict(values[start : start + BATCH_SIZE]))
            except Exception as error:  # each runtime has its own, for a network that does not fit its description
                reason = one_line(error)[:120]
                raise CourseError(f"the model of {about.topic} does not take what it describes: {reason}") from error
            bar.update()
    predictions = np.concatenate(parts).reshape(len(values), -1)
    described = len(about.classes) or len(about.outputs[0].columns) or predictions.shape[1]
    if predictions.shape[1] != described:
        raise CourseError(f"the model of {about.topic} gives {predictions.shape[1]} numbers, and describes {described}")
    if not np.isfinite(predictions).all():
        raise CourseError(f"the model of {about.topic} predicts what is no finite number: its training has diverged")
    return predictions


def _value(column: Column, value: float) -> str:
    error = "" if column.error is None else f" ± {column.error:.3g}"
    return f"{column.name} {with_unit(f'{value:.4g}{error}', column.unit)}"


def _percent(probability: float) -> str:
    """A probability that is never 0 or 100 % where it is only near."""
    return ">99.9%" if 0.9995 <= probability < 1 else "<0.1%" if 0 < probability < 0.0005 else f"{probability:.1%}"


def _short(name: str) -> str:
    """A file's name for a figure, in ASCII, of which every font has the characters."""
    file = Path(name).name.encode("ascii", "replace").decode()
    return file if len(file) <= LONGEST else f"{file[: LONGEST - 3]}..."
