"""CIFAR-10 from its archive, what is said where it is missing or damaged, and its two networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.datasets import CIFAR10

import dlcourse
from dlcourse.errors import CourseError
from dlcourse.topics.cifar10 import CIFAR10Data, CIFAR10Network
from tests.image_sets import Images, untouchable, write_cifar10


@pytest.fixture
def made(project: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    return write_cifar10(project / "data", monkeypatch)


def prepared() -> CIFAR10Data:
    data = CIFAR10Data(source="full", val_rows=20)
    data.prepare_data()
    return data


def test_images_are_those_of_the_batches_channel_by_channel(made: Images) -> None:
    rows = prepared().rows
    assert torch.equal(rows.inputs, torch.cat([made["train_images"], made["test_images"]]))
    assert torch.equal(rows.targets, torch.cat([made["train_labels"], made["test_labels"]]).long())
    assert (list(rows.inputs.shape), rows.inputs.dtype) == ([240, 3, 32, 32], torch.uint8)


def test_the_second_start_reads_no_archive(made: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared()
    Path("data", CIFAR10.filename).unlink()
    monkeypatch.setattr(CIFAR10, "__init__", untouchable)
    assert prepared().fingerprint == first.fingerprint


def test_a_batch_that_was_half_unpacked_is_unpacked_anew(made: Images) -> None:
    folder = Path("data", CIFAR10.base_folder)
    folder.mkdir()
    (folder / "data_batch_3").write_bytes(b"half")
    assert torch.equal(prepared().rows.inputs[:200], made["train_images"])


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_an_archive_that_cannot_be_used_is_named(made: Images, state: str) -> None:
    path = Path("data", CIFAR10.filename)
    if state == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CourseError) as refusal:
        prepared()
    said = str(refusal.value)
    assert said.startswith(f"CIFAR10 is not available: cifar-10-python.tar.gz is {state} (http://127.0.0.1:9/")
    assert "Connection refused" in said
    assert f"data folder, {Path.cwd() / 'data'}, or set DLCOURSE_DATA_DIR" in said


def test_resnet18_keeps_small_images_as_large_as_they_are() -> None:
    model = CIFAR10Network([3, 32, 32], 10, network="resnet18")
    first = model.network.conv1
    assert isinstance(first, nn.Conv2d)
    assert first(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)
    assert isinstance(model.network.maxpool, nn.Identity)
    assert sum(each.numel() for each in model.parameters()) == 11_173_962, "that of He et al. for small images"
    assert model.eval()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)


def test_a_training_from_the_archive(made: Images) -> None:
    result = dlcourse.train(
        "cifar10",
        data={"val_rows": 40, "batch_size": 40, "cutout": 8},
        model={"widths": [4, 8, 8], "compile": False, "lr": 3.0},
        trainer={"max_epochs": 2},
    )
    assert result.model_uri
    assert result.verdict.sentence.startswith(("learned", "unfinished"))


def test_real_images_are_as_many_of_each_class(real_data: Callable[..., Path]) -> None:
    real_data("cifar10.safetensors", CIFAR10.filename)
    data = CIFAR10Data()
    data.prepare_data()
    data.setup("fit")
    assert torch.bincount(data.rows.targets[:50_000]).tolist() == [5000] * 10
    assert torch.bincount(data.rows.targets[50_000:]).tolist() == [1000] * 10
    assert (data.fingerprint, data.hparams["val_rows"]) == ("2d43d6eac815b8ca", 5000), "split as ever"
    # The means and deviations that are quoted everywhere are those of all 50,000 training images.
    mean, std = data.scaling
    assert (mean / 255).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)
    assert (std / 255).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-3)
