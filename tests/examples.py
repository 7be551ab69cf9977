"""The examples of README and docs: found by their marks, and installed as packages of their own."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT


def block(page: str, marker: str) -> str:
    """The code between ``<!-- marker -->`` and its end on a page, ``README.md`` or one in docs."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```\n<!-- /", text, re.DOTALL)
    assert found, f"{page} has no block {marker!r}"
    return found.group(1)


@contextmanager
def topic_package(site: Path, name: str, code: str) -> Iterator[None]:
    """A topic within, as pip leaves it: the module ``name``, and its TOPIC in the metadata."""
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{name}.py").write_text(code, encoding="utf-8")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[dlcourse.topics]\n{name} = {name}:TOPIC\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield
    sys.modules.pop(name, None)
