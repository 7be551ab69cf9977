"""What pyproject.toml asks for, what requirements.lock has of it, and what a wheel holds."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from dlcourse import __version__
from tests.conftest import EXPERIMENTS, ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DECLARED = [
    Requirement(line)
    for lines in (
        PROJECT["project"]["dependencies"],
        PROJECT["project"]["optional-dependencies"]["tensorboard"],
        PROJECT["dependency-groups"]["dev"],
    )
    for line in lines
]
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("release", ["2.6.2", "2.6.3"])
def test_malicious_uploads_of_lightning_are_not_admitted(release: str) -> None:
    (lightning,) = (each for each in DECLARED if each.name == "lightning")
    assert release not in lightning.specifier
    assert "2.6.6" in lightning.specifier
    assert LOCKED["lightning"] != release


def test_what_is_locked_is_what_is_declared() -> None:
    for each in DECLARED:
        assert LOCKED[each.name.lower()] in each.specifier, each


def test_the_version_is_that_of_the_source() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert version("dlcourse") == __version__


def test_every_module_has_its_layer() -> None:
    """A new module of the packages that are in two layers says in which it is."""
    (layers,) = (each["layers"] for each in PROJECT["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    listed = {name.strip(" ()\n") for layer in layers for name in re.split("[:|]", layer)}
    package = ROOT / "src" / "dlcourse"
    paths = {*package.glob("*"), *package.glob("evaluation/*.py"), *package.glob("reporting/*.py")}
    paths -= {package / name for name in ("evaluation", "reporting", "__pycache__", "py.typed", "__main__.py")}
    modules = {".".join(path.relative_to(package.parent).with_suffix("").parts) for path in paths}
    assert {name for name in modules if not name.endswith("__init__")} <= listed


@pytest.mark.slow
def test_a_wheel_has_the_experiments_and_the_license(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    experiments = {f"dlcourse/experiments/{file.relative_to(EXPERIMENTS)}" for file in EXPERIMENTS.rglob("*.yaml")}
    assert experiments <= names
    assert {"dlcourse/py.typed", "dlcourse/results.json", f"dlcourse-{__version__}.dist-info/licenses/LICENSE"} <= names


COMMANDS = """
from dlcourse.cli import main

main(["train", "diabetes", "--config", "relu", "--print_config"])
main(["check", "image-folder"])
"""


def test_an_installed_wheel_finds_its_experiments(wheel: Path, project: Path) -> None:
    zipfile.ZipFile(wheel).extractall(project / "site")
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], capture_output=True, text=True, timeout=240, cwd=project,
        env=os.environ | {"PYTHONPATH": str(project / "site")},
    )  # fmt: skip
    assert "activation: relu" in done.stdout, done.stderr
    assert "nothing is published of image-folder" in done.stderr
