"""Give a trained model away: as a file that is verified before it is kept, with a description beside it."""

import dataclasses
import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import torch
import yaml
from mlflow.models import Model
from torch import nn

from dlcourse.errors import CourseError, SettingsError, one_line
from dlcourse.evaluation.chosen import Chosen, choose
from dlcourse.export.description import Description
from dlcourse.export.formats import SUFFIXES, Format, Source, check_onnx, network, write, written
from dlcourse.export.model import EXAMPLES, stored_model
from dlcourse.export.verification import Verification, verify
from dlcourse.reporting.card import in_columns
from dlcourse.reporting.phases import phase
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store
from dlcourse.training.checkpoints import read_checkpoint
from dlcourse.training.start import kept_checkpoint

FOLDER = Path("exports")


@dataclass(frozen=True)
class ExportedFile:
    """A model in a file.

    Attributes:
        file: The file.
        about: The file beside it, with its description as JSON.
        format: Its format.
        sha256: Its digest.
        description: What it says of itself.
        verified: What was compared with the trained model.
        why: Why it is this run.
    """

    file: Path
    about: Path
    format: Format
    sha256: str
    description: Description
    verified: Verification
    why: str

    def as_dict(self) -> dict[str, Any]:
        """All there is to know of the file, as it is written beside it."""
        return {
            "file": self.file.name,
            "format": self.format,
            "sha256": self.sha256,
            "verified": dataclasses.asdict(self.verified),
            **self.description.as_dict(),
        }

    def __str__(self) -> str:
        about, check = self.description, self.verified
        takes = f"{about.inputs.name}: {about.inputs.dtype} {_of_shape(about.inputs.shape)}"
        gives = ", ".join(f"{each.name}: {each.dtype} {_of_shape(each.shape)}" for each in about.outputs)
        lines = [
            ("run", f"{about.run['name']} ({about.run['id']}), {self.why}"),
            ("quality", str(about.quality)),
            ("takes", takes),
            ("gives", gives),
            (
                "verified",
                f"by {check.runtime}: at most {check.largest_difference:.2g} from the checkpoint on {check.rows} rows, "
                f"in batches of {', '.join(map(str, check.batch_sizes))}",
            ),
            ("about", str(self.about)),
        ]
        return in_columns(f"{self.file}: {about.topic} as {self.format}, {self.file.stat().st_size:,} bytes", lines)


def export(
    topic: str | Topic, *, run: str | None = None, format: Format = "safetensors", output: Path | None = None
) -> ExportedFile:
    """Write a run's model into a file that others can use, and verify it by the format's own runtime before it is kept.

    It takes raw inputs (pixels in bytes, columns as they were measured) and gives probabilities or values: scaling, and
    whatever else the model does with its inputs, is in the file.

    Args:
        topic: A topic's name, or your own `Topic`; or the name of an experiment of `train_module`.
        run: Id or name of the run; by default the best by validation rows, of the trainings on the default data.
        format: safetensors has the weights with their settings, for years: no code runs when it is read. checkpoint is
            Lightning's. pt2 is a program that torch alone runs. onnx runs without torch, anywhere.
        output: The file; by default ``exports/<topic>`` with the format's suffix.

    Raises:
        SettingsError: There is no such topic or format, its packages are missing, or the file cannot be written there.
        CourseError: There is no such run, it has no model, or the file's predictions differ from the model's.
    """
    suffixes = {form: suffix for suffix, form in SUFFIXES.items()}
    if format not in suffixes:
        raise SettingsError(f"--format must be one of {', '.join(suffixes)}, not {format}")
    if format == "onnx":
        check_onnx()
    if output and not output.absolute().parent.is_dir():
        raise SettingsError(f"--output {output}: there is no folder {output.parent}")
    store = open_store()
    chosen = choose(store, topic, run)
    file = output or FOLDER / f"{chosen.experiment}{suffixes[format]}"
    if file.suffix != suffixes[format]:
        raise SettingsError(f"--output {file}: a file of the format {format} ends with {suffixes[format]}")
    source = source_of(store, chosen)
    with phase(f"exporting {chosen.name} as {format}, and verifying it"):
        return export_source(source, format, file, chosen.why)


def export_source(source: Source, form: Format, file: Path, why: str) -> ExportedFile:
    """Write and verify a file; one that is there already is replaced only by one that is verified."""
    about = file.with_name(f"{file.name}.json")
    try:
        if file.parent == FOLDER:
            FOLDER.mkdir(exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=file.suffix, dir=file.parent)
        os.close(handle)
        partial = Path(name)
        try:
            description = write(source, form, partial)
            opened = written(source, form, partial)
            is_classifier = description.kind == "classification"
            verified = verify(
                source.module, opened.predict, source.rows, opened.runtime, are_probabilities=is_classifier
            )
            digest = hashlib.sha256(partial.read_bytes()).hexdigest()
            exported = ExportedFile(file, about, form, digest, description, verified, why)
            about.write_text(json.dumps(exported.as_dict(), indent=2) + "\n", encoding="utf-8")
            partial.chmod(0o644)  # a temporary file is its owner's alone
            partial.replace(file)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()
    except OSError as error:
        raise SettingsError(f"--output {file} cannot be written: {one_line(error.strerror or error)}") from error
    return exported


def source_of(store: Store, chosen: Chosen) -> Source:
    """A run's model, from its checkpoint; of a class that is not known here from its program in the store.

    Raises:
        CourseError: The model is not in the store as an export needs it.
    """
    name = f"{chosen.run.info.run_name} ({chosen.run.info.run_id})"
    files = store.files_of(chosen.run)
    with stored_model(store, chosen.model_id) as folder:
        about = (Model.load(folder).metadata or {}).get("dlcourse")
        if about is None or not (Path(folder) / EXAMPLES).is_file():
            raise CourseError(f"{name} is of an earlier version, whose models do not describe themselves: train again")
        with np.load(Path(folder) / EXAMPLES, allow_pickle=False) as arrays:
            rows = torch.from_numpy(arrays["inputs"])
        program: nn.Module | None = None if chosen.topic else mlflow.pytorch.load_model(folder)
    settings = yaml.safe_load((files / "settings.yaml").read_text(encoding="utf-8"))
    if chosen.topic:
        path = kept_checkpoint(files)
        checkpoint = read_checkpoint(path)
        module = network(chosen.topic, checkpoint, path)
    else:
        assert program is not None
        module = program
        checkpoint = _checkpoint_of(files, program, settings)
    described = Description.of(about)
    with torch.no_grad():
        dtype = str(module(rows[:2]).dtype).removeprefix("torch.")  # float32, also of a model trained in float64
    description = dataclasses.replace(
        described,
        outputs=[dataclasses.replace(each, dtype=dtype) for each in described.outputs],
        settings=settings,
        hyper_parameters=checkpoint.get("hyper_parameters", {}),
    )
    return Source(description, module, rows, checkpoint, chosen.topic)


def _checkpoint_of(files: Path, program: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    """The run's checkpoint; of a module that was only evaluated one made of its weights and hyper-parameters."""
    with suppress(CourseError):
        return read_checkpoint(kept_checkpoint(files))
    import lightning as L

    weights = {name.removeprefix("model."): value for name, value in program.state_dict().items()}
    return {"state_dict": weights, "hyper_parameters": settings["model"], "pytorch-lightning_version": L.__version__}


def _of_shape(shape: list[int | str]) -> str:
    return " x ".join(map(str, shape))
