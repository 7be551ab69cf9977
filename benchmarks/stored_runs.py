"""A store with thousands of runs, copied from one training, and what comparing them takes."""

import os
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path

SEEDS = 5
"""Of each of the settings, which differ in the learning rate."""
TRAIN = "import dlcourse; print(dlcourse.train('diabetes', trainer={'max_epochs': 2}).run_id)"
MEASURE = """
import resource, sys, time
import dlcourse.experiment
started = time.perf_counter()
comparison = dlcourse.compare("diabetes", last=int(sys.argv[1]))
seconds = time.perf_counter() - started
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def make_runs(folder: Path, runs: int, epochs: int) -> None:
    """A project with this number of trainings, each with metrics of this number of epochs."""
    (folder / "mlruns").mkdir(parents=True)
    told = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True, cwd=folder)
    first = told.stdout.strip()
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database:

        def rows(table: str, column: str = "run_uuid") -> tuple[list[str], list[dict[str, object]]]:
            cursor = database.execute(f"SELECT * FROM {table} WHERE {column} = ?", [first])
            names = [each[0] for each in cursor.description]
            return names, [dict(zip(names, row, strict=True)) for row in cursor]

        tables = {name: rows(name) for name in ("runs", "params", "tags", "latest_metrics", "metrics")}
        location = Path(str(tables["runs"][1][0]["artifact_uri"]).removeprefix("file://"))
        start = int(str(tables["runs"][1][0]["start_time"]))
        for number in range(runs - 1):
            run = uuid.uuid4().hex
            place = location.parent.parent / run / "artifacts"
            place.mkdir(parents=True)
            os.link(location / "predictions.npz", place / "predictions.npz")
            changed = {"seed": str(number % SEEDS), "model.lr": str(0.001 * (1 + number // SEEDS))}
            for name, (columns, entries) in tables.items():
                made = [{**entry, "run_uuid": run} for entry in entries]
                if name == "runs":
                    made[0] |= {"artifact_uri": place.as_uri(), "start_time": start - 1000 * number}
                if name == "params":
                    made = [{**entry, "value": changed.get(str(entry["key"]), entry["value"])} for entry in made]
                if name == "metrics":  # those of an epoch have a step for each epoch
                    steps = {entry["key"] for entry in entries if entry["step"]}
                    made = [entry for entry in made if entry["key"] not in steps] + [
                        {**made[0], "key": key, "step": step} for key in steps for step in range(epochs)
                    ]
                marks = ", ".join("?" * len(columns))
                database.executemany(
                    f"INSERT INTO {name} VALUES ({marks})", [[entry[column] for column in columns] for entry in made]
                )
        database.commit()


def compare_last(folder: Path, last: int) -> tuple[float, float]:
    """Seconds beyond the imports, and peak memory in GiB, of a comparison of the newest runs."""
    command = [sys.executable, "-c", MEASURE, str(last)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    seconds, memory = told.stdout.split()
    return float(seconds), float(memory)
