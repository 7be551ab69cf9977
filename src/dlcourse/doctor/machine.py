"""What a training finds on this machine: software, hardware, data sets, and the store with its runs."""

import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import mlflow
import psutil  # type: ignore[import-untyped]
import torch
from mlflow.entities import Run

from dlcourse.data.datamodule import data_folder
from dlcourse.doctor.findings import Finding
from dlcourse.errors import CourseError, one_line
from dlcourse.tracking import relocation
from dlcourse.tracking.opening import open_store, request
from dlcourse.tracking.store import Store

LEAST_FREE = 1.0
"""Gigabytes of disk, and of memory, below which a training is likely to die."""
SECONDS_OF_DOUBT = 5.0
"""A process's start is known to about a second: one that began so shortly after a run may still be the run's."""


def check_machine(*, fix: bool = False) -> list[Finding]:
    """Look at what every training needs, at where the store was before, and for runs that were left RUNNING.

    Args:
        fix: End runs as KILLED whose process, on this machine, is gone, and let the database of a store that was moved
            or copied find its files.
    """
    store, of_store = _store()
    findings = [
        Finding("python", True, f"{platform.python_version()} in {sys.prefix}"),
        Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads"),
        _cuda(),
        *_mps(),
        _memory(),
        _disk([store.folder if store and store.folder else Path.cwd(), data_folder()]),
        _data_sets(data_folder()),
        of_store,
    ]
    if store:
        findings.append(Finding("runs", True, f"{_count(store)} in the store"))
        findings += _moved(store, fix)
        findings += [_running(store, run, fix) for run in _search(store, "attributes.status = 'RUNNING'")]
    return findings


def _cuda() -> Finding:
    """Whether torch can use a GPU of NVIDIA's or AMD's, and if not, what stands in the way; none is no fault."""
    driver = f"driver {found}" if (found := _driver()) else "no NVIDIA driver"
    builds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    built = next((f"{kind} {version}" for kind, version in builds.items() if version), None)
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        return Finding("cuda", True, f"{names} ({driver}; PyTorch is built for {built})")
    unusable = "torch.cuda.is_available() is False"
    if not built:
        remedy = "to use the GPU, install PyTorch's build with CUDA" if found else ""
        return Finding("cuda", True, f"{unusable}: this PyTorch is built without CUDA ({driver})", remedy)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # of several kinds; the first sentence says what stands in the way
        unusable += f": {one_line(error).partition('. ')[0]}"
    remedy = "update the driver, or install a PyTorch that is built for an older CUDA" if "too old" in unusable else ""
    return Finding("cuda", True, f"{unusable} ({driver}; PyTorch is built for {built})", remedy)


