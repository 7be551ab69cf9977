"""The store, the run, and what is written to it and when.

The store is an MLflow tracking store: SQLite and files under ``mlruns/`` unless ``MLFLOW_TRACKING_URI`` names another.
Everything goes through an `MlflowClient` of its own: MLflow's global state (active run, tracking URI) is left alone.
"""

import atexit
import errno
import getpass
import http.client
import importlib.metadata
import json
import logging
import math
import os
import platform
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import lightning as L
from filelock import FileLock
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dlcourse.data import Split
from dlcourse.errors import CourseError, Interrupted, one_line

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow.entities as mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

log = logging.getLogger(__name__)

LIMIT = {"metrics": 1000, "params": 100, "tags": 100}
SECONDS_BETWEEN_WRITES = 1.0
"""Epochs shorter than this share a write: a write takes milliseconds however little it holds."""


@dataclass(frozen=True)
class Store:
    """Where runs are kept.

    ``folder`` is that of a store of files, ``mlruns/`` unless told otherwise; None for a server or another database.
    """

    uri: str
    folder: Path | None

    @cached_property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    @property
    def shown(self) -> str:
        return str(self.folder) if self.folder and self.folder.name == "mlruns" else self.uri

    def experiment(self, topic: str) -> str:
        """The id of the topic's experiment, made where it is missing."""
        found = self.client.get_experiment_by_name(topic)
        if found is None:
            place = (self.folder / "artifacts" / topic).as_uri() if self.folder else None
            # By this tag MLflow knows an experiment with models to train from one with language models.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            try:
                return str(self.client.create_experiment(topic, artifact_location=place, tags=tags))
            except MlflowException:
                found = self.client.get_experiment_by_name(topic)  # another process was faster
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise CourseError(
                f"the experiment {topic!r} was deleted in {self.shown}: choose another store, or restore it with "
                f"`{_mlflow('experiments', 'restore', '--experiment-id', found.experiment_id)}` "
                f"while MLFLOW_TRACKING_URI is {self.uri}"
            )
        return str(found.experiment_id)

    def start_run(self, topic: str, name: str, tags: Mapping[str, str], *, watched: bool = True) -> "Run":
        """Begin a run; use it as a context, whose end says how it ended. ``watched``: with the machine's load."""
        everyone = {
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "dlcourse",
            "dlcourse.command": _command(),
            "dlcourse.host": socket.gethostname(),
            "dlcourse.pid": str(os.getpid()),
            "dlcourse.topic": topic,
        }
        run = self.client.create_run(self.experiment(topic), tags={**everyone, **_commit(), **tags}, run_name=name)
        return Run(self, run, watched)

    def find_run(self, wanted: str, topic: str) -> mlflow.Run:
        """A topic's run by its id, the beginning of its id, or its name; of several with that name the newest."""
        experiment = self.experiment(topic)
        trainings = "tags.`dlcourse.kind` = 'training'"
        runs = self.client.search_runs(
            [experiment], trainings, order_by=["attributes.start_time DESC"], max_results=1000
        )
        for run in runs:
            if run.info.run_id == wanted or run.info.run_name == wanted:
                return run
        near = [run for run in runs if len(wanted) >= 4 and run.info.run_id.startswith(wanted)]
        if len(near) == 1:
            return near[0]
        newest = f"; the newest is {runs[0].info.run_id} ({runs[0].info.run_name})" if runs else "; there is none yet"
        raise CourseError(f"{topic} has no run {wanted!r} in {self.shown}{newest}")

    def baselines(self, topic: str, fingerprint: str, judge: str) -> dict[tuple[str, str], mlflow.Run]:
        """The finished baseline runs of the same rows in the same roles, by name and version."""
        wanted = f"tags.`dlcourse.kind` = 'baseline' and tags.`dlcourse.split` = '{fingerprint}' "
        wanted += f"and tags.`dlcourse.judge` = '{judge}' and attributes.status = 'FINISHED'"
        runs = self.client.search_runs([self.experiment(topic)], wanted)
        return {
            (run.data.tags["dlcourse.baseline"], run.data.tags.get("dlcourse.baseline_version", "")): run
            for run in runs
        }

    def files_of(self, run: mlflow.Run) -> Path:
        """A folder with the run's artifacts: its own where it is on this disk, else a copy until the process ends."""
        folder = Path(run.data.tags.get("dlcourse.folder", ""))
        if run.data.tags.get("dlcourse.host") == socket.gethostname() and folder.is_dir():
            return folder
        copy = tempfile.mkdtemp(prefix=f"dlcourse-{run.info.run_id}-")
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        return Path(self.client.download_artifacts(run.info.run_id, "", copy))

    @contextmanager
    def alone(self, purpose: str) -> Iterator[None]:
        """Keep other processes of this store of files out while something is made once."""
        with ExitStack() as stack:
            if self.folder:
                stack.enter_context(FileLock(self.folder / f"{purpose}.lock"))
            yield


