"""A project folder of its own for every test, with a real store that is copied rather than migrated anew."""

import functools
import gc
import importlib.metadata
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.servers import Server

if TYPE_CHECKING:
    from tests.finished import Finished

# One thread a process: the models are tiny, and two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Some images set it. Then each process that a test starts would compile every package anew, for 10 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Looking through the million objects of the libraries, which stay, takes longer than a short training.
gc.set_threshold(50_000, 20, 100)


@functools.cache
def entry_points_of(_: tuple[str, ...], **chosen: str) -> EntryPoints:
    """What the packages in those folders offer: the same until a folder is added."""
    return entry_points(**chosen)


# Lightning asks with each Trainer, and would read the metadata of all packages: a tenth of a short training.
importlib.metadata.entry_points = lambda **chosen: entry_points_of(tuple(sys.path), **chosen)

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
REAL_DATA = Path(os.environ.get("DLCOURSE_DATA_DIR") or ROOT / "data").resolve()

Dlcourse = Callable[..., subprocess.CompletedProcess[str]]


@pytest.hookimpl(tryfirst=True)  # before -m "not slow" chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a store train models or start programs: together they take nine tenths of the time."""
    for item in items:
        if "made_store" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@event.listens_for(Engine, "connect")
def write_without_waiting_for_the_disk(connection: object, _: object) -> None:
    """No test switches the machine off. Each commit would wait for the disk, a quarter of a short training in all."""
    if isinstance(connection, sqlite3.Connection):
        with suppress(sqlite3.Error):  # what is wrong with a database is seen by who uses it
            connection.execute("PRAGMA synchronous = OFF")


@contextmanager
def made_once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that all test processes share. Make in it what is not there yet: nobody else does so meanwhile."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / f"{name}.lock"):
        (shared / name).mkdir(exist_ok=True)
        yield shared / name


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store's database."""
    with made_once(tmp_path_factory, "store") as folder:
        database = folder / "mlruns" / "mlflow.db"
        if not database.exists():
            from dlcourse.tracking.opening import open_store

            database.parent.mkdir(exist_ok=True)
            open_store(folder)
    return database


@contextmanager
def shared_project(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Path]:
    """A project with a store for the tests of a module; within it is the current folder."""
    project = tmp_path_factory.mktemp("project")
    (project / "mlruns").mkdir()
    shutil.copy(made_store, project / "mlruns" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(project)
        yield project


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel, built without a network."""
    with made_once(tmp_path_factory, "wheel") as folder:
        if not list(folder.glob("*.whl")):
            command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
        (file,) = folder.glob("*.whl")
    return file


def not_into_files(render: Callable[..., None]) -> Callable[..., None]:
    """`Figure.savefig`, which renders into memory as always, and into files not at all."""

    def savefig(figure: object, file: Any, **settings: Any) -> None:
        if isinstance(file, Path):
            file.write_bytes(b"not rendered")
        else:
            render(figure, file, **settings)

    return savefig


@pytest.fixture
def project(tmp_path: Path, made_store: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty project with a store, as the current folder.

    Figures of its runs are not rendered, which takes a quarter of a short training. Tests marked ``renders`` have them
    rendered, and so have the runs of other processes and of the fixtures that share one.
    """
    if not request.node.get_closest_marker("renders"):
        from matplotlib.figure import Figure  # not above: NumPy is imported once its number of threads is set

        monkeypatch.setattr(Figure, "savefig", not_into_files(Figure.savefig))
    for name in ("MLFLOW_TRACKING_URI", "DLCOURSE_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(made_store, tmp_path / "mlruns" / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> "Finished":
    """A training of three epochs, for tests that only look at it."""
    from tests.finished import train_once

    with shared_project(tmp_path_factory, made_store) as folder:
        return train_once(folder)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Server]:
    """A tracking server that all tests of a process share; each needs experiments or runs of its own."""
    server = Server(tmp_path_factory.mktemp("server"), made_store)
    yield server
    server.stop()


@pytest.fixture
def real_data(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make the folder of real data the project's, or skip the test where none of the files named is in it.

    Image sets are there decoded, or as archives.
    """

    def need(*names: str) -> Path:
        files = [REAL_DATA / name for name in names if (REAL_DATA / name).exists()]
        if not files:
            pytest.skip(f"{' or '.join(names)} is not in {REAL_DATA}: it takes a download")
        monkeypatch.setenv("DLCOURSE_DATA_DIR", str(REAL_DATA))
        return files[0]

    return need


@pytest.fixture
def dlcourse(project: Path) -> Dlcourse:
    """The command as a person types it, in a process of its own in the project."""

    def call(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dlcourse", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=project, **settings)  # type: ignore[call-overload, no-any-return]

    return call
