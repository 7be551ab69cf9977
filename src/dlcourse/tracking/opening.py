"""The store, the run, and what is written to it and when.

The store is an MLflow tracking store: SQLite and files under ``mlruns/`` unless ``MLFLOW_TRACKING_URI`` names another.
Everything goes through an `MlflowClient` of its own: MLflow's global state (active run, tracking URI) is left alone.
"""

import base64
import errno
import http.client
import importlib.metadata
import importlib.util
import logging
import os
import sqlite3
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from dlcourse.errors import CourseError, address, one_line, shown, without_password
from dlcourse.tracking import relocation
from dlcourse.tracking.store import Store, mlflow_command

log = logging.getLogger(__name__)

DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Packages of database drivers that are not called as the module is."""


def open_store(start: Path | None = None) -> Store:
    """The store in force: ``MLFLOW_TRACKING_URI``, else ``mlruns/`` of the nearest folder upwards from ``start`` (the
    current folder) that has one, else a new one there.

    Raises:
        CourseError: It cannot be written, holds another version's data, or its server does not answer.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # misses pip where uv made the environment
    # Of a store that does not answer or is full the run itself tells, in one line.
    for name in ("mlflow.system_metrics", "mlflow.store.db", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return _open_other(uri)
    start = (start or Path.cwd()).resolve()
    folder = next((place / "mlruns" for place in (start, *start.parents) if (place / "mlruns").is_dir()), None)
    return _open_files((folder or start / "mlruns") / "mlflow.db")


def _open_files(database: Path) -> Store:
    """A store of files: a SQLite database with the artifacts beside it, made under a lock where it is missing."""
    folder = database.parent
    _check_folder(folder)
    store = Store(f"sqlite:///{database.as_posix()}", folder)
    with store.lock("store"):
        if not database.exists():
            if any(folder.glob("*/meta.yaml")):
                raise CourseError(
                    f"{folder} holds runs in MLflow's old file format; take them over with "
                    f"`{mlflow_command('migrate-filestore', '--source', str(folder), '--target', store.uri)}`"
                )
            log.info("making the store %s (once, takes some seconds)", database)
        _check_sqlite(database)
        _check_database(store)
    if folder not in _told and (old := relocation.old_folders(database)):
        _told.add(folder)
        log.warning(
            "%s was in %s before: its runs are found here, and new ones are kept here; "
            "`dlcourse doctor --fix` makes MLflow's pages find them as well",
            folder,
            " and ".join(map(str, old)),
        )
    return store


_told: set[Path] = set()
"""Stores of which this process has said that they were moved."""


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CourseError(
            f"{folder} cannot be written ({error.strerror}): make it writable, go to another folder, "
            "or set MLFLOW_TRACKING_URI to another store"
        ) from error


def _check_sqlite(database: Path) -> None:
    """Ask SQLite itself first: a file that cannot be opened MLflow tries again and again, for 100 seconds."""
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            connection.execute("PRAGMA schema_version")
        if not os.access(database, os.W_OK):
            raise PermissionError(errno.EACCES, "it may not be written")
    except (sqlite3.Error, OSError) as error:
        raise CourseError(
            f"{database} cannot be opened as a database ({one_line(error)}): move it away and a new one is made, "
            "or set MLFLOW_TRACKING_URI to another store"
        ) from error


def _open_other(uri: str) -> Store:
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        _check_is_on_disk(uri)
        if uri.startswith("sqlite:///") and not parts.query:
            return _open_files(Path(uri.removeprefix("sqlite:///")).resolve())
    if len(parts.scheme) < 2 or parts.scheme == "file":  # one letter is a drive's
        raise CourseError(
            f"MLFLOW_TRACKING_URI is {uri}, a folder, and MLflow no longer keeps runs in folders: "
            "set it to sqlite:///PATH/mlflow.db or to a server's address, or unset it"
        )
    if parts.scheme in ("http", "https"):
        try:
            request(uri).close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            # With a lower status it answers; whether it lets us in shows with the first real request.
            if not isinstance(error, urllib.error.HTTPError) or error.code >= 500:
                raise CourseError(
                    f"the tracking server {shown(uri)} does not answer ({one_line(error)}): start it, "
                    "or unset MLFLOW_TRACKING_URI"
                ) from _presentable(error)
    else:
        _check_driver(uri)
    store = Store(uri, None)
    _check_database(store)
    return store


def request(uri: str, path: str = "") -> http.client.HTTPResponse:
    """What a server says of a path, to the name and password that may be in its URI; raises as urlopen does."""
    asked = urllib.request.Request(address(uri) + path)
    if ":" in (user := urllib.parse.urlsplit(uri).netloc.rpartition("@")[0]):
        asked.add_header("Authorization", f"Basic {base64.b64encode(urllib.parse.unquote(user).encode()).decode()}")
    answer: http.client.HTTPResponse = urllib.request.urlopen(asked, timeout=10)
    return answer


def _check_is_on_disk(uri: str) -> None:
    with suppress(ArgumentError):  # what is no address at all MLflow says
        url = make_url(uri)
        if not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
            raise CourseError(
                f"MLFLOW_TRACKING_URI is {uri}, a store in memory, whose runs are gone with the process: "
                "set it to sqlite:///PATH/mlflow.db, or unset it"
            )


def _check_driver(uri: str) -> None:
    """Ask for a database's driver first: MLflow tries again and again to connect without one."""
    try:
        make_url(uri).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        missing = str(error.name)
        remedy = f"pip install '{DRIVERS.get(missing, missing)}'"
        if missing == "psycopg" and importlib.util.find_spec("psycopg2"):
            remedy = f"psycopg2, which is here, takes postgresql+psycopg2://; or {remedy}"
        elif missing == "psycopg2" and importlib.util.find_spec("psycopg"):
            remedy = f"psycopg 3, which is here, takes postgresql+psycopg://; or {remedy}"
        text = f"{shown(uri)} needs the database driver {missing}, which is not installed: {remedy}"
        raise CourseError(text) from _presentable(error)
    except (ArgumentError, NoSuchModuleError):
        pass  # no database: a kind of store that MLflow may know


def _presentable(error: Exception) -> Exception | None:
    """An error as the cause of another one; None where Python would show a password with it."""
    return error if without_password(str(error)) == str(error) else None


def _check_database(store: Store) -> None:
    """A first question, which also makes the tables of a new database."""
    try:
        store.client.search_experiments(max_results=1)
    except Exception as error:  # the database drivers raise what they like
        message = one_line(error)
        cause = _presentable(error)
        if "out-of-date database schema" in message or "Can't locate revision" in message:
            if _is_newer(message):
                remedy = "was made by a newer MLflow: update this one (pip install -U mlflow), or use another folder"
            else:
                upgrade = mlflow_command("db", "upgrade", shown(store.uri))
                remedy = f"was made by an older MLflow: copy it to be safe, then run `{upgrade}`"
            raise CourseError(f"the store {store.shown} {remedy}") from cause
        raise CourseError(f"the store {store.shown} cannot be opened: {message[:300]}") from cause


def _is_newer(message: str) -> bool:
    """Whether the revision the message names is one that this MLflow does not know."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store import db_migrations

    revision = message.partition("found version ")[2].partition(",")[0] or message.rpartition(" ")[2].strip("'")
    try:
        ScriptDirectory(str(Path(db_migrations.__file__).parent)).get_revision(revision)
    except CommandError:
        return True
    return False
