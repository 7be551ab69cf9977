"""A web server of MLflow's in a process of its own, from its start until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO

import psutil  # type: ignore[import-untyped]

from dlcourse.errors import CourseError, Interrupted, one_line
from dlcourse.tracking.interrupts import interruptible


def run_server(
    arguments: Sequence[str],
    variables: dict[str, str],
    host: str,
    port: int,
    *,
    name: str,
    describe: Callable[[], str],
) -> int:
    """Run a server until Ctrl-C.

    Args:
        arguments: What follows ``python -m mlflow`` on the command line, but for host and port.
        variables: Environment variables for it. An address goes here: everyone on this machine can read a command line.
        host: The address to serve on.
        port: The port to serve on.
        name: What is started, in words.
        describe: Gives what to print once the server answers.

    Returns:
        The exit status: 0 after Ctrl-C, 128 and the signal's number after another signal.

    Raises:
        CourseError: The port is taken, or the server ended by itself.
    """
    _check_port(host, port)
    print(f"starting {name}", flush=True)
    command = [sys.executable, "-m", "mlflow", *arguments, "--host", host, "--port", str(port)]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"} | variables
    with tempfile.TemporaryFile() as output:
        # In a session of its own Ctrl-C does not reach it, so that it can be ended in order.
        server = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            with interruptible():
                if _answers(server, base_address(host, port)):
                    print(f"Ctrl-C ends it; {describe()}", flush=True)
                    server.wait()
        except Interrupted as interrupted:
            return 0 if interrupted.signum == signal.SIGINT else 128 + interrupted.signum
        finally:
            _end(server)
        raise CourseError(f"MLflow's server ended by itself, with status {server.returncode}: {_last_line(output)}")


def base_address(host: str, port: int) -> str:
    """The address of a server for who is on the same machine."""
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"


def _check_port(host: str, port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise CourseError(
            f"port {port} of {host} cannot be served on ({reason}): choose another with --port"
        ) from error


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
