"""FashionMNIST from its archives, what is said where they are missing or damaged, and small trainings on it."""

import dataclasses
import gzip
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow.models import Model
from torchvision.datasets import FashionMNIST
from torchvision.datasets import utils as torchvision_utils

import dlcourse
from dlcourse.cli import main
from dlcourse.data import downloads as fetching
from dlcourse.data.rows import SPLITS
from dlcourse.evaluation import baselines
from dlcourse.export.model import load_model
from dlcourse.topics.fashion_mnist import TOPIC, FashionMNISTData, FashionMNISTNetwork
from tests.image_sets import IDX, NOWHERE, Images, untouchable, write_fashion_mnist
from tests.processes import serving

FILES = "data/FashionMNIST/raw"
PLAIN = {"network": "mlp", "optimizer": "sgd", "lr_per_1024_samples": False, "lookahead": False, "compile": False}


@pytest.fixture
def made(project: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    return write_fashion_mnist(project / "data", monkeypatch)


@pytest.fixture
def refused(made: Images, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Train, and be refused: the one line that stderr ends in."""

    def train(*flags: str, status: int = 1) -> str:
        capfd.readouterr()
        assert main(["train", "fashion-mnist", "--data.source", "full", "--data.val_rows", "20", *flags]) == status
        said = capfd.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        (line,) = (line for line in said.err.splitlines() if line.startswith("dlcourse: "))
        assert said.err.splitlines()[-1] == line
        return line.removeprefix("dlcourse: ")

    return train


def prepared(**settings: Any) -> FashionMNISTData:
    data = FashionMNISTData(**{"val_rows": 20, **settings})
    data.prepare_data()
    data.setup("fit")
    return data


def archive(name: str) -> Path:
    return Path(FILES, f"{IDX[name]}.gz")


def test_images_are_those_of_the_archives(made: Images) -> None:
    rows = prepared().rows
    assert torch.equal(rows.inputs, torch.cat([made["train_images"], made["test_images"]]))
    assert torch.equal(rows.targets, torch.cat([made["train_labels"], made["test_labels"]]).long())
    assert (list(rows.inputs.shape), rows.inputs.dtype) == ([240, 1, 28, 28], torch.uint8)


def test_classes_are_in_torchvisions_order() -> None:
    assert [name.split("/")[0].lower() for name in FashionMNIST.classes] == list(FashionMNISTData.classes)


def test_the_second_start_reads_no_archive(made: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared()
    for path in Path(FILES).iterdir():
        path.unlink()
    monkeypatch.setattr(FashionMNIST, "__init__", untouchable, raising=False)
    assert prepared().fingerprint == first.fingerprint


def test_missing_archives_are_named_with_where_they_belong(refused: Callable[..., str]) -> None:
    for name in ("train_images", "test_labels"):
        archive(name).unlink()
    said = refused()
    assert said.startswith(
        "FashionMNIST is not available: FashionMNIST/raw/train-images-idx3-ubyte.gz is missing, "
        "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz is missing (http://127.0.0.1:9/train-images-idx3-ubyte.gz "
        "cannot be downloaded ("
    )
    assert "Connection refused" in said
    assert said.endswith(
        f"; put whole archives into the data folder, {Path.cwd() / 'data'}, or set DLCOURSE_DATA_DIR to one that has "
        "them"
    )
    assert sorted(path.name for path in Path("data").iterdir()) == ["FashionMNIST", "fashion-mnist.lock"]


@pytest.mark.parametrize("spoil", [lambda content: content[:-30], lambda content: content[:-1] + b"x"])
def test_a_damaged_archive_is_named(refused: Callable[..., str], spoil: Callable[[bytes], bytes]) -> None:
    path = archive("train_labels")
    path.write_bytes(spoil(path.read_bytes()))
    damaged = path.read_bytes()
    said = refused()
    assert said.startswith("FashionMNIST is not available: FashionMNIST/raw/train-labels-idx1-ubyte.gz is damaged (")
    assert "missing" not in said
    assert path.read_bytes() == damaged, "nothing is lost"


def test_a_file_that_was_half_unpacked_is_unpacked_anew(made: Images) -> None:
    for name in IDX:
        whole = gzip.decompress(archive(name).read_bytes())
        archive(name).with_suffix("").write_bytes(whole[:-5] if name == "test_images" else whole)
    rows = prepared().rows
    assert torch.equal(rows.inputs[200:], made["test_images"])


def test_unpacked_files_will_do_without_archives(made: Images) -> None:
    for name in IDX:
        archive(name).with_suffix("").write_bytes(gzip.decompress(archive(name).read_bytes()))
        archive(name).unlink()
    assert torch.equal(prepared().rows.inputs[:200], made["train_images"])


def test_a_half_unpacked_file_without_its_archive_is_refused(refused: Callable[..., str]) -> None:
    for name in IDX:
        whole = gzip.decompress(archive(name).read_bytes())
        archive(name).with_suffix("").write_bytes(whole[:-5] if name == "test_images" else whole)
    archive("test_images").unlink()
    assert "t10k-images-idx3-ubyte.gz is missing (" in refused()


def test_a_full_disk_while_unpacking_loses_nothing(
    refused: Callable[..., str], made: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(source: Path) -> None:
        source.with_suffix("").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(torchvision_utils, "extract_archive", half)
        assert re.search(
            r"fashion-mnist\.safetensors does not exist, and cannot be written \(.*No space left on device\)",
            refused(),
        )
    assert torch.equal(prepared().rows.inputs[:200], made["train_images"])


def test_a_damaged_cache_that_cannot_be_made_anew_is_named(
    refused: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    cache = Path("data/fashion-mnist.safetensors")
    prepared()
    damaged = cache.read_bytes()[:-1]
    cache.write_bytes(damaged)
    for path in Path(FILES).iterdir():
        path.unlink()
    assert refused().startswith("FashionMNIST is not available: ")
    assert re.search(r"fashion-mnist\.safetensors is damaged \(", caplog.text)
    assert cache.read_bytes() == damaged


def test_a_server_that_keeps_silent_is_given_up(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    archive("train_images").unlink()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        monkeypatch.setattr(fetching, "PATIENCE", 0.2)
        assert "timed out" in refused()


def test_what_is_missing_is_downloaded_without_a_bar_where_nobody_looks(
    made: Images, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    content = archive("train_images").read_bytes()
    archive("train_images").unlink()
    with serving({f"/{archive('train_images').name}": content}) as (address, asked):
        monkeypatch.setattr(FashionMNIST, "mirrors", [NOWHERE, f"{address}/"])
        data = prepared()
    assert torch.equal(data.rows.inputs[:200], made["train_images"])
    assert archive("train_images").read_bytes() == content
    assert len(asked) == 1
    assert data.hparams["source"] == "full"
    assert capfd.readouterr().err == ""


# The sample


@pytest.fixture
def gone(made: Images) -> None:
    """There are no archives."""
    for path in Path(FILES).iterdir():
        path.unlink()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_auto_is_the_whole_set_where_its_archives_are(made: Images, caplog: pytest.LogCaptureFixture) -> None:
    data = prepared(val_rows=None)
    assert [len(data.splits[split]) for split in SPLITS] == [180, 20, 40]
    assert (data.hparams["source"], data.hparams["val_rows"]) == ("full", 20)
    assert warnings_of(caplog) == []


def test_auto_settles_for_the_sample_asks_once_and_says_so_each_time(
    gone: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving({}) as (address, asked):
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"{address}/"])
        for runs in (1, 2):
            data = prepared(val_rows=None)
            data.prepare_data()  # as the Trainer does
            assert [len(data.splits[split]) for split in SPLITS] == [4500, 500, 1000]
            assert (data.hparams["source"], data.hparams["val_rows"]) == ("sample", 500)
            assert len(warnings_of(caplog)) == runs
            assert "404" in warnings_of(caplog)[-1]
            assert "--data.source full" in warnings_of(caplog)[-1]
            assert len(asked) == 1


def test_full_is_refused_where_auto_settles_for_the_sample(gone: None, refused: Callable[..., str]) -> None:
    assert prepared().hparams["source"] == "sample"
    assert refused().startswith("FashionMNIST is not available: ")


def test_a_data_folder_that_cannot_be_made_is_no_reason_to_take_other_rows(
    made: Images, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("taken").write_text("a file where a folder should be")
    monkeypatch.setenv("DLCOURSE_DATA_DIR", "taken/data")
    assert main(["train", "fashion-mnist"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dlcourse: ")
    assert "DLCOURSE_DATA_DIR" in line
    data = prepared(source="sample")
    assert len(data.rows.targets) == 6000, "which needs no folder"


def test_a_run_on_the_sample_says_so_everywhere_and_goes_on_with_it(
    gone: None, made: Images, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = dlcourse.train(
        dataclasses.replace(TOPIC, baselines={"majority": baselines.majority}),
        model={**PLAIN, "lr": 0.1, "bias_lr_factor": 1.0},
        trainer={"max_epochs": 1, "limit_batches": 2, "precision": "32-true"},
        name="on the sample",
    )
    assert "4500 training, 500 validation, 1000 test rows of the sample of fashion-mnist\n" in result.card
    store = dlcourse.open_store()
    run = store.client.get_run(result.run_id)
    assert (run.data.params["data.source"], run.data.params["data.val_rows"]) == ("sample", "500")
    settings = yaml.safe_load((store.files_of(run) / "settings.yaml").read_text())
    assert (settings["data"]["source"], settings["data"]["val_rows"]) == ("sample", 500)
    sources = {json.loads(each.dataset.source)["uri"] for each in run.inputs.dataset_inputs}
    assert sources == {"the sample of fashion-mnist"}
    # The whole set is there now, and is another one.
    write_fashion_mnist(Path("whole"), monkeypatch)
    monkeypatch.setenv("DLCOURSE_DATA_DIR", "whole")
    assert run.data.tags["dlcourse.split"] != prepared().fingerprint
    assert main(["test", "fashion-mnist", "--run", "on the sample"]) == 0
    assert f"test/accuracy  {result.metrics['test/accuracy']:.6g}\n" in capsys.readouterr().out


def test_settings_that_cannot_be_had_are_refused(refused: Callable[..., str]) -> None:
    assert "--data.val_rows 200 of 200 training images" in refused("--data.val_rows", "200", status=2)
    assert "--folds would train on the data set's own test rows" in refused("--folds", "3", status=2)


def test_mlp_is_that_of_the_notes() -> None:
    model = FashionMNISTNetwork([1, 28, 28], 10, network="mlp", hidden=128)
    assert [tuple(each.shape) for each in model.network.parameters()] == [(128, 784), (10, 128)]
    assert model(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 10)


def test_a_training_from_archives_to_a_model_that_takes_bytes(made: Images) -> None:
    result = dlcourse.train(
        "fashion-mnist",
        data={"val_rows": 40, "batch_size": 20, "flip": "random"},
        model={**PLAIN, "lr": 0.1, "bias_lr_factor": 1.0, "test_flip": True},
        trainer={"max_epochs": 10},
    )
    assert result.verdict.learned
    assert result.metrics["test/accuracy"] > 0.3
    assert 0 <= result.metrics["test/accuracy_flip"] <= 1
    store = dlcourse.open_store()
    run = store.client.get_run(result.run_id)
    pictures = {path.stem for path in (store.files_of(run) / "figures").iterdir()}
    assert pictures == {
        "accuracy-curves",
        "augmented",
        "class-accuracy",
        "confident-mistakes",
        "confusion-matrix",
        "learning-curves-small",
        "first-layer-filters",
        "learning-curves",
    }
    assert result.model_uri
    model_id = result.model_uri.rpartition("/")[2]
    with torch.no_grad():
        probabilities = load_model(store, model_id)(made["test_images"])
    assert probabilities.shape == (40, 10)
    assert probabilities.sum(1).tolist() == pytest.approx([1] * 40, abs=1e-5)
    accuracy = (probabilities.argmax(1) == made["test_labels"]).float().mean()
    assert float(accuracy) == pytest.approx(result.metrics["test/accuracy"])
    place = store.client.get_logged_model(model_id).artifact_location
    (inputs,) = Model.load(place.removeprefix("file://")).signature.inputs.inputs
    assert str(inputs.type) == "uint8"


def test_the_whole_set_is_split_as_ever(real_data: Callable[..., Path]) -> None:
    real_data("fashion-mnist.safetensors", "FashionMNIST/raw/train-images-idx3-ubyte.gz")
    data = FashionMNISTData()
    data.prepare_data()
    data.setup("fit")
    assert (data.fingerprint, data.hparams["val_rows"]) == ("2b4059667c329562", 5000)


def test_real_images_are_learned_in_a_few_batches(real_data: Callable[..., Path]) -> None:
    real_data("fashion-mnist.safetensors", "FashionMNIST/raw/train-images-idx3-ubyte.gz")
    result = dlcourse.train(
        dataclasses.replace(TOPIC, baselines={"majority": baselines.majority}),  # the other one takes seconds
        data={"batch_size": 128, "val_rows": 0},
        model={"network": "mlp", "compile": False},
        trainer={"max_epochs": 1, "limit_batches": 20},
    )
    assert result.data is not None
    assert torch.bincount(result.data.rows.targets[:60_000]).tolist() == [6000] * 10
    assert [round(float(each), 1) for each in (result.data.scaling[0], result.data.scaling[1])] == [72.9, 90.0]
    assert result.metrics["test/accuracy"] > 0.5
