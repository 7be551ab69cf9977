"""A project folder of its own for every test, with a real store that is copied rather than migrated anew."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from tests.servers import Server

if TYPE_CHECKING:
    from tests.finished import Finished

# One thread a process: the models are tiny, and two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
REAL_DATA = Path(os.environ.get("DLCOURSE_DATA_DIR") or ROOT / "data").resolve()

Dlcourse = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store's database, made once for all test processes."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "made"
    with FileLock(shared / "made.lock"):
        if not (folder / "mlruns" / "mlflow.db").exists():
            from dlcourse.tracking.opening import open_store

            (folder / "mlruns").mkdir(parents=True, exist_ok=True)
            open_store(folder)
    return folder / "mlruns" / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, made_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with a store, as the current folder."""
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

    folder = tmp_path_factory.mktemp("finished")
    (folder / "mlruns").mkdir()
    shutil.copy(made_store, folder / "mlruns" / "mlflow.db")
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
        there = next((REAL_DATA / name for name in names if (REAL_DATA / name).exists()), None)
        if there is None:
            pytest.skip(f"{' or '.join(names)} is not in {REAL_DATA}: it takes a download")
        monkeypatch.setenv("DLCOURSE_DATA_DIR", str(REAL_DATA))
        return there

    return need


@pytest.fixture
def dlcourse(project: Path) -> Dlcourse:
    """The command as a person types it, in a process of its own in the project."""

    def call(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dlcourse", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=project, **settings)  # type: ignore[call-overload, no-any-return]

    return call
