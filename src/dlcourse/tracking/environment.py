"""What a run notes of where it runs: machine, packages, command line, user and commit."""

import getpass
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from dlcourse.errors import one_line, without_password


def environment() -> str:
    """Command, machine, Python and packages, a line each; pip can install from it."""
    packages = _packages()
    machine = f"# {platform.platform()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    lines = [f"{name}=={packages[name]}" for name in sorted(packages, key=str.lower)]
    return "\n".join([f"# {one_line(command_line())}", machine, f"# Python {platform.python_version()}", *lines]) + "\n"


@cache
def _packages() -> dict[str, str]:
    """The version of each package: read once, which takes as long as a short training."""
    packages = {}
    for each in importlib.metadata.distributions():
        with suppress(OSError, KeyError):  # an installation that was cut off has no METADATA, or no name in it
            if name := each.metadata["Name"]:
                packages[name] = each.version
    return packages


def command_line() -> str:
    """The command line of this process, quoted for a shell, without the store's password."""
    if not sys.argv or not sys.argv[0]:
        return "python"
    program = Path(sys.argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return without_password(" ".join([name, *map(shlex.quote, sys.argv[1:])]))


def user_name() -> str:
    """The user's name; "unknown" where the user id has none, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def git_commit() -> dict[str, str]:
    """Tags with the commit of the current folder's repository and whether files differ from it.

    Empty outside a repository, or without git.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "dlcourse.git.dirty": str(bool(git("status", "--porcelain"))).lower(),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
