"""Trials in a database: shared by workers, ended whatever happens to them, and begun again where one was stopped."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from dlcourse.errors import CourseError, Interrupted, SettingsError
from dlcourse.tracking import studies
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store
from dlcourse.tracking.studies import add_trials, answering, by_one_worker, experimental, open_storage, open_study

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed"),  # of a trial that no worker runs
]


@pytest.fixture
def store(project: Path) -> Store:
    return open_store()


@pytest.fixture
def storage(store: Store, project: Path) -> Iterator[RDBStorage]:
    with open_storage(f"sqlite:///{project}/sweeps.db", store) as storage:
        yield storage


@pytest.fixture
def study(storage: RDBStorage) -> optuna.Study:
    return open_study(storage, "some", "min", seed=0, warmup=0)[0]


def say_nothing(study: optuna.Study, trial: FrozenTrial) -> None:
    pass


def states(study: optuna.Study) -> list[str]:
    return [each.state.name for each in study.trials]


def drawn(trial: Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def test_counts_what_is_there_and_goes_on(study: optuna.Study, storage: RDBStorage) -> None:
    add_trials(study, drawn, 2, say_nothing)
    again, is_new = open_study(storage, "some", "min", seed=0, warmup=0)
    assert not is_new
    add_trials(again, drawn, 5, say_nothing)
    add_trials(again, drawn, 3, say_nothing)
    assert states(again) == ["COMPLETE"] * 5


def test_the_first_worker_draws_the_same_and_the_others_something_else(storage: RDBStorage) -> None:
    first, again = (open_study(storage, name, "min", seed=3, warmup=0)[0] for name in ("first", "again"))
    joining, _ = open_study(storage, "first", "min", seed=3, warmup=0)
    values = [drawn(each.ask()) for each in (first, again, joining)]
    assert values[0] == values[1]
    assert values[2] != values[0]


def test_a_trial_that_fails_says_why_and_the_next_begins(study: optuna.Study) -> None:
    def objective(trial: Trial) -> float:
        if trial.number == 1:
            raise CourseError("it diverged")
        return drawn(trial)

    add_trials(study, objective, 2, say_nothing)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["error"] == "it diverged"


def test_a_space_in_which_everything_fails_has_an_end(study: optuna.Study) -> None:
    def objective(trial: Trial) -> float:
        raise CourseError("it diverged")

    with pytest.raises(CourseError, match="10 trials in a row have failed, the last since it diverged"):
        add_trials(study, objective, 1, say_nothing)


def test_an_error_in_the_code_ends_the_sweep(study: optuna.Study) -> None:
    def objective(trial: Trial) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add_trials(study, objective, 1, say_nothing)
    assert states(study) == ["FAIL"]


def test_a_trial_that_is_stopped_has_failed(study: optuna.Study) -> None:
    def objective(trial: Trial) -> float:
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        add_trials(study, objective, 1, say_nothing)
    assert states(study) == ["FAIL"]


def test_a_worker_whose_trial_was_given_up(study: optuna.Study) -> None:
    def objective(trial: Trial) -> float:
        study.tell(trial.number, state=TrialState.FAIL)  # another worker, while this one sleeps
        trial.report(1.0, 0)
        return 1.0

    with pytest.raises(CourseError, match="start the same command again"):
        add_trials(study, objective, 1, say_nothing)
    assert states(study) == ["FAIL"]


class TestAWorkerThatIsGone:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(studies, "HEARTBEAT_SECONDS", 1)
        monkeypatch.setattr(studies, "GRACE_SECONDS", 1)

    def test_costs_one_trial_which_fails_with_its_run(self, study: optuna.Study, store: Store) -> None:
        run = store.start_run("some", "trial 0", {})
        lost = study.ask()
        lost.set_user_attr("worker", "this:1")
        lost.set_user_attr("run", run.run_id)
        study._storage.record_heartbeat(lost._trial_id)  # as its worker did before it was killed
        add_trials(study, drawn, 2, say_nothing)
        assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
        stored = store.get_run(run.run_id)
        assert stored
        assert stored.info.status == "FAILED"
        assert "is gone" in stored.data.tags["dlcourse.error"]

    def test_before_its_first_heartbeat(self, study: optuna.Study) -> None:
        study.ask()
        add_trials(study, drawn, 1, say_nothing)
        assert states(study) == ["FAIL", "COMPLETE"]

    def test_lets_another_one_do_its_work(self, storage: RDBStorage) -> None:
        claims = optuna.create_study(storage=storage, study_name="work")
        lost = claims.ask()
        storage.record_heartbeat(lost._trial_id)
        done = list[str]()
        assert not by_one_worker(storage, "work", lambda: done.append("too early"))
        time.sleep(2.1)  # SQLite has whole seconds
        assert by_one_worker(storage, "work", lambda: done.append("done"))
        assert done == ["done"]


def test_work_is_done_by_one_worker_once(storage: RDBStorage) -> None:
    done = list[int]()

    def fail() -> None:
        raise CourseError("not yet")

    def work() -> None:
        assert not by_one_worker(storage, "work", lambda: done.append(2)), "while another one is at it"
        done.append(1)

    with pytest.raises(CourseError):
        by_one_worker(storage, "work", fail)
    assert by_one_worker(storage, "work", work)
    assert not by_one_worker(storage, "work", lambda: done.append(3)), "after it was done"
    assert done == [1]


@pytest.mark.parametrize("uri", ["nonsense", "sweeps.db", "nosuch://host/db"])
def test_no_database(uri: str, store: Store) -> None:
    with pytest.raises(SettingsError, match=r"--storage must be a database.*" + uri), open_storage(uri, store):
        pass


@pytest.mark.parametrize("uri", ["sqlite:////nowhere/sweeps.db", "postgresql://ada:s3cret@127.0.0.1:1/sweeps"])
def test_a_database_that_cannot_be_used(uri: str, store: Store) -> None:
    with pytest.raises(CourseError) as caught, answering(uri), open_storage(uri, store):
        pass
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert uri.partition(":")[0] in str(caught.value)


def test_without_the_databases_driver(store: Store) -> None:
    with pytest.raises(CourseError, match="pip install 'mysqlclient'"), open_storage("mysql://host/sweeps", store):
        pass


@pytest.mark.filterwarnings("error::optuna.exceptions.ExperimentalWarning")
def test_what_is_experimental_is_said_in_one_place(store: Store, project: Path) -> None:
    with experimental(), open_storage(f"sqlite:///{project}/sweeps.db", store):
        pass
