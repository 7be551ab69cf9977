"""Sweeps as they are in the store: trials, what is chosen by what, and workers that come, stop and are killed."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial

import dlcourse
from dlcourse.cli import main
from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Split
from dlcourse.errors import CourseError, Interrupted, SettingsError
from dlcourse.evaluation import sweep as sweep_module
from dlcourse.evaluation.sweep import Sweep, sweep
from dlcourse.tracking import studies
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import StoredRun
from dlcourse.training.callbacks.pruning import Pruning
from dlcourse.training.request import resolve
from tests.conftest import EXPERIMENTS, ROOT, shared_project
from tests.foreign_modules import BlobClassifier, BlobsDataModule
from tests.image_sets import write_fashion_mnist
from tests.postgresql import postgresql, programs
from tests.processes import start_script, wait_for_line, words_of

SPACE = {"model.lr": {"low": 0.001, "high": 0.1, "log": True}, "model.hidden": {"choices": [[4], [8, 4]]}}
SHORT: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu"}


@pytest.fixture
def not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the trainings of the comparison, which is a part of the sweep that `TestASweep` looks at."""
    monkeypatch.setattr(sweep_module, "_compare", lambda *_: "not compared")


@pytest.fixture
def space(project: Path) -> Path:
    return write_space(project)


