"""The benchmark runs and says what it measured; how fast things are is no matter for a test."""

import json
import subprocess
from pathlib import Path

import pytest
from benchmarks import images, run, verdicts
from torchvision.datasets import CIFAR10, FashionMNIST

from tests.image_sets import NOWHERE, write_fashion_mnist


def test_figures_as_a_table_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    parts = ["--parts", "startup", "fit", "tracking"]
    assert run.main(["--repeats", "1", *parts, "--json", str(tmp_path / "figures.json")]) == 0
    content = json.loads((tmp_path / "figures.json").read_text())
    assert content["failed"] == {}
    assert set(content["machine"]) == {"processor", "system", "versions", "load before"}
    for figure in content["figures"]:
        assert set(figure) == {"name", "unit", "values", "bound", "median", "min", "max", "n"}
    table = capsys.readouterr().out
    assert [figure["name"] in table for figure in content["figures"]] == [True] * 10
    assert Path.cwd() == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_verdicts_on_built_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "unrelated: 95/5, 20 rows",
        "as good: 95/5, too little beside too much, 50 rows",
        "related: numbers, 1000 rows",
    ]
    arguments = ["--parts", "losses", "--runs", "40", "--cases", *names, "--json", str(tmp_path / "verdicts.json")]
    monkeypatch.setattr("sys.argv", ["verdicts", *arguments])
    verdicts.main()
    rows = json.loads((tmp_path / "verdicts.json").read_text())
    assert [row["case"] for row in rows] == names
    assert [row["hits"] <= 5 for row in rows] == [True] * 3
    assert rows[2]["hits"] == 0


def test_a_part_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a fresh clone without a network: the image sets are not there, and cannot be had."""
    monkeypatch.setenv("DLCOURSE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(FashionMNIST, "mirrors", [NOWHERE])
    monkeypatch.setattr(CIFAR10, "url", f"{NOWHERE}{CIFAR10.filename}")
    monkeypatch.setattr(run, "EPOCHS", 2)
    parts = ["--parts", "fashion-mnist", "cifar10", "fit"]
    assert run.main(["--repeats", "1", *parts, "--json", str(tmp_path / "figures.json")]) == 1
    content = json.loads((tmp_path / "figures.json").read_text())
    assert set(content["failed"]) == {"fashion-mnist", "cifar10"}
    assert len(content["figures"]) == 4, "of fit"
    table = capsys.readouterr().out
    for part, reason in content["failed"].items():
        assert "is not available" in reason
        assert f"{part}: FAILED: {reason}" in table


def test_a_process_that_fails_says_why_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run.process_seconds("-c", "raise SystemExit('what was in the way')")
    assert run.reason_of(failure.value) == "what was in the way"


def test_image_sets_are_decoded_for_the_loops_that_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With archives alone, as after a download."""
    monkeypatch.setenv("DLCOURSE_DATA_DIR", str(tmp_path / "data"))
    write_fashion_mnist(tmp_path / "data", monkeypatch)
    assert len(images.notes_loop()) == 2
    assert len(images.tensor_loop()) == 3
