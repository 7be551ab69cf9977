"""The store, the run, and what is written to it and when.

The store is an MLflow tracking store: SQLite and files under ``mlruns/`` unless ``MLFLOW_TRACKING_URI`` names another.
Everything goes through an `MlflowClient` of its own: MLflow's global state (active run, tracking URI) is left alone.
"""

import atexit
import base64
import errno
import getpass
import http.client
import importlib.metadata
import importlib.util
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
import traceback
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import lightning as L
from filelock import FileLock
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from dlcourse import relocation
from dlcourse.data import Split
from dlcourse.errors import CourseError, Interrupted, address, is_foreign, one_line, shown, without_password

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is gone would hold each call for minutes. What it misses waits here, and is sent when it answers again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow.entities as mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

log = logging.getLogger(__name__)

LIMIT = {"metrics": 1000, "params": 100, "tags": 100}
SECONDS_BETWEEN_WRITES = 1.0
"""Epochs shorter than this share a write: a write takes milliseconds however little it holds."""
SECONDS_BETWEEN_TRIES = 30.0
"""How long a store that could not be written is left alone while a training goes on."""
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Packages of database drivers that are not called as the module is."""


@dataclass(frozen=True)
class Store:
    """Where runs are kept.

    ``folder`` is that of a store of files, ``mlruns/`` unless told otherwise; None for a server or another database.
    """

    uri: str = field(repr=False)
    folder: Path | None

    @cached_property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    @property
    def shown(self) -> str:
        return str(self.folder) if self.folder and self.folder.name == "mlruns" else shown(self.uri)

    @property
    def database(self) -> Path:
        """The database of a store of files."""
        return Path(self.uri.removeprefix("sqlite:///"))

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
                f"while MLFLOW_TRACKING_URI is {shown(self.uri)}"
            )
        if self.folder and (place := relocation.here(found.artifact_location, self.folder)):
            relocation.keep_here(self.database, found.experiment_id, place)
        return str(found.experiment_id)

    def start_run(
        self, topic: str, name: str, tags: Mapping[str, str], *, watched: bool = True, within: "Run | None" = None
    ) -> "Run":
        """Begin a run; use it as a context, whose end says how it ended.

        Args:
            topic: The topic.
            name: The run's name.
            tags: Tags that it has from the beginning.
            watched: Whether to log the machine's load.
            within: The run that this one is a part of. A part that the store does not take goes on without being kept,
                and is told of as a loss of the whole.
        """
        everyone = {
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "dlcourse",
            "dlcourse.command": _command(),
            "dlcourse.host": socket.gethostname(),
            "dlcourse.pid": str(os.getpid()),
            "dlcourse.topic": topic,
        }
        try:
            if within and not within.reachable:
                raise CourseError(within.lost[WAITING])
            run = self.client.create_run(self.experiment(topic), tags={**everyone, **_commit(), **tags}, run_name=name)
        except Exception as error:
            if within is None:
                raise
            within.lose(name.removeprefix(f"{within.name}: "), error)
            return Run(self, None, name, watched=False)
        try:
            return Run(self, run, name, watched=watched, within=within)
        except OSError as error:  # nowhere to put its files together
            self.client.set_terminated(run.info.run_id, "FAILED")
            raise CourseError(
                f"the run's files cannot be kept ({one_line(error)}): make room, or set TMPDIR"
            ) from error

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
        if self.folder and (place := relocation.here(run.info.artifact_uri, self.folder)):
            moved = relocation.path_of(place)
            if moved.is_dir():
                return moved
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
                with suppress(OSError):  # on a full disk; then at worst a thing is made twice
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
    # Of a store that does not answer or is full the run itself tells, in one line.
    for name in ("mlflow.system_metrics", "mlflow.store.db", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
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
    if folder not in _told and (old := relocation.old_folders(database)):
        _told.add(folder)
        log.warning(
            "%s was in %s before: its runs are found here, and new ones are kept here; "
            "`dlcourse doctor --fix` makes MLflow's pages find them as well",
            folder,
            " and ".join(map(str, old)),
        )
    return store


_told: set[Path] = set()
"""Stores of which this process has said that they were moved."""


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
    if parts.scheme.startswith("sqlite"):
        _check_is_on_disk(uri)
        if uri.startswith("sqlite:///") and not parts.query:
            return _open_files(Path(uri.removeprefix("sqlite:///")).resolve())
    if len(parts.scheme) < 2 or parts.scheme == "file":  # one letter is a drive's
        raise CourseError(
            f"MLFLOW_TRACKING_URI is {uri}, a folder, and MLflow no longer keeps runs in folders: "
            "set it to sqlite:///PATH/mlflow.db or to a server's address, or unset it"
        )
    if parts.scheme in ("http", "https"):
        try:
            request(uri).close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            # With a lower status it answers; whether it lets us in shows with the first real request.
            if not isinstance(error, urllib.error.HTTPError) or error.code >= 500:
                raise CourseError(
                    f"the tracking server {shown(uri)} does not answer ({one_line(error)}): start it, "
                    "or unset MLFLOW_TRACKING_URI"
                ) from _presentable(error)
    else:
        _check_driver(uri)
    store = Store(uri, None)
    _check_database(store)
    return store


def request(uri: str, path: str = "") -> http.client.HTTPResponse:
    """What a server says of a path, to the name and password that may be in its URI; raises as urlopen does."""
    asked = urllib.request.Request(address(uri) + path)
    if ":" in (user := urllib.parse.urlsplit(uri).netloc.rpartition("@")[0]):
        asked.add_header("Authorization", f"Basic {base64.b64encode(urllib.parse.unquote(user).encode()).decode()}")
    answer: http.client.HTTPResponse = urllib.request.urlopen(asked, timeout=10)
    return answer


def _check_is_on_disk(uri: str) -> None:
    with suppress(ArgumentError):  # what is no address at all MLflow says
        url = make_url(uri)
        if not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
            raise CourseError(
                f"MLFLOW_TRACKING_URI is {uri}, a store in memory, whose runs are gone with the process: "
                "set it to sqlite:///PATH/mlflow.db, or unset it"
            )


def _check_driver(uri: str) -> None:
    """Ask for a database's driver first: MLflow tries again and again to connect without one."""
    try:
        make_url(uri).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        missing = str(error.name)
        remedy = f"pip install '{DRIVERS.get(missing, missing)}'"
        if missing == "psycopg" and importlib.util.find_spec("psycopg2"):
            remedy = f"psycopg2, which is here, takes postgresql+psycopg2://; or {remedy}"
        elif missing == "psycopg2" and importlib.util.find_spec("psycopg"):
            remedy = f"psycopg 3, which is here, takes postgresql+psycopg://; or {remedy}"
        text = f"{shown(uri)} needs the database driver {missing}, which is not installed: {remedy}"
        raise CourseError(text) from _presentable(error)
    except (ArgumentError, NoSuchModuleError):
        pass  # no database: a kind of store that MLflow may know


