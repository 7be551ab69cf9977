"""Models that are given away: every topic in every format, what is refused, and that no file is kept that is wrong."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import lightning as L
import numpy as np
import onnxruntime
import pytest
import torch
from mlflow.entities import LoggedModelStatus
from safetensors.torch import load_file
from torch import Tensor, nn

import dlcourse
from dlcourse import CourseError, SettingsError, topics
from dlcourse.cli import main
from dlcourse.evaluation import baselines
from dlcourse.evaluation.chosen import choose
from dlcourse.export import formats
from dlcourse.export.description import half_width
from dlcourse.export.exporting import ExportedFile, export, export_source, source_of
from dlcourse.export.formats import Format, open_file
from dlcourse.export.model import PredictionModule
from dlcourse.export.verification import BATCH_SIZES, verify
from dlcourse.training.checkpoints import load_checkpoint
from dlcourse.training.fit import task_of
from tests.conftest import shared_project
from tests.foreign_modules import LitAutoEncoder, WavesDataModule
from tests.image_sets import write_cifar10, write_fashion_mnist, write_pictures

FORMATS: tuple[Format, ...] = get_args(Format)
FEW: dict[str, Any] = {"max_epochs": 1, "limit_batches": 3, "accelerator": "cpu"}
PICTURES = {"val_rows": 20, "batch_size": 50}
TRAININGS: dict[str, dict[str, Any]] = {
    "gradient-descent": {"trainer": {"max_epochs": 20}},
    "study-hours": {"trainer": {"max_epochs": 20}},
    "height-weight": {"config": "table", "trainer": {"max_epochs": 20}},
    "diabetes": {"model": {"dropout": 0.3}, "trainer": {"max_epochs": 3}},
    "fashion-mnist": {"data": PICTURES, "model": {"widths": [8, 8, 8]}, "trainer": FEW},
    "cifar10": {"data": PICTURES, "model": {"widths": [8, 8, 8]}, "trainer": FEW},
    "image-folder": {"data": {"root": "pictures", "size": 32}, "model": {"widths": [8, 8]}, "trainer": FEW},
}

ELSEWHERE = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("dlcourse", "lightning", "mlflow", "tests"):
            raise ImportError(f"{name} cannot be imported here")

sys.meta_path.insert(0, Blocked())
import numpy, onnxruntime, torch
for topic in sys.argv[1:]:
    kept = numpy.load(f"{topic}.npz")
    about = json.load(open(f"{topic}.onnx.json"))
    names = [each["name"] for each in about["outputs"]]
    session = onnxruntime.InferenceSession(f"{topic}.onnx")
    program = torch.export.load(f"{topic}.pt2").module()
    for size in (1, 2, 7, 256):
        rows = kept["rows"][numpy.arange(size) % len(kept["rows"])]
        expected = kept["expected"][numpy.arange(size) % len(kept["rows"])]
        outputs = program(torch.from_numpy(rows))
        outputs = [each.numpy(force=True) for each in (outputs if isinstance(outputs, tuple) else [outputs])]
        for given in (session.run(names, {"inputs": rows}), outputs):
            numpy.testing.assert_allclose(given[0], expected, rtol=1e-5, atol=1e-5)
            assert [list(each.shape[1:]) for each in given] == [each["shape"][1:] for each in about["outputs"]]
            if len(given) > 1:
                assert given[1].dtype == numpy.int64 and (given[1] == expected.argmax(1)).all()
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules} & {"dlcourse", "lightning", "mlflow"}))
"""


@dataclass(frozen=True)
class Trained:
    """A trained model, and what a test knows of it without the code that exports it."""

    result: dlcourse.Result
    module: nn.Module
    rows: Tensor
    files: dict[Format, ExportedFile]

    def expected(self, size: int) -> tuple[Tensor, Tensor]:
        rows = self.rows[torch.arange(size) % len(self.rows)]
        with torch.no_grad():
            return rows, self.module(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Path]:
    with shared_project(tmp_path_factory, made_store) as project, pytest.MonkeyPatch.context() as patch:
        patch.delenv("DLCOURSE_DATA_DIR", raising=False)
        write_fashion_mnist(project / "data", patch)
        write_cifar10(project / "data", patch)
        for kind in ("ants", "bees"):
            write_pictures(project / "pictures" / kind, 12, darker=kind == "bees")
        yield project


def trivial(topic: str) -> baselines.Baseline:
    return baselines.mean if topic in ("gradient-descent", "height-weight") else baselines.majority


