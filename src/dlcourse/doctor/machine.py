"""What a training needs of this machine: software, hardware, data sets, and the store with its runs."""

import os
import platform
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil  # type: ignore[import-untyped]
import torch

from dlcourse.data.datamodule import data_folder
from dlcourse.doctor.findings import Finding
from dlcourse.errors import CourseError, one_line
from dlcourse.settings import nearest_folder
from dlcourse.tracking import relocation
from dlcourse.tracking.abandoned import end_abandoned, is_abandoned
from dlcourse.tracking.opening import open_store, request, schema_revision
from dlcourse.tracking.store import Store, StoredRun, process_of

# Gigabytes of disk, and of memory, below which a training is likely to die.
MIN_FREE_GB = 1.0


def check_machine(*, fix: bool = False) -> list[Finding]:
    """Check what every training needs, whether the store was moved, and the runs that are marked RUNNING.

    Args:
        fix: Mark runs as FAILED whose process, on this machine, is gone, and change the addresses in the database of a
            store that was moved or copied.
    """
    store, store_finding = _store()
    findings = [
        Finding("python", True, f"{platform.python_version()} in {sys.prefix}"),
        Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads"),
        _cuda(),
        *_mps(),
        _memory(),
        _disk([store.folder if store and store.folder else Path.cwd(), data_folder()]),
        _data_sets(data_folder()),
        store_finding,
    ]
    if store:
        count = relocation.count_runs(store.database) if store.folder else len(_search(store, ""))
        findings.append(Finding("runs", True, f"{count} in the store"))
        findings += _moved(store, fix)
        findings += [_running(store, run, fix) for run in _search(store, "attributes.status = 'RUNNING'")]
    return findings


def _cuda() -> Finding:
    """Whether PyTorch can use a GPU of NVIDIA's or AMD's, and why not; to have none is not wrong."""
    version = _driver_version()
    driver = f"driver {version}" if version else "no NVIDIA driver"
    builds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    build = next((f"{kind} {number}" for kind, number in builds.items() if number), None)
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("cuda", True, f"{names} ({driver}; PyTorch is built for {build})")
    text = "torch.cuda.is_available() is False"
    if not build:
        remedy = "to use the GPU, install PyTorch's build with CUDA" if version else ""
        return Finding("cuda", True, f"{text}: this PyTorch is built without CUDA ({driver})", remedy)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # of several types; the first sentence has the reason
        text += f": {one_line(error).partition('. ')[0]}"
    return Finding("cuda", True, f"{text} ({driver}; PyTorch is built for {build})")


def _driver_version() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(output.split()), None)


def _mps() -> list[Finding]:
    if not torch.backends.mps.is_built():
        return []
    return [Finding("mps", True, "usable" if torch.backends.mps.is_available() else "not usable on this Mac")]


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"
    return _at_least("memory", memory.available, text, "end other programs")


def _disk(folders: list[Path]) -> Finding:
    free = {}
    for folder in folders:
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        free[folder] = shutil.disk_usage(existing).free
    text = ", ".join(f"{size / 1e9:.1f} GB free for {folder}" for folder, size in free.items())
    return _at_least("disk", min(free.values()), text, "make room")


def _at_least(name: str, free: float, text: str, remedy: str) -> Finding:
    enough = free / 1e9 >= MIN_FREE_GB
    return Finding(name, enough, text, "" if enough else f"{remedy}: a training needs {MIN_FREE_GB:g} GB")


def _data_sets(folder: Path) -> Finding:
    def megabytes(path: Path) -> float:
        return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()) / 1e6

    sizes = [f"{path.name} ({megabytes(path):.3g} MB)" for path in sorted(folder.glob("[!.]*"))]
    return Finding("data", True, f"{', '.join(sizes) or 'none'} in {folder}")


def _store() -> tuple[Store | None, Finding]:
    """The store; one that does not exist yet is left to the first run to make."""
    new = Path.cwd() / "mlruns"
    if not (os.environ.get("MLFLOW_TRACKING_URI") or nearest_folder("mlruns") or new.exists()):
        return None, Finding("store", True, f"none yet: the first run makes {new}")
    try:
        store = open_store()
    except CourseError as error:
        return None, Finding("store", False, str(error))
    versions = f"MLflow {mlflow.__version__}"
    if store.folder:
        versions += f", schema {schema_revision(store.uri)}"
    elif store.uri.startswith("http"):
        with suppress(OSError):
            versions += f", the server's {request(store.uri, '/version').text[:20]}"
    return store, Finding("store", True, f"{store.shown} ({versions})")


def _search(store: Store, query: str) -> list[StoredRun]:
    experiments = [each.experiment_id for each in store.client.search_experiments()]
    page = store.client.search_runs(experiments, query, max_results=1000)
    runs = list(page)
    while page.token:
        page = store.client.search_runs(experiments, query, max_results=1000, page_token=page.token)
        runs += page
    return runs


def _moved(store: Store, fix: bool) -> list[Finding]:
    """Whether the database of a store of files still has addresses in another folder."""
    if not store.folder or not (old := relocation.old_folders(store.database)):
        return []
    text = ", ".join(f"{runs} of them have their files in {folder}" for folder, runs in old.items())
    if not fix:
        return [Finding("moved", False, f"by the database {text}, where it was", "dlcourse doctor --fix mends it")]
    relocation.mend(store.database)
    left = relocation.old_folders(store.database)
    return [
        Finding("moved", True, f"by the database {text}: {'mended, but for files only there' if left else 'mended'}")
    ]


def _running(store: Store, run: StoredRun, fix: bool) -> Finding:
    """Whether the process of a run that is marked RUNNING is alive; that of another machine cannot be seen."""
    topic = store.client.get_experiment(run.info.experiment_id).name
    name = f"{run.info.run_id} ({topic}: {run.info.run_name})"
    host, pid = process_of(run)
    if host != socket.gethostname() or not pid:
        return Finding("running", True, f"{name} on {host or 'an unknown machine'}, not on this one: left alone")
    if not is_abandoned(run):
        return Finding("running", True, f"{name} in process {pid}")
    if not fix:
        gone = f"its process {pid} on {host} is gone"
        return Finding("running", False, f"{name} is marked RUNNING, and {gone}", "dlcourse doctor --fix ends it")
    return Finding("running", True, f"{name} {end_abandoned(store, run, 'dlcourse doctor --fix')}")