def _driver() -> str | None:
    """The version of NVIDIA's driver, where there is one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(said.split()), None)


def _mps() -> list[Finding]:
    if not torch.backends.mps.is_built():
        return []
    return [Finding("mps", True, "usable" if torch.backends.mps.is_available() else "not usable on this Mac")]


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"
    return _at_least("memory", memory.available, text, "end other programs")


def _disk(places: list[Path]) -> Finding:
    free = {}
    for place in places:
        there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
        free[place] = shutil.disk_usage(there).free
    text = ", ".join(f"{size / 1e9:.1f} GB free for {place}" for place, size in free.items())
    return _at_least("disk", min(free.values()), text, "make room")


def _at_least(name: str, free: float, text: str, remedy: str) -> Finding:
    enough = free / 1e9 >= LEAST_FREE
    return Finding(name, enough, text, "" if enough else f"{remedy}: a training needs {LEAST_FREE:g} GB")


def _data_sets(folder: Path) -> Finding:
    def megabytes(place: Path) -> float:
        return sum(file.stat().st_size for file in (place, *place.rglob("*")) if file.is_file()) / 1e6

    found = sorted(folder.glob("[!.]*"))
    text = ", ".join(f"{place.name} ({megabytes(place):.3g} MB)" for place in found) or "none"
    return Finding("data", True, f"{text} in {folder}")


def _store() -> tuple[Store | None, Finding]:
    """The store in force; one that is not there yet is left to the first run to make."""
    here = Path.cwd()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and not any((place / "mlruns").exists() for place in (here, *here.parents)):
        return None, Finding("store", True, f"none yet: the first run makes {here / 'mlruns'}")
    try:
        store = open_store()
    except CourseError as error:
        return None, Finding("store", False, str(error))
    versions = f"MLflow {mlflow.__version__}"
    if store.folder:
        versions += f", schema {_ask(store, 'SELECT version_num FROM alembic_version')}"
    elif store.uri.startswith("http"):
        with suppress(OSError), request(store.uri, "/version") as answer:
            versions += f", the server's {answer.read(20).decode(errors='replace')}"
    return store, Finding("store", True, f"{store.shown} ({versions})")


def _ask(store: Store, question: str) -> str:
    """What the database of a store of files answers: MLflow would read every run whole to count them."""
    with closing(sqlite3.connect(f"{store.database.as_uri()}?mode=ro", uri=True)) as connection:
        return str(connection.execute(question).fetchone()[0])


def _count(store: Store) -> str:
    if store.folder:
        return _ask(store, "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'")
    return str(len(_search(store, "")))


def _search(store: Store, wanted: str) -> list[Run]:
    experiments = [each.experiment_id for each in store.client.search_experiments()]
    page = store.client.search_runs(experiments, wanted, max_results=1000)
    runs = list(page)
    while page.token:
        page = store.client.search_runs(experiments, wanted, max_results=1000, page_token=page.token)
        runs += page
    return runs


def _moved(store: Store, fix: bool) -> list[Finding]:
    """Whether the database of a store of files has its files in a folder that the store is no longer in."""
    if not store.folder or not (old := relocation.old_folders(store.database)):
        return []
    text = ", ".join(f"{runs} of them have their files in {folder}" for folder, runs in old.items())
    if not fix:
        return [Finding("moved", False, f"by the database {text}, where it was", "dlcourse doctor --fix mends it")]
    relocation.mend(store.database)
    left = relocation.old_folders(store.database)
    return [Finding("moved", True, f"by the database {text}: {'what is there alone is left' if left else 'mended'}")]


def _running(store: Store, run: Run, fix: bool) -> Finding:
    """Whether a run that is marked RUNNING goes on; what another machine does cannot be seen from here."""
    tags = run.data.tags
    name = f"{run.info.run_id} ({tags.get('dlcourse.topic', 'no topic')}: {run.info.run_name})"
    host, pid = tags.get("dlcourse.host"), tags.get("dlcourse.pid")
    if host != socket.gethostname() or not pid:
        return Finding("running", True, f"{name} on {host or 'an unknown machine'}, not on this one: left alone")
    if _is_alive(int(pid), run.info.start_time / 1000):
        return Finding("running", True, f"{name} in process {pid}")
    gone = f"its process {pid} on {host} is gone"
    if not fix:
        return Finding("running", False, f"{name} is marked RUNNING, and {gone}", "dlcourse doctor --fix ends it")
    note = f"ended as KILLED by dlcourse doctor --fix, since {gone}"
    written = tags.get("mlflow.note.content")
    store.client.set_tag(run.info.run_id, "dlcourse.error", note)
    store.client.set_tag(run.info.run_id, "mlflow.note.content", f"{written}\n\n{note}" if written else note)
    store.client.set_terminated(run.info.run_id, "KILLED")
    return Finding("running", True, f"{name} {note}")


def _is_alive(pid: int, began: float) -> bool:
    """Whether the process lives that a run of that beginning (in seconds since 1970) belongs to.

    A process that is younger than the run has only got the number of one that is gone.
    """
    if not psutil.pid_exists(pid):
        return False
    try:
        process = psutil.Process(pid)
        is_over = process.status() == psutil.STATUS_ZOMBIE
        return not is_over and process.create_time() <= began + SECONDS_OF_DOUBT
    except psutil.Error:  # it may not be looked at, which is no reason to call it gone
        return True