def _presentable(error: Exception) -> Exception | None:
    """An error as the cause of another one; None where Python would show a password with it."""
    return error if without_password(str(error)) == str(error) else None


def _check_database(store: Store) -> None:
    """A first question, which also makes the tables of a new database."""
    try:
        store.client.search_experiments(max_results=1)
    except Exception as error:  # the database drivers raise what they like
        message = one_line(error)
        cause = _presentable(error)
        if "out-of-date database schema" in message or "Can't locate revision" in message:
            if _is_newer(message):
                remedy = "was made by a newer MLflow: update this one (pip install -U mlflow), or use another folder"
            else:
                upgrade = _mlflow("db", "upgrade", shown(store.uri))
                remedy = f"was made by an older MLflow: copy it to be safe, then run `{upgrade}`"
            raise CourseError(f"the store {store.shown} {remedy}") from cause
        raise CourseError(f"the store {store.shown} cannot be opened: {message[:300]}") from cause


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


def reason(error: BaseException) -> str:
    """What went wrong, as short as can be: libraries wrap what the system said, some of them several times."""
    while not isinstance(error, CourseError):
        wraps = type(error).__module__.partition(".")[0] in ("mlflow", "requests", "urllib3")
        cause = error.__cause__ or (error.__context__ if wraps else None)
        if cause is None:
            break
        error = cause
    said = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
    return one_line(said if isinstance(error, CourseError) else f"{type(error).__name__}: {said}")[:300]


WAITING = "settings, curves and tags"
"""What is lost where the store cannot be written."""
TRACEBACK = "traceback.txt"


