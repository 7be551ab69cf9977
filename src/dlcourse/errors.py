"""What a person can mend: one line that says what is wrong and what to do."""

import difflib
import signal
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

    Of dotted words the last parts are compared where what is before them is the same, or missing: ``--lr`` is near
    ``--model.lr``.
    """

    def likeness(known: str) -> float:
        asked, known = wrong.lstrip("-").lower(), known.lstrip("-").lower()
        group, _, name = asked.rpartition(".")
        known_group, _, known_name = known.rpartition(".")
        if group in ("", known_group):
            asked, known = name, known_name
        ratio = difflib.SequenceMatcher(None, asked, known).ratio()
        is_part = len(asked) >= 3 and asked in known
        return max(ratio, LEAST_LIKENESS) if is_part else ratio

    near = max(sorted(right), key=likeness, default=None)
    return f"; did you mean {near}?" if near and likeness(near) >= LEAST_LIKENESS else ""


def one_line(text: object) -> str:
    """A message of several lines, folded into one."""
    return " ".join(str(text).split())


def explained(error: Exception) -> str | None:
    """What a mistake in a model is, where its error does not say; None for all others."""
    if "all elements of input should be between 0 and 1" in str(error):
        return (
            "binary cross-entropy takes probabilities, and the network gives numbers outside 0 to 1: a sigmoid is "
            "missing at its end (binary_cross_entropy_with_logits has it built in)"
        )
    return None


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM while a run was going on.

    Not a KeyboardInterrupt: Lightning answers that one by ending the process.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.run_id: str | None = None
        """The run that was going on."""
