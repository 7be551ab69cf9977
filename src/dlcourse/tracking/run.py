"""The store, the run, and what is written to it and when.

The store is an MLflow tracking store: SQLite and files under ``mlruns/`` unless ``MLFLOW_TRACKING_URI`` names another.
Everything goes through an `MlflowClient` of its own: MLflow's global state (active run, tracking URI) is left alone.
"""

import json
import logging
import math
import shutil
import tempfile
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import mlflow.entities as mlflow
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from dlcourse.data.rows import Split
from dlcourse.errors import CourseError, Interrupted, is_foreign, one_line, without_password
from dlcourse.tracking.interrupts import interruptible

if TYPE_CHECKING:
    from dlcourse.tracking.store import Store

log = logging.getLogger(__name__)

LIMIT = {"metrics": 1000, "params": 100, "tags": 100}
SECONDS_BETWEEN_WRITES = 1.0
"""Epochs shorter than this share a write: a write takes milliseconds however little it holds."""
SECONDS_BETWEEN_TRIES = 30.0
"""How long a store that could not be written is left alone while a training goes on."""


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
        self, store: "Store", run: mlflow.Run | None, name: str, *, watched: bool, within: "Run | None" = None
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

    def log_start(self, *, params, settings, dataset, digest, source, num_rows) -> None:  # type: ignore[no-untyped-def]
        from dlcourse.tracking.environment import environment

        self.log_params(params)
        self.log_rows(dataset, digest, source, num_rows)
        with self.attempt("settings.yaml"):
            self.path("settings.yaml").write_text(settings, encoding="utf-8")
        with self.attempt("environment.txt"):
            self.path("environment.txt").write_text(environment(), encoding="utf-8")

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


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