class Run:
    """One run, and its only writer.

    A store that cannot be written does not end a training: what it should have had waits, and is sent when it can be.
    ``lost`` has what is not in the store, with the reason.

    ``folder`` is where the run's files are put together: its artifact folder itself where that is on this disk, else
    a temporary one that is sent off when the run ends. ``history`` has every metric logged so far: (step, value).
    ``advice`` says how to go on from a run that was stopped; without one, its checkpoint does.
    """

    def __init__(
        self, store: Store, run: mlflow.Run | None, name: str, *, watched: bool, within: "Run | None" = None
    ) -> None:
        self.store = store
        self.name = name
        self.lost: dict[str, str] = {}
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.advice: str | None = None
        self.run_id: str = run.info.run_id if run else ""
        self.experiment_id: str = run.info.experiment_id if run else ""
        self._is_kept = run is not None
        self._watched = watched
        self._within = within
        self._waiting: dict[str, list[Any]] = {"tags": [], "params": [], "metrics": []}
        self._written = time.monotonic()
        self._failure: str | None = None
        self._status: str | None = None
        place = urllib.parse.urlsplit(run.info.artifact_uri if run else "nowhere:/")
        self._remote = place.scheme not in ("", "file")
        if self._remote:
            self.folder = Path(tempfile.mkdtemp(prefix=f"dlcourse-{self.run_id}-"))
        else:
            self.folder = Path(urllib.request.url2pathname(place.path))
        self.set_tags({"dlcourse.folder": str(self.folder)})

    @property
    def reachable(self) -> bool:
        """Whether the store took what it was last given."""
        return WAITING not in self.lost

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Let what is done within fail alone. It is lost then, unless it succeeds later; all else goes on."""
        try:
            yield
        except Exception as error:
            self.lose(what, error)
        else:
            self.lost.pop(what, None)

    def lose(self, what: str, error: Exception) -> None:
        """Keep in mind that something is not in the store."""
        why = reason(error)
        if why not in self.lost.values():
            trace = f"\n{without_password(''.join(traceback.format_exception(error)))}" if is_foreign(error) else ""
            log.warning("not in the store: %s (%s)%s", what, why, trace)
        self.lost[what] = why

    def path(self, name: str) -> Path:
        """Where to write one of the run's files; ``name`` is its path among the run's artifacts."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log_params(self, params: Mapping[str, object]) -> None:
        self._waiting["params"] += [mlflow.Param(name, _plain(value)) for name, value in params.items()]
        if self.reachable:
            self.write()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        others = [tag for tag in self._waiting["tags"] if tag.key not in tags]
        self._waiting["tags"] = others + [mlflow.RunTag(name, value) for name, value in tags.items()]
        if self.reachable:
            self.write()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Keep metrics for the next write; what is not a number is left out, since no chart can show it."""
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if math.isfinite(value):
                self.history.setdefault(name, []).append((step, value))
                if f"metrics: {name}" not in self.lost:
                    self._waiting["metrics"].append(mlflow.Metric(name, value, now, step))
        patience = SECONDS_BETWEEN_WRITES if self.reachable else SECONDS_BETWEEN_TRIES
        if time.monotonic() - self._written > patience:
            self.write()

    def write(self) -> None:
        """Send what is waiting to the store. What cannot be sent waits on; what the store refuses is lost."""
        if not self._is_kept:
            return
        with self.attempt(WAITING):
            for kind, entries in self._waiting.items():
                while entries:
                    self._send(kind, entries[: LIMIT[kind]])
                    del entries[: LIMIT[kind]]
        self._written = time.monotonic()

    def _send(self, kind: str, entries: list[Any]) -> None:
        """A batch with a name or value that the store does not take is refused whole: halve it until that is alone."""
        refused: MlflowException | None = None
        try:
            self.store.client.log_batch(self.run_id, **{kind: entries})  # type: ignore[arg-type]
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            refused = error
        if refused and len(entries) == 1:
            self.lose(f"{kind}: {entries[0].key}", refused)
        elif refused:
            middle = len(entries) // 2
            self._send(kind, entries[:middle])
            self._send(kind, entries[middle:])

    def log_rows(self, name: str, digest: str, source: str, splits: Mapping[Split, int]) -> None:
        """The data set and how many rows of it play which part."""
        contexts: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}
        inputs = [
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
        ]
        with self.attempt("the data set's name"):
            self.store.client.log_inputs(self.run_id, inputs)

    def fail(self, reason: str) -> None:
        """Let the run end as FAILED, with the reason in its note, though nothing is raised."""
        self._failure = reason

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(interruptible())
        if self._watched:
            self._monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self.store.uri)  # type: ignore[no-untyped-call]
            self._monitor.start()  # type: ignore[no-untyped-call]  # samples after ten seconds: shorter runs have none
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        with self._stack:
            try:
                self._end(error)
            except (Interrupted, KeyboardInterrupt) as late:  # all else costs no more than the step it happens in
                if self._status is None:
                    self._end(late, at_once=True)
                raise
        return False

    def _end(self, error: BaseException | None, at_once: bool = False) -> None:
        """Send what is left, each part by itself, and the status last: a run that says FINISHED has all the rest.

        ``at_once`` leaves out the files, which may take minutes to send.
        """
        is_stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
        if is_stopped:
            self._failure = f"stopped by {one_line(error) or 'Ctrl-C'}"
        elif error is not None:
            self._failure = f"{type(error).__name__}: {one_line(error)}"
        is_resumable = (self.folder / "checkpoints" / "last.ckpt").is_file()
        go_on = self.advice or (f"carry on with --resume {self.run_id}" if is_resumable else "start the command again")
        notes = [go_on] if is_stopped or is_resumable or self.advice else []
        if isinstance(error, Exception) and not isinstance(error, CourseError) and not self._within:
            with self.attempt(TRACEBACK):
                file = self.path(TRACEBACK)
                file.write_text(without_password("".join(traceback.format_exception(error))), encoding="utf-8")
                place = f"{TRACEBACK} of run {self.run_id}" if self._remote else file
                notes.insert(0, f"the traceback is in {place}")
        if self._watched:
            self._monitor.finish()  # type: ignore[no-untyped-call]
        if self._failure:
            tags = {"dlcourse.error": self._failure[:5000]}
            if error is not None:
                tags["mlflow.note.content"] = self._failure[:5000]
            self.set_tags(tags)
        self.write()
        if self._remote and self.folder.exists():
            with self.attempt("its files"):
                if at_once or not self.reachable:
                    raise CourseError(self.lost.get(WAITING, "stopped"))
                if self._is_kept:
                    self.store.client.log_artifacts(self.run_id, str(self.folder))
                shutil.rmtree(self.folder)
        if self.lost and self.reachable:
            self.set_tags({"dlcourse.lost": self._losses()[:5000]})
        is_whole = self.reachable and not (self._within and self.lost)  # a baseline is found again, and must be whole
        status = "KILLED" if is_stopped else "FINISHED" if is_whole and not self._failure else "FAILED"
        if self._is_kept:
            with self.attempt("how it ended"):
                self.store.client.set_terminated(self.run_id, status)
                self._status = status
        if self._within:
            part = self.name.removeprefix(f"{self._within.name}: ")
            self._within.lost |= {f"{part}: {what}": why for what, why in self.lost.items()}
        elif error is not None and notes:
            error.add_note("; ".join(notes))
        if self.lost and self._is_kept and not self._within:
            log.error("%s", self._epitaph(status, go_on))

    def _losses(self) -> str:
        """What is lost, by the reason."""
        whats: dict[str, list[str]] = {}
        for what, why in self.lost.items():
            whats.setdefault(why, []).append(what)
        return "; ".join(f"{', '.join(each)} ({why})" for why, each in whats.items())

    def _epitaph(self, status: str, go_on: str) -> str:
        """One line: what is lost, what is kept where, and how to go on."""
        parts = [f"run {self.run_id} is not wholly in the store {self.store.shown}: {self._losses()}"]
        if self.folder.exists():
            parts.append(f"its files are in {self.folder}")
        if self._status is None:
            parts.append("it is still marked RUNNING, which `dlcourse doctor --fix` mends")
        if status != "FINISHED" or self._status is None:
            parts.append(f"when the store can be written again, {go_on}")
        return "; ".join(parts)


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
    packages = {}
    for each in importlib.metadata.distributions():
        with suppress(OSError, KeyError):  # an installation that was broken off has no METADATA, or no name in it
            if name := each.metadata["Name"]:
                packages[name] = each.version
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
    return without_password(" ".join([name, *map(shlex.quote, sys.argv[1:])]))


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