def open_store(start: Path | None = None) -> Store:
    """The store in force: ``MLFLOW_TRACKING_URI``, else ``mlruns/`` of the nearest folder upwards from ``start`` (the
    current folder) that has one, else a new one there.

    Raises:
        CourseError: It cannot be written, holds another version's data, or its server does not answer.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # misses pip where uv made the environment
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return _open_other(uri)
    start = (start or Path.cwd()).resolve()
    folder = next((place / "mlruns" for place in (start, *start.parents) if (place / "mlruns").is_dir()), None)
    return _open_files((folder or start / "mlruns") / "mlflow.db")


def _open_files(database: Path) -> Store:
    """A store of files: a SQLite database with the artifacts beside it, made under a lock where it is missing."""
    folder = database.parent
    _check_folder(folder)
    store = Store(f"sqlite:///{database.as_posix()}", folder)
    with store.alone("store"):
        if not database.exists():
            if any(folder.glob("*/meta.yaml")):
                raise CourseError(
                    f"{folder} holds runs in MLflow's old file format; take them over with "
                    f"`{_mlflow('migrate-filestore', '--source', str(folder), '--target', store.uri)}`"
                )
            log.info("making the store %s (once, takes some seconds)", database)
        _check_sqlite(database)
        _check_database(store)
    return store


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CourseError(
            f"{folder} cannot be written ({error.strerror}): make it writable, go to another folder, "
            "or set MLFLOW_TRACKING_URI to another store"
        ) from error


def _check_sqlite(database: Path) -> None:
    """Ask SQLite itself first: a file that cannot be opened MLflow tries again and again, for 100 seconds."""
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            connection.execute("PRAGMA schema_version")
        if not os.access(database, os.W_OK):
            raise PermissionError(errno.EACCES, "it may not be written")
    except (sqlite3.Error, OSError) as error:
        raise CourseError(
            f"{database} cannot be opened as a database ({one_line(error)}): move it away and a new one is made, "
            "or set MLFLOW_TRACKING_URI to another store"
        ) from error


def _open_other(uri: str) -> Store:
    parts = urllib.parse.urlsplit(uri)
    if uri.startswith("sqlite:///") and not parts.query:
        return _open_files(Path(uri.removeprefix("sqlite:///")).resolve())
    if len(parts.scheme) < 2 or parts.scheme == "file":  # one letter is a drive's
        raise CourseError(
            f"MLFLOW_TRACKING_URI is {uri}, a folder, and MLflow no longer keeps runs in folders: "
            "set it to sqlite:///PATH/mlflow.db or to a server's address, or unset it"
        )
    if parts.scheme in ("http", "https"):
        try:
            urllib.request.urlopen(uri, timeout=10).close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            # With a lower status it answers; whether it lets us in shows with the first real request.
            if not isinstance(error, urllib.error.HTTPError) or error.code >= 500:
                raise CourseError(
                    f"the tracking server {uri} does not answer ({one_line(error)}): start it, "
                    "or unset MLFLOW_TRACKING_URI"
                ) from error
    store = Store(uri, None)
    _check_database(store)
    return store


def _check_database(store: Store) -> None:
    """A first question, which also makes the tables of a new database."""
    try:
        store.client.search_experiments(max_results=1)
    except Exception as error:  # the database drivers raise what they like
        message = one_line(error)
        if "out-of-date database schema" in message or "Can't locate revision" in message:
            if _is_newer(message):
                remedy = "was made by a newer MLflow: update this one (pip install -U mlflow), or use another folder"
            else:
                upgrade = _mlflow("db", "upgrade", store.uri)
                remedy = f"was made by an older MLflow: copy it to be safe, then run `{upgrade}`"
            raise CourseError(f"the store {store.shown} {remedy}") from error
        raise CourseError(f"the store {store.shown} cannot be opened: {message[:300]}") from error


def _mlflow(*arguments: str) -> str:
    """A command of this environment's MLflow, to be typed in any folder."""
    command = [sys.executable, "-m", "mlflow", *arguments]
    return shlex.join(command) if os.name == "posix" else subprocess.list2cmdline(command)


