"""A store of an earlier release, commit eddc056: its runs are listed, tested and carried on with, or refused in a line.

`old_store.tar.xz` has a store as that release left it in /tmp/course, so that it is found as one that was moved. Its
runs were made by the commands in their tag ``dlcourse.command``, with images as `image_sets` makes them, pictures of a
tenth of the size, and made-up names of the user and the machine. Two were stopped by SIGTERM, one has diverged.
"""

import json
import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store import db_migrations

import dlcourse.reporting.pages
from dlcourse import topics
from dlcourse.cli import main
from dlcourse.tracking.views import MARKER, NOTE, RESULTS, SEEDS, STATE
from tests.image_sets import write_cifar10, write_fashion_mnist, write_image_folder

Capture = pytest.CaptureFixture[str]
RUNS = [
    *(("height-weight", name) for name in ("early-stopped", "table", "refitted", "fine-tuned")),
    ("diabetes", "short"), ("diabetes", "notes"),
    ("study-hours", "short"), ("study-hours", "interrupted"),
    ("gradient-descent", "short"), ("gradient-descent", "diverging"),
    ("fashion-mnist", "short"), ("fashion-mnist", "interrupted"),
    ("cifar10", "short"),
    ("image-folder", "short"),
]  # fmt: skip


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).with_name("old_store.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(project: Path, unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the old store and the rows that its runs had."""
    shutil.copytree(unpacked, project, dirs_exist_ok=True)
    with closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as connection:
        ((revision,),) = connection.execute("SELECT version_num FROM alembic_version")
    try:
        ScriptDirectory(str(Path(db_migrations.__file__).parent)).get_revision(revision)
    except CommandError:
        pytest.skip("the store was made with a newer MLflow than this one")
    for write in (write_fashion_mnist, write_cifar10, write_image_folder):
        write(project / "data", monkeypatch, train=60, test=20)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    return project


def stored(project: Path, topic: str, name: str) -> dict[str, float]:
    """The final figures that the old release measured, by the names of today."""
    client = MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(topic)
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return {name.replace("best/train_", "train/final_"): value for name, value in run.data.metrics.items()}


def is_one_line(said: str) -> bool:
    """But for the notice that the store was moved."""
    lines = [line for line in said.splitlines() if "doctor --fix" not in line]
    return len(lines) == 1 and lines[0].startswith("dlcourse: ")


@pytest.mark.parametrize(("topic", "name"), RUNS)
def test_runs_are_tested(old: Path, capsys: Capture, topic: str, name: str) -> None:
    status = main(["test", topic, "--run", name, "--json"])
    said = capsys.readouterr()
    if topic == "image-folder":
        # The old release kept the folder's whole path, and that folder is not there.
        assert status != 0
        assert is_one_line(said.err), said.err
        return
    assert status == 0, said.err
    now, before = json.loads(said.out), stored(old, topic, name)
    common = [metric for metric in now if metric in before and metric.endswith(("loss", "mse", "mae"))]
    assert common or name in ("interrupted", "diverging")
    is_image = topic in ("fashion-mnist", "cifar10")  # whose sums differ with the processor, some in bfloat16
    for metric in common:
        assert now[metric] == pytest.approx(before[metric], rel=0.02 if is_image else 1e-4), metric


@pytest.mark.parametrize(
    ("topic", "name", "flags"),
    [
        ("height-weight", "table", ["--trainer.max_epochs", "22"]),
        ("diabetes", "notes", ["--trainer.max_epochs", "4"]),
        ("study-hours", "short", ["--trainer.max_epochs", "22"]),
        ("study-hours", "interrupted", ["--trainer.max_epochs", "60"]),
        ("gradient-descent", "short", ["--trainer.max_epochs", "22"]),
        ("fashion-mnist", "short", ["--trainer.max_epochs", "3"]),
        ("fashion-mnist", "interrupted", []),
    ],
)
def test_runs_are_carried_on_with(old: Path, capsys: Capture, topic: str, name: str, flags: list[str]) -> None:
    status = main(["train", topic, "--resume", name, *flags])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert f"{topic}: {name} (resumed)" in said.out


@pytest.mark.parametrize(
    ("topic", "name", "flags", "reason"),
    [
        ("height-weight", "early-stopped", [], "it stopped early"),
        ("diabetes", "short", [], "is complete after 3 epochs"),
        ("cifar10", "short", ["--trainer.max_epochs", "3"], "cannot be made longer or shorter"),
        ("image-folder", "short", [], "hymenoptera"),
    ],
)
def test_runs_that_cannot_be_carried_on_with_are_refused(
    old: Path, capsys: Capture, topic: str, name: str, flags: list[str], reason: str
) -> None:
    assert main(["train", topic, "--resume", name, *flags]) != 0
    said = capsys.readouterr().err
    assert reason in said
    assert is_one_line(said), said


@pytest.mark.parametrize("name", ["folds, 1 x 3 folds", "folds, 1 x 3 folds: fold 0", "overfit: overfitted"])
def test_runs_without_a_model_are_refused(old: Path, capsys: Capture, name: str) -> None:
    assert main(["test", "height-weight", "--run", name]) == 1
    said = capsys.readouterr().err
    assert "has no run" in said
    assert is_one_line(said), said


def test_the_store_is_looked_at_and_mended(old: Path, capsys: Capture) -> None:
    main(["doctor", "--fix", "--json"])
    found = {each["name"]: each["text"] for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found["runs"].startswith("42 in the store")
    assert "mended" in found["moved"]
    assert main(["test", "height-weight", "--run", "table"]) == 0
    assert "doctor --fix" not in capsys.readouterr().err


def test_the_experiments_get_their_views(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(f"sqlite:///{old / 'mlruns' / 'mlflow.db'}")
    before = {each.info.run_id: each.info.run_name for each in runs_of(client)}
    monkeypatch.setattr(dlcourse.reporting.pages, "serve", lambda *_: 0)
    assert main(["ui"]) == 0
    views = {MARKER, f"{STATE}{RESULTS}", f"{STATE}{SEEDS}", NOTE}
    assert {each.name for each in client.search_experiments() if views <= each.tags.keys()} == {*topics.titles()}
    assert {each.info.run_id: each.info.run_name for each in runs_of(client)} == before


def runs_of(client: MlflowClient) -> list[Run]:
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))
