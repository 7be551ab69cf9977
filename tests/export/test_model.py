"""The model in the store, and checkpoints: what comes out is what was trained, wherever it is loaded."""

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pytest
import torch
from mlflow.entities import LoggedModel, Run
from mlflow.models import Model
from torch import Tensor, nn

import dlcourse
from dlcourse import topics
from dlcourse.cli import main
from dlcourse.errors import CourseError
from dlcourse.models.tasks import Regressor
from dlcourse.training.checkpoints import load_checkpoint, read_checkpoint
from tests.finished import Finished
from tests.samples import Noisy

BLOCKED = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("dlcourse", "lightning", "tests"):
            raise ImportError(f"{name} cannot be imported here")

sys.meta_path.insert(0, Blocked())
"""
"""The start of a program that has no dlcourse and no Lightning."""
ELSEWHERE = (
    BLOCKED
    + """
try:
    import dlcourse
except ImportError as error:
    absent = str(error)

import mlflow, numpy, torch
store, uri = sys.argv[1:]
mlflow.set_tracking_uri(store)
module = mlflow.pytorch.load_model(uri)
model = mlflow.pyfunc.load_model(uri)
answers = {}
for size in (1, 2, 7):
    rows = numpy.linspace(-2, 2, size, dtype=numpy.float32)[:, None]
    twice = [module(torch.from_numpy(rows)).detach() for _ in range(2)]
    assert torch.equal(*twice), "random"
    answers[size] = [twice[0].tolist(), model.predict(rows).tolist()]
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"absent": absent, "answers": answers, "loaded": loaded}))
"""
)


def topic_with(model: type[Regressor]) -> topics.Topic:
    return dataclasses.replace(topics.find("height-weight"), model=model)


def train(kind: type[Regressor] | None = None, **settings: Any) -> dlcourse.Result:
    topic = topic_with(kind) if kind else topics.find("height-weight")
    return dlcourse.train(topic, **{"trainer": {"max_epochs": 3}, **settings})


def run_of(result: dlcourse.Result) -> Run:
    return dlcourse.open_store().client.get_run(result.run_id)


def logged_models(result: dlcourse.Result) -> list[LoggedModel]:
    store = dlcourse.open_store()
    outputs = run_of(result).outputs
    return [store.client.get_logged_model(each.model_id) for each in outputs.model_outputs]


@pytest.mark.slow
def test_loads_where_there_is_no_dlcourse_and_gives_the_trained_answers(project: Path, tmp_path: Path) -> None:
    result = train(Noisy, model={"optimizer": "adam", "lr": 0.3})
    assert result.model_uri, result.card
    (tmp_path / "away").mkdir()
    command = [sys.executable, "-c", ELSEWHERE, dlcourse.open_store().uri, str(result.model_uri)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "away", timeout=240)
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout.splitlines()[-1])
    assert told["absent"] == "dlcourse cannot be imported here"
    assert not {"dlcourse", "lightning"} & set(told["loaded"])

    assert result.model is not None
    torch.manual_seed(0)
    untrained = Noisy(result.model.shape, 1).eval()
    for size in (1, 2, 7):
        rows = torch.linspace(-2, 2, size)[:, None]
        expected = result.model.eval()(rows).detach()
        for answers in told["answers"][str(size)]:
            torch.testing.assert_close(torch.tensor(answers), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(expected, untrained(rows), atol=1.0)


def test_the_best_weights_are_kept_not_the_last_ones(project: Path) -> None:
    result = train(
        model={"optimizer": "adam", "lr": 5}, data={"batch_size": 4}, trainer={"max_epochs": 12, "patience": None}
    )
    assert result.metrics["best_epoch"] < 11, result.card
    checkpoints = dlcourse.open_store().files_of(run_of(result)) / "checkpoints"
    best, last = (
        load_checkpoint(topics.find("height-weight"), checkpoints / f"{name}.ckpt")[0] for name in ("best", "last")
    )
    (model,) = logged_models(result)
    loaded = mlflow.pytorch.load_model(model.artifact_location)
    rows = torch.tensor([[0.5], [-1.0]])
    torch.testing.assert_close(loaded(rows), best(rows))
    assert not torch.allclose(loaded(rows), last(rows))


def test_signature_example_and_requirements_are_there(finished: Finished) -> None:
    logged = finished.store.client.get_logged_model(str(finished.result.model_uri).removeprefix("models:/"))
    assert logged.status.value == "READY"
    assert logged.source_run_id == finished.result.run_id
    folder = mlflow.artifacts.download_artifacts(logged.artifact_location)
    model = Model.load(folder)
    assert model.signature is not None
    for schema in (model.signature.inputs, model.signature.outputs):
        assert [(each.type, each.shape) for each in schema.inputs] == [("float32", (-1, 1))]
    assert model.load_input_example(folder).shape == (2, 1)
    packages = {line.partition("==")[0] for line in Path(folder, "requirements.txt").read_text().splitlines()}
    assert packages == {"mlflow", "torch", "numpy"}


class Restless(Regressor):
    """Its noise does not stop in evaluation mode: no two answers are the same."""

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Linear(shape[0], outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        return outputs + torch.randn_like(outputs)


def test_a_model_that_answers_otherwise_when_loaded_is_marked_and_not_called_verified(project: Path) -> None:
    result = train(Restless)
    assert result.model_uri is None
    assert "not verified: " in result.card
    run = run_of(result)
    assert run.info.status == "FINISHED"
    assert [each.status.value for each in logged_models(result)] == ["FAILED"]


class Branching(Regressor):
    """Python decides by the values: no single program does what it does."""

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Linear(shape[0], outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        return outputs if float(inputs.sum()) > 0 else 2 * outputs


def test_an_export_that_fails_does_not_cost_the_run(project: Path) -> None:
    result = train(Branching)
    run = run_of(result)
    assert run.info.status == "FINISHED"
    assert "not verified" in result.card
    assert "not verified" in run.data.tags["mlflow.note.content"]
    assert result.checkpoint is not None
    assert result.metrics["test/mse"] == run.data.metrics["test/mse"]
    assert [each.status.value for each in logged_models(result)] == ["FAILED"]


def test_the_model_has_the_name_settings_and_test_metrics_of_its_run(finished: Finished) -> None:
    (model,) = [finished.store.client.get_logged_model(str(finished.result.model_uri).removeprefix("models:/"))]
    assert model.name == "my first"
    assert model.params == finished.run.data.params
    assert model.tags["mlflow.note.content"] in finished.run.data.tags["mlflow.note.content"]
    (test,) = [each.dataset for each in finished.run.inputs.dataset_inputs if each.dataset.name.endswith("(test)")]
    metrics = {each.key: each for each in model.metrics or []}
    assert set(metrics) == {"test/loss", "test/mse", "test/mae"}
    for name, metric in metrics.items():
        assert metric.value == finished.result.metrics[name]
        assert (metric.dataset_name, metric.dataset_digest) == (test.name, test.digest)
        assert finished.curve(name) == [(0, metric.value)], "the run has one point of it, not two"


def test_models_can_be_ranked_by_a_test_metric(project: Path) -> None:
    results = [train(model={"lr": lr}) for lr in (0.05, 0.001, 0.02)]
    store = dlcourse.open_store()
    order = [{"field_name": "metrics.test/mse", "ascending": True}]
    ranked = store.client.search_logged_models([store.experiment("height-weight")], order_by=order)
    best_first = sorted(results, key=lambda result: result.metrics["test/mse"])
    assert [model.source_run_id for model in ranked] == [result.run_id for result in best_first]


def test_a_name_that_mlflow_refuses_for_a_model_is_mended(project: Path) -> None:
    result = train(name="a/b: 0.5 % of 'all' \"rows\"")
    assert result.model_uri, result.card
    assert [each.name for each in logged_models(result)] == ["a_b_ 0_5 _ of _all_ _rows_"]


def test_without_test_rows_the_model_has_the_metrics_of_the_verdict(project: Path) -> None:
    (model,) = logged_models(train(data={"test_fraction": 0.0, "val_fraction": 0.0}, trainer={"max_epochs": 2}))
    named = {(each.key, each.dataset_name) for each in model.metrics or []}
    assert ("train/final_mse", "height-weight (training)") in named


def test_a_verified_run_says_so(finished: Finished) -> None:
    assert f"{finished.result.model_uri}, verified" in finished.result.card


class TestCheckpoints:
    def test_the_checkpoint_alone_gives_model_and_data_again(self, finished: Finished) -> None:
        result = finished.result
        assert result.checkpoint is not None
        assert result.model is not None
        assert result.data is not None
        model, data = load_checkpoint(topics.find("height-weight"), Path(result.checkpoint))
        torch.testing.assert_close(model.state_dict(), result.model.state_dict())
        assert data.fingerprint == result.data.fingerprint
        assert not model.training

    @staticmethod
    def complaint(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
        assert main(["test", "height-weight", "--checkpoint", str(path)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith((f"dlcourse: {path} is no ", "dlcourse: there is no ")), err
        assert err.count("\n") == 1, err
        return err

    def test_that_is_not_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert f"there is no checkpoint {tmp_path}/best.ckpt" in self.complaint(tmp_path / "best.ckpt", capsys)

    def test_that_was_cut_off(self, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        whole = Path(str(finished.result.checkpoint)).read_bytes()
        for length in (0, 100, len(whole) // 2, len(whole) - 1):
            (tmp_path / "cut.ckpt").write_bytes(whole[:length])
            assert "it is damaged" in self.complaint(tmp_path / "cut.ckpt", capsys)

    @pytest.mark.parametrize("write", [pickle.dump, torch.save])
    def test_that_holds_code_which_is_not_run(
        self, write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with open(tmp_path / "code.ckpt", "wb") as file:
            write(Code(tmp_path / "it ran"), file)
        assert "holds more than the weights" in self.complaint(tmp_path / "code.ckpt", capsys)
        assert not (tmp_path / "it ran").exists()

    def test_that_holds_weights_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "weights.pt")
        assert "is no Lightning checkpoint: it has no state_dict" in self.complaint(tmp_path / "weights.pt", capsys)

    def test_of_another_topic(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = train(Noisy)
        assert "is no checkpoint of height-weight" in self.complaint(Path(str(other.checkpoint)), capsys)
        with pytest.raises(CourseError, match="is no checkpoint of height-weight"):
            load_checkpoint(topics.find("height-weight"), Path(str(other.checkpoint)))

    def test_is_read_without_running_code(self, finished: Finished) -> None:
        content = read_checkpoint(Path(str(finished.result.checkpoint)))
        assert content["hyper_parameters"]["lr"] == 0.05
        assert content["datamodule_hyper_parameters"]["batch_size"] == 8


class Code:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)
