"""What comes from elsewhere: servers that keep silent are given up, and files are there whole or not at all."""

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
