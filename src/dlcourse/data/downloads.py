"""Downloads that time out, and files that are written whole or not at all."""

import hashlib
import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.error import URLError
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from dlcourse.errors import CourseError, one_line

PATIENCE = 20.0
"""Seconds without data after which a download fails."""


class UnavailableError(CourseError):
    """Data that are neither on this machine nor can be downloaded; ``reason`` says in a few words why."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def download(address: str, path: Path, checksum: str) -> None:
    """Download a file, whole or not at all; shows a bar on a terminal.

    It fails after `PATIENCE` seconds without data. A socket's own timeout is not enough: a host name with eight
    unreachable addresses would take eight timeouts, and looking the name up has none. So a thread does the waiting, and
    is abandoned when it takes too long.

    Args:
        address: A URL of http or https.
        path: The file to write.
        checksum: Algorithm and value, as in ``md5:...`` or ``sha256:...``.

    Raises:
        UnavailableError: The server cannot be reached, the download is incomplete, or its checksum is wrong.
        OSError: The file cannot be written.
    """
    chunks: SimpleQueue[bytes | Exception | None] = SimpleQueue()
    abandoned = threading.Event()
    bar = tqdm(desc=path.name, unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty())

    def fetch() -> None:
        try:
            with urlopen(Request(address, headers={"User-Agent": "dlcourse"}), timeout=PATIENCE) as response:
                left = int(response.headers.get("Content-Length", 0))
                bar.total = left or None
                chunks.put(b"")  # the response has begun, which starts the wait anew
                while not abandoned.is_set() and (chunk := response.read1(2**16)):
                    left -= len(chunk)
                    chunks.put(chunk)
            if left > 0:
                raise ConnectionError(f"the connection was closed {left} bytes before the end")
            chunks.put(None)
        except Exception as error:  # networks, servers and proxies each raise another type
            chunks.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with bar, whole_file(path) as partial:
            with partial.open("wb") as file:
                while (chunk := chunks.get(timeout=PATIENCE)) is not None:
                    if isinstance(chunk, Exception):
                        message = one_line(chunk.reason if type(chunk) is URLError else chunk)
                        raise _unavailable(address, message or type(chunk).__name__) from chunk
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
            if digest.hexdigest() != expected:
                raise _unavailable(address, "its checksum is wrong")
    except Empty as error:
        raise _unavailable(address, f"timed out: no data for {PATIENCE:g} s") from error
    finally:
        abandoned.set()


def _unavailable(address: str, reason: str) -> UnavailableError:
    return UnavailableError(f"{address} cannot be downloaded ({reason[:200]})", reason[:200])


@contextmanager
def answers_within(seconds: float) -> Iterator[None]:
    """A timeout for libraries that set none: sets Python's default for all sockets, and ignores warnings of retries."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to. It replaces ``path`` afterwards, and is removed where writing fails."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink()
