"""MLflow's own pages on the store in force."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from typing import IO

import psutil  # type: ignore[import-untyped]

from dlcourse.errors import CourseError, Interrupted, one_line
from dlcourse.errors import address as server_address
from dlcourse.ranges import PositiveInt
from dlcourse.tracking.interrupts import interruptible
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store


def ui(*, host: str = "127.0.0.1", port: PositiveInt = 5000) -> int:
    """Serve the runs to a browser until Ctrl-C.

    Args:
        host: Address to serve on; 0.0.0.0 lets other machines in, which MLFLOW_SERVER_ALLOWED_HOSTS and
            MLFLOW_SERVER_CORS_ALLOWED_ORIGINS name.
        port: Port to serve on.
    """
    store = open_store()
    if store.uri.startswith("http"):
        # The link makes its own page one of model training; a link in it leads to what the browser was told last.
        pages = links(store, f"{server_address(store.uri)}/", "?workflowType=machine_learning")
        print(f"the runs are on a server; open\n{pages}")
        return 0
    _check_free(host, port)
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", host, "--port", str(port), "--workers", "1", "--app-name", "dlcourse"]
    if store.folder:
        command += ["--default-artifact-root", (store.folder / "artifacts").as_uri()]
    switches = {
        "MLFLOW_BACKEND_STORE_URI": store.uri,  # not on the command line, which all who use this machine can see
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes, for language models
    }
    print("starting MLflow's pages", flush=True)
    # The server's session is its own, so that Ctrl-C comes here alone and the server is ended in order.
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(
            command, env=os.environ | switches, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            with interruptible():
                if _answers(server, address):
                    print(f"Ctrl-C ends it; open\n{links(store, address + '/start')}", flush=True)
                    server.wait()
        except Interrupted as interrupted:
            return 0 if interrupted.signum == signal.SIGINT else 128 + interrupted.signum
        finally:
            _end(server)
        raise CourseError(f"MLflow's server ended by itself, with status {server.returncode}: {_last_line(said)}")


def links(store: Store, address: str, query: str = "") -> str:
    """A line for each topic that has runs, with the address of their page."""
    experiments = store.client.search_experiments(order_by=["name ASC"])
    pages = {
        each.name: f"{address}#/experiments/{each.experiment_id}/runs{query}"
        for each in experiments
        if store.client.search_runs([each.experiment_id], max_results=1)
    }
    pages = pages or {"no runs yet": f"{address}#/experiments{query}"}
    width = max(map(len, pages))
    return "\n".join(f"  {name:<{width}}  {page}" for name, page in pages.items())


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise CourseError(
                f"port {port} of {host} cannot be served on ({reason}): choose another with --port"
            ) from error


def _answers(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until the server answers; False where it ends before it does."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None:
        with suppress(OSError):
            direct.open(f"{address}/health", timeout=5).close()
            return True
        time.sleep(0.2)
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it has started."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(server.pid)
        family = [*first.children(recursive=True), first]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(family, timeout=10)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    server.wait()


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return one_line(lines[-1])[:300] if lines else "it said nothing"
