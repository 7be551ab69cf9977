"""Image sets: what is kept on disk, how it is split, scaled and augmented, and what is in the way."""

import errno
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dlcourse.errors import CourseError, SettingsError
from dlcourse.images import decoded as decoded_images
from dlcourse.images.datasets import ImageData
from dlcourse.training.trainer import make_trainer
from tests.image_sets import Images, Pictures, Small, pictures

pytestmark = pytest.mark.usefixtures("project")


# Rows


def test_rows_are_the_images_and_labels_in_their_order() -> None:
    rows, made = pictures().rows, Pictures.made
    assert torch.equal(rows.inputs, torch.cat([made["train_images"], made["test_images"]]))
    assert torch.equal(rows.targets, torch.cat([made["train_labels"], made["test_labels"]]).long())
    assert (rows.inputs.dtype, rows.targets.dtype, rows.classes) == (torch.uint8, torch.int64, Pictures.classes)


def test_validation_rows_are_cut_from_training_images_class_by_class() -> None:
    data = pictures(val_rows=20)
    splits = data.splits
    assert splits["test"].tolist() == list(range(80, 100)), "the official test images"
    assert sorted([*splits["train"].tolist(), *splits["val"].tolist()]) == list(range(80))
    assert torch.bincount(data.rows.targets[splits["val"]]).tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("val_rows", [0, 1, 19, 79])
def test_as_many_validation_rows_as_asked_for(val_rows: int) -> None:
    assert {split: len(rows) for split, rows in pictures(val_rows=val_rows).splits.items()} == {
        "train": 80 - val_rows,
        "val": val_rows,
        "test": 20,
    }


def test_split_seed_decides_the_split() -> None:
    first, same, other = (pictures(split_seed=seed).splits["val"].tolist() for seed in (0, 0, 1))
    assert first == same != other


def test_too_many_validation_rows_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"--data\.val_rows 80 of 80 training images leave none to train on: lower"):
        _ = pictures(val_rows=80).splits


def test_folds_are_refused() -> None:
    with pytest.raises(SettingsError, match="--folds would train on the data set's own test rows"):
        pictures().fold(0, 5)


# Scaling


def test_scaling_is_that_of_the_training_rows_pixels() -> None:
    data = pictures()
    pixels = data.rows.inputs[data.splits["train"]].numpy().astype(np.float64)
    mean, std = data.scaling
    assert mean.numpy() == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-6)
    assert std.numpy() == pytest.approx(pixels.std((0, 2, 3)), rel=1e-6)


def test_without_standardising_pixels_go_from_0_to_1() -> None:
    data = pictures(standardize=False)
    model = Small(data.shape, data.outputs)
    model.prepare(data)
    scaled = model.standardised(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3))
    assert scaled[0, 0, 0].tolist() == pytest.approx([0, 0.2, 1])


def test_a_channel_without_variation_is_left_as_wide_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = dict(Pictures.made)
    made["train_images"] = made["train_images"].clone()
    made["train_images"][:, 1] = 9
    monkeypatch.setattr(Pictures, "made", made)
    mean, std = pictures().scaling
    assert (float(mean[1]), float(std[1])) == (9, 1)


# What a training sees


class Seen(Callback):
    """The batches as they reach the model: (epoch, images, labels) of training, images of each validation loader."""

    def __init__(self) -> None:
        self.train: list[tuple[int, Tensor, Tensor]] = []
        self.val: dict[int, list[Tensor]] = {0: [], 1: []}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.train.append((trainer.current_epoch, *batch))

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.val[dataloader_idx].append(batch[0])

    def images_of(self, epoch: int) -> Tensor:
        return torch.cat([shown for number, shown, _ in self.train if number == epoch])


def seen_in(data: ImageData, epochs: int = 2, seed: int = 0) -> Seen:
    seen = Seen()
    L.seed_everything(seed, workers=True, verbose=False)
    trainer = make_trainer(max_epochs=epochs, patience=None, accelerator="cpu", callbacks=[seen])
    trainer.fit(Small(data.shape, data.outputs), datamodule=data)
    return seen


