"""Models that earlier versions have exported are still read, and give what they gave."""

from pathlib import Path

import numpy as np
import pytest

import dlcourse
from dlcourse import topics
from dlcourse.export.formats import SUFFIXES, open_file
from tests.export.make_fixtures import FIXTURES

FILES = sorted(file for file in FIXTURES.rglob("*") if file.suffix in SUFFIXES)


def test_this_version_has_some() -> None:
    of_this = {file.name for file in FILES if file.parent.name == dlcourse.__version__}
    assert {"diabetes.ckpt", "diabetes.onnx", "fashion-mnist.ckpt", "fashion-mnist.onnx"} <= of_this


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_exports_of_every_version_give_what_they_gave(file: Path) -> None:
    opened = open_file(file, topics.find)
    with np.load(file.with_suffix(".npz"), allow_pickle=False) as kept:
        given = opened.predict(kept["rows"])
        if kept["probabilities"].shape[1] == 1:  # those of the second of two classes
            given = given[:, 1:]
        np.testing.assert_allclose(given, kept["probabilities"], atol=1e-5)
    assert opened.description.settings["trainer"]["max_epochs"] in (1, 5)
    assert opened.description.topic == file.stem
