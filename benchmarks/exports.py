"""What writing and verifying a model in each format takes."""

import subprocess
import sys
from pathlib import Path

TRAININGS = {
    "diabetes": "trainer={'max_epochs': 2}",
    "fashion-mnist": "data={'source': 'sample'}, trainer={'max_epochs': 1, 'limit_batches': 3}",
    "cifar10": "data={'source': 'sample'}, trainer={'max_epochs': 1, 'limit_batches': 3}",
}
"""A table model and two networks of pictures, in their full size; how well they are trained does not matter here."""
MEASURE = """
import sys, time
from dlcourse.export.exporting import export
started = time.perf_counter()
export(sys.argv[1], run=sys.argv[2], format=sys.argv[3])
print(time.perf_counter() - started)
"""


def train(topic: str, folder: Path) -> str:
    """Train a topic's model in a new project; gives the run's id."""
    program = f"import dlcourse; print(dlcourse.train({topic!r}, {TRAININGS[topic]}).run_id)"
    return _last_line([sys.executable, "-c", program], folder)


def seconds(topic: str, run: str, form: str, folder: Path) -> float:
    """Seconds beyond the imports of an export, in a process of its own."""
    return float(_last_line([sys.executable, "-c", MEASURE, topic, run, form], folder))


def _last_line(command: list[str], folder: Path) -> str:
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return told.stdout.splitlines()[-1]