def found_in(image: Tensor, shown: Tensor) -> bool:
    return bool((shown == image).flatten(1).all(1).any())


def test_only_training_batches_are_augmented() -> None:
    data = pictures(shift=2, flip="random", cutout=3)
    seen = seen_in(data, epochs=1)
    rows, splits = data.rows.inputs, data.splits
    assert torch.equal(torch.cat(seen.val[0]), rows[splits["val"]])
    assert torch.equal(torch.cat(seen.val[1]), rows[splits["train"]]), "by which the gap is told"
    changed = [not found_in(image, rows) for image in seen.images_of(0)]
    assert sum(changed) > 50
    (test,) = (batch for batch in data.test_dataloader())
    assert torch.equal(data.on_after_batch_transfer(test, 0)[0], rows[splits["test"]])


def test_without_augmentation_each_training_image_comes_once_an_epoch_with_its_label() -> None:
    data = pictures(shift=0, flip="none")
    seen = seen_in(data, epochs=1)
    train = data.splits["train"]
    order = [int((data.rows.inputs[train] == image).flatten(1).all(1).nonzero()) for image in seen.images_of(0)]
    assert sorted(order) == list(range(60))
    assert order != list(range(60))
    assert torch.equal(torch.cat([labels for _, _, labels in seen.train]), data.rows.targets[train[order]])


def test_alternating_flip_shows_each_image_and_its_mirror_image_in_two_epochs() -> None:
    data = pictures(shift=0, flip="alternating")
    seen = seen_in(data, epochs=4)
    flipped = []
    for image in data.rows.inputs[data.splits["train"]]:
        mirrored = [found_in(image.flip(-1), seen.images_of(epoch)) for epoch in range(4)]
        assert mirrored != [found_in(image, seen.images_of(epoch)) for epoch in range(4)]
        assert mirrored in ([True, False] * 2, [False, True] * 2)
        flipped.append(mirrored[0])
    assert 15 < sum(flipped) < 45, "half of them first"


def test_random_flip_is_drawn_anew_for_each_image_and_epoch() -> None:
    data = pictures(shift=0, flip="random")
    seen = seen_in(data, epochs=4)
    mirrored = [
        [found_in(image.flip(-1), seen.images_of(epoch)) for epoch in range(4)]
        for image in data.rows.inputs[data.splits["train"]]
    ]
    assert 90 < sum(map(sum, mirrored)) < 150
    assert len({tuple(each) for each in mirrored}) > 8


