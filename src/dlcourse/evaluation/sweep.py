"""A sweep: many short trainings with settings drawn from a space, and the best of them compared with the default."""

import dataclasses
import hashlib
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib import pyplot as plt
from optuna.trial import FrozenTrial, Trial, TrialState
from optuna.visualization import matplotlib as plots

from dlcourse.errors import CourseError, SettingsError
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.evaluation.split_data import SplitData
from dlcourse.evaluation.verdict import diverged
from dlcourse.experiment import compare
from dlcourse.reporting.card import in_columns
from dlcourse.reporting.note import link, picture, run_page, table
from dlcourse.reporting.pages import prepare_pages
from dlcourse.reporting.phases import phase
from dlcourse.settings import PositiveInt, Seed, Settings, nearest_folder, shown
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.run import Run
from dlcourse.tracking.store import Store
from dlcourse.tracking.studies import (
    GRACE_SECONDS,
    RUN,
    add_trials,
    answering,
    by_one_worker,
    experimental,
    open_storage,
    open_study,
    trials_of,
)
from dlcourse.training.callbacks.pruning import Pruning
from dlcourse.training.fit import fit, new_model, remedy
from dlcourse.training.processes import check_one_process
from dlcourse.training.request import Request, resolve
from dlcourse.training.space import Space, find_space, read_space
from dlcourse.training.start import load_data, log_start

log = logging.getLogger(__name__)

