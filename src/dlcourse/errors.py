"""What a person can mend: one line that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable

LEAST_LIKENESS = 0.6


class CourseError(Exception):
    """Something outside the code is wrong: a file, a store, a machine. The message is one line with the remedy."""

    exit_status = 1


class SettingsError(CourseError):
    """A verb, topic, flag, key or value that cannot be taken."""

    exit_status = 2


def suggestion(wrong: str, right: Iterable[str]) -> str:
    """The nearest right word as ``; did you mean X?``, or nothing where none is near.

    A wrong word without a dot is compared with the last part of dotted ones as well: ``--lr`` is near ``--model.lr``.
    """

    def likeness(known: str) -> float:
        asked, known = wrong.lstrip("-").lower(), known.lstrip("-").lower()
        names = {known} if "." in asked else {known, known.rpartition(".")[2]}
        return max(difflib.SequenceMatcher(None, asked, name).ratio() for name in names)

    near = max(sorted(right), key=likeness, default=None)
    return f"; did you mean {near}?" if near and likeness(near) >= LEAST_LIKENESS else ""


def one_line(text: object) -> str:
    """A message of several lines, folded into one."""
    return " ".join(str(text).split())
