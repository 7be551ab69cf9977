"""Which files of a folder are whose images, and what is left out."""

import os
from pathlib import Path

import pytest

from dlcourse.errors import CourseError, SettingsError
from dlcourse.images import folders as picture_folders
from dlcourse.images.folders import images_below, read_folder


def made(root: Path, *files: str) -> Path:
    """A folder with these files, which hold nothing: they are told apart by their names."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def found(root: Path) -> list[tuple[str, str, str]]:
    """(path, class, split) of each image."""
    return [(str(each.path.relative_to(root)), each.class_name, each.split) for each in read_folder(root).files]


def test_val_beside_train_is_for_testing(tmp_path: Path) -> None:
    root = made(tmp_path, "train/a/1.jpg", "train/b/2.png", "val/a/3.jpg")
    assert found(root) == [
        ("train/a/1.jpg", "a", "train"),
        ("train/b/2.png", "b", "train"),
        ("val/a/3.jpg", "a", "test"),
    ]
    assert read_folder(root).left_out == ()


def test_with_a_test_folder_val_is_for_validation(tmp_path: Path) -> None:
    root = made(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg", "test/a/4.jpg")
    assert {path: split for path, _, split in found(root)} == {
        "train/a/1.jpg": "train",
        "train/b/2.jpg": "train",
        "val/b/3.jpg": "val",
        "test/a/4.jpg": "test",
    }


def test_a_test_folder_of_images_without_classes_does_not_count(tmp_path: Path) -> None:
    root = made(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg", "test/4.jpg")
    assert [split for _, _, split in found(root)] == ["train", "train", "test"]
    assert read_folder(root).left_out == ("folders beside train: 1 (test)",)


def test_folders_of_classes_alone_are_to_be_split(tmp_path: Path) -> None:
    root = made(tmp_path, "cars/1.jpg", "train/2.jpg", "planes/3.jpg")
    assert found(root) == [
        ("cars/1.jpg", "cars", "train"),
        ("planes/3.jpg", "planes", "train"),
        ("train/2.jpg", "train", "train"),
    ]


def test_images_are_told_by_their_endings_and_the_rest_is_counted(tmp_path: Path) -> None:
    root = made(tmp_path, "a/1.JPG", "a/2.Jpeg", "a/3.webp", "a/deeper/4.gif", "b/5.tiff", "a/notes.txt", "a/noending")
    assert [path for path, _, _ in found(root)] == ["a/1.JPG", "a/2.Jpeg", "a/3.webp", "a/deeper/4.gif", "b/5.tiff"]
    assert read_folder(root).left_out == ("files that are not named like images: 2 (noending, notes.txt)",)


def test_what_else_is_left_out_is_named(tmp_path: Path) -> None:
    root = made(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "train/3.jpg", "4.jpg", "old/c/5.jpg", "readme.md")
    (root / "train" / "empty").mkdir()
    assert read_folder(root).left_out == (
        "folders of classes without an image: 1 (train/empty)",
        "folders beside train: 1 (old)",
        "images outside of the classes' folders: 2 (3.jpg, 4.jpg)",
        "files that are not named like images: 1 (readme.md)",
    )


def test_only_the_first_few_are_named(tmp_path: Path) -> None:
    root = made(tmp_path, "a/1.jpg", "b/2.jpg", *(f"a/{number}.txt" for number in range(7)))
    (line,) = read_folder(root).left_out
    assert line == "files that are not named like images: 7 (0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ...)"


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    root = made(
        tmp_path, "a/1.jpg", "b/2.jpg", "a/.hidden.jpg", ".ipynb_checkpoints/3.jpg", "a/.ipynb_checkpoints/4.jpg"
    )
    assert [path for path, _, _ in found(root)] == ["a/1.jpg", "b/2.jpg"]
    assert read_folder(root).left_out == ()


def test_names_with_spaces_and_of_other_scripts(tmp_path: Path) -> None:
    root = made(tmp_path, "red ants/my image (1).jpg", "蜜蜂/蜂 1.jpg")
    assert found(root) == [
        ("red ants/my image (1).jpg", "red ants", "train"),
        ("蜜蜂/蜂 1.jpg", "蜜蜂", "train"),
    ]


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are always Unicode there")
def test_a_class_name_in_another_encoding_is_told_by_its_bytes(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), "蜂".encode("gb18030"))
    os.mkdir(folder)
    open(os.path.join(folder, b"1.jpg"), "wb").close()
    made(tmp_path, "a/1.jpg")
    names = {each.class_name for each in read_folder(tmp_path).files}
    assert names == {"a", "\\udcb7\\udce4"}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = made(tmp_path / "root", "a/1.jpg", "b/2.jpg")
    elsewhere = made(tmp_path / "elsewhere", "3.jpg", "deeper/4.jpg")
    (root / "a" / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(elsewhere)
    (elsewhere / "deeper" / "up").symlink_to(elsewhere)
    (root / "a" / "itself").symlink_to(root / "a")
    (root / "b" / "above").symlink_to(root)
    (root / "b" / "nowhere.jpg").symlink_to(root / "missing.jpg")
    assert [(path, of_class) for path, of_class, _ in found(root)] == [
        ("a/1.jpg", "a"),
        ("a/linked/3.jpg", "a"),
        ("a/linked/deeper/4.jpg", "a"),
        ("b/2.jpg", "b"),
    ]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["train/a/1.jpg", "val/b/2.jpg"],
            "has images of a alone to train on, and two classes are the least: it must",
        ),
        (["a/1.jpg"], "has images of a alone to train on"),
        (["1.jpg", "2.jpg"], "has no images to train on"),
        (["a/1.txt", "b/2.txt"], "has no images to train on"),
    ],
)
def test_fewer_than_two_classes_are_refused(tmp_path: Path, files: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refusal:
        read_folder(made(tmp_path, *files))
    assert str(refusal.value).startswith(f"--data.root {tmp_path} has ")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--data\.root .*/missing does not exist: it must hold a folder of images"):
        read_folder(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"--data\.root .*/file is no folder: it must hold"):
        read_folder(tmp_path / "file")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(picture_folders, "_visible", refuse)  # root may read any folder
    with pytest.raises(CourseError, match=r"--data\.root .* cannot be read: .*Permission denied"):
        read_folder(made(tmp_path, "a/1.jpg", "b/2.jpg"))


def test_images_below_a_folder(tmp_path: Path) -> None:
    root = made(tmp_path, "b.JPG", "a/2.png", "a/deep/1.webp", "a/notes.txt", ".hidden.png")
    assert [str(each.relative_to(root)) for each in images_below(root)] == ["a/2.png", "a/deep/1.webp", "b.JPG"]
    with pytest.raises(CourseError, match="no pictures"):
        images_below(made(tmp_path / "empty", "notes.txt"))
