"""A run and its only writer: a store that cannot be written stops no training, and a run that began ends."""

import html
import json
import logging
import math
import shutil
import tempfile
import time
import traceback
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mlflow import entities
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from dlcourse.data.rows import Split
from dlcourse.errors import CourseError, Interrupted, is_foreign, one_line, without_password
from dlcourse.tracking.environment import environment
from dlcourse.tracking.interrupts import interruptible

if TYPE_CHECKING:
    from dlcourse.tracking.store import Store

log = logging.getLogger(__name__)

# What MLflow takes in one request.
BATCH_SIZES = {"tags": 100, "params": 100, "metrics": 1000}
# A write takes milliseconds, however little it holds: epochs shorter than this share one.
SECONDS_BETWEEN_WRITES = 1.0
# While a store cannot be written, each further try may wait for a time-out.
SECONDS_BETWEEN_RETRIES = 30.0
# MLflow takes 8000 characters, servers of older versions 5000.
MAX_TAG_LENGTH = 5000

# MLflow's names of the splits.
CONTEXTS: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}
WAITING = "settings, curves and tags"
"""The key of `Run.lost` while the store cannot be written."""
TRACEBACK = "traceback.txt"


def reason(error: BaseException) -> str:
    """The first cause of an error in one line: libraries wrap the system's error, some of them several times."""
    while not isinstance(error, CourseError):
        is_wrapper = type(error).__module__.partition(".")[0] in ("mlflow", "requests", "urllib3")
        cause = error.__cause__ or (error.__context__ if is_wrapper else None)
        if cause is None:
            break
        error = cause
    text = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
    return one_line(text if isinstance(error, CourseError) else f"{type(error).__name__}: {text}")[:300]


@dataclass(frozen=True)
class Dataset:
    """The rows of one split. MLflow keeps what was first logged of a name and digest, so each split has its own digest.

    Attributes:
        name: The data set's name.
        digest: A digest of the split's rows.
        source: Where they come from.
        num_rows: How many they are.
    """

    name: str
    digest: str
    source: str
    num_rows: int

    def as_input(self, context: str) -> entities.DatasetInput:
        """As MLflow's pages show it: "diabetes (training)"."""
        dataset = entities.Dataset(
            f"{self.name} ({context})",
            self.digest,
            "local",
            json.dumps({"uri": self.source}),
            profile=json.dumps({"num_rows": self.num_rows}),
        )
        return entities.DatasetInput(dataset, [entities.InputTag("mlflow.data.context", context)])


