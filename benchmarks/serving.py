"""How fast a served champion answers: requests of one row each, from several clients at once, on the same machine.

    python -m benchmarks.run --parts serving --repeats 5

The clients are threads of one process with a connection each, which is kept; they share the processor with the server.
"""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

REQUESTS = 1000
CLIENTS = 8
TRAININGS = {
    "diabetes": ("--trainer.max_epochs", "2"),
    "fashion-mnist": ("--config", "sample", "--trainer.max_epochs", "1"),
}
"""The flags of the training of each topic that is served."""


class Measured(NamedTuple):
    """What some requests took: how many were answered in a second, and percentiles of their milliseconds."""

    per_second: float
    median: float
    percentile_99: float


@contextmanager
def served(topic: str, folder: Path) -> Iterator[tuple[int, str]]:
    """A champion that is trained, promoted and served in an empty folder: the port, and a request of one row."""
    command = [sys.executable, "-m", "dlcourse"]
    for words in (["train", topic, *TRAININGS[topic], "--name", "served"], ["promote", topic, "served"]):
        subprocess.run([*command, *words], check=True, capture_output=True, cwd=folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = [*command, "serve", topic, "--port", str(port)]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert server.stdout
        if not any(line.startswith("Ctrl-C ends it") for line in server.stdout):
            raise RuntimeError(f"`{' '.join(serve)}` ended before it answered")
        yield port, request_of(topic, folder)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def request_of(topic: str, folder: Path) -> str:
    """The first row of the model's input example as JSON, without spaces."""
    (file,) = (folder / "mlruns" / "artifacts" / topic / "models").glob("*/artifacts/serving_input_example.json")
    rows = np.array(json.loads(file.read_text(encoding="utf-8"))["inputs"])[:1]
    return json.dumps({"inputs": rows.tolist()}, separators=(",", ":"))


def measure(port: int, body: str) -> Measured:
    """Send the requests, by all clients at once; raises `RuntimeError` if one is not answered like the first."""
    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        told = list(clients.map(lambda _: _ask(port, body), range(CLIENTS)))
    seconds = time.perf_counter() - started
    answers = {answer for of_client in told for _, answer in of_client}
    if len(answers) != 1 or next(iter(answers))[0] != 200:
        raise RuntimeError(f"the requests were answered in {len(answers)} ways: {sorted(answers)[:2]}")
    times = [1000 * took for of_client in told for took, _ in of_client]
    return Measured(len(times) / seconds, float(np.median(times)), float(np.percentile(times, 99)))


def _ask(port: int, body: str) -> list[tuple[float, tuple[int, bytes]]]:
    """What one client's requests took, in seconds, and how they were answered."""
    told, connection = [], http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(REQUESTS // CLIENTS):
        started = time.perf_counter()
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.status, response.read()
        told.append((time.perf_counter() - started, answer))
    connection.close()
    return told
