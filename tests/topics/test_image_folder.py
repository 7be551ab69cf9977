"""A folder of pictures as rows, what is left out of it, and trainings on it."""

import hashlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dlcourse
from dlcourse.cli import main
from dlcourse.errors import SettingsError
from dlcourse.export.model import load_model
from dlcourse.images import decoded as decoded_images
from dlcourse.images import hymenoptera
from dlcourse.topics import image_folder
from dlcourse.topics.image_folder import TOPIC, ImageFolderData, ImageFolderNetwork
from dlcourse.training.checkpoints import load_checkpoint
from tests.image_sets import NOWHERE, untouchable, write_image_folder, write_pictures, write_weights
from tests.processes import serving

CAREFUL = {"crop": 0.0, "colour": 0.0, "flip": False}
SMALL = "shufflenet_v2_x0_5"
AS_IT_IS = {"lr_per_1024_samples": False, "bias_lr_factor": 1.0}
"""The learning rate, as Adam needs it."""


@pytest.fixture
def root(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 ants and bees to train on and 20 to test on, in the data folder."""
    write_image_folder(project / "data", monkeypatch)
    return project / "data" / "hymenoptera"


@pytest.fixture
def refused(project: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Train, and be refused: the one line on stderr, with no run left behind."""

    def train(*flags: object, status: int = 2) -> str:
        capfd.readouterr()
        assert main(["train", "image-folder", *map(str, flags)]) == status
        said = capfd.readouterr()
        assert said.out == ""
        (line,) = (line for line in said.err.splitlines() if not line.endswith(", once"))
        assert line.startswith("dlcourse: ")
        client = dlcourse.open_store().client
        assert not any(client.search_runs([each.experiment_id]) for each in client.search_experiments())
        return line.removeprefix("dlcourse: ")

    return train


def prepared(root: Path | None = None, **settings: object) -> ImageFolderData:
    data = ImageFolderData(root=str(root) if root else None, **({"size": 16} | settings))
    data.prepare_data()
    data.setup("fit")
    return data


def sizes(data: ImageFolderData) -> dict[str, int]:
    return {split: len(rows) for split, rows in data.splits.items()}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# Rows


def test_rows_are_the_pictures_with_the_names_of_their_folders(project: Path) -> None:
    for name, colour in {"red ants": (255, 0, 0), "蜜蜂": (0, 0, 255)}.items():
        for split in ("train", "val"):
            write_pictures(project / "mine" / split / name, 5)
            for path in (project / "mine" / split / name).iterdir():
                Image.new("RGB", (20, 30), colour).save(path)
    data = prepared(project / "mine")
    assert data.rows.classes == ("red ants", "蜜蜂")
    assert (data.shape, data.outputs, data.rows.inputs.dtype) == ([3, 16, 16], 2, torch.uint8)
    blue = data.rows.inputs[:, 2].flatten(1).float().mean(1) == 255
    assert torch.equal(blue.long(), data.rows.targets)
    assert data.rows.source == f"the images in {project / 'mine'}"


def test_val_is_for_testing_and_validation_rows_are_cut_from_train(root: Path) -> None:
    data = prepared()
    assert sizes(data) == {"train": 48, "val": 12, "test": 20}
    assert torch.equal(data.splits["test"], data.rows.fixed_splits["test"])
    assert torch.bincount(data.rows.targets[data.splits["val"]]).tolist() == [6, 6]
    assert sorted(torch.cat([*data.splits.values()]).tolist()) == list(range(80))
    other = prepared(split_seed=1)
    assert torch.equal(other.splits["test"], data.splits["test"])
    assert not torch.equal(other.splits["val"], data.splits["val"])
    data.refit()
    assert sizes(data) == {"train": 60, "val": 0, "test": 20}


def test_folders_for_all_three_are_taken_as_they_are(root: Path) -> None:
    for name in ("ants", "bees"):
        write_pictures(root / "test" / name, 3)
    assert sizes(prepared()) == {"train": 60, "val": 20, "test": 6}


def test_one_folder_is_split_class_by_class(root: Path) -> None:
    data = prepared(root / "train", val_fraction=0.1)
    assert sizes(data) == {"train": 42, "val": 6, "test": 12}
    of_each_class = {split: torch.bincount(data.rows.targets[rows]).tolist() for split, rows in data.splits.items()}
    assert of_each_class == {"train": [21, 21], "val": [3, 3], "test": [6, 6]}
    assert data.fingerprint == prepared(root / "train", val_fraction=0.1).fingerprint
    data.fold(0, 5)
    assert sizes(data) == {"train": 43, "val": 5, "test": 12}


def test_folds_of_test_pictures_are_refused(root: Path) -> None:
    with pytest.raises(SettingsError, match="--folds would train on the data set's own test rows"):
        prepared().fold(0, 5)


# What is left out


def test_what_is_left_out_is_said_in_one_line(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train" / "ants" / "broken one.jpg").write_text("no picture")
    (root / "train" / "ants" / "notes.txt").touch()
    (root / "train" / "wasps").mkdir()
    write_pictures(root / "val" / "butterflies", 2)
    (root / "train" / "flies").mkdir()
    (root / "train" / "flies" / "half.png").write_bytes(b"\x89PNG")
    for _ in range(2):
        caplog.clear()
        data = prepared()
        assert sizes(data) == {"train": 48, "val": 12, "test": 20}
        assert data.rows.classes == ("ants", "bees")
        assert warnings_of(caplog) == [
            f"left out of {root}: folders of classes without an image: 1 (train/wasps); files that are not named like "
            "images: 1 (notes.txt); images that cannot be read: 2 (train/ants/broken one.jpg, "
            "train/flies/half.png); classes without an image to train on: 1 (butterflies)"
        ]


def test_a_folder_in_order_leaves_nothing_to_say(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepared()
    assert warnings_of(caplog) == []


def test_a_class_of_which_nothing_can_be_read_may_leave_one_class_alone(
    root: Path, refused: Callable[..., str]
) -> None:
    for path in (root / "train" / "bees").iterdir():
        path.write_text("no picture")
    said = refused()
    assert said.startswith(f"--data.root {root} has images of ants alone to train on, and two classes are the least")


def test_what_cannot_be_trained_on_is_refused(project: Path, refused: Callable[..., str]) -> None:
    assert "--data.root /nowhere does not exist: it must hold" in refused("--data.root", "/nowhere")
    write_pictures(project / "one" / "ants", 3)
    assert "has images of ants alone to train on" in refused("--data.root", project / "one")


def test_too_few_pictures_of_a_class_are_refused(project: Path, refused: Callable[..., str]) -> None:
    write_pictures(project / "mine" / "ants", 20)
    write_pictures(project / "mine" / "bees", 2)
    flags = ["--data.root", project / "mine", "--data.size", 16]
    assert refused(*flags, "--data.val_fraction", 0.45, "--data.test_fraction", 0.45).startswith(
        f"--data.root {project / 'mine'} has too few images of bees to leave one to train on: add some, or lower"
    )
    assert "--data.val_fraction 0.01 of 22 rows is none: raise it" in refused(*flags, "--data.val_fraction", 0.01)


# Ants and bees from where the tutorial has them


def zipped(files: dict[str, bytes]) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, picture in files.items():
            archive.writestr(name, picture)
    return content.getvalue()


@pytest.fixture
def tutorial(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive like the tutorial's, of fewer pictures, which is there, as far as anybody knows, and not reached."""
    files = {"hymenoptera_data/train/ants/imageNotFound.gif": b"GIF"}
    for place, count in {"train/ants": 9, "train/bees": 9, "val/ants": 3, "val/bees": 3}.items():
        for picture in write_pictures(tmp_path / "made" / place, count, darker="bees" in place):
            Image.open(picture).save(picture.with_suffix(".jpg"))
            files[f"hymenoptera_data/{place}/{picture.stem}.jpg"] = picture.with_suffix(".jpg").read_bytes()
    content = zipped(files)
    monkeypatch.setattr(hymenoptera, "ADDRESS", f"{NOWHERE}hymenoptera_data.zip")
    monkeypatch.setattr(hymenoptera, "CHECKSUM", f"sha256:{hashlib.sha256(content).hexdigest()}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return content


def test_without_a_folder_ants_and_bees_are_downloaded_once(tutorial: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"/ants.zip": tutorial}) as (address, asked):
        monkeypatch.setattr(hymenoptera, "ADDRESS", f"{address}/ants.zip")
        data = prepared()
        assert sizes(data) == {"train": 14, "val": 4, "test": 6}
        assert data.rows.classes == ("ants", "bees")
        assert data.hparams["root"] == str(Path("data/hymenoptera").absolute())
        assert prepared().fingerprint == data.fingerprint
        assert asked == ["/ants.zip"]
    assert sorted(path.name for path in Path("data").iterdir()) == ["hymenoptera", "hymenoptera.lock", "image-folder"]
    assert len(list(Path("data/hymenoptera").rglob("*.*"))) == 24, "and no placeholder"


def test_pictures_that_are_there_are_taken_as_they_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hymenoptera, "download", untouchable)
    assert sizes(prepared()) == {"train": 48, "val": 12, "test": 20}


@pytest.mark.parametrize("state", ["no network", "cut off", "another archive", "no room"])
def test_a_download_that_goes_wrong_is_one_line_and_leaves_nothing(
    tutorial: bytes, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    def no_room(archive: zipfile.ZipFile, folder: Path, names: list[str]) -> None:
        archive.extract(names[0], folder)
        raise OSError(28, "No space left on device")

    content = {"cut off": tutorial[:-100], "another archive": tutorial.replace(b"train", b"other")}
    with serving({"/ants.zip": content.get(state, tutorial)}) as (address, _):
        if state != "no network":
            monkeypatch.setattr(hymenoptera, "ADDRESS", f"{address}/ants.zip")
        if state == "no room":
            monkeypatch.setattr(zipfile.ZipFile, "extractall", no_room)
        said = refused(status=1)
    assert ("make room" if state == "no room" else "--data.root PATH") in said
    assert [path.name for path in Path("data").iterdir()] == ["hymenoptera.lock"]


def test_ants_and_bees_that_cannot_be_kept_are_one_line(
    tutorial: bytes, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("taken").write_text("a file where a folder should be")
    monkeypatch.setenv("DLCOURSE_DATA_DIR", "taken/data")
    assert "DLCOURSE_DATA_DIR" in refused(status=1)


# On disk


def test_pictures_are_decoded_once_and_nothing_is_written_beside_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(root.rglob("*"))
    first = prepared()
    monkeypatch.setattr(image_folder, "decode_all", untouchable)
    assert prepared().fingerprint == first.fingerprint
    assert first.cache.parent == Path("data/image-folder").absolute()
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("change", ["another picture", "one less", "another size", "a later date", "another class"])
def test_other_pictures_are_decoded_anew(root: Path, change: str) -> None:
    first = prepared()
    picture = root / "train" / "ants" / "000.png"
    if change == "another picture":
        Image.fromarray(np.zeros((40, 48, 3), dtype=np.uint8)).save(picture)
    elif change == "one less":
        picture.unlink()
    elif change == "a later date":
        os.utime(picture, ns=(0, picture.stat().st_mtime_ns + 1))
    elif change == "another class":
        picture.rename(root / "train" / "bees" / "new.png")
    second = prepared(size=8 if change == "another size" else 16)
    assert second.cache != first.cache
    assert first.cache.exists(), "whoever trains on it goes on"
    assert (second.rows.digest == first.rows.digest) == (change == "a later date")
    assert second.shape == ([3, 8, 8] if change == "another size" else [3, 16, 16])


def test_a_damaged_cache_is_made_anew(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = prepared()
    first.cache.write_bytes(first.cache.read_bytes()[:-1])
    assert prepared().fingerprint == first.fingerprint
    (said,) = warnings_of(caplog)
    assert "is damaged (" in said


def test_a_cache_of_other_shapes_is_no_cache(root: Path) -> None:
    data = prepared()
    tensors = {"images": torch.zeros(3, 3, 16, 16), "readable": torch.ones(3)}
    assert data.inconsistency(tensors) == "images of shape (3, 3, 16, 16) for 80 images"


# Training


def test_augmentation_changes_training_images_alone(root: Path) -> None:
    plain, changed = prepared(**CAREFUL), prepared()
    assert (plain.augments, changed.augments) == (False, True)
    images, rows = changed.rows.inputs[:30], torch.arange(30)
    assert torch.equal(plain.augmented(images, rows, 0), images)
    for setting in CAREFUL:
        only = prepared(**(CAREFUL | {setting: True if setting == "flip" else 0.5}))
        seen = only.augmented(images, rows, 0)
        assert (seen.dtype, seen.shape) == (images.dtype, images.shape)
        assert 5 < int((seen != images).flatten(1).any(1).sum()) <= 30
    batch = next(iter(changed.val_dataloader()[0]))
    assert torch.equal(changed.on_after_batch_transfer(batch, 0)[0], changed.rows.inputs[changed.splits["val"]])


def test_a_single_image_left_over_is_left_out(root: Path) -> None:
    for batch_size, expected in ((47, [47]), (46, [46, 2]), (48, [48]), (1, [1] * 48)):
        data = prepared(batch_size=batch_size)
        assert [len(batch[0]) for batch in data.train_dataloader()] == expected


def test_a_training_from_flags_to_a_model_that_takes_bytes(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--data.size", "16", "--data.batch_size", "16", "--trainer.max_epochs", "8", "--name", "mine"]
    assert main(["train", "image-folder", *flags]) == 0
    card = capsys.readouterr().out
    assert re.search("^  verdict +learned", card, re.MULTILINE)
    store = dlcourse.open_store()
    run = store.find_run("mine", "image-folder")
    assert run.data.params["data.root"] == str(root)
    pictures = {path.stem for path in (store.files_of(run) / "figures").iterdir()}
    assert pictures == {"accuracy-curves", "learning-curves", "learning-curves-small", *TOPIC.figures}
    model_id = store.client.search_logged_models([run.info.experiment_id])[0].model_id
    data = prepared()
    rows = data.splits["test"]
    with torch.no_grad():
        probabilities = load_model(store, model_id)(data.rows.inputs[rows])
    assert probabilities.shape == (20, 2)
    accuracy = (probabilities.argmax(1) == data.rows.targets[rows]).float().mean()
    assert float(accuracy) == pytest.approx(run.data.metrics["test/accuracy"])
    # From another folder, the checkpoint finds the pictures again.
    (root.parent.parent / "deeper").mkdir()
    monkeypatch.chdir(root.parent.parent / "deeper")
    assert main(["test", "image-folder", "--run", "mine"]) == 0
    assert f"test/accuracy  {float(accuracy):.6g}\n" in capsys.readouterr().out


def test_a_training_from_learned_weights_needs_them_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(SMALL, tmp_path / "weights", monkeypatch)
    result = dlcourse.train(
        "image-folder",
        data={"size": 32, "batch_size": 16},
        model={"network": SMALL, "pretrained": True, "optimizer": "adamw", "lr": 0.001, **AS_IT_IS},
        trainer={"max_epochs": 1},
    )
    assert result.model_uri, "three classes or two, it exports"
    (tmp_path / "weights").rename(tmp_path / "gone")
    assert result.checkpoint
    model, _ = load_checkpoint(TOPIC, Path(result.checkpoint))
    assert isinstance(model, ImageFolderNetwork)
    assert model.input_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


def test_settings_that_do_not_go_together_are_refused(root: Path, refused: Callable[..., str]) -> None:
    assert refused("--model.pretrained", "true") == (
        "--model.pretrained true needs one of torchvision's networks: add --model.network resnet18"
    )
    for pretrained in ("false", "true"):
        assert "did you mean resnet" in refused("--model.network", "resnet_18", "--model.pretrained", pretrained)
    assert "does not take images of 3 x 8 x 8" in refused("--model.widths", "[8,8,8,8]", "--data.size", 8)


def test_a_folder_that_cannot_be_written_to_is_told(
    root: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: Path) -> None:
        raise OSError(30, "Read-only file system", str(place))

    monkeypatch.setattr(decoded_images, "FileLock", refuse)
    assert "does not exist, and cannot be written (" in refused(status=1)


def test_real_ants_and_bees_are_told_apart_by_their_folders(real_data: Callable[..., Path]) -> None:
    real_data("hymenoptera")
    data = ImageFolderData(size=8)
    counts = Counter(str(picture.path.parent.relative_to(data.root)) for picture in data.folder.files)
    assert counts == {"train/ants": 123, "train/bees": 121, "val/ants": 70, "val/bees": 83}
    assert data.folder.left_out == ()
