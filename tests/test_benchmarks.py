"""The benchmark runs and says what it measured; how fast things are is no matter for a test."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import comparisons, exports, images, reproduce, run, verdicts
from benchmarks.phases import FUNCTIONS
from torchvision.datasets import CIFAR10, FashionMNIST

from dlcourse.evaluation.published import published_results
from tests.finished import Finished
from tests.image_sets import NOWHERE, write_fashion_mnist


@pytest.mark.slow
def test_figures_as_a_table_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(run, "EPOCHS", 2)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_comparisons_of_drawn_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparisons.main(["--runs", "1", "--json", str(tmp_path / "comparisons.json")])
    rows = json.loads((tmp_path / "comparisons.json").read_text())
    assert [row["case"] for row in rows] == [case.name for case in comparisons.cases()]
    assert capsys.readouterr().out.count("\n") == len(rows) + 2
    assert [row["hits"] for row in rows if row["case"].startswith("2 points better: 3 seeds, 10000")] == [1]


def test_comparisons_of_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose seeds are good and bad in turns, on the side of three: the runs differ, and the settings do not."""
    spread = [0.3, -0.3, 0.0, -0.3, 0.3, 0.0]

    def trained(seed: int) -> dict[str, torch.Tensor]:
        rows, own = (torch.randn(150, generator=torch.Generator().manual_seed(each)) for each in (1000, seed))
        values = rows + 0.1 * own + spread[seed % 6]
        return {"loss": values, "accuracy": (values > -1).double()}

    monkeypatch.setattr(comparisons, "train_diabetes", trained)
    hits = {row["case"]: row["hits"] for row in comparisons.run_real(2)}
    assert hits["diabetes: loss, compare_settings"] == 0
    assert hits["diabetes: accuracy, compare_settings"] == 0
    assert hits["diabetes: accuracy, paired t over rows, one run of each"] == 2


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


@pytest.mark.slow
def test_every_phase_of_a_training_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that has been renamed would leave its phase empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(run, "COMMANDS", {"height-weight": "default"})
    monkeypatch.setattr(run, "prepare", lambda topic: None)
    process_seconds = run.process_seconds

    def measured(*arguments: str, **settings: Any) -> float:
        """Without the process before, that compiles the modules: they are compiled."""
        return 0.0 if arguments[0] == "-c" else process_seconds(*arguments, **settings)

    monkeypatch.setattr(run, "process_seconds", measured)
    figures = {figure.name.rpartition(": ")[2]: figure for figure in run.phases(1)}
    assert set(figures) == {"import", *FUNCTIONS, "rest", "start and end of Python", "whole"}
    assert [name for name, figure in figures.items() if figure.median <= 0] == []
    assert figures["whole"].median == pytest.approx(sum(each.median for each in figures.values()) / 2)


def test_another_commit_is_measured_from_its_own_files(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*arguments: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(repository), *names, *arguments], check=True, capture_output=True)

    git("init", "--quiet")
    for content in ("old", "new"):
        (repository / "file").write_text(content)
        git("add", "file")
        git("commit", "--quiet", "--message", content)
    with run.checkout(repository, "HEAD~1", tmp_path / "tree") as tree:
        assert (tree / "file").read_text() == "old"
    assert not tree.exists()


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


@pytest.mark.slow
def test_an_experiment_is_reproduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the others in the file, and as published."""
    monkeypatch.chdir(tmp_path)
    file, (other, *_) = tmp_path / "results.json", published_results()
    reproduce.keep(other, file)
    reproduce.main(["gradient-descent/default", "--seeds", "2", "--results", "results.json"])
    kept = {f"{each.topic}/{each.experiment}": each for each in published_results(file)}
    new = kept.pop("gradient-descent/default")
    assert kept == {f"{other.topic}/{other.experiment}": other}
    assert [*new.values] == ["0", "1"]
    before = next(each for each in published_results() if (each.topic, each.experiment) == (new.topic, new.experiment))
    assert before.answer([*new.values.values()]) == "as expected"
    assert (new.settings, new.computing, new.split) == (before.settings, before.computing, before.split)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_seconds_of_an_export(finished: Finished) -> None:
    folder = finished.store.folder
    assert folder
    assert exports.seconds("height-weight", finished.run.info.run_id, "safetensors", folder.parent) > 0
