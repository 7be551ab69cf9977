"""The store of all runs: an MLflow tracking store, by default SQLite and files under ``mlruns/``.

Everything goes through an `MlflowClient` of the store's own: MLflow's global tracking URI and active run stay as they
are.
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

from filelock import FileLock
from mlflow import MlflowClient, entities
from mlflow.exceptions import MlflowException

from dlcourse.errors import CourseError, one_line, shown
from dlcourse.tracking import relocation
from dlcourse.tracking.environment import git_commit, user_name
from dlcourse.tracking.run import WAITING, Run

StoredRun = entities.Run
"""A run as the store has it: MLflow's, with ``info``, ``data``, ``inputs`` and ``outputs``."""


@dataclass(frozen=True)
class Store:
    """Where runs are kept.

    Attributes:
        uri: MLflow's tracking URI, which may hold a password: show ``shown`` instead.
        folder: The folder of a store of files, with ``mlflow.db`` and ``artifacts/``; None for a server or another
            database.
    """

    uri: str = field(repr=False)
    folder: Path | None

    @cached_property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    @property
    def shown(self) -> str:
        """The store's name for people, without a password."""
        return str(self.folder) if self.folder and self.folder.name == "mlruns" else shown(self.uri)

    @property
    def database(self) -> Path:
        """The SQLite file of a store of files."""
        return Path(self.uri.removeprefix("sqlite:///"))

    def experiment(self, topic: str, tags: Mapping[str, str] | None = None) -> str:
        """The id of the topic's MLflow experiment, which is made where there is none, with these tags.

        Raises:
            CourseError: The experiment was deleted.
        """
        stored = self.client.get_experiment_by_name(topic)
        if stored is None:
            location = (self.folder / "artifacts" / topic).as_uri() if self.folder else None
            # By this tag MLflow's pages show an experiment as model training, not as one of language models.
            tags = {"mlflow.experimentKind": "custom_model_development", **(tags or {})}
            try:
                return str(self.client.create_experiment(topic, artifact_location=location, tags=tags))
            except MlflowException:
                stored = self.client.get_experiment_by_name(topic)  # another process was faster
                if stored is None:
                    raise
        if stored.lifecycle_stage == "deleted":
            restore = mlflow_command("experiments", "restore", "--experiment-id", stored.experiment_id)
            raise CourseError(
                f"the experiment {topic!r} was deleted in {self.shown}: choose another store, or restore it with "
                f"`{restore}` while MLFLOW_TRACKING_URI is {shown(self.uri)}"
            )
        if self.folder and (location := relocation.here(stored.artifact_location, self.folder)):
            relocation.keep_here(self.database, stored.experiment_id, location)
        return str(stored.experiment_id)

    def start_run(
        self, topic: str, name: str, tags: Mapping[str, str], *, watched: bool = False, within: Run | None = None
    ) -> Run:
        """Start a run, to be used as a context.

        Args:
            topic: The topic's name.
            name: The run's name.
            tags: Tags that it has from the start.
            watched: Whether to log the load of processor, memory and GPU.
            within: The run that this one is a part of. A part that the store does not take is not kept, and counts as
                lost in that run.

        Raises:
            CourseError: The experiment was deleted, or the run's files cannot be written anywhere.
            Exception: Whatever MLflow raises where the store cannot be written, unless the run is a part.
        """
        common = {
            "mlflow.user": user_name(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "dlcourse",
            "dlcourse.process": this_process(),
            **git_commit(),
        }
        try:
            if within and not within.reachable:
                raise CourseError(within.lost[WAITING])
            stored = self.client.create_run(self.experiment(topic), tags={**common, **tags}, run_name=name)
        except Exception as error:
            if within is None:
                raise
            part = Run(self, None, name, within=within)
            within.lose(part.part_name, error)
            return part
        try:
            return Run(self, stored, name, watched=watched, within=within)
        except OSError as error:  # no temporary folder can be made
            self.client.set_terminated(stored.info.run_id, "FAILED")
            raise CourseError(
                f"the run's files cannot be kept ({one_line(error)}): make room, or set TMPDIR"
            ) from error

    def take_over(self, run: Run) -> None:
        """Mark a run as RUNNING in this process, whoever began it, and if it has ended."""
        with run.attempt("that it goes on"):
            self.client.update_run(run.run_id, "RUNNING")
            self.client.set_tag(run.run_id, "dlcourse.process", this_process())
            if "dlcourse.error" in self.client.get_run(run.run_id).data.tags:
                self.client.delete_tag(run.run_id, "dlcourse.error")

    def get_run(self, run_id: str) -> StoredRun | None:
        """The run with this id; None where there is none (any more)."""
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def verified_model(self, model_id: str) -> entities.LoggedModel | None:
        """The model with this id; None where there is none (any more), or its verification has failed."""
        try:
            model = self.client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return model if model.status == entities.LoggedModelStatus.READY else None

    def location_of(self, model: entities.LoggedModel) -> str:
        """Where a model's files are, also in a project that was moved."""
        here = relocation.here(model.artifact_location, self.folder) if self.folder else None
        return here or str(model.artifact_location)

    def find_run(self, wanted: str, topic: str) -> StoredRun:
        """A topic's training by its id, the beginning of its id, or its name; of several with that name the newest.

        A training with several seeds is one as well.

        Raises:
            CourseError: There is no such run.
        """
        no_parts = " and ".join(f"tags.`dlcourse.kind` != '{part}'" for part in ("baseline", "fold", "trial"))
        runs = [
            run
            for run in self.client.search_runs(
                [self.experiment(topic)], no_parts, order_by=["attributes.start_time DESC"], max_results=1000
            )
            if run.data.tags["dlcourse.kind"] in ("training", "seeds")
        ]
        for run in runs:
            if wanted in (run.info.run_id, run.info.run_name):
                return run
        matches = [run for run in runs if len(wanted) >= 4 and run.info.run_id.startswith(wanted)]
        if len(matches) == 1:
            return matches[0]
        newest = f"; the newest is {runs[0].info.run_id} ({runs[0].info.run_name})" if runs else "; there is none yet"
        raise CourseError(f"{topic} has no run {wanted!r} in {self.shown}{newest}")

    def baselines(self, topic: str, fingerprint: str, judge: str) -> dict[tuple[str, str], StoredRun]:
        """The finished baseline runs of a split, by name and version.

        Args:
            topic: The topic's name.
            fingerprint: That of the split.
            judge: The split and metric that they were evaluated by, as in ``"test mse"``.
        """
        query = f"tags.`dlcourse.kind` = 'baseline' and tags.`dlcourse.split` = '{fingerprint}' "
        query += f"and tags.`dlcourse.judge` = '{judge}' and attributes.status = 'FINISHED'"
        runs = self.client.search_runs([self.experiment(topic)], query)
        return {
            (run.data.tags["dlcourse.baseline"], run.data.tags.get("dlcourse.baseline_version", "")): run
            for run in runs
        }

    def files_of(self, run: StoredRun) -> Path:
        """A folder with the run's artifacts: the original on this disk, else a copy, deleted when the process ends."""
        if folder := self._folder_here(run):
            return folder
        return Path(self.client.download_artifacts(run.info.run_id, "", _temporary_folder(run)))

    def file_of(self, run: StoredRun, name: str) -> Path | None:
        """One of the run's artifacts, as `files_of` has them; None if the run has no such file."""
        if folder := self._folder_here(run):
            return folder / name if (folder / name).is_file() else None
        if name not in [each.path for each in self.client.list_artifacts(run.info.run_id)]:
            return None
        return Path(self.client.download_artifacts(run.info.run_id, name, _temporary_folder(run)))

    def _folder_here(self, run: StoredRun) -> Path | None:
        candidates = []
        if self.folder and (location := relocation.here(run.info.artifact_uri, self.folder)):
            candidates.append(relocation.path_of(location))
        if run.info.artifact_uri.startswith("file:"):
            candidates.append(relocation.path_of(run.info.artifact_uri))
        if process_of(run)[0] == socket.gethostname() and "dlcourse.folder" in run.data.tags:
            candidates.append(Path(run.data.tags["dlcourse.folder"]))
        return next((folder for folder in candidates if folder.is_dir()), None)

    @contextmanager
    def lock(self, purpose: str) -> Iterator[None]:
        """Let one process at a time in, of those that use the same store of files; other stores have no lock."""
        with ExitStack() as stack:
            if self.folder:
                with suppress(OSError):  # a full disk; at worst something is then made twice
                    stack.enter_context(FileLock(self.folder / f"{purpose}.lock"))
            yield


def _temporary_folder(run: StoredRun) -> str:
    folder = tempfile.mkdtemp(prefix=f"dlcourse-{run.info.run_id}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def process_of(run: StoredRun) -> tuple[str, str]:
    """Name of the machine, and number of the process, that a run is or was of; empty where they are not known."""
    tags = run.data.tags
    host, _, pid = tags.get("dlcourse.process", "").rpartition(":")
    return host or tags.get("dlcourse.host", ""), pid or tags.get("dlcourse.pid", "")  # as earlier versions had them


def this_process() -> str:
    """Name of this machine and number of this process, as runs have them."""
    return f"{socket.gethostname()}:{os.getpid()}"


def mlflow_command(*arguments: str) -> str:
    """A command of this environment's MLflow, quoted for the shell of this system, to be typed in any folder."""
    command = [sys.executable, "-m", "mlflow", *arguments]
    return shlex.join(command) if os.name == "posix" else subprocess.list2cmdline(command)
