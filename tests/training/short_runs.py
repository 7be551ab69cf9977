"""Short runs of the diabetes topic, to be resumed, started from, or refused."""

from pathlib import Path
from typing import Any

import pytest

import dlcourse
from dlcourse.errors import CourseError
from dlcourse.reporting.result import Result

SMALL: dict[str, Any] = {"hidden": [4]}


def trained(data: dict[str, Any] | None = None, **arguments: Any) -> Result:
    """The diabetes network on scikit-learn's own rows, for three epochs."""
    trainer = {"max_epochs": 3, **arguments.pop("trainer", {})}
    model = SMALL | arguments.pop("model", {})
    return dlcourse.train(
        "diabetes", data={"source": "bundled", **(data or {})}, model=model, trainer=trainer, **arguments
    )


def resumed(run: Result, **arguments: Any) -> Result:
    return dlcourse.train("diabetes", resume=run.run_id, **arguments)


def runs() -> list[str]:
    """The ids of all trainings in the store."""
    client = dlcourse.open_store().client
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(experiments, "tags.`dlcourse.kind` = 'training'")
    return sorted(each.info.run_id for each in found)


def refused(call: Any, *parts: str) -> str:
    """The one line of what must be refused, which leaves no run behind."""
    before = runs()
    with pytest.raises(CourseError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line
    assert runs() == before, "no run was begun"
    return line


def write_rows(path: str, rows: range) -> str:
    """A CSV file of two features and a label, a row a number."""
    lines = [f"{number},{(7 * number) % 13},{int((7 * number) % 13 > 6)}" for number in rows]
    Path(path).write_text("\n".join(["a,b,label", *lines]) + "\n")
    return path


def on_file(path: str, **arguments: Any) -> Result:
    return trained(arguments.pop("data", {}) | {"source": "file", "file": path}, **arguments)