def write_space(folder: Path, entries: Any = SPACE) -> Path:
    (folder / "space.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    return folder / "space.yaml"


def stored_runs(kind: str) -> list[StoredRun]:
    client = open_store().client
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`dlcourse.kind` = '{kind}'", max_results=1000))


def stored_trials(uri: str) -> list[FrozenTrial]:
    """Those of the one study in a database, beside the studies that say who concludes it."""
    storage = optuna.storages.RDBStorage(uri)
    (study,) = (each for each in storage.get_all_studies() if ": " not in each.study_name)
    trials = optuna.load_study(storage=storage, study_name=study.study_name).trials
    storage.engine.dispose()
    return trials


@dataclass(frozen=True)
class Swept:
    result: Sweep
    folder: Path
    looked_at_test_rows: list[bool]
    """For each time, whether the best settings were being compared already."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Swept]:
    """A sweep of three trials, for tests that only look at it."""
    looked, is_comparing = list[bool](), False
    loader, compare = CourseData.eval_dataloader, sweep_module.compare

    def watched(data: CourseData, split: Split) -> Any:
        if split == "test":
            looked.append(is_comparing)
        return loader(data, split)

    def comparing(*arguments: Any, **settings: Any) -> Any:
        nonlocal is_comparing
        is_comparing = True
        return compare(*arguments, **settings)

    with shared_project(tmp_path_factory, made_store) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "SEEDS", 2)
        patch.setattr(CourseData, "eval_dataloader", watched)
        patch.setattr(sweep_module, "compare", comparing)
        result = sweep("diabetes", space=write_space(folder), trials=3, trainer=SHORT)
        yield Swept(result, folder, looked)


class TestASweep:
    def test_its_trials_are_small_runs_below_it(self, swept: Swept) -> None:
        trials = stored_runs("trial")
        assert len(trials) == 3
        assert swept.result.trials == {"complete": 3, "pruned": 0, "failed": 0}
        for run in trials:
            assert run.info.status == "FINISHED"
            assert run.data.tags["mlflow.parentRunId"] == swept.result.run_id
            assert {"model.lr", "model.hidden", "trial"} == run.data.params.keys()
            assert {"val/loss", "val/final_loss", "val/final_accuracy", "best_epoch"} <= run.data.metrics.keys()
            assert [name for name in run.data.metrics if name.startswith("test/")] == []

    def test_no_test_row_is_looked_at_before_the_choice(self, swept: Swept) -> None:
        assert swept.looked_at_test_rows
        assert all(swept.looked_at_test_rows)

    def test_the_best_is_that_of_the_best_epoch_on_validation_rows(self, swept: Swept) -> None:
        client = open_store().client
        losses = {
            int(run.data.params["trial"]): min(
                point.value for point in client.get_metric_history(run.info.run_id, "val/loss")
            )
            for run in stored_runs("trial")
        }
        assert swept.result.best_value == pytest.approx(min(losses.values()), rel=1e-6)
        assert swept.result.best_trial == min(losses, key=lambda number: losses[number])

    def test_the_best_settings_are_a_file_for_config(self, swept: Swept) -> None:
        settings = resolve("diabetes", swept.result.file, None, None, None, None).settings
        assert settings.trainer["max_epochs"] == 2
        for name, value in swept.result.best.items():
            assert settings.flat()[name] == value
        assert swept.result.file in swept.result.card

    def test_it_is_compared_with_the_default_on_other_seeds(self, swept: Swept) -> None:
        seeds = Counter((run.data.params["model.lr"], run.data.params["seed"]) for run in stored_runs("training"))
        assert len(seeds) == 4
        assert {seed for _, seed in seeds} == {"1", "2"}
        assert "default" in swept.result.sentence
        assert swept.result.sentence in swept.result.card

    def test_its_page(self, swept: Swept) -> None:
        (run,) = stored_runs("sweep")
        assert run.info.status == "FINISHED"
        assert run.data.metrics["trials/complete"] == 3
        assert run.data.tags["verdict"] == swept.result.sentence
        note = run.data.tags["mlflow.note.content"]
        assert all(trial.info.run_id in note for trial in stored_runs("trial"))
        files = open_store().files_of(run)
        for name in sweep_module.FIGURES:
            assert (files / name).stat().st_size > 1000
        assert run.data.params["space.model.hidden"] == "[4], '[8, 4]'"
        assert "model.lr" not in run.data.params, "it is another in each trial"

    def test_the_same_command_again_has_the_same_result(self, swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["sweep", "diabetes", "--space", "space.yaml", "--trials", "3", "--json"]
        command += ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]
        assert main(command) == 0
        told = json.loads(capsys.readouterr().out)
        again = json.loads(json.dumps(swept.result.as_dict()))
        assert told == again
        assert len(stored_runs("trial")) == 3
        assert len(stored_runs("training")) == 4
        (run,) = stored_runs("sweep")
        assert run.info.status == "FINISHED"

    def test_a_study_of_that_name_with_another_space(self, swept: Swept) -> None:
        with pytest.raises(CourseError, match=r"--study .* other values of trainer.max_epochs"):
            sweep("diabetes", space="space.yaml", study=swept.result.study, trials=3, trainer=SHORT | {"max_epochs": 3})

    def test_with_another_store(self, swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        uri = f"sqlite:///{swept.folder}/mlruns/sweeps.db"
        with pytest.raises(CourseError, match="MLFLOW_TRACKING_URI"):
            sweep("diabetes", space="space.yaml", storage=uri, trials=3, trainer=SHORT)


@pytest.mark.usefixtures("not_compared")
def test_pruned_stopped_and_gone_on_with(project: Path, space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class First(optuna.pruners.NopPruner):
        def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
            return trial.number == 0

    def stop(callback: Pruning, trainer: L.Trainer, module: L.LightningModule) -> None:
        if callback.trial.number == 2:
            raise Interrupted(signal.SIGTERM)
        validated(callback, trainer, module)

    validated = Pruning.on_validation_end
    monkeypatch.setattr(studies, "MedianPruner", lambda **_: First())
    with monkeypatch.context() as patch:
        patch.setattr(Pruning, "on_validation_end", stop)
        with pytest.raises(Interrupted) as caught:
            sweep("diabetes", space=space, trials=2, trainer=SHORT)
    assert "start the same command again" in caught.value.__notes__[-1]
    verdicts = {run.data.params["trial"]: run.data.tags["verdict"] for run in stored_runs("trial")}
    assert verdicts == {"0": "pruned after epoch 0", "1": "complete", "2": "stopped by SIGTERM"}
    statuses = Counter(run.info.status for run in [*stored_runs("trial"), *stored_runs("sweep")])
    assert statuses == {"FINISHED": 2, "KILLED": 2}
    result = sweep("diabetes", space=space, trials=2, trainer=SHORT)
    assert result.trials == {"complete": 2, "pruned": 1, "failed": 1}
    (run,) = stored_runs("sweep")
    assert run.info.status == "FINISHED"
    assert "dlcourse.error" not in run.data.tags


def test_where_every_trial_diverges(project: Path) -> None:
    space = write_space(project, {"model.lr": {"low": 1e8, "high": 1e9}})
    with pytest.raises(CourseError, match=r"trials in a row have failed, the last since diverged"):
        sweep("diabetes", space=space, trials=1, model={"optimizer": "sgd", "weight_decay": 0.5}, trainer=SHORT)
    assert {run.info.status for run in [*stored_runs("trial"), *stored_runs("sweep")]} == {"FAILED"}


@pytest.mark.parametrize(
    ("entries", "settings", "named"),
    [
        (SPACE, {"data": {"val_fraction": 0.0}}, "--data.val_fraction above 0"),
        ({"data.val_fraction": {"low": 0.1, "high": 0.2}}, {}, "data.val_fraction changes the rows"),
        (SPACE, {"trainer": {"devices": 2, "accelerator": "cpu"}}, "--trainer.devices"),
        (SPACE, {"storage": "nonsense"}, "--storage"),
    ],
)
def test_what_is_refused(entries: Any, settings: dict[str, Any], named: str, project: Path) -> None:
    with pytest.raises(SettingsError, match=named):
        sweep("diabetes", space=write_space(project, entries), trials=1, **settings)
    assert stored_runs("sweep") == []


@pytest.mark.usefixtures("not_compared")
def test_make_sweeps(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "experiments").symlink_to(EXPERIMENTS)
    assert main([*words_of("make sweep-diabetes TRIALS=1", ROOT), "--trainer.max_epochs", "1"]) == 0
    assert "1 complete" in capsys.readouterr().out


@pytest.mark.usefixtures("not_compared")
def test_the_space_of_images(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(project / "data", monkeypatch, train=60, test=20)
    data, trainer = {"batch_size": 20, "val_rows": 20}, SHORT | {"limit_batches": 1, "max_epochs": 1}
    result = sweep("fashion-mnist", config="quick", trials=1, data=data, model={"compile": False}, trainer=trainer)
    assert (result.monitor, result.sentence) == ("val/accuracy", "not compared")
    assert 0 <= result.best_value <= 1


@pytest.mark.usefixtures("not_compared")
@pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated")
def test_a_module_of_ones_own(project: Path) -> None:
    task = dlcourse.Classification()
    topic = dlcourse.Topic(
        "blobs", "Blobs", BlobsDataModule, BlobClassifier, dlcourse.baselines.of_task(task), task=task
    )
    space = {"model.lr": {"low": 0.01, "high": 1.0, "log": True}, "data.batch_size": {"choices": [25, 50]}}
    result = sweep(topic, space=write_space(project, space), trials=2, trainer=SHORT | {"log_every_n_steps": 1})
    assert result.trials["complete"] == 2
    reported = [trial.intermediate_values for trial in stored_trials(f"sqlite:///{project}/mlruns/sweeps.db")]
    assert [list(each) for each in reported] == [[0, 1], [0, 1]]
    assert result.best_value == min(value for each in reported for value in each.values())


WORKER = """
import os, sys, time
import dlcourse
from dlcourse.cli import main
from dlcourse.evaluation import sweep
from dlcourse.tracking import studies
from dlcourse.training.callbacks.pruning import Pruning

studies.HEARTBEAT_SECONDS, studies.GRACE_SECONDS = 1, 3
sweep._compare = lambda *_: print("compared", flush=True) or "that is another test's"
validated = Pruning.on_validation_end

def hang(callback, *arguments):
    validated(callback, *arguments)
    if os.environ["HANGS"] == "true" and callback.trial.number:
        print("half-way", flush=True)
        time.sleep(600)

Pruning.on_validation_end = hang
sys.exit(main(["sweep", "diabetes", "--space", "space.yaml", "--trials", "6", "--trainer.max_epochs", "2",
               "--trainer.accelerator", "cpu", "--storage", os.environ["STORAGE"]]))
"""


@pytest.fixture
def storage(project: Path) -> Iterator[str]:
    """PostgreSQL where it is installed, else a file: workers share both in the same way."""
    if folder := programs():
        with postgresql(folder) as uri:
            yield uri
    else:
        yield f"sqlite:///{project}/sweeps.db"


@pytest.mark.processes
def test_three_workers_one_of_which_is_killed(storage: str, project: Path, space: Path) -> None:
    """It costs one trial; no other is lost or made twice, and the study ends with at most one more for each other."""
    (project / "worker.py").write_text(WORKER, encoding="utf-8")
    killed, output = start_script(project / "worker.py", STORAGE=storage, HANGS="true")
    others = [start_script(project / "worker.py", STORAGE=storage, HANGS="false") for _ in range(2)]
    wait_for_line("half-way", output, killed)
    assert killed.pid
    os.kill(killed.pid, signal.SIGKILL)
    for process, written in others:
        process.join(120)
        assert process.exitcode == 0, written.read_text()
    trials = stored_trials(storage)
    states = Counter(trial.state.name for trial in trials)
    assert 6 <= states["COMPLETE"] <= 8
    assert states["FAIL"] == 1
    runs = {run.info.run_id: run for run in stored_runs("trial")}
    assert sorted(trial.user_attrs["run"] for trial in trials) == sorted(runs)
    assert {runs[each.user_attrs["run"]].info.status for each in trials if each.state.name == "FAIL"} == {"FAILED"}
    (parent,) = stored_runs("sweep")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert sum("compared" in written.read_text().splitlines() for _, written in others) == 1, "one worker compares"
