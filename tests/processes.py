"""Servers and children that tests start."""

import os
import shlex
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


def open_store_at_once(barrier: Barrier, number: int) -> None:
    """In a process of its own: open the current folder's store when every other process is about to, and write."""
    from dlcourse.tracking.opening import open_store

    barrier.wait(150)
    with open_store().start_run("asked", f"process {number}", {}, watched=False) as run:
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
