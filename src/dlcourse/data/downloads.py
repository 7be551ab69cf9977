"""What comes from elsewhere: servers that keep silent are given up, and files are there whole or not at all."""

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
"""Seconds without data after which a download is given up."""


class UnavailableError(CourseError):
    """Data that are neither here nor to be downloaded; ``reason`` says in a few words why not."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def download(address: str, place: Path, checksum: str) -> None:
    """Download a file, whole or not at all; with a bar on a terminal.

    Given up after `PATIENCE` seconds in which nothing comes. A socket's own time-out is no bound: a name with eight
    addresses that nobody answers at would take eight of them, and looking the name up has none. So the waiting is done
    in a thread, which is left to itself when it takes too long.

    Args:
        address: Of http or https.
        place: The file to write.
        checksum: Its kind and value, as in ``md5:...`` or ``sha256:...``.

    Raises:
        UnavailableError: It cannot be had, is cut off, or has another checksum.
        OSError: It cannot be written.
    """
    arriving: SimpleQueue[bytes | Exception | None] = SimpleQueue()
    given_up = threading.Event()
    hidden = not sys.stderr.isatty()
    bar = tqdm(desc=place.name, unit="B", unit_scale=True, leave=False, disable=hidden)

    def fetch() -> None:
        try:
            with urlopen(Request(address, headers={"User-Agent": "dlcourse"}), timeout=PATIENCE) as answer:
                left = int(answer.headers.get("Content-Length", 0))
                bar.total = left or None
                arriving.put(b"")
                while not given_up.is_set() and (piece := answer.read1(2**16)):
                    left -= len(piece)
                    arriving.put(piece)
            if left > 0:
                raise ConnectionError(f"it was cut off, {left} bytes before its end")
            arriving.put(None)
        except Exception as error:  # of networks, servers and proxies: each raises its own kind
            arriving.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    kind, _, wanted = checksum.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    try:
        with bar, whole_file(place) as partial:
            with partial.open("wb") as file:
                while (piece := arriving.get(timeout=PATIENCE)) is not None:
                    if isinstance(piece, Exception):
                        said = one_line(piece.reason if type(piece) is URLError else piece)
                        raise _unavailable(address, said or type(piece).__name__) from piece
                    file.write(piece)
                    digest.update(piece)
                    bar.update(len(piece))
            if digest.hexdigest() != wanted:
                raise _unavailable(address, "what came has another checksum")
    except Empty as error:
        raise _unavailable(address, f"timed out: nothing came for {PATIENCE:g} s") from error
    finally:
        given_up.set()


def _unavailable(address: str, reason: str) -> UnavailableError:
    return UnavailableError(f"{address} cannot be downloaded ({reason[:200]})", reason[:200])


@contextmanager
def answers_within(seconds: float) -> Iterator[None]:
    """Let no server keep us waiting longer (libraries would wait for ever), and hold back warnings of retries."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def whole_file(place: Path) -> Iterator[Path]:
    """A path to write to; its file then takes the place of ``place``, and is dropped where the writing fails."""
    partial = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, place)
    finally:
        with suppress(OSError):
            partial.unlink()
