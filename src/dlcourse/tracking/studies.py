"""Optuna's studies: the trials of a sweep, in a database that workers share.

Optuna's own heartbeats tell which trials are still trained: a worker writes one every few seconds, by the clock of the
database. A trial without one for a minute has failed, which the next worker to begin a trial notices.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import optuna
from optuna.exceptions import (
    DuplicatedStudyError,
    ExperimentalWarning,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from dlcourse.errors import CourseError, Interrupted, SettingsError, one_line, shown
from dlcourse.reporting.phases import phase
from dlcourse.tracking.abandoned import end_abandoned
from dlcourse.tracking.opening import check_driver
from dlcourse.tracking.store import Store, this_process

HEARTBEAT_SECONDS = 10
# Six heartbeats: a machine that is busy or sleeps for a moment misses some.
GRACE_SECONDS = 60
# Processes that make the tables of a new database at the same time hinder each other, for less than a second.
ATTEMPTS = 5
SECONDS_BETWEEN_LOOKS = 0.5
SQLITE_TIMEOUT_SECONDS = 60
# Where half of a space diverges, ten failures in a row are one chance in a thousand.
MOST_FAILURES = 10
RUN, WORKER = "run", "worker"
"""Attributes of a trial: the id of its run, and the machine and process that trains it."""

Say = Callable[[optuna.Study, FrozenTrial], None]


class GivenUp(BaseException):
    """Another worker has failed a trial that is trained here, since this one was without heartbeats for a minute.

    No Exception, for which Optuna would end the trial once more, and not be able to.
    """


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Errors of a database as one line. They may quote its password: they are in the message, and not its cause.

    Raises:
        CourseError: It cannot be reached or written.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        problem = one_line(getattr(cause, "orig", None) or cause)[:300]
        raise CourseError(
            f"--storage {shown(uri)} cannot be used ({problem}): when it can, start the same command again"
        ) from None


@contextmanager
def experimental() -> Iterator[None]:
    """Optuna calls heartbeats and its figures by Matplotlib experimental, in a warning each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def open_storage(uri: str, store: Store) -> Iterator[RDBStorage]:
    """The database of a URI of SQLAlchemy, until the end of the context; its tables are made where there are none.

    A trial whose worker is gone has failed, and so has its run in ``store``.

    Raises:
        SettingsError: This is no URI of a database.
        CourseError: Its driver is not installed.
        SQLAlchemyError: It does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the sweep has lines of its own

    def end_run(study: optuna.Study, trial: FrozenTrial) -> None:
        run = store.get_run(trial.user_attrs[RUN]) if trial.user_attrs.get(RUN) else None
        if run and run.info.status == "RUNNING":
            end_abandoned(store, run, "another worker")

    try:
        check_driver(uri)
        is_sqlite = make_url(uri).get_backend_name() == "sqlite"
    except (ArgumentError, NoSuchModuleError) as error:
        example = "sqlite:///sweeps.db or postgresql://user@host/sweeps"
        raise SettingsError(f"--storage must be a database, such as {example}, not {shown(uri)}") from error
    options = {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}} if is_sqlite else {"pool_pre_ping": True}
    engine = create_engine(uri)
    engine.connect().close()  # without an answer there is no sense in several attempts
    engine.dispose()
    storage = None
    for attempt in range(1, ATTEMPTS + 1):
        try:
            storage = RDBStorage(
                uri,
                options,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=end_run,
            )
            break
        except SQLAlchemyError:
            if attempt == ATTEMPTS:
                raise
            time.sleep(1)
    assert storage
    try:
        yield storage
    finally:
        storage.engine.dispose()


def open_study(
    storage: RDBStorage, name: str, mode: Literal["min", "max"], seed: int, warmup: int
) -> tuple[optuna.Study, bool]:
    """The study of that name, which is made where there is none; and whether it is new.

    Trials are drawn by the tree-structured Parzen estimator, with Optuna's defaults (Bergstra et al. 2011; Watanabe
    2023), the first ten of them at random. It keeps clear of what other workers are trying.

    A trial is pruned if its best value is worse than the median of the others at the same epoch (Golovin et al. 2017,
    Google Vizier). Hyperband, which Optuna's authors found better with this sampler, divides the trials into brackets
    that each begin with ten random ones: too many for the few dozen trials that a course has time for.

    Args:
        storage: The database.
        name: The study's name.
        mode: Whether lower or higher values are better.
        seed: Seed of the trials that the worker draws who makes the study. Others have random ones: with the same seed,
            they would draw the same trials.
        warmup: Epochs before which no trial is pruned.
    """
    # The median of fewer than five trials says little.
    pruner = MedianPruner(n_startup_trials=5, n_warmup_steps=warmup, n_min_trials=5)
    try:
        direction: Literal["minimize", "maximize"] = "minimize" if mode == "min" else "maximize"
        sampler = TPESampler(seed=seed)
        return (
            optuna.create_study(storage=storage, study_name=name, direction=direction, sampler=sampler, pruner=pruner),
            True,
        )
    except DuplicatedStudyError:
        return optuna.load_study(storage=storage, study_name=name, sampler=TPESampler(), pruner=pruner), False


def add_trials(study: optuna.Study, objective: Callable[[Trial], float], count: int, say: Say) -> None:
    """Run trials until the study has ``count`` complete ones, and those of other workers have ended.

    ``say`` is called with each trial that has ended here.

    A trial that raises `CourseError` has failed, with the reason as its attribute ``error``, and the next one begins.

    Raises:
        CourseError: `MOST_FAILURES` trials in a row have failed.
    """
    if len(trials_of(study, TrialState.COMPLETE)) < count:
        callbacks: list[Say] = [say, MaxTrialsCallback(count, states=(TrialState.COMPLETE,)), check_failures]
        try:
            study.optimize(ending(study, objective), catch=(CourseError,), callbacks=callbacks)
        except GivenUp as error:
            raise CourseError(
                f"this worker slept for more than {GRACE_SECONDS} s, and another one has given up its trial: "
                "start the same command again"
            ) from error
    wait_for_others(study)


def ending(study: optuna.Study, objective: Callable[[Trial], float]) -> Callable[[Trial], float]:
    """An objective whose trials have failed where it is stopped by a signal, and say why they have failed."""

    def attempt(trial: Trial) -> float:
        trial.set_user_attr(WORKER, this_process())
        try:
            return objective(trial)
        except CourseError as error:
            trial.set_user_attr("error", one_line(error))
            raise
        except UpdateFinishedTrialError as error:
            raise GivenUp from error
        except Interrupted:  # Optuna knows KeyboardInterrupt alone, and would leave the trial running
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise

    return attempt


def trials_of(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """The study's trials in these states, by number."""
    return study.get_trials(deepcopy=False, states=states)


