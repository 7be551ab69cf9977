"""From ``MLFLOW_TRACKING_URI``, or the nearest ``mlruns/``, to an open `Store`.

Whatever is wrong with the store shows here, before a training, in one line with the remedy.
"""

import errno
import functools
import importlib.util
import logging
import os
import sqlite3
import tempfile
import urllib.parse
from contextlib import closing, suppress
from pathlib import Path

import requests
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow.store import db_migrations
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from dlcourse.errors import CourseError, one_line, shown
from dlcourse.settings import nearest_folder
from dlcourse.tracking import relocation
from dlcourse.tracking.abandoned import end_runs_of_several_processes
from dlcourse.tracking.run import reason
from dlcourse.tracking.store import Store, mlflow_command

log = logging.getLogger(__name__)

PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Packages of database drivers, by module, where the two have different names."""
OTHER_DRIVERS = {"psycopg": "psycopg2", "psycopg2": "psycopg"}
"""PostgreSQL's two drivers."""
QUIET = {
    "mlflow": logging.WARNING,
    "alembic": logging.WARNING,
    "mlflow.utils.environment": logging.ERROR,  # warns that there is no pip, as in environments that uv made
    # The run itself says in one line that a store does not answer or is full.
    "mlflow.system_metrics": logging.CRITICAL,
    "mlflow.store.db": logging.CRITICAL,
    "urllib3.connectionpool": logging.CRITICAL,
}
"""Loggers of libraries, and the lowest level that is shown of each."""


def open_store(start: Path | None = None) -> Store:
    """The store at ``MLFLOW_TRACKING_URI``, else in the nearest ``mlruns/``, else a new one in ``start``.

    Trainings of several processes that are marked RUNNING, though their process is gone, are marked FAILED. Sets the
    levels of MLflow's and alembic's loggers for the whole process.

    Args:
        start: The folder to search from, upwards; by default the current folder.

    Raises:
        CourseError: It cannot be written, another MLflow has made it, or its server does not answer.
    """
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        start = (start or Path.cwd()).resolve()
        return _open_files((nearest_folder("mlruns", start) or start / "mlruns") / "mlflow.db")
    scheme = urllib.parse.urlsplit(uri).scheme
    if len(scheme) < 2 or scheme == "file":  # one letter is a drive of Windows
        raise CourseError(
            f"MLFLOW_TRACKING_URI is {uri}, a folder, and MLflow no longer keeps runs in folders: "
            "set it to sqlite:///PATH/mlflow.db or to a server's address, or unset it"
        )
    if scheme in ("http", "https"):
        _check_server(uri)
    else:
        with suppress(ArgumentError, NoSuchModuleError):  # no database; MLflow may know this kind of store
            check_driver(uri)
            if database := _sqlite_file(uri):
                return _open_files(database)
    store = Store(uri, None)
    _check_database(store)
    end_runs_of_several_processes(store)
    return store


def _open_files(database: Path) -> Store:
    """A store of files: SQLite with the artifacts beside it; where there is none, one process makes it."""
    folder = database.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CourseError(
            f"{folder} cannot be written ({error.strerror}): make it writable, go to another folder, "
            "or set MLFLOW_TRACKING_URI to another store"
        ) from error
    store = Store(f"sqlite:///{database.as_posix()}", folder)
    with store.lock("store"):
        if database.exists():
            _check_sqlite(database)
        elif any(folder.glob("*/meta.yaml")):
            migrate = mlflow_command("migrate-filestore", "--source", str(folder), "--target", store.uri)
            raise CourseError(f"{folder} holds runs in MLflow's old file format; take them over with `{migrate}`")
        else:
            log.info("making the store %s (once, takes some seconds)", database)
        _check_database(store)
    _warn_if_moved(database)
    end_runs_of_several_processes(store)
    return store


@functools.cache
def _warn_if_moved(database: Path) -> None:
    """Say once in a process that the store has been moved or copied."""
    if old := relocation.old_folders(database):
        log.warning(
            "%s was in %s before: its runs are found here, and new ones are kept here; "
            "`dlcourse doctor --fix` makes MLflow's pages find them as well",
            database.parent,
            " and ".join(map(str, old)),
        )


def _check_sqlite(database: Path) -> None:
    """Ask SQLite first: MLflow tries for 100 seconds to open a file that cannot be opened."""
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


def _sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite URI without options; None for all other URIs. A database in memory is refused."""
    url = make_url(uri)
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or ":memory:" in url.database or url.query.get("mode") == "memory":
        raise CourseError(
            f"MLFLOW_TRACKING_URI is {uri}, a store in memory, whose runs are gone with the process: "
            "set it to sqlite:///PATH/mlflow.db, or unset it"
        )
    return None if url.query else Path(url.database).resolve()


# Errors of servers and databases may quote the password: they are in the message, without it, and not its cause.


def _check_server(uri: str) -> None:
    """A server that is gone is noticed in ten seconds; MLflow would try for minutes."""
    try:
        response = request(uri)
        if response.status_code >= 500:  # with a lower one, the first real request shows whether the server lets us in
            response.raise_for_status()
    except (OSError, ValueError) as error:
        raise CourseError(
            f"the tracking server {shown(uri)} does not answer ({reason(error)}): start it, "
            "or unset MLFLOW_TRACKING_URI"
        ) from None


def request(uri: str, path: str = "") -> requests.Response:
    """GET a path of a server, with the name and password of its URI.

    Raises:
        requests.RequestException: It does not answer within ten seconds. An OSError, as all of them are.
    """
    return requests.get(uri.rstrip("/") + path, timeout=10)


def check_driver(uri: str) -> None:
    """Look for a database's driver: MLflow tries for 100 seconds to connect without one.

    Raises:
        CourseError: It is not installed.
        ArgumentError, NoSuchModuleError: This is no database's URI, of SQLAlchemy.
    """
    try:
        make_url(uri).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        missing = str(error.name)
        remedy = f"pip install '{PACKAGES.get(missing, missing)}'"
        other = OTHER_DRIVERS.get(missing)
        if other and importlib.util.find_spec(other):
            remedy = f"{other}, which is installed, takes postgresql+{other}://; or {remedy}"
        text = f"{shown(uri)} needs the database driver {missing}, which is not installed: {remedy}"
        raise CourseError(text) from None


def _check_database(store: Store) -> None:
    """Ask the store something, which makes the tables of a new database."""
    try:
        store.client.search_experiments(max_results=1)
    except Exception as error:  # drivers of databases raise errors of their own
        problem = _schema_problem(store.uri) or f"cannot be opened: {one_line(error)[:300]}"
        raise CourseError(f"the store {store.shown} {problem}") from None


def schema_revision(uri: str) -> str | None:
    """The revision of a database's tables, as alembic knows it; None where there are none.

    Raises:
        SQLAlchemyError: It is no database, or cannot be read.
    """
    engine = create_engine(uri)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def _schema_problem(uri: str) -> str | None:
    """What is wrong with a database whose tables another version of MLflow has made; None for all other stores."""
    # Where MLflow keeps its migrations is not documented.
    scripts = ScriptDirectory(str(Path(db_migrations.__file__).parent))
    try:
        revision = schema_revision(uri)
        if revision in (None, scripts.get_current_head()):
            return None
        scripts.get_revision(revision)
    except SQLAlchemyError:
        return None
    except CommandError:  # this MLflow does not know the revision
        return "was made by a newer MLflow: update this one (pip install -U mlflow), or use another folder"
    upgrade = mlflow_command("db", "upgrade", shown(uri))
    return f"was made by an older MLflow: copy it to be safe, then run `{upgrade}`"
