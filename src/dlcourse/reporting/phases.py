"""What takes a while shows itself on stderr: as a bar on a terminal, elsewhere as a line."""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

from tqdm import tqdm

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that nobody needs an explanation for."""


@contextmanager
def phase(text: str, total: int | None = None, *, after: float = PATIENCE) -> Iterator["tqdm[Never]"]:
    """Show what is being done, while it is; nothing where "dlcourse" logs no messages of level INFO.

    On a terminal there is a bar, which is removed at the end; elsewhere one line, if it takes longer than ``after``
    seconds.

    Args:
        text: What is being done, as in "drawing figures".
        total: The number of steps, if it is known; each calls ``update()`` of the bar that is yielded.
        after: Seconds before the line appears; 0 for at once.
    """
    is_shown, is_terminal = log.isEnabledFor(logging.INFO), sys.stderr.isatty()
    line = threading.Timer(after, log.info, [f"{text} ..."])
    line.daemon = True
    if is_shown and not is_terminal:
        line.start()
    bar_format = "{desc} ..." if total is None else None
    try:
        with tqdm(
            desc=text, total=total, bar_format=bar_format, leave=False, disable=not (is_shown and is_terminal)
        ) as bar:
            yield bar
    finally:
        line.cancel()