@pytest.fixture(scope="module")
def trained(folder: Path) -> Callable[[str], Trained]:
    """Gives a topic's trained model, exported in every format; made once."""
    made: dict[str, Trained] = {}

    def of(topic: str) -> Trained:
        if topic not in made:
            known = dataclasses.replace(topics.find(topic), baselines={"trivial": trivial(topic)}, figures={})
            result = dlcourse.train(known, **TRAININGS[topic])
            assert isinstance(result, dlcourse.Result)
            assert result.model_uri, result.card
            files = {form: export(topic, run=result.run_id, format=form) for form in FORMATS}
            model, _ = load_checkpoint(topics.find(topic), Path(str(result.checkpoint)))
            module = PredictionModule(model.float(), task_of(topics.find(topic), model)).eval()
            made[topic] = Trained(result, module, result.data.example_inputs(), files)
        return made[topic]

    return of


def run_weights(path: Path, form: Format, topic: str, rows: Tensor) -> Tensor:
    """The predictions of weights that are loaded as their format's own documentation says."""
    known = topics.find(topic)
    model: L.LightningModule
    if form == "checkpoint":
        model = known.model.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    else:
        about = json.loads(path.with_name(f"{path.name}.json").read_text())
        model = known.model(**about["hyper_parameters"])
        model.load_state_dict(load_file(path))
    with torch.no_grad():
        predictions: Tensor = PredictionModule(model.eval(), task_of(known, model))(rows)
    return predictions


@pytest.mark.parametrize("topic", TRAININGS)
def test_every_format_gives_what_the_checkpoint_gives(
    topic: str, trained: Callable[[str], Trained], folder: Path
) -> None:
    model = trained(topic)
    for form, file in model.files.items():
        for size in BATCH_SIZES:
            rows, expected = model.expected(size)
            if form == "onnx":
                given = torch.from_numpy(onnxruntime.InferenceSession(file.file).run(None, {"inputs": rows.numpy()})[0])
            elif form == "pt2":
                outputs = torch.export.load(file.file).module()(rows)
                given = (outputs[0] if isinstance(outputs, tuple) else outputs).detach()
            else:
                given = run_weights(file.file, form, topic, rows)
            assert given.shape == expected.shape
            assert float((given - expected).abs().max()) <= 1e-4
            assert model.result.model_uri
        assert file.verified.largest_difference <= file.verified.tolerance


def test_programs_run_where_there_is_no_dlcourse(trained: Callable[[str], Trained], folder: Path) -> None:
    names = ["height-weight", "diabetes", "fashion-mnist"]  # one of each kind
    for topic in names:
        model = trained(topic)
        np.savez(folder / "exports" / f"{topic}.npz", rows=model.rows, expected=model.expected(len(model.rows))[1])
    command = [sys.executable, "-c", ELSEWHERE, *names]
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder / "exports", timeout=240)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "loaded\n"


def test_the_file_beside_it_says_what_the_model_takes_and_gives(trained: Callable[[str], Trained]) -> None:
    model = trained("height-weight")
    for form, file in model.files.items():
        about = json.loads(file.about.read_text())
        assert about["sha256"] == hashlib.sha256(file.file.read_bytes()).hexdigest()
        assert (about["format"], about["topic"], about["run"]["id"]) == (form, "height-weight", model.result.run_id)
        assert about["inputs"] == {
            "name": "inputs", "dtype": "float32", "shape": ["N", 1],
            "columns": [{"name": "height", "unit": "cm", "low": 160.0, "high": 180.0}],
        }  # fmt: skip
        (output,) = about["outputs"]
        assert (output["name"], output["columns"][0]["unit"]) == ("predictions", "kg")
        assert about["settings"]["data"]["source"] == "table"
        assert about["verified"]["batch_sizes"] == list(BATCH_SIZES)
        assert file.file.stat().st_mode & 0o777 == 0o644
    (output,) = trained("gradient-descent").files["onnx"].as_dict()["outputs"]
    assert output["dtype"] == "float32"  # trained in float64


def test_pixels_go_in_and_classes_come_out_by_name(trained: Callable[[str], Trained]) -> None:
    model = trained("fashion-mnist")
    about = model.files["onnx"].as_dict()
    assert (about["inputs"]["dtype"], about["inputs"]["shape"]) == ("uint8", ["N", 1, 28, 28])
    assert [each["name"] for each in about["outputs"]] == ["probabilities", "classes"]
    assert about["classes"][9] == "ankle boot"
    assert about["quality"]["metric"] == "test/accuracy"
    assert about["quality"]["low"] < about["quality"]["value"] < about["quality"]["high"]
    names = onnxruntime.InferenceSession(model.files["onnx"].file).get_modelmeta().custom_metadata_map
    assert json.loads(names["dlcourse"])["classes"] == about["classes"]


