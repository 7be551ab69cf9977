"""MLflow's web pages on the store, served until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import IO

import psutil  # type: ignore[import-untyped]

from dlcourse.errors import CourseError, Interrupted, address, one_line
from dlcourse.tracking.interrupts import interruptible
from dlcourse.tracking.store import Store
from dlcourse.tracking.views import runs_address

KEEP = 'a click on "Override saved view" keeps the columns when the page is loaded again'
"""The button is one of MLflow's, over a view that an address has opened."""


def serve(store: Store, topic: str | None, host: str, port: int) -> int:
    """Serve a store's pages until Ctrl-C, and print a link for each topic, or for one.

    Of a store that is a server the links alone.

    Returns:
        The exit status: 0 after Ctrl-C, 128 and the signal's number after another signal.

    Raises:
        CourseError: The port is taken, or the server ended by itself.
    """
    if store.uri.startswith("http"):
        pages = links(store, topic, f"{address(store.uri)}/", lambda each: runs_address(store, each))
        print(f"the runs are on a server; open\n{pages}\n{KEEP}")
        return 0
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise CourseError(
            f"port {port} of {host} cannot be served on ({reason}): choose another with --port"
        ) from error
    base = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    start = f"{base}/start"
    print("starting MLflow's pages", flush=True)
    with tempfile.TemporaryFile() as output:
        server = _start_server(store, host, port, output)
        try:
            with interruptible():
                if _answers(server, base):
                    pages = links(store, topic, start, lambda each: f"{start}#/experiments/{each}/runs")
                    print(f"Ctrl-C ends it; open\n{pages}", flush=True)
                    server.wait()
        except Interrupted as interrupted:
            return 0 if interrupted.signum == signal.SIGINT else 128 + interrupted.signum
        finally:
            _end(server)
        raise CourseError(f"MLflow's server ended by itself, with status {server.returncode}: {_last_line(output)}")


def links(store: Store, topic: str | None, start: str, page: Callable[[str], str]) -> str:
    """A line for each topic that has runs, or for one, with the address of their page.

    Args:
        store: The store.
        topic: The only topic that is wanted, or None.
        start: The address before the list of experiments, which is shown where there are no runs.
        page: Gives the address of an experiment by its id.
    """
    experiments = store.client.search_experiments(order_by=["name ASC"])
    pages = {
        each.name: page(each.experiment_id)
        for each in experiments
        if topic in (None, each.name) and store.client.search_runs([each.experiment_id], max_results=1)
    }
    pages = pages or {"no runs yet": f"{start}#/experiments?workflowType=machine_learning"}
    width = max(map(len, pages))
    return "\n".join(f"  {name:<{width}}  {link}" for name, link in pages.items())


def _start_server(store: Store, host: str, port: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "dlcourse"]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    if store.folder:
        command += ["--default-artifact-root", (store.folder / "artifacts").as_uri()]
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": store.uri,  # everyone on this machine can read a command line
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes, for language models
    }
    # In a session of its own Ctrl-C does not reach it, so that it can be ended in order.
    return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def _answers(server: subprocess.Popen[bytes], base: str) -> bool:
    """Wait until the server answers; False where it ends before it does."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None:
        with suppress(OSError):
            direct.open(f"{base}/health", timeout=5).close()
            return True
        time.sleep(0.2)
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it has started."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(server.pid)
        processes = [*parent.children(recursive=True), parent]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(processes, timeout=10)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    server.wait()


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return one_line(lines[-1])[:300] if lines else "it printed nothing"
