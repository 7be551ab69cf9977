"""A store of files whose folder was moved or copied.

MLflow writes the absolute address of every file into its database, and has no call to change them. This module alone
reads and writes MLflow's tables, which are not documented; its tests fail first if they change.
"""

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""The tables and columns with addresses."""
# <store>/artifacts/<topic> of an experiment, .../<run>/artifacts of a run, .../models/<model>/artifacts of a model.
ADDRESS = re.compile(r"(?P<store>file://.*)/artifacts/(?P<rest>[^/]+(/[^/]+/artifacts|/models/[^/]+/artifacts)?)")


def here(address: str, store: Path) -> str | None:
    """The address of the same file in the folder ``store``; None for one that is in there, or in no store of files."""
    match = ADDRESS.fullmatch(address)
    if match is None or match["store"] == store.as_uri():
        return None
    return f"{store.as_uri()}/artifacts/{match['rest']}"


def path_of(address: str) -> Path:
    """The path of a ``file:`` address."""
    return Path(url2pathname(urlsplit(address).path))


def count_runs(database: Path) -> int:
    """How many runs there are, without the deleted ones; MLflow would read each of them whole to count them."""
    with closing(_connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()[0])


def old_folders(database: Path) -> dict[Path, int]:
    """The folders that the store was in before, each with the number of runs whose addresses are there."""
    counts: Counter[Path] = Counter()
    with closing(_connect(database)) as connection:
        for table, _, _, old, _ in _addresses_elsewhere(connection, database.parent):
            match = ADDRESS.fullmatch(old)
            assert match
            counts[path_of(match["store"])] += table == "runs"
    return dict(counts)


def keep_here(database: Path, experiment_id: str, address: str) -> None:
    """Set the address under which MLflow keeps the files of an experiment's next runs."""
    with closing(_connect(database)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (address, int(experiment_id))
        )


def mend(database: Path) -> None:
    """Change every address into one in the store's folder, unless the file exists only where it was."""
    with closing(_connect(database)) as connection, connection:
        for table, column, row, old, new in list(_addresses_elsewhere(connection, database.parent)):
            if path_of(old).exists() and not path_of(new).exists():
                continue
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row))
            connection.execute(
                "UPDATE tags SET value = ? WHERE key = 'dlcourse.folder' AND value = ?",
                (str(path_of(new)), str(path_of(old))),
            )


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(database, timeout=60)


def _addresses_elsewhere(connection: sqlite3.Connection, store: Path) -> Iterator[tuple[str, str, int, str, str]]:
    """(table, column, row, address, address in this store's folder) of what MLflow believes to be elsewhere."""
    prefix = f"{store.as_uri()}/artifacts/"
    for table, column in COLUMNS:
        query = f"SELECT rowid, {column} FROM {table} WHERE {column} LIKE 'file://%' AND substr({column}, 1, ?) != ?"
        for row, old in connection.execute(query, (len(prefix), prefix)):
            if new := here(old, store):
                yield table, column, row, old, new
