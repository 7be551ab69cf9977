"""The store, the run, and what is written to it and when.

The store is an MLflow tracking store: SQLite and files under ``mlruns/`` unless ``MLFLOW_TRACKING_URI`` names another.
Everything goes through an `MlflowClient` of its own: MLflow's global state (active run, tracking URI) is left alone.
"""

import atexit
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import mlflow.entities as mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dlcourse.errors import CourseError, one_line, shown
from dlcourse.tracking import relocation
from dlcourse.tracking.environment import command_line, git_commit, user_name
from dlcourse.tracking.run import WAITING, Run


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
                f"`{mlflow_command('experiments', 'restore', '--experiment-id', found.experiment_id)}` "
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
            "mlflow.user": user_name(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "dlcourse",
            "dlcourse.command": command_line(),
            "dlcourse.host": socket.gethostname(),
            "dlcourse.pid": str(os.getpid()),
            "dlcourse.topic": topic,
        }
        try:
            if within and not within.reachable:
                raise CourseError(within.lost[WAITING])
            run = self.client.create_run(
                self.experiment(topic), tags={**everyone, **git_commit(), **tags}, run_name=name
            )
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
    def lock(self, purpose: str) -> Iterator[None]:
        """Keep other processes of this store of files out while something is made once."""
        with ExitStack() as stack:
            if self.folder:
                with suppress(OSError):  # on a full disk; then at worst a thing is made twice
                    stack.enter_context(FileLock(self.folder / f"{purpose}.lock"))
            yield


def mlflow_command(*arguments: str) -> str:
    """A command of this environment's MLflow, to be typed in any folder."""
    command = [sys.executable, "-m", "mlflow", *arguments]
    return shlex.join(command) if os.name == "posix" else subprocess.list2cmdline(command)