class Run:
    """One run of a store, used as a context: leaving it marks the run FINISHED, FAILED or KILLED.

    It may be entered again, to add to it.

    Nothing that the store refuses or cannot take raises: it is in ``lost``, with the reason, and the training goes on.
    While the store cannot be written, entries wait and are sent once it can be.

    Attributes:
        name: The run's name.
        run_id: MLflow's id; empty for a part that the store did not take.
        experiment_id: MLflow's id of the topic's experiment; empty in the same case.
        folder: Where to write the run's files: its artifact folder where that is on this disk, else a temporary folder,
            which is uploaded when the run ends.
        params: Every parameter logged so far, as the store has it.
        tags: Every tag set so far, and those that the run has from the start.
        history: Every metric logged so far, by name, as (step, value).
        lost: What is not in the store, and why.
        advice: How to continue a run that was stopped; by default with ``--resume``, if there is a checkpoint.
        is_shared: Whether other processes go on with the run, so that leaving it does not end it, unless by an error.
    """

    def __init__(
        self,
        store: "Store",
        stored: entities.Run | None,
        name: str,
        *,
        watched: bool = False,
        within: "Run | None" = None,
    ) -> None:
        self.store = store
        self.name = name
        self.lost: dict[str, str] = {}
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = dict(stored.data.tags) if stored else {}
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.advice: str | None = None
        self.is_shared = False
        self.run_id: str = stored.info.run_id if stored else ""
        self.experiment_id: str = stored.info.experiment_id if stored else ""
        self._watched = watched
        self._within = within
        self._waiting: dict[str, list[Any]] = {kind: [] for kind in BATCH_SIZES}
        self._last_write = time.monotonic()
        self._failure: str | None = None
        self._has_ended = False
        self._end_time: int | None = None  # in milliseconds; that of the first end, if the run is entered again
        address = urllib.parse.urlsplit(stored.info.artifact_uri) if stored else None
        self._is_local = address is not None and address.scheme in ("", "file")
        if address and self._is_local:
            self.folder = Path(urllib.request.url2pathname(address.path))
        else:
            self.folder = Path(tempfile.mkdtemp(prefix=f"dlcourse-{self.run_id}-"))
            self.set_tags({"dlcourse.folder": str(self.folder)})

    @property
    def reachable(self) -> bool:
        """Whether the last write to the store succeeded."""
        return WAITING not in self.lost

    @property
    def part_name(self) -> str:
        """The name without that of the run that this one is a part of."""
        return self.name.removeprefix(f"{self._within.name}: ") if self._within else self.name

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Catch what fails within: ``what`` is then in ``lost``, until an attempt of the same name succeeds."""
        try:
            yield
        except Exception as error:
            self.lose(what, error)
        else:
            self.lost.pop(what, None)

    def lose(self, what: str, error: Exception) -> None:
        """Add to ``lost``, with a warning for each new reason (and the traceback, if the code is not ours)."""
        why = reason(error)
        if why not in self.lost.values():
            trace = f"\n{_traceback(error)}" if is_foreign(error) else ""
            log.warning("not in the store: %s (%s)%s", what, why, trace)
        self.lost[what] = why

    def path(self, name: str) -> Path:
        """Where to write one of the run's files, by its path among the run's artifacts; makes the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log_text(self, name: str, text: str) -> None:
        """Write a text as one of the run's files."""
        with self.attempt(name):
            self.path(name).write_text(text, encoding="utf-8")

    def log_start(
        self,
        *,
        params: Mapping[str, object],
        settings: str,
        datasets: Mapping[Split, Dataset],
    ) -> None:
        """Write what is known before the first step; ``environment.txt`` is added from this process.

        Args:
            params: The run's parameters.
            settings: The content of ``settings.yaml``.
            datasets: The rows of each split.
        """
        self.log_params(params)
        self.log_datasets(datasets)
        self.log_text("settings.yaml", settings)
        self.log_text("environment.txt", environment())

    def log_datasets(self, datasets: Mapping[Split, Dataset]) -> None:
        """Log the rows of each split."""
        inputs = [dataset.as_input(CONTEXTS[split]) for split, dataset in datasets.items()]
        with self.attempt("the data set's name"):
            self.store.client.log_inputs(self.run_id, inputs)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; those that are no strings are written as JSON."""
        self.params |= as_params(params)
        self._waiting["params"] += [entities.Param(name, value) for name, value in as_params(params).items()]
        if self.reachable:
            self.write()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a later value of a tag replaces an earlier one."""
        self.tags |= tags
        others = [tag for tag in self._waiting["tags"] if tag.key not in tags]
        self._waiting["tags"] = others + [entities.RunTag(name, value) for name, value in tags.items()]
        if self.reachable:
            self.write()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics, to be sent with the next write; NaN and infinity, which no chart can show, are left out."""
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if math.isfinite(value):
                self.history.setdefault(name, []).append((step, value))
                if f"metrics: {name}" not in self.lost:
                    self._waiting["metrics"].append(entities.Metric(name, value, now, step))
        patience = SECONDS_BETWEEN_WRITES if self.reachable else SECONDS_BETWEEN_RETRIES
        if time.monotonic() - self._last_write > patience:
            self.write()

    def write(self) -> None:
        """Send what is waiting. What cannot be sent goes on waiting; what the store refuses is lost."""
        if not self.run_id:
            return
        with self.attempt(WAITING):
            for kind, entries in self._waiting.items():
                while entries:
                    self._send(kind, entries[: BATCH_SIZES[kind]])
                    del entries[: BATCH_SIZES[kind]]
        self._last_write = time.monotonic()

    def _send(self, kind: str, entries: list[Any]) -> None:
        """Send a batch. MLflow refuses it whole for one bad name or value: halve it until that one is alone."""
        batches = [entries]
        while batches:
            batch = batches.pop()
            try:
                self.store.client.log_batch(self.run_id, **{kind: batch})  # type: ignore[arg-type]
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                if len(batch) == 1:
                    self.lose(f"{kind}: {batch[0].key}", error)
                else:
                    middle = len(batch) // 2
                    batches += [batch[middle:], batch[:middle]]

    def fail(self, reason: str) -> None:
        """Let the run end as FAILED, with the reason in a tag, though nothing is raised."""
        self._failure = reason

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(interruptible())
        if self._watched:
            # Public in MLflow, undocumented: the documented call needs MLflow's global run. First sample after 10 s.
            self._monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self.store.uri)  # type: ignore[no-untyped-call]
            self._monitor.start()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            try:
                self._end(error)
            except (Interrupted, KeyboardInterrupt) as late:  # any other error costs no more than its own step
                if not self._has_ended:
                    self._end(error or late, upload=False)  # which may take minutes
                if error is None:
                    raise

    def _end(self, error: BaseException | None, *, upload: bool = True) -> None:
        """Send what is left, each part by itself, and the status last: a run that says FINISHED is complete."""
        if (self.folder / "checkpoints" / "last.ckpt").is_file():
            self.advice = self.advice or f"carry on with --resume {self.run_id}"
        is_stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
        if is_stopped:
            self._failure = f"stopped by {one_line(error) or 'Ctrl-C'}"
        elif error is not None:
            self._failure = f"{type(error).__name__}: {one_line(error)}"
        if error is not None and not self._within:
            self._add_notes(error, is_stopped)
        if self._watched:
            self._monitor.finish()  # type: ignore[no-untyped-call]
        if self._failure:
            names = ["dlcourse.error"] if error is None else ["dlcourse.error", "verdict"]
            self.set_tags(dict.fromkeys(names, self._failure[:MAX_TAG_LENGTH]))
        if error is not None:
            # The page takes a note for Markdown, in which "<class 'int'>" would be a tag, and vanish.
            note = f"{self._failure}; {self.advice}" if self.advice else self._failure
            self.set_tags({"mlflow.note.content": html.escape(str(note), quote=False)[:MAX_TAG_LENGTH]})
        self.write()
        if not self._is_local and self.folder.exists():
            self._upload(upload)
        if self.lost and self.reachable:
            self.set_tags({"dlcourse.lost": self._losses()[:MAX_TAG_LENGTH]})
        # A part, such as a baseline, is used by later runs, and has to be complete.
        is_complete = self.reachable and not (self._within and self.lost)
        status = "KILLED" if is_stopped else "FINISHED" if is_complete and not self._failure else "FAILED"
        if self.run_id and not (self.is_shared and error is None):
            with self.attempt("how it ended"):
                is_first = self._end_time is None
                self._end_time = self._end_time or int(time.time() * 1000)
                self.store.client.set_terminated(self.run_id, status, self._end_time)
                self._has_ended = True
                if status == "FINISHED" and is_first:  # the pages show what runs differ in: no process any more
                    self.store.client.delete_tag(self.run_id, "dlcourse.process")
        if self._within:
            self._within.lost |= {f"{self.part_name}: {what}": why for what, why in self.lost.items()}
        elif self.lost:
            log.error("%s", self._summary_of_losses(status))

    def _add_notes(self, error: BaseException, is_stopped: bool) -> None:
        """Keep the traceback of an error that does not explain itself, and note on the error how to continue."""
        notes = []
        if isinstance(error, Exception) and not isinstance(error, CourseError):
            self.log_text(TRACEBACK, _traceback(error))
            file = self.folder / TRACEBACK if self._is_local else f"{TRACEBACK} of run {self.run_id}"
            notes += [f"the traceback is in {file}"] if TRACEBACK not in self.lost else []
        if is_stopped or self.advice:
            notes.append(self.advice or "start the command again")
        if notes:
            error.add_note("; ".join(notes))

    def _upload(self, upload: bool) -> None:
        with self.attempt("its files"):
            if not upload or not self.reachable:
                raise CourseError(self.lost.get(WAITING, "stopped"))
            if self.run_id:
                self.store.client.log_artifacts(self.run_id, str(self.folder))
            shutil.rmtree(self.folder)

    def _losses(self) -> str:
        """What is lost, grouped by the reason."""
        by_reason: dict[str, list[str]] = {}
        for what, why in self.lost.items():
            by_reason.setdefault(why, []).append(what)
        return "; ".join(f"{', '.join(whats)} ({why})" for why, whats in by_reason.items())

    def _summary_of_losses(self, status: str) -> str:
        """One line: what is lost, which files are where, and how to continue."""
        parts = [f"run {self.run_id} is not wholly in the store {self.store.shown}: {self._losses()}"]
        if self.folder.exists():
            parts.append(f"its files are in {self.folder}")
        if not self._has_ended:
            parts.append("it is still marked RUNNING, which `dlcourse doctor --fix` mends")
        if status != "FINISHED" or not self._has_ended:
            parts.append(f"when the store can be written again, {self.advice or 'start the command again'}")
        return "; ".join(parts)


def as_params(settings: Mapping[str, object]) -> dict[str, str]:
    """Settings as a run's parameters: those that are no strings as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in settings.items()
    }


def _traceback(error: BaseException) -> str:
    return without_password("".join(traceback.format_exception(error)))
