"""Errors that a user can mend: one line that says what is wrong and what to do."""

import difflib
import os
import re
import signal
import sysconfig
import traceback
import urllib.parse
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

# Two transposed letters in a word of five have a ratio of 0.8, a wrong letter in one of three 0.67.
MIN_SIMILARITY = 0.6
# Shorter passwords are parts of other words, and are replaced in URIs only.
MIN_PASSWORD_LENGTH = 4


class CourseError(Exception):
    """Something outside the code is wrong: a file, a store, a machine. The message is one line with the remedy."""

    exit_status = 1


class SettingsError(CourseError):
    """A verb, topic, flag, key or value that does not exist or is out of range."""

    exit_status = 2


class Interrupted(BaseException):
    """A signal, such as Ctrl-C's SIGINT, during a run.

    Not a KeyboardInterrupt, which Lightning's Trainer turns into an end of the process.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def suggestion(wrong: str, right: Iterable[str]) -> str:
    """The most similar of the words ``right`` as ``; did you mean X?``; empty where none is similar.

    Dotted words are compared by their last parts where the rest is the same or missing: ``--lr`` is near
    ``--model.lr``.
    """

    def similarity(candidate: str) -> float:
        word, candidate = wrong.lstrip("-").lower(), candidate.lstrip("-").lower()
        group, _, name = word.rpartition(".")
        candidate_group, _, candidate_name = candidate.rpartition(".")
        if group in ("", candidate_group):
            word, candidate = name, candidate_name
        ratio = difflib.SequenceMatcher(None, word, candidate).ratio()
        is_part = len(word) >= 3 and word in candidate
        return max(ratio, MIN_SIMILARITY) if is_part else ratio

    nearest = max(sorted(right), key=similarity, default=None)
    return f"; did you mean {nearest}?" if nearest and similarity(nearest) >= MIN_SIMILARITY else ""


def one_line(text: object) -> str:
    """A message of several lines as one, without the store's password."""
    return " ".join(without_password(str(text)).split())


def some_of(names: Sequence[str], noun: str = "") -> str:
    """How many names there are, and the first five: ``2 (a, b)``, or with a noun ``2 flags (a, b)``."""
    return f"{len(names)}{f' {noun}' * bool(noun)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


def printable(text: str) -> str:
    """A text without what a terminal would obey, as names in a file from somebody else may hold; lines stay."""
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)


_PASSWORD = re.compile(r"(?<=://)([^\s:/@]*:)(\S*)(?=@)")
_SECRETS = re.compile(r"([?&][^\s=&]*(?:pass|pwd|token|secret)[^\s=&]*=)([^\s&#]+)", re.IGNORECASE)


def shown(uri: str) -> str:
    """A URI with ``***`` for its password."""
    return _SECRETS.sub(r"\1***", _PASSWORD.sub(r"\1***", uri))


def address(uri: str) -> str:
    """A server's address without name and password."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def without_password(text: str) -> str:
    """A text with ``***`` for the passwords in its URIs, and for that of ``MLFLOW_TRACKING_URI`` in any spelling.

    Drivers of databases quote it in their messages: unquoted, quoted in another way, or as Python's repr.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    secrets = {match[2] for pattern in (_PASSWORD, _SECRETS) for match in pattern.finditer(uri)}
    plain = secrets | {urllib.parse.unquote(secret) for secret in secrets}
    spellings = plain | {repr(secret)[1:-1] for secret in plain} | {urllib.parse.quote_plus(secret) for secret in plain}
    spellings |= {urllib.parse.quote(secret, safe) for secret in plain for safe in ("", "/", " +")}
    if uri:
        text = text.replace(uri, shown(uri))
    for secret in sorted(spellings, key=len, reverse=True):
        if len(secret) >= MIN_PASSWORD_LENGTH:
            text = text.replace(secret, "***")
    return shown(text)


def is_foreign(error: BaseException) -> bool:
    """Whether an error was raised in, or below, code that is neither this package's nor a library's.

    That is a user's own module, or a topic of the entry-point group ``dlcourse.topics``, wherever it is installed: the
    author needs the traceback.
    """
    topics = {entry.module.partition(".")[0] for entry in entry_points(group="dlcourse.topics")}
    this_package = Path(__file__).parent
    python = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if frame.f_globals.get("__name__", "").partition(".")[0] in topics:
            return True
        is_library = {"site-packages", "dist-packages"} & set(file.parts) or any(map(file.is_relative_to, python))
        if file.is_absolute() and not is_library and not file.is_relative_to(this_package):
            return True
    return False


def explained(error: Exception) -> str | None:
    """What to change in a model whose error does not say it; None for all other errors.

    PyTorch has no error type for this, so that its message is compared; ``tests/test_errors.py`` fails if it changes.
    """
    if "all elements of input should be between 0 and 1" in str(error):
        return (
            "binary cross-entropy takes probabilities, and the network gives numbers outside 0 to 1: a sigmoid is "
            "missing at its end (binary_cross_entropy_with_logits has it built in)"
        )
    return None