BEST = Path("best.yaml")
SEEDS = 5
"""Of the comparison at the end. The t-test over fewer means finds little."""
# Epochs whose order says more of the learning rate than of what comes of it: a fifth of them.
WARMUP = 5
COUNTED = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
FIGURES: dict[str, Callable[..., Any]] = {
    "figures/history.png": plots.plot_optimization_history,
    "figures/importances.png": plots.plot_param_importances,
    "figures/slices.png": plots.plot_slice,
}
OF_ANOTHER = "another worker compares the best settings with those that the sweep began with"
MOST_ROWS = 10
"""Of the table in the note: a tag holds 5000 characters."""
DPI = 96
"""Gives the first two a width of less than 680 pixels, which a run's page has room for."""
CONTENT, SENTENCES = "content", "sentences"
"""Attributes of a study: what its trials have in common; what came of comparisons, by the number of the best trial."""


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
        study: The study's name in Optuna's database.
        trials: How many are complete, pruned and failed.
        monitor: The metric by which settings are chosen, on validation rows.
        best_trial: The number of the best trial.
        best_value: The metric at its best epoch.
        best: Its settings, by dotted name.
        file: Where these are with all other settings, as YAML for ``--config``.
        sentence: What came of the comparison with the settings that the sweep began with, on test rows.
        lost: Whatever is not in the store, with the reason; complete when the run has ended.
    """

    topic: str
    run_id: str
    run_name: str
    store: str
    study: str
    trials: dict[str, int]
    monitor: str
    best_trial: int
    best_value: float
    best: dict[str, Any]
    file: str
    sentence: str
    lost: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether everything is in the store."""
        return not self.lost

    @property
    def counts(self) -> str:
        """The numbers of trials in words."""
        return ", ".join(f"{number} {state}" for state, number in self.trials.items())

    @property
    def card(self) -> str:
        """The result as readable text."""
        names = [("settings" if place == 0 else "", name) for place, name in enumerate(self.best)]
        lines = [
            ("verdict", self.sentence),
            (f"best {self.monitor}", f"{self.best_value:.4g}, of trial {self.best_trial}"),
            *((left, f"{name} {shown(self.best[name])}") for left, name in names),
            ("", f"--config {self.file}"),
            ("trials", f"{self.counts}, of study {self.study}"),
            ("run", f"{self.run_id} in {self.store}"),
        ]
        return in_columns(f"{self.topic}: {self.run_name}", lines)

    def __str__(self) -> str:
        return self.card

    def note(self, run: Run, space: Space, ranked: Sequence[FrozenTrial]) -> str:
        """The description of its run in Markdown; ``ranked`` are the complete trials, the best first."""
        settings = ", ".join(f"{name} {shown(value)}" for name, value in self.best.items())
        lines = [
            f"**{self.sentence}**",
            f"best {self.monitor} **{self.best_value:.4g}**, of trial {self.best_trial}: {settings}",
            f"{self.counts}; `--config` takes its file {BEST}",
        ]
        rows = [
            [
                link(str(each.number), run_page(run.experiment_id, each.user_attrs[RUN])),
                f"{each.value:.4g}",
                *(_short(value) for value in space.settings_of(each.params).values()),
            ]
            for each in ranked[:MOST_ROWS]
        ]
        pictures = [picture(run, name) for name in list(FIGURES)[:2]]
        return "\n\n".join(["<br>".join(lines), table(["trial", self.monitor, *self.best], rows), *pictures])

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain types for JSON."""
        return {**dataclasses.asdict(self), "card": self.card}


def sweep(
    topic: str | Topic,
    *,
    space: str | Path = "default",
    trials: PositiveInt = 30,
    storage: str | None = None,
    study: str | None = None,
    config: str | Path | Sequence[str] | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed | None = None,
) -> Sweep:
    """Choose settings on validation rows, by Optuna, and compare the best with those it began with, on test rows.

    Workers that run the same command on one database share the trials. So does a later one: a sweep that was stopped
    goes on. Each trial is a small run within that of the sweep.

    Args:
        topic: A topic's name, or your own `Topic`.
        space: A YAML file with ranges, or the name of one in the folder ``sweeps`` of the topic's experiments.
        trials: The number of complete trials to reach. Pruned and failed ones come on top.
        storage: A database for the trials, such as postgresql://user@host/sweeps; by default the file ``sweeps.db`` in
            ``mlruns/``, which workers of one machine can share.
        study: The name of the trials in it, by default one for each space with the other settings and the split.
            Another name begins anew.
        config: YAML files with settings, or names of the topic's experiments, as those of a training.
        data: Settings of the topic's data.
        model: Settings of the topic's model.
        trainer: Settings of the Trainer.
        seed: Seed of weights and batches, the same in each trial, and of the sampler.

    Raises:
        SettingsError: A setting or range is invalid, or there are no validation rows.
        CourseError: The study is another sweep's, the database cannot be opened, or no trial succeeds.
    """
    request = resolve(topic, config, data, model, trainer, seed)
    topic, settings = request.topic, request.settings
    chosen = read_space(find_space(topic, space), request)
    check_one_process(settings.trainer, "sweep")
    rows = _rows(request, chosen)
    store = open_store()
    fixed = settings.without(chosen.settings)
    content = {
        "topic": topic.name,
        "space": {name: str(each) for name, each in chosen.settings.items()},
        "settings": json.loads(json.dumps(fixed.flat(), default=str)),
        "split": rows.fingerprint,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    name = study or f"{topic.name}-{chosen.file.stem}-{digest[:8]}"
    uri = storage or _default_storage(store)
    with experimental(), answering(uri), open_storage(uri, store) as database:
        warmup = settings.trainer["max_epochs"] // WARMUP
        stored, is_new = open_study(database, name, topic.mode, settings.seed, warmup)
        parent = None if is_new else _begun(store, stored, content)
        parent = parent or _begin(store, stored, content, request, chosen, fixed, rows)
        with parent:
            parent.is_shared = True
            parent.advice = "start the same command again, which goes on with these trials"
            log.info("%s: study %s, run %s", topic.name, name, parent.run_id)
            add_trials(stored, partial(_train, request, chosen, parent), trials, partial(_say, topic, chosen))
            newest = stored.get_trials(deepcopy=False)[-1].number
            conclude = partial(_conclude, request, chosen, parent, stored)
            by_one_worker(database, f"{name}: conclusion after trial {newest}", conclude)
            result = _result(topic, chosen, parent, stored)
    return result


def _rows(request: Request, space: Space) -> SplitData:
    """The topic's data.

    Raises:
        SettingsError: It has no validation rows, or the space would change which rows these are.
    """
    topic = request.topic
    rows, _ = load_data(topic, request.settings)
    if not rows.has("val"):
        flag = next((f": set --data.{each} above 0" for each in request.settings.data if each.startswith("val_")), "")
        raise SettingsError(f"a sweep chooses by validation rows, and {topic.name} has none{flag}")
    for name, each in space.settings.items():
        if name.startswith("data."):
            for value in each.ends:
                if load_data(topic, request.settings.over({name: value}))[0].fingerprint != rows.fingerprint:
                    raise SettingsError(
                        f"--space {space.file}: {name} changes the rows, so that trials could not be compared"
                    )
    return rows


def _default_storage(store: Store) -> str:
    """A file beside the store; where that is a server, in the project's ``mlruns/``."""
    folder = store.folder or nearest_folder("mlruns") or Path("mlruns").absolute()
    folder.mkdir(exist_ok=True)
    return f"sqlite:///{folder / 'sweeps.db'}"


