"""The store, the run, and what is written to it and when.

The store is an MLflow tracking store: SQLite and files under ``mlruns/`` unless ``MLFLOW_TRACKING_URI`` names another.
Everything goes through an `MlflowClient` of its own: MLflow's global state (active run, tracking URI) is left alone.
"""

import getpass
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from dlcourse.errors import without_password


def environment() -> str:
    """Machine and packages, a line each."""
    packages = {}
    for each in importlib.metadata.distributions():
        with suppress(OSError, KeyError):  # an installation that was broken off has no METADATA, or no name in it
            if name := each.metadata["Name"]:
                packages[name] = each.version
    machine = [f"# {platform.platform()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores"]
    machine += [f"# Python {platform.python_version()}"]
    return "\n".join(machine + [f"{name}=={packages[name]}" for name in sorted(packages, key=str.lower)]) + "\n"


def command_line() -> str:
    """The command line, to be typed again."""
    if not sys.argv or not sys.argv[0]:
        return "python"
    program = Path(sys.argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return without_password(" ".join([name, *map(shlex.quote, sys.argv[1:])]))


def user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user id, as in some containers
        return "unknown"


def git_commit() -> dict[str, str]:
    """Commit of the current folder's repository and whether files differ from it; nothing outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "dlcourse.git.dirty": str(bool(git("status", "--porcelain"))).lower(),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
