"""The benchmark runs and says what it measured; how fast things are is no matter for a test."""

import json
from pathlib import Path

import pytest
from benchmarks import run


def test_figures_as_a_table_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    parts = ["--parts", "startup", "fit", "tracking"]
    assert run.main(["--repeats", "1", *parts, "--json", str(tmp_path / "figures.json")]) == 0
    content = json.loads((tmp_path / "figures.json").read_text())
    assert set(content["machine"]) == {"processor", "system", "versions", "load before"}
    for figure in content["figures"]:
        assert set(figure) == {"name", "unit", "values", "bound", "median", "min", "max", "n"}
    table = capsys.readouterr().out
    assert [figure["name"] in table for figure in content["figures"]] == [True] * 10
    assert Path.cwd() == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