def _begun(store: Store, study: optuna.Study, content: Mapping[str, Any]) -> Run | None:
    """The run of a study that another worker has begun; None if that one was gone before it had a run.

    Raises:
        CourseError: The study is about something else, or has its runs in another store.
    """
    end = time.monotonic() + GRACE_SECONDS
    with phase("waiting for the worker that began the study"):
        while RUN not in study.user_attrs:
            if time.monotonic() > end:
                return None
            time.sleep(0.2)
    before = study.user_attrs[CONTENT]
    if before != content:
        pairs = [(_flat(before), _flat(content)), (_flat(content), _flat(before))]
        names = {name for old, new in pairs for name, value in old.items() if new.get(name, ...) != value}
        raise CourseError(
            f"--study {study.study_name} is another sweep's, with other values of {', '.join(sorted(names))}: "
            "repeat those, or choose another name"
        )
    run = store.get_run(study.user_attrs[RUN])
    if run is None:
        raise CourseError(
            f"study {study.study_name} has its runs in another store than {store.shown}: set MLFLOW_TRACKING_URI to "
            "that one, or begin anew with --study and another name"
        )
    return Run(store, run, str(run.info.run_name))


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    return {**content["settings"], **content["space"], "the topic": content["topic"], "the split": content["split"]}


def _begin(
    store: Store,
    study: optuna.Study,
    content: Mapping[str, Any],
    request: Request,
    space: Space,
    fixed: Settings,
    rows: SplitData,
) -> Run:
    """A new run for a study."""
    topic = request.topic
    prepare_pages(store, topic)
    tags = {"dlcourse.kind": "sweep", "experiment": f"{request.experiment_name()}, sweep {space.file.stem}"}
    run = store.start_run(topic.name, f"{request.run_name}, sweep {study.study_name}", tags)
    log_start(run, topic, rows, fixed)
    run.log_params({f"space.{name}": str(each) for name, each in space.settings.items()})
    study.set_user_attr(CONTENT, content)
    study.set_user_attr(RUN, run.run_id)
    return run


def _train(request: Request, space: Space, parent: Run, trial: Trial) -> float:
    """One trial; returns the monitored metric of its best epoch.

    Raises:
        CourseError: It diverged, or failed for another known reason.
        TrialPruned: The study's pruner has stopped it.
    """
    topic, values = request.topic, space.suggest(trial)
    parent.store.take_over(parent)
    tags = {"dlcourse.kind": "trial", "mlflow.parentRunId": parent.run_id}
    name = f"{parent.name}: trial {trial.number}"
    with parent.store.start_run(topic.name, name, tags, within=parent) as run:
        trial.set_user_attr(RUN, run.run_id)
        run.log_params({"trial": trial.number, **values})
        data, settings = load_data(topic, request.settings.over(values))
        model = new_model(topic, data, settings)
        pruning = Pruning(trial, topic.monitor)
        watched = dataclasses.replace(topic, callbacks=lambda: [*topic.callbacks(), pruning])
        with tempfile.TemporaryDirectory(dir=run.path("checkpoints").parent) as folder:
            fitted = fit(watched, run, data, model, settings, topic.monitor, Path(folder), light=True)
        if fitted.divergence.epoch is not None:
            raise CourseError(diverged(fitted.divergence.epoch, fitted.divergence.loss, remedy(fitted)).text)
        checkpoint = fitted.trainer.checkpoint_callback
        if not isinstance(checkpoint, ModelCheckpoint) or checkpoint.best_model_score is None:
            raise CourseError(f"it ended before {topic.monitor} was first measured")
        evaluation = evaluate(fitted.trainer, model, fitted.task, data, "val")
        run.log_metrics({**evaluation.finals, "best_epoch": fitted.epoch})
        run.set_tags({"verdict": f"pruned after epoch {fitted.epochs - 1}" if pruning.is_pruned else "complete"})
    if pruning.is_pruned:
        raise optuna.TrialPruned
    return float(checkpoint.best_model_score)


