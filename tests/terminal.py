"""A terminal for tests of what is shown on one."""

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """A real terminal as stderr; what is given tells all that it has shown.

    No fixture: pytest puts its own stderr back between a test's fixtures and its body.
    """
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        yield lambda: "".join(all_of(ours))
    os.close(ours)


def all_of(terminal: int) -> Iterator[str]:
    """What a terminal has been told: it does not pass everything on at once."""
    while select.select([terminal], [], [], 0.3)[0]:
        yield os.read(terminal, 65536).decode()
