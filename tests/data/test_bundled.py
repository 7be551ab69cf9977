"""The data that come with the package: what they are, how they are made, and that a wheel has them."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torchvision.datasets import CIFAR10

from dlcourse.data import bundled
from dlcourse.images.datasets import ImageData
from dlcourse.topics.cifar10 import CIFAR10Data
from dlcourse.topics.diabetes import COURSE_FILE, DiabetesData
from dlcourse.topics.fashion_mnist import FashionMNISTData
from tests.conftest import ROOT
from tests.image_sets import Images, Pictures, made_images
from tests.make_samples import NOT_EXACT, chosen, write_sample

SIZES = {FashionMNISTData: (5000, 1000), CIFAR10Data: (2500, 500)}
KINDS = pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.set_name)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_a_sheet_keeps_every_pixel(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    images = made_images(shape, 100)["train_images"]
    bundled.write_sheet(tmp_path / "sheet.webp", images)
    assert torch.equal(bundled.read_sheet(tmp_path / "sheet.webp"), images)


@KINDS
def test_samples_have_as_many_images_of_each_class_and_none_twice(project: Path, kind: type[ImageData]) -> None:
    data = kind(source="sample")
    data.prepare_data()
    train, test = SIZES[kind]  # type: ignore[index]
    labels = data.rows.targets
    assert torch.bincount(labels[:train]).tolist() == [train // 10] * 10
    assert torch.bincount(labels[train:]).tolist() == [test // 10] * 10
    assert len({image.numpy().tobytes() for image in data.rows.inputs}) == train + test
    sizes = {split: len(rows) for split, rows in data.splits.items()}
    assert sizes == {"train": train - train // 10, "val": train // 10, "test": test}
    data.setup("fit")
    assert data.hparams["val_rows"] == train // 10
    assert not (project / "data").exists(), "nothing is kept: it is read in a moment"


@KINDS
def test_samples_are_what_their_script_draws_from_the_whole_sets(
    kind: type[ImageData], real_data: Callable[..., Path]
) -> None:
    real_data(f"{kind.set_name}.safetensors", "FashionMNIST/raw" if kind is FashionMNISTData else CIFAR10.filename)
    whole = kind(source="full")
    whole.prepare_data()
    left_out = NOT_EXACT if kind is CIFAR10Data else {}
    first_test = len(whole.rows.targets) - len(whole.rows.fixed_splits["test"])
    parts = {"train": slice(first_test), "test": slice(first_test, None)}
    sample = bundled.read_sample(kind.set_name, 10)
    for (split, part), size in zip(parts.items(), SIZES[kind], strict=True):  # type: ignore[index]
        rows = chosen(whole.rows.targets[part], size // 10, left_out.get(split, ()))
        assert not set(rows.tolist()) & set(left_out.get(split, ()))
        assert torch.equal(sample[f"{split}_images"], whole.rows.inputs[part][rows])
        assert torch.equal(sample[f"{split}_labels"].long(), whole.rows.targets[part][rows])


class Many(Pictures):
    """Enough for a sheet of 50."""

    made: ClassVar[Images] = made_images((3, 8, 8), 120, 60, 5)
    classes = ("a", "b", "c", "d", "e")


def test_a_sample_is_written_as_it_is_read(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    write_sample(Many(source="full"), {"train": 100, "test": 50}, {"train": (0,)}, tmp_path)
    sample = bundled.read_sample("pictures", 5)
    rows = chosen(Many.made["train_labels"], 20, (0,))
    assert 0 not in rows
    assert torch.equal(sample["train_images"], Many.made["train_images"][rows])
    assert torch.equal(sample["train_labels"], Many.made["train_labels"][rows])
    assert len(sample["test_labels"]) == 50
    data = Many(source="sample", val_rows=10)
    data.prepare_data()
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 90, "val": 10, "test": 50}


def test_the_course_file_is_what_it_is_said_to_be() -> None:
    content = COURSE_FILE.read_bytes()
    for text in (DiabetesData.__doc__ or "", (bundled.FOLDER / "NOTICE").read_text(encoding="utf-8")):
        assert hashlib.sha256(content).hexdigest() in text


def test_a_wheel_has_them_and_they_are_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    sizes = {Path(each.filename).name: each.file_size for each in zipfile.ZipFile(wheel).infolist()}
    sheets = [bundled.sheet_of(kind.set_name, split).name for kind in SIZES for split in ("train", "test")]
    assert {"NOTICE", COURSE_FILE.name, *sheets} <= set(sizes)
    assert sum(sizes[name] for name in sheets) < 10e6
