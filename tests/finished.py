"""One finished run, for all tests that only look at one."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import dlcourse
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store, StoredRun

HEIGHTS = [150 + number / 7 for number in range(60)]


@dataclass(frozen=True)
class Finished:
    """A training of three epochs, in a git repository in which everything is committed."""

    store: Store
    result: dlcourse.Result
    run: StoredRun
    files: Path
    commit: str

    def runs(self, kind: str) -> list[StoredRun]:
        experiment = self.store.experiment("height-weight")
        return list(self.store.client.search_runs([experiment], f"tags.`dlcourse.kind` = '{kind}'"))

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(each.step, each.value) for each in self.store.client.get_metric_history(self.run.info.run_id, name)]


def make_repository(folder: Path) -> str:
    """Make a folder a git repository with everything in it committed; gives the commit."""
    (folder / ".gitignore").write_text("mlruns/\n")
    git = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "All"], ["rev-parse", "HEAD"]):
        process = subprocess.run([*git, *command], capture_output=True, text=True, check=True, cwd=folder)
    return process.stdout.strip()


def train_once(folder: Path) -> Finished:
    """Train in a folder, which has a store and becomes a repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["/somewhere/dlcourse/__main__.py", "train", "height-weight", "--name", "my first"])
        commit = make_repository(folder)
        result = dlcourse.train(
            "height-weight",
            data={"ask": HEIGHTS, "batch_size": 8, "split_seed": 5},
            model={"lr": 0.05},
            trainer={"max_epochs": 3},
            seed=3,
            name="my first",
        )
        store = open_store()
    run = store.client.get_run(result.run_id)
    return Finished(store, result, run, store.files_of(run), commit)