def _say(topic: Topic, space: Space, study: optuna.Study, trial: FrozenTrial) -> None:
    """One line of a trial that has ended."""
    values = ", ".join(f"{name} {_short(value)}" for name, value in space.settings_of(trial.params).items())
    if trial.state == TrialState.FAIL:
        log.warning("trial %d: failed, %s; %s", trial.number, trial.user_attrs.get("error"), values)
    elif trial.state == TrialState.PRUNED:
        log.info("trial %d: pruned after epoch %d; %s", trial.number, trial.last_step, values)
    else:
        best = study.best_trial
        best_value = f"{best.value:.4g} of trial {best.number}"
        log.info("trial %d: %s %.4g, best %s; %s", trial.number, topic.monitor, trial.value, best_value, values)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else shown(value)


def _conclude(request: Request, space: Space, parent: Run, study: optuna.Study) -> None:
    """What one of the workers does at the end: the figures, the comparison on test rows, and the run's note."""
    parent.is_shared = False
    parent.store.take_over(parent)
    topic, best = request.topic, study.best_trial
    assert best.value is not None
    parent.log_metrics({f"trials/{word}": len(trials_of(study, state)) for state, word in COUNTED.items()})
    parent.log_metrics({topic.monitor: best.value})
    _draw_figures(parent, study, topic.monitor)
    sentences = study.user_attrs.get(SENTENCES, {})
    if str(best.number) not in sentences:
        sentences[str(best.number)] = _compare(request, space, parent, study)
        study.set_user_attr(SENTENCES, sentences)
    result = _result(topic, space, parent, study)
    ranked = sorted(trials_of(study, TrialState.COMPLETE), key=lambda each: each.value or 0.0)
    if topic.mode == "max":
        ranked.reverse()
    parent.set_tags({"verdict": result.sentence, "mlflow.note.content": result.note(parent, space, ranked)})


def _compare(request: Request, space: Space, parent: Run, study: optuna.Study) -> str:
    """Train the best settings and those that the sweep began with, and say which are better on test rows.

    Their seeds are others than the trials' seed, with which the best settings were also the luckiest.
    """
    best, base = study.best_trial, request.name if request.name != BEST.stem else "base"
    head = f"# Trial {best.number} of {study.study_name}: {request.topic.monitor} {best.value:.6g}\n"
    settings = request.settings.over(space.settings_of(best.params))
    files = {BEST: head + settings.as_yaml(), Path(f"{base}.yaml"): request.settings.as_yaml()}
    for file, text in files.items():
        parent.path(str(file)).write_text(text, encoding="utf-8")
    log.info("comparing trial %d with %s on test rows, %d seeds each", best.number, base, SEEDS)
    paths = [parent.path(str(file)) for file in files]
    metric = "loss" if request.topic.monitor == "val/loss" else None  # what the sweep chose by, or the primary metric
    comparison = compare(request.topic, paths, seeds=SEEDS, seed=request.settings.seed + 1, metric=metric)
    parent.lost |= {f"comparison: {what}": why for what, why in comparison.lost.items()}
    pairs = [pair for each in comparison.tables for pair in each.pairs if {pair.name, pair.other} == {BEST.stem, base}]
    return pairs[0].sentence if pairs else f"it cannot be told whether it is better: {comparison.tables[0].problem}"


def _draw_figures(run: Run, study: optuna.Study, metric: str) -> None:
    """Optuna's figures of a study, in its style, as files of a run."""
    for name, plot in FIGURES.items():
        # Optuna sets its style for all later figures.
        with run.attempt(name), mpl.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # there are few trials, or all have the same value
            figure = np.ravel(plot(study, target_name=metric))[0].figure
            figure.savefig(run.path(name), dpi=DPI, bbox_inches="tight")
            plt.close(figure)


def _result(topic: Topic, space: Space, parent: Run, study: optuna.Study) -> Sweep:
    best = study.best_trial
    assert best.value is not None
    return Sweep(
        topic=topic.name,
        run_id=parent.run_id,
        run_name=parent.name,
        store=parent.store.shown,
        study=study.study_name,
        trials={word: len(trials_of(study, state)) for state, word in COUNTED.items()},
        monitor=topic.monitor,
        best_trial=best.number,
        best_value=best.value,
        best=space.settings_of(best.params),
        file=str(parent.folder / BEST) if parent.store.folder else f"{BEST}, a file of run {parent.run_id}",
        sentence=study.user_attrs.get(SENTENCES, {}).get(str(best.number), OF_ANOTHER),
        lost=parent.lost,
    )
