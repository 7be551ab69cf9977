"""``python -m dlcourse``: the same as the command ``dlcourse``."""

import sys

from dlcourse.cli import run

if __name__ == "__main__":
    sys.exit(run())