def check_failures(study: optuna.Study, trial: FrozenTrial) -> None:
    """Raises `CourseError` where the newest trials have all failed: then more of them would too, without an end."""
    newest = trials_of(study, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[-MOST_FAILURES:]
    if len(newest) == MOST_FAILURES and all(each.state == TrialState.FAIL for each in newest):
        reason = newest[-1].user_attrs.get("error", "its worker is gone")
        raise CourseError(f"{MOST_FAILURES} trials in a row have failed, the last since {reason}: narrow the space")


def wait_for_others(study: optuna.Study) -> None:
    """Until no trial runs any more: those of workers that are gone have failed a minute later."""
    since = time.monotonic()
    with phase("waiting for the trials of other workers"):
        while running := trials_of(study, TrialState.RUNNING):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            fail_stale_trials(study)
            if time.monotonic() - since < GRACE_SECONDS:
                continue
            for trial in running:
                if WORKER not in trial.user_attrs:  # killed before its first heartbeat, which Optuna waits for
                    with suppress(UpdateFinishedTrialError):  # another worker was faster
                        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def by_one_worker(storage: RDBStorage, name: str, work: Callable[[], None]) -> bool:
    """Do some work unless another worker does it, or has done it; returns whether it was done here.

    It is a trial of a study of that name. The first one does it, and their numbers are unique. If its worker fails, is
    stopped or is gone, the next to ask does it.
    """
    claims = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    is_done_here = False

    def claim(trial: Trial) -> float:
        nonlocal is_done_here
        others = trials_of(claims, TrialState.RUNNING, TrialState.COMPLETE)
        if any(each.number < trial.number for each in others):
            raise optuna.TrialPruned
        work()
        is_done_here = True
        return 0.0

    claims.optimize(ending(claims, claim), n_trials=1)
    return is_done_here
