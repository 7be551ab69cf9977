"""A process that is killed in the last phase of a run: what it leaves tells no lie, and doctor names it."""

import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

import dlcourse
from dlcourse.doctor.machine import check_machine
from tests.processes import start_script

TRAININGS = """
SELECT status,
    EXISTS (SELECT 1 FROM tags WHERE run_uuid = runs.run_uuid AND key = 'verdict'),
    EXISTS (SELECT 1 FROM tags WHERE run_uuid = runs.run_uuid AND key = 'mlflow.note.content'),
    (SELECT count(*) FROM tags WHERE run_uuid = runs.run_uuid AND key = 'dlcourse.process')
FROM runs JOIN tags AS kinds USING (run_uuid) WHERE kinds.key = 'dlcourse.kind' AND kinds.value = 'training'
"""


def trainings(database: Path) -> list[tuple[str, bool, bool, int]]:
    """Of each training: its status, whether it has its verdict and its card, and how many tags with its process."""
    with closing(sqlite3.connect(database)) as connection:  # which rolls back what was cut off in the middle
        return connection.execute(TRAININGS).fetchall()


def test_between_any_two_writes_to_the_store(project: Path) -> None:
    """Looks at the database before each commit: that is what a SIGKILL at that moment would leave."""
    found: list[list[tuple[str, bool, bool, int]]] = []

    def look(connection: object) -> None:
        found.append(trainings(project / "mlruns" / "mlflow.db"))

    event.listen(Engine, "commit", look)
    try:
        dlcourse.train("height-weight", trainer={"max_epochs": 2})
    finally:
        event.remove(Engine, "commit", look)
    found.append(trainings(project / "mlruns" / "mlflow.db"))
    seen = [training for moment in found for training in moment]
    assert len(seen) > 20
    assert {status for status, *_ in seen} == {"RUNNING", "FINISHED"}
    for status, has_verdict, has_card, tags in seen:
        assert tags == 1 or status == "FINISHED", "doctor tells by process and host"
        assert status == "RUNNING" or (has_verdict and has_card)


KILLED = """
import os, random, shutil, signal, threading, time
from pathlib import Path
import dlcourse, dlcourse.experiment, mlflow.pytorch, torch
from tests.samples import Line

template, folders = Path("mlruns").absolute(), Path("killed").absolute()
fraction, seconds = 0.0, None  # how long a run takes after its fit, and after which part of that it is killed


class Killed(Line):
    def on_fit_end(self):
        global fit_ended
        fit_ended = time.monotonic()
        if seconds is not None:
            threading.Timer(fraction * seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


topic = __import__("dataclasses").replace(dlcourse.topics.find("height-weight"), model=Killed)
chance = random.Random(0)


def train(number):
    shutil.copytree(template, folders / str(number) / "mlruns")
    os.chdir(folders / str(number))
    dlcourse.train(topic, trainer={"max_epochs": 1})
    Path("seconds").write_text(str(time.monotonic() - fit_ended))


def least_seconds():
    return min(float(file.read_text()) for file in folders.glob("*/seconds"))


train(0)  # so that all is loaded that the others need
train(1)
for number in range(2, 12):
    seconds = least_seconds()  # of a machine that was busy at first, one that ended before it was killed says more
    fraction = chance.random()
    child = os.fork()
    if child == 0:
        try:
            train(number)
        finally:
            os._exit(0)
    with (folders / "statuses").open("a") as file:
        print(os.waitpid(child, 0)[1], file=file)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked after torch is loaded")
def test_at_ten_random_moments(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a process of its own, which is forked, so that the libraries are loaded once."""
    (project / "killed").mkdir()
    (project / "killed.py").write_text(KILLED, encoding="utf-8")
    process, output = start_script(project / "killed.py")
    process.join(280)
    assert process.exitcode == 0, output.read_text()
    statuses = [int(line) for line in (project / "killed" / "statuses").read_text().splitlines()]
    assert statuses.count(signal.SIGKILL) >= 5, "some may have ended before"
    for number in range(2, 12):
        folder = project / "killed" / str(number)
        monkeypatch.chdir(folder)
        ((status, has_verdict, _, _),) = trainings(folder / "mlruns" / "mlflow.db")
        named = [each for each in check_machine() if each.name == "running" and not each.ok]
        with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as connection:
            (running,) = connection.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone()
        assert len(named) == running
        assert status == "RUNNING" or has_verdict
