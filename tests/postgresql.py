"""A PostgreSQL server that tests start, as Debian's package installs it."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import free_port


def programs() -> Path | None:
    """The folder of the newest installed PostgreSQL's programs."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    return folders[-1] if folders else None


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A server on this machine with an empty database; yields its URI.

    It refuses to run as root, and is then run as the user ``postgres`` that its package has made.
    """
    user = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
    data, port = Path(tempfile.mkdtemp(prefix="dlcourse-postgresql-")), free_port()
    if user is not None:
        os.chown(data, user, -1)

    def call(program: str, *arguments: str) -> None:
        subprocess.run([folder / program, *arguments], check=True, capture_output=True, cwd="/", user=user, timeout=60)

    options = f"-p {port} -k {data} -c fsync=off"
    try:
        call("initdb", "--pgdata", str(data / "db"), "--auth", "trust", "--username", "ada", "--no-sync")
        call(
            "pg_ctl", "--pgdata", str(data / "db"), "--options", options, "--log", str(data / "log"), "--wait", "start"
        )
        try:
            yield f"postgresql+psycopg://ada@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "--pgdata", str(data / "db"), "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(data)
