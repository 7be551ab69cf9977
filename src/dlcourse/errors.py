"""What a person can mend: one line that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable


class CourseError(Exception):
    """Something outside the code is wrong: a file, a store, a machine. The message is one line with the remedy."""

    exit_status = 1


class SettingsError(CourseError):
    """A verb, topic, flag, key or value that cannot be taken."""

    exit_status = 2


def suggestion(wrong: str, right: Iterable[str]) -> str:
    """The nearest right word as ``; did you mean X?``, or nothing where none is near."""
    near = difflib.get_close_matches(wrong, list(right), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def one_line(text: object) -> str:
    """A message of several lines, folded into one."""
    return " ".join(str(text).split())