def test_two_classes_have_a_probability_each(trained: Callable[[str], Trained]) -> None:
    _, probabilities = trained("diabetes").expected(20)
    assert probabilities.shape == (20, 2)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(20))
    assert trained("diabetes").files["onnx"].description.classes == ["not diabetic", "diabetic"]


def test_no_path_of_this_machine_is_given_away(trained: Callable[[str], Trained]) -> None:
    """PyTorch writes the lines of code that each operation comes from into its programs."""
    for form, file in trained("diabetes").files.items():
        content = file.file.read_bytes()
        if form == "pt2":
            with zipfile.ZipFile(file.file) as archive:
                content = b"".join(map(archive.read, archive.namelist()))
        assert str(Path(dlcourse.__file__).parents[1]).encode() not in content


@pytest.mark.parametrize("form", ["safetensors", "checkpoint", "onnx"])
def test_files_are_opened_without_the_store(
    form: Format, trained: Callable[[str], Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained("diabetes")
    file = tmp_path / model.files[form].file.name
    file.write_bytes(model.files[form].file.read_bytes())  # alone, without the file beside it
    monkeypatch.chdir(tmp_path)
    opened = open_file(file, topics.find)
    rows, expected = model.expected(7)
    np.testing.assert_allclose(opened.predict(rows.numpy()), expected.numpy(), atol=1e-6)
    assert opened.description.topic == "diabetes"
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_has_no_state_of_the_training(trained: Callable[[str], Trained]) -> None:
    model = trained("diabetes")
    kept = set(torch.load(model.files["checkpoint"].file, weights_only=True))
    full = set(torch.load(str(model.result.checkpoint), weights_only=True))
    assert full - kept == {"optimizer_states", "lr_schedulers", "loops", "callbacks", "dlcourse_curve"}


def test_the_best_by_validation_rows_is_taken_and_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"trainer": {"max_epochs": 3}}
    results = [dlcourse.train("height-weight", model={"lr": lr}, **few) for lr in (0.01, 0.1, 0.001)]
    dlcourse.train("height-weight", model={"lr": 0.3}, data={"split_seed": 7}, **few)  # on other rows
    assert main(["export", "height-weight", "--output", "line.safetensors", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert isinstance(results[1], dlcourse.Result)
    assert told["run"]["id"] == results[1].run_id
    assert choose(dlcourse.open_store(), "height-weight").others == 3
    assert main(["export", "height-weight", "--run", "default", "--output", "line.safetensors"]) == 1  # no such name


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("by", ["train_module", "evaluate_module"])
def test_a_module_of_another_project_is_exported_from_the_store_alone(
    by: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, data = LitAutoEncoder(bottleneck=2), WavesDataModule()
    task = dlcourse.Regression(inputs=0, targets=0)
    if by == "train_module":
        result = dlcourse.train_module(module, data, task=task, trainer={"max_epochs": 1})
    else:
        result = dlcourse.evaluate_module(module, data, task=task)
    module = module.cpu().eval()
    rows = WavesDataModule.waves(7, 3)
    with torch.no_grad():
        expected = module(rows)
    for form in FORMATS:
        assert main(["export", "lit-auto-encoder", "--run", result.run_id, "--format", form]) == 0
    restored = LitAutoEncoder.load_from_checkpoint("exports/lit-auto-encoder.ckpt", weights_only=True)
    assert restored.hparams["bottleneck"] == 2
    torch.testing.assert_close(restored.eval()(rows).detach(), expected)
    restored.load_state_dict(load_file("exports/lit-auto-encoder.safetensors"))
    session = onnxruntime.InferenceSession("exports/lit-auto-encoder.onnx")
    np.testing.assert_allclose(session.run(None, {"inputs": rows.numpy()})[0], expected, atol=1e-5)
    capsys.readouterr()
    assert main(["export", "lit-auto-encoderr", "--format", "onnx"]) == 2
    with pytest.raises(CourseError, match="LitAutoEncoder"):
        open_file(Path("exports/lit-auto-encoder.safetensors"), lambda name: None)


# Refused


@pytest.mark.parametrize(
    ("flags", "status", "named"),
    [
        (["--format", "tensorflow"], 2, "--format"),
        (["--output", "there/is/none.safetensors"], 2, "--output"),
        (["--output", "model.onnx"], 2, "--output"),
        (["--run", "nobody"], 1, "nobody"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(
    flags: list[str], status: int, named: str, trained: Callable[[str], Trained], folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trained("diabetes")
    before = sorted(folder.rglob("*.*"))
    capsys.readouterr()
    assert main(["export", "diabetes", *flags]) == status
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("dlcourse: ")]
    assert named in line
    assert sorted(folder.rglob("*.*")) == before


def test_without_the_packages_onnx_is_refused(
    trained: Callable[[str], Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained("diabetes")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"dlcourse\[onnx\]"):
        export("diabetes", run=model.result.run_id, format="onnx")


def test_runs_without_a_model_are_refused(project: Path) -> None:
    diverged = dlcourse.train("height-weight", model={"lr": 1e30}, trainer={"max_epochs": 3})
    assert isinstance(diverged, dlcourse.Result)
    with pytest.raises(CourseError, match="FAILED"):
        export("height-weight", run=diverged.run_id)
    seeds = dlcourse.train("height-weight", trainer={"max_epochs": 2}, seeds=2)
    dlcourse.train("height-weight", trainer={"max_epochs": 1})
    store = dlcourse.open_store()
    of_seeds = [
        each for each in store.client.search_runs([store.experiment("height-weight")]) if "seed" in each.data.params
    ]
    without = [each for each in of_seeds if each.info.status == "FINISHED" and not each.outputs.model_outputs]
    with pytest.raises(CourseError, match="no verified model"):
        export("height-weight", run=without[0].info.run_id)
    assert export("height-weight", run=seeds.run_id).description.topic == "height-weight"  # the best of the seeds
    with pytest.raises(CourseError, match="--run"):
        export("diabetes")
    best = choose(store, "height-weight")
    store.client.finalize_logged_model(best.model_id, LoggedModelStatus.FAILED)  # as one that was not verified
    assert choose(store, "height-weight").run.info.run_id != best.run.info.run_id
    with pytest.raises(CourseError, match="no verified model"):
        export("height-weight", run=best.run.info.run_id)


def test_what_differs_is_not_kept_and_what_was_there_stays(
    trained: Callable[[str], Trained], folder: Path, tmp_path: Path
) -> None:
    store = dlcourse.open_store(folder)
    source = source_of(store, choose(store, "diabetes", trained("diabetes").result.run_id))
    torch.manual_seed(1)
    model = topics.find("diabetes").model(**source.checkpoint["hyper_parameters"]).eval()
    other = PredictionModule(model, task_of(topics.find("diabetes"), model)).eval()
    for form, suffix in (
        (each, suffix) for suffix, each in formats.SUFFIXES.items() if each in ("safetensors", "checkpoint")
    ):
        file = tmp_path / f"model{suffix}"
        file.write_text("the one before")
        with pytest.raises(CourseError, match="differ"):
            export_source(dataclasses.replace(source, module=other), form, file, "a test")
        assert file.read_text() == "the one before"
        file.unlink()
        assert not list(tmp_path.iterdir())


def test_verification_measures_every_batch_size() -> None:
    module = nn.Softmax(1)
    rows = torch.randn(5, 3)

    def with_error(size: int, error: float) -> Callable[[Any], Any]:
        def predict(inputs: Any) -> Any:
            return module(torch.from_numpy(inputs)).numpy() + (error if len(inputs) == size else 0.0)

        return predict

    for size in BATCH_SIZES:
        verify(module, with_error(size, 0.9e-4), rows, "here", are_probabilities=True)
        for error in (1.1e-4, float("nan")):
            with pytest.raises(CourseError, match=f"with {size} rows"):
                verify(module, with_error(size, error), rows, "here", are_probabilities=True)
    with pytest.raises(CourseError, match="gives"):
        verify(module, lambda inputs: inputs[:, :2], rows, "here", are_probabilities=True)


def test_the_error_that_is_told_covers_new_rows() -> None:
    """Split conformal prediction covers at least 95 % on average, whatever the errors' distribution."""
    draw = torch.Generator().manual_seed(0)
    for count in (19, 20, 152):
        covered = []
        for _ in range(2000):
            errors = torch.randn(count + 1, generator=draw).exp()  # skewed
            width = half_width(errors[:-1])
            assert width is not None
            covered.append(float(errors[-1]) <= width)
        assert 0.935 <= np.mean(covered) <= 0.995
    assert half_width(torch.rand(18)) is None
