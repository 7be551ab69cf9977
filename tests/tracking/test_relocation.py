"""A project folder that was moved or copied: nothing goes to the old place, and what is old is found."""

import logging
import shutil
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pytest

import dlcourse
from dlcourse.cli import main
from dlcourse.doctor.machine import check_machine
from dlcourse.tracking import opening
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.relocation import here

QUICK: Any = {"max_epochs": 2}


def test_addresses_that_change_are_those_of_a_stores_own_files(tmp_path: Path) -> None:
    store = tmp_path / "my course" / "mlruns"
    own = f"{store.as_uri()}/artifacts"
    assert here("file:///old%20one/mlruns/artifacts/iris", store) == f"{own}/iris"
    assert here("file:///old/artifacts/mlruns/artifacts/iris/ab12/artifacts", store) == f"{own}/iris/ab12/artifacts"
    assert here("file:///old/artifacts/iris/models/m-1/artifacts", store) == f"{own}/iris/models/m-1/artifacts"
    for other in (f"{own}/iris", "s3://bucket/artifacts/iris", "mlflow-artifacts:/1/ab12/artifacts", "/old/mlruns/0"):
        assert here(other, store) is None


@pytest.fixture(params=["moved", "copied"])
def elsewhere(request: pytest.FixtureRequest, project: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A project with a training, and the folder that it is in now."""
    old, new = project / "old course", project / "new course"
    old.mkdir()
    (project / "mlruns").rename(old / "mlruns")
    monkeypatch.chdir(old)
    dlcourse.train("height-weight", trainer=QUICK, name="first")
    if request.param == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)
    monkeypatch.chdir(new)
    opening._warn_if_moved.cache_clear()
    return old, new


def content(folder: Path) -> list[Path]:
    """All that lies in a folder, which need not be there; but for locks and what SQLite writes beside a database."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".npy", ".png", ".ckpt", ".yaml", ".pt2"))


def test_new_runs_stay_here_and_old_ones_are_found(
    elsewhere: tuple[Path, Path], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = elsewhere
    before = content(old)
    with caplog.at_level(logging.WARNING, logger="dlcourse"):
        first = dlcourse.test("height-weight", run="first")
        second = dlcourse.train("height-weight", trainer=QUICK, name="second")
        dlcourse.train("height-weight", trainer={"max_epochs": 3}, resume="first")
    (noticed,) = [line for line in caplog.messages if "doctor --fix" in line]
    assert str(old / "mlruns") in noticed
    assert str(new / "mlruns") in noticed
    assert content(old) == before
    assert first["test/mse"] == second.metrics["test/mse"]
    store = open_store()
    assert store.folder == new / "mlruns"
    kinds = "tags.`dlcourse.kind` = 'baseline'"
    assert len(store.client.search_runs([store.experiment("height-weight")], kinds)) == 3, "the old ones are used again"
    assert Path(str(second.checkpoint)).is_relative_to(new)
    assert second.model_uri is not None
    model = store.client.get_logged_model(second.model_uri.removeprefix("models:/"))
    assert model.artifact_location.startswith((new / "mlruns" / "artifacts").as_uri())


def test_doctor_names_it_and_mends_it(elsewhere: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    old, new = elsewhere
    store = open_store()
    run = store.find_run("first", "height-weight")
    (output,) = run.outputs.model_outputs
    store.client.create_registered_model("lines")
    place = store.client.get_logged_model(output.model_id).artifact_location
    store.client.create_model_version("lines", place, run.info.run_id)
    shutil.rmtree(old, ignore_errors=True)

    (found,) = [each for each in check_machine() if each.name == "moved"]
    assert not found.ok
    assert f"4 of them have their files in {old / 'mlruns'}" in found.text
    assert main(["doctor", "--fix"]) == 0
    assert "mended" in capsys.readouterr().out
    assert [each for each in check_machine() if each.name == "moved"] == []

    run = store.client.get_run(run.info.run_id)
    assert store.files_of(run) == new / "mlruns" / "artifacts" / "height-weight" / run.info.run_id / "artifacts"
    assert Path(store.client.download_artifacts(run.info.run_id, "checkpoints/best.ckpt")).is_file()
    place = store.client.get_logged_model(output.model_id).artifact_location
    assert Path(mlflow.artifacts.download_artifacts(place), "MLmodel").is_file()
    assert str(old) not in str(store.client.get_model_version("lines", "1"))


def test_files_that_were_left_behind_are_still_found(elsewhere: tuple[Path, Path]) -> None:
    old, new = elsewhere
    (old / "mlruns").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(old / "mlruns" / "artifacts", ignore_errors=True)
    (new / "mlruns" / "artifacts").rename(old / "mlruns" / "artifacts")
    check_machine(fix=True)
    assert dlcourse.test("height-weight", run="first")["test/mse"] > 0