def _is_newer(message: str) -> bool:
    """Whether the revision the message names is one that this MLflow does not know."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store import db_migrations

    revision = message.partition("found version ")[2].partition(",")[0] or message.rpartition(" ")[2].strip("'")
    try:
        ScriptDirectory(str(Path(db_migrations.__file__).parent)).get_revision(revision)
    except CommandError:
        return True
    return False


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and a terminal that is closed into `Interrupted`, where signals can be had: the main thread.

    Under `nohup` the terminal may be closed.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    before = {signum: signal.signal(signum, interrupt) for signum in asked}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class OwnSignals(Callback):
    """Answer SIGTERM during a training as before it.

    Lightning's own answer begins with a message to the other processes of a training, and waits until they take it.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.answer = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.answer)


class Run:
    """One run, and its only writer.

    ``folder`` is where the run's files are put together: its artifact folder itself where that is on this disk, else
    a temporary one that is sent off when the run ends. ``history`` has every metric logged so far: (step, value).
    """

    def __init__(self, store: Store, run: mlflow.Run, watched: bool) -> None:
        self.store = store
        self._watched = watched
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name
        self.experiment_id: str = run.info.experiment_id
        self.history: dict[str, list[tuple[int, float]]] = {}
        self._waiting: list[mlflow.Metric] = []
        self._written = time.monotonic()
        self._failure: str | None = None
        place = urllib.parse.urlsplit(run.info.artifact_uri)
        self._remote = place.scheme not in ("", "file")
        if self._remote:
            self.folder = Path(tempfile.mkdtemp(prefix=f"dlcourse-{self.run_id}-"))
        else:
            self.folder = Path(urllib.request.url2pathname(place.path))
        self.set_tags({"dlcourse.folder": str(self.folder)})

    def path(self, name: str) -> Path:
        """Where to write one of the run's files; ``name`` is its path among the run's artifacts."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log_params(self, params: Mapping[str, object]) -> None:
        entries = [mlflow.Param(name, _plain(value)) for name, value in params.items()]
        for start in range(0, len(entries), LIMIT["params"]):
            self.store.client.log_batch(self.run_id, params=entries[start : start + LIMIT["params"]])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        entries = [mlflow.RunTag(name, value) for name, value in tags.items()]
        for start in range(0, len(entries), LIMIT["tags"]):
            self.store.client.log_batch(self.run_id, tags=entries[start : start + LIMIT["tags"]])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Keep metrics for the next write; what is not a number is left out, since no chart can show it."""
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if math.isfinite(value):
                self.history.setdefault(name, []).append((step, value))
                self._waiting.append(mlflow.Metric(name, value, now, step))
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Send the waiting metrics to the store."""
        while self._waiting:
            self.store.client.log_batch(self.run_id, metrics=self._waiting[: LIMIT["metrics"]])
            del self._waiting[: LIMIT["metrics"]]
        self._written = time.monotonic()

    def log_rows(self, name: str, digest: str, source: str, splits: Mapping[Split, int]) -> None:
        """The data set and how many rows of it play which part."""
        contexts: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}
        self.store.client.log_inputs(
            self.run_id,
            [
                mlflow.DatasetInput(
                    mlflow.Dataset(
                        f"{name} ({contexts[split]})",
                        digest,
                        "local",
                        json.dumps({"uri": source}),
                        profile=json.dumps({"num_rows": rows}),
                    ),
                    [mlflow.InputTag("mlflow.data.context", contexts[split])],
                )
                for split, rows in splits.items()
                if rows
            ],
        )

    def fail(self, reason: str) -> None:
        """Let the run end as FAILED, with the reason in its note, though nothing is raised."""
        self._failure = reason

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(interruptible())
        if self._watched:
            monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self.store.uri)  # type: ignore[no-untyped-call]
            monitor.start()  # type: ignore[no-untyped-call]  # samples after ten seconds: shorter runs have none
            self._stack.callback(monitor.finish)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._stack.close()
        status = "FINISHED"
        if isinstance(error, (Interrupted, KeyboardInterrupt)):
            status, self._failure = "KILLED", f"stopped by {one_line(error) or 'Ctrl-C'}"
            if isinstance(error, Interrupted):
                error.run_id = self.run_id
        elif error is not None:
            status, self._failure = "FAILED", f"{type(error).__name__}: {one_line(error)}"
        elif self._failure:
            status = "FAILED"
        # A store that is gone must not hide the error that came first.
        with suppress(Exception) if error is not None else ExitStack():
            self.write()
            if self._failure:
                self.set_tags({"dlcourse.error": self._failure[:5000]})
                if error is not None:
                    self.set_tags({"mlflow.note.content": self._failure[:5000]})
            if self._remote and self.folder.exists():
                self.store.client.log_artifacts(self.run_id, str(self.folder))
                shutil.rmtree(self.folder)
            self.store.client.set_terminated(self.run_id, status)
        return False


class RunLogger(Logger):
    """Lightning's metrics, to a `Run`, with the epoch as their step."""

    def __init__(self, run: Run, prefix: str = "") -> None:
        super().__init__()
        self.run, self.prefix = run, prefix

    @property
    def name(self) -> str:
        return self.run.experiment_id

    @property
    def version(self) -> str:
        return self.run.run_id

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        epoch = int(metrics.pop("epoch", step or 0))
        self.run.log_metrics({self.prefix + name: float(value) for name, value in metrics.items()}, epoch)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run has every setting already."""


class Curve(Callback):
    """Keep the run's curve in its checkpoints, so that a run resumed from one starts with all of it."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        curve = {name: list(points) for name, points in self.run.history.items()}
        # Lightning hands this epoch's last metrics to the logger only after the checkpoint is saved.
        for name, value in trainer.callback_metrics.items():
            points = curve.setdefault(name, [])
            if not points or points[-1][0] < trainer.current_epoch:
                points.append((trainer.current_epoch, float(value)))
        checkpoint["dlcourse_curve"] = curve

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        for name, points in checkpoint["dlcourse_curve"].items():
            for step, value in points:
                self.run.log_metrics({name: value}, step)


def environment() -> str:
    """Machine and packages, a line each."""
    packages = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    machine = [f"# {platform.platform()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores"]
    machine += [f"# Python {platform.python_version()}"]
    return "\n".join(machine + [f"{name}=={packages[name]}" for name in sorted(packages, key=str.lower)]) + "\n"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _command() -> str:
    """The command line, to be typed again."""
    if not sys.argv or not sys.argv[0]:
        return "python"
    program = Path(sys.argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return " ".join([name, *map(shlex.quote, sys.argv[1:])])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user id, as in some containers
        return "unknown"


def _commit() -> dict[str, str]:
    """Commit of the current folder's repository and whether files differ from it; nothing outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "dlcourse.git.dirty": str(bool(git("status", "--porcelain"))).lower(),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
