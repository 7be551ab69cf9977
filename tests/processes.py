"""Servers and children that tests start."""

import logging
import multiprocessing
import os
import runpy
import shlex
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path


def words_of(command: str, folder: Path) -> list[str]:
    """What ``make ...``, typed in a folder, would call dlcourse with."""
    dry_run = subprocess.run(
        f"{command} --dry-run --old-file .venv/.ready --directory {shlex.quote(str(folder))}",
        shell=True, capture_output=True, text=True, check=True, env=os.environ | {"MAKEFLAGS": "", "ARGS": ""},
    )  # fmt: skip
    line = next(line for line in dry_run.stdout.splitlines() if "-m dlcourse" in line)
    return shlex.split(line.partition("-m dlcourse ")[2])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_it_answers(address: str, process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    """Until a server answers; fails where its process ends first or it takes too long."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with suppress(OSError):
            direct.open(address, timeout=5).close()
            return
        time.sleep(0.2)
    raise AssertionError(f"{address} did not answer in {seconds} s")


@cache
def fork_server() -> ForkServerContext:
    """Starts processes in milliseconds: they are forked from one that has imported all that is slow to import.

    Their environment is that of the moment when the first of them was started.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dlcourse.experiment", "dlcourse.topics.height_weight", "dlcourse.tracking.ui"])
    return context


def start_command(folder: Path, *arguments: object) -> tuple[ForkServerProcess, Path]:
    """Start a command line in a process of its own, in a folder; gives the process, and the file with its output."""
    output = folder / f"output-{time.monotonic_ns()}.txt"
    output.touch()
    process = fork_server().Process(target=_run_command, args=(folder, [str(each) for each in arguments], output))
    process.start()
    return process, output


def start_script(file: Path, torchrun: bool = False, **environment: str) -> tuple[ForkServerProcess, Path]:
    """Start a script in its folder, or two processes of it by torchrun's agent; returns as `start_command` does."""
    output = file.parent / f"output-{time.monotonic_ns()}.txt"
    output.touch()
    process = fork_server().Process(target=_run_script, args=(file, torchrun, environment, output))
    process.start()
    return process, output


def wait_for_line(start: str, output: Path, process: ForkServerProcess, seconds: float = 120) -> None:
    """Until a line of a command's output starts with a text; fails where the process ends first."""
    end = time.monotonic() + seconds
    while not any(line.startswith(start) for line in output.read_text().splitlines()):
        assert process.is_alive(), output.read_text()
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.005)


def _run_script(file: Path, torchrun: bool, environment: dict[str, str], output: Path) -> None:
    _write_into(output)
    sys.argv = [str(file)]
    os.chdir(file.parent)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ |= {"PYTHONPATH": str(Path(__file__).parent.parent), **environment}
    if not torchrun:
        return _run_main(file)

    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    two = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork")
    elastic_launch(two, _run_worker)(file)
    return None


def _run_main(file: Path) -> None:
    runpy.run_path(str(file), run_name="__main__")


def _run_worker(file: Path) -> None:
    """Say why it fails, as a program does that torchrun starts: of a function it tells only the first one's reason."""
    try:
        _run_main(file)
    except Exception:
        traceback.print_exc()
        raise


def _run_command(folder: Path, arguments: list[str], output: Path) -> None:
    _write_into(output)
    sys.argv = ["dlcourse", *arguments]
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)

    from dlcourse.cli import main

    sys.exit(main(arguments))


def _write_into(output: Path) -> None:
    """From now on, what this process writes goes into a file."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(each, "w", buffering=1, closefd=False) for each in (1, 2))
    logging.getLogger().handlers.clear()  # those of libraries, which the command line has before it imports them


def open_store_at_once(folder: Path, barrier: Barrier, number: int) -> None:
    """In a process of its own: open a folder's store when every other process is about to, and write."""
    from dlcourse.tracking.opening import open_store

    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.chdir(folder)
    barrier.wait(150)
    with open_store().start_run("asked", f"process {number}", {}) as run:
        run.log_metrics({"number": number})


@contextmanager
def serving(files: Mapping[str, bytes | Iterable[bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine with files by path: its address, and the paths that it was asked for.

    Of a file in pieces, which are sent as they come, it does not say beforehand how long it is.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path not in files:
                return self.send_error(404)
            content = files[self.path]
            self.send_response(200)
            if isinstance(content, bytes):
                self.send_header("Content-Length", str(len(content)))
                content = [content]
            self.end_headers()
            with suppress(OSError):  # whoever asked may have gone
                for piece in content:
                    self.wfile.write(piece)
            return None

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()
