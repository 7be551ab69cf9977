"""What a run notes of where it runs."""

import os
import sys
from pathlib import Path

import pytest
import torch

from dlcourse.tracking.environment import command_line, environment, git_commit
from tests.finished import make_repository


def test_machine_and_packages_one_a_line() -> None:
    lines = environment().splitlines()
    assert lines[0] == f"# {command_line()}"
    assert lines[1].startswith("# ")
    assert lines[2] == f"# Python {sys.version.split()[0]}"
    assert f"torch=={torch.__version__.partition('+')[0]}" in [line.partition("+")[0] for line in lines]


def test_distributions_without_a_name_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "nameless-1.0.dist-info").mkdir()
    (tmp_path / "nameless-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "\ntorch==" in environment()


def test_the_commit_and_whether_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.chdir(tmp_path)
    commit = make_repository(tmp_path)
    assert git_commit() == {"mlflow.source.git.commit": commit, "dlcourse.git.dirty": "false"}
    (tmp_path / "notes.txt").write_text("changed")
    assert git_commit() == {"mlflow.source.git.commit": commit, "dlcourse.git.dirty": "true"}


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_commit() == {}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/x/dlcourse/__main__.py", "train", "--name", "my first"], "python -m dlcourse train --name 'my first'"),
        (["/x/bin/dlcourse", "topics"], "dlcourse topics"),
        (["dlcourse", "http://ada:s3cret@a.server/"], "dlcourse http://ada:***@a.server/"),
        ([""], "python"),
        ([], "python"),
    ],
)
def test_the_command_line_can_be_typed_again(argv: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == expected
