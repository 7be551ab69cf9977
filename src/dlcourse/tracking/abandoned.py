"""Runs that are marked RUNNING though their process is gone, as after a SIGKILL."""

import logging
import socket

import psutil  # type: ignore[import-untyped]

from dlcourse.tracking.store import Store, StoredRun, process_of

log = logging.getLogger(__name__)

# The start of a process is known to about a second: one that started so shortly after a run may still be the run's.
START_TOLERANCE_SECONDS = 5.0


def is_abandoned(run: StoredRun) -> bool:
    """Whether the process of a run that is marked RUNNING was on this machine, and is gone.

    A process that is younger than the run has the number of one that is gone.
    """
    host, pid = process_of(run)
    if host != socket.gethostname() or not pid:
        return False
    if not psutil.pid_exists(int(pid)):
        return True
    try:
        process = psutil.Process(int(pid))
        is_younger: bool = process.create_time() > run.info.start_time / 1000 + START_TOLERANCE_SECONDS
        return is_younger or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:  # it may not be looked at, which does not make it gone
        return False


def end_abandoned(store: Store, run: StoredRun, by: str) -> str:
    """Mark an abandoned run as FAILED; returns the note that it gets, after what somebody has written on it."""
    host, pid = process_of(run)
    note = f"ended as FAILED by {by}, since its process {pid} on {host} is gone"
    earlier_note = run.data.tags.get("mlflow.note.content")
    store.client.set_tag(run.info.run_id, "dlcourse.error", note)
    store.client.set_tag(run.info.run_id, "mlflow.note.content", f"{earlier_note}\n\n{note}" if earlier_note else note)
    store.client.set_terminated(run.info.run_id, "FAILED")
    return note


def end_runs_of_several_processes(store: Store) -> None:
    """Mark abandoned trainings of several processes as FAILED, with a warning for each.

    Lightning kills the process with the run if another one fails. (A single process is killed by somebody who knows
    it. Its run is left to ``dlcourse doctor --fix``, since machines that share a server may have the same name.)
    """
    experiments = [each.experiment_id for each in store.client.search_experiments()]
    query = "attributes.status = 'RUNNING' and tags.`dlcourse.processes` LIKE '%'"
    for run in store.client.search_runs(experiments, query):
        if is_abandoned(run):
            note = end_abandoned(store, run, "the next command")
            log.warning("run %s (%s) was %s", run.info.run_id, run.info.run_name, note)