def test_the_seed_decides_what_is_seen() -> None:
    first, same, other = (seen_in(pictures(cutout=2), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images_of(1), same.images_of(1))
    assert not torch.equal(first.images_of(1), other.images_of(1))
    assert not torch.equal(first.images_of(0), first.images_of(1))


# On disk


def files() -> list[str]:
    return sorted(path.name for path in Path("data").iterdir())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that images were decoded into, one for each time."""
    folders: list[Path] = []

    def decode(self: Pictures, folder: Path) -> Images:
        folders.append(folder)
        return self.made

    monkeypatch.setattr(Pictures, "decode", decode)
    return folders


def test_images_are_decoded_once(decoded: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dlcourse")
    pictures()
    assert [record.getMessage() for record in caplog.records] == [
        f"{Path.cwd()}/data/pictures.safetensors does not exist: decoding the images, once"
    ]
    assert pictures().fingerprint == pictures().fingerprint
    assert len(decoded) == 1
    assert len(caplog.records) == 1
    assert files() == ["pictures.lock", "pictures.safetensors"]
    assert Path("data/pictures.safetensors").stat().st_mode & 0o777 == 0o644


def shortened(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-1])


def emptied(cache: Path) -> None:
    cache.write_bytes(b"")


def changed(cache: Path) -> None:
    content = bytearray(cache.read_bytes())
    content[-7] ^= 1
    cache.write_bytes(content)


def saved(**other: Tensor) -> Callable[[Path], None]:
    def spoil(cache: Path) -> None:
        save_file({name: tensor for name, tensor in (Pictures.made | other).items() if len(tensor)}, cache)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (shortened, "MetadataIncompleteBuffer|incomplete"),
        (emptied, "HeaderTooSmall|header too small"),
        (changed, "its checksum is wrong"),
        (saved(train_labels=torch.zeros(80)), "of another type than uint8"),
        (saved(test_labels=torch.zeros(3, dtype=torch.uint8)), r"3 labels for images of shape \(20, 3, 8, 8\)"),
        (saved(test_labels=torch.full((20,), 4, dtype=torch.uint8)), "label 4 for 4 classes"),
        (saved(test_labels=torch.zeros(0)), "test_labels"),
    ],
)
def test_a_damaged_cache_is_named_and_made_anew(
    decoded: list[Path], caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], why: str
) -> None:
    whole = pictures().fingerprint
    spoil(Path("data/pictures.safetensors"))
    assert pictures().fingerprint == whole
    assert len(decoded) == 2
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "data/pictures.safetensors is damaged (" in warning
    assert re.search(why, warning)


def test_a_cache_without_a_checksum_is_taken_as_it_is(decoded: list[Path]) -> None:
    Path("data").mkdir()
    saved()(Path("data/pictures.safetensors"))
    pictures()
    assert decoded == []


def no_room(tensors: Images, place: Path, metadata: dict[str, str]) -> None:
    place.write_bytes(b"half of it")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_leaves_no_half_written_cache(decoded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(decoded_images, "save_file", no_room)
        with pytest.raises(CourseError) as refusal:
            pictures()
    assert str(refusal.value) == (
        f"{Path.cwd()}/data/pictures.safetensors does not exist, and cannot be written (Error while serializing: I/O "
        "error: No space left on device (os error 28)): make room there and the folder writable, or set "
        "DLCOURSE_DATA_DIR to another folder"
    )
    assert files() == ["pictures.lock"]
    assert len(pictures().rows.inputs) == 100


def test_being_interrupted_while_writing_leaves_nothing(decoded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(tensors: Images, place: Path, metadata: dict[str, str]) -> None:
        place.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(decoded_images, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pictures()
    assert files() == ["pictures.lock"]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let no lock be taken, as in a folder that cannot be written to: root may write to any other one."""

    def refuse(place: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(place))

    return lambda: monkeypatch.setattr(decoded_images, "FileLock", refuse)


def test_a_read_only_folder_will_do_where_the_cache_is_there(
    decoded: list[Path], read_only: Callable[[], None]
) -> None:
    pictures()
    read_only()
    assert len(pictures().rows.inputs) == 100
    assert len(decoded) == 1


def test_a_read_only_folder_without_the_cache_says_so(decoded: list[Path], read_only: Callable[[], None]) -> None:
    read_only()
    with pytest.raises(CourseError, match=r"pictures\.safetensors does not exist, and cannot be written \(.*Read-only"):
        pictures()
    assert decoded == []


def test_a_data_folder_that_cannot_be_made_says_so(decoded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("taken").write_text("a file where a folder should be")
    monkeypatch.setenv("DLCOURSE_DATA_DIR", "taken/data")
    with pytest.raises(CourseError, match=r"taken/data/pictures\.safetensors does not exist, and cannot be written"):
        pictures()


def test_of_two_that_need_them_one_decodes_and_the_other_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def decode(self: Pictures, folder: Path) -> Images:
        decoded.append(folder)
        time.sleep(0.3)
        return self.made

    monkeypatch.setattr(Pictures, "decode", decode)
    with ThreadPoolExecutor(2) as pool:  # the lock is between open files, of one process or two
        first, second = (each.result() for each in [pool.submit(pictures), pool.submit(pictures)])
    assert len(decoded) == 1
    assert first.fingerprint == second.fingerprint
