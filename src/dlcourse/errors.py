"""What a person can mend: one line that says what is wrong and what to do."""

import difflib
import os
import re
import signal
import sysconfig
import traceback
import urllib.parse
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

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
    """A message of several lines, folded into one, without the store's password."""
    return " ".join(without_password(str(text)).split())


_PASSWORD = re.compile(r"(?<=://)([^\s:/@]*:)(\S*)(?=@)")
_SECRETS = re.compile(r"([?&][^\s=&]*(?:pass|pwd|token|secret)[^\s=&]*=)([^\s&#]+)", re.IGNORECASE)


def shown(uri: str) -> str:
    """A URI as it may be shown: with ``***`` for the password."""
    return _SECRETS.sub(r"\1***", _PASSWORD.sub(r"\1***", uri))


def address(uri: str) -> str:
    """A server's address without name and password."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def without_password(text: str) -> str:
    """A text, such as a driver's message, without the password of ``MLFLOW_TRACKING_URI`` in any spelling."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    secrets = {match[2] for pattern in (_PASSWORD, _SECRETS) for match in pattern.finditer(uri)}
    plain = secrets | {urllib.parse.unquote(secret) for secret in secrets}
    spelled = plain | {repr(secret)[1:-1] for secret in plain}
    spelled |= {urllib.parse.quote(secret, safe) for secret in plain for safe in ("", "/", " +")}
    spelled |= {urllib.parse.quote_plus(secret) for secret in plain}
    if uri:
        text = text.replace(uri, shown(uri))
    for secret in sorted(spelled, key=len, reverse=True):
        if len(secret) > 3:  # shorter ones are in every other word, and matter in a URI alone
            text = text.replace(secret, "***")
    return shown(text)


def is_foreign(error: BaseException) -> bool:
    """Whether an error came up in, or below, code that is neither this package's nor a library's.

    A practitioner's module, or a topic of one's own, wherever it is installed: its author needs the traceback.
    """
    topics = {entry.module.partition(".")[0] for entry in entry_points(group="dlcourse.topics")}
    ours = Path(__file__).parent
    python = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if frame.f_globals.get("__name__", "").partition(".")[0] in topics:
            return True
        is_library = {"site-packages", "dist-packages"} & set(file.parts) or any(map(file.is_relative_to, python))
        if file.is_absolute() and not is_library and not file.is_relative_to(ours):
            return True
    return False


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
