"""A store of files whose folder was moved or copied: MLflow keeps the place of every file as an absolute address."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's database has them: (table, column)."""
# <store>/artifacts/<topic> of an experiment, .../<run>/artifacts of a run, .../models/<model>/artifacts of a model.
ADDRESS = re.compile(r"(?P<store>file://.*)/artifacts/(?P<rest>[^/]+(/[^/]+/artifacts|/models/[^/]+/artifacts)?)")


def here(address: str, store: Path) -> str | None:
    """What an address that is in another store's folder is in this one's; None for those that need no change."""
    match = ADDRESS.fullmatch(address)
    if match is None or match["store"] == store.as_uri():
        return None
    return f"{store.as_uri()}/artifacts/{match['rest']}"


def path_of(address: str) -> Path:
    """The path of a ``file:`` address."""
    return Path(url2pathname(urlsplit(address).path))


def old_folders(database: Path) -> dict[Path, int]:
    """The folders that the store was in before, with the number of its runs whose files the database has there."""
    counts: dict[Path, int] = {}
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        for table, _, _, old, _ in _misplaced(connection, database.parent):
            match = ADDRESS.fullmatch(old)
            assert match
            folder = path_of(match["store"])
            counts[folder] = counts.get(folder, 0) + (table == "runs")
    return counts


def keep_here(database: Path, experiment_id: str, address: str) -> None:
    """Let the files of an experiment's next runs be kept at ``address``."""
    with _writing(database) as connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (address, int(experiment_id))
        )


def mend(database: Path) -> None:
    """Let every address lead into the store's own folder, but those whose files were left where they are."""
    with _writing(database) as connection:
        for table, column, row, old, new in list(_misplaced(connection, database.parent)):
            if path_of(old).exists() and not path_of(new).exists():
                continue
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row))
            connection.execute(
                "UPDATE tags SET value = ? WHERE key = 'dlcourse.folder' AND value = ?",
                (str(path_of(new)), str(path_of(old))),
            )


def _misplaced(connection: sqlite3.Connection, store: Path) -> Iterator[tuple[str, str, int, str, str]]:
    """(table, column, row, address, address in this store's folder) of what MLflow believes to be elsewhere."""
    own = f"{store.as_uri()}/artifacts/"
    for table, column in PLACES:
        others = f"SELECT rowid, {column} FROM {table} WHERE {column} LIKE 'file://%' AND substr({column}, 1, ?) != ?"
        for row, old in connection.execute(others, (len(own), own)):
            if new := here(old, store):
                yield table, column, row, old, new


@contextmanager
def _writing(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        yield connection
