"""The benchmark runs and says what it measured; how fast things are is no matter for a test."""

import json
from pathlib import Path

import pytest
from benchmarks import run, verdicts


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
