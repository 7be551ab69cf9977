"""What pyproject.toml asks for, and what requirements.lock has of it."""

import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

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


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_malicious_uploads_of_lightning_are_not_admitted(version: str) -> None:
    (lightning,) = (each for each in DECLARED if each.name == "lightning")
    assert version not in lightning.specifier
    assert "2.6.6" in lightning.specifier
    assert LOCKED["lightning"] != version


def test_what_is_locked_is_what_is_declared() -> None:
    for each in DECLARED:
        assert LOCKED[each.name.lower()] in each.specifier, each
