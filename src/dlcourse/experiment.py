"""One experiment, from settings to verdict: data, model, fit, evaluation, baselines, verdict, report."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from dlcourse.errors import CourseError, SettingsError, suggestion
from dlcourse.evaluation.baselines import Baseline
from dlcourse.evaluation.chosen import known_topic, metrics_of
from dlcourse.evaluation.comparison import Comparison, compare_candidates, figure_of
from dlcourse.evaluation.conclude import conclude
from dlcourse.evaluation.repeated import Repeated, cross_validate, train_seeds
from dlcourse.evaluation.split_data import SplitData
from dlcourse.evaluation.stored import (
    Candidate,
    by_settings,
    candidate,
    chosen_runs,
    is_same,
    trainings,
    with_different_names,
)
from dlcourse.evaluation.tasks import Task, TaskName
from dlcourse.models.base import CourseModel
from dlcourse.reporting.note import MOST_PIXELS, picture
from dlcourse.reporting.pages import prepare_pages
from dlcourse.reporting.result import Result
from dlcourse.settings import NonNegativeFloat, PositiveInt, Seed
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store, StoredRun
from dlcourse.training.fit import Plan, as_fitted, new_model, run_fit
from dlcourse.training.hardware import choose_accelerator
from dlcourse.training.processes import Processes, as_launched, check_one_process
from dlcourse.training.request import Request, experiments_of, resolve, settings_of_objects, topic_of
from dlcourse.training.resume import prepare_resume
from dlcourse.training.start import (
    as_split_data,
    check_in_memory,
    load_data,
    load_initial_weights,
    log_start,
    resume_run,
    settings_of,
)

log = logging.getLogger(__name__)

FIGURE = "figures/comparison.png"


def train(
    topic: str | Topic,
    *,
    config: str | Path | Sequence[str] | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed | None = None,
    name: str | None = None,
    refit: bool = False,
    resume: str | None = None,
    init_from: str | None = None,
    seeds: PositiveInt | None = None,
    folds: PositiveInt | None = None,
    repeats: PositiveInt = 1,
) -> Result | Repeated:
    """Train a topic's model, evaluate it, compare it with its baselines, and save everything as a run.

    Args:
        topic: A topic's name, or your own `Topic`.
        config: YAML files with settings, or names of the topic's experiments. Each overrides the one before it, and all
            override the topic's ``default``.
        data: Settings of the topic's data. They override those of the files.
        model: Settings of the topic's model.
        trainer: Settings of the Trainer: arguments of `make_trainer`. For more than one device this command, or script,
            is started again for each further one. These processes end here, once the training has.
        seed: Seed of weights and batches, 0 by default; the split has its own.
        name: Name of the run; by default the experiment's, with the settings that were changed.
        refit: After choosing the epoch on validation rows, train again on training and validation rows together.
        resume: Id or name of an interrupted run to continue, as a new run.
        init_from: Id or name of a run whose weights to start from, as far as their shapes fit (fine-tuning).
        seeds: Train with this number of consecutive seeds, the first of which is ``seed``, for a mean and its interval.
        folds: Cross-validate with this number of folds, each of which is the test set once.
        repeats: How often to repeat the cross-validation with new folds, for a more precise estimate.

    Returns:
        The result of the run, or of all trainings if there are seeds or folds.

    Raises:
        SettingsError: A setting is unknown, of the wrong type or out of range.
        CourseError: A problem outside the code: a file, the store, the hardware.
    """
    if repeats > 1 and not folds:
        raise SettingsError(f"--repeats {repeats} repeats a cross-validation with new folds: add --folds")
    if (repeated := "--folds" * bool(folds) or "--seeds" * bool(seeds)) and (refit or resume or init_from):
        raise SettingsError(f"{repeated} cannot be combined with --refit, --resume or --init_from: each trains anew")
    if folds and seeds:
        raise SettingsError("--folds and --seeds cannot be combined: --repeats repeats the folds")
    if resume:
        if config:
            raise SettingsError("--resume takes its settings from the run that it continues: leave --config out")
        config = settings_of(resume, topic)
    request = resolve(topic, config, data, model, trainer, seed)
    if folds:
        return cross_validate(request, folds, repeats, name)
    if seeds:
        return train_seeds(request, seeds, name)
    return _train(request, name=name, refit=refit, resume=resume, init_from=init_from)


def _train(
    request: Request,
    *,
    name: str | None = None,
    refit: bool = False,
    resume: str | None = None,
    init_from: str | None = None,
) -> Result:
    """A single training, with settings that are resolved; the arguments are those of `train`."""
    topic = request.topic
    settings = dataclasses.replace(request.settings, trainer=as_launched(request.settings.trainer))
    processes = Processes(settings.trainer)
    if init_from and (resume or refit):
        raise SettingsError("--init_from cannot be combined with --resume or --refit, which have other initial weights")

    rows, settings = load_data(topic, settings)
    module = new_model(topic, rows, settings)
    monitor = _monitor(topic, module, rows)
    if refit:
        check_in_memory(topic, "--refit")
    if refit and not monitor:
        flag = next(each for each in settings.data if each.startswith("val_"))
        raise SettingsError(f"--refit needs validation rows to choose the epoch: set --data.{flag} above 0")

    tags, run_name, resumed = {"experiment": request.experiment_name()}, request.run_name, None
    if resume:
        resumed, tags, old_name = resume_run(open_store(), resume, request, rows, module, processes.count)
        refit, run_name = refit or "dlcourse.refit" in tags, f"{old_name} (resumed)"
    plan = Plan(topic, settings, monitor, Path("checkpoints"), resumed, refit)
    # Only process 0 goes on from here. The others have its initial weights and checkpoints from it, by Lightning.
    if processes.rank:
        processes.take_part(plan, rows, module)
    store = open_store()
    if init_from:
        tags["dlcourse.init_from"] = load_initial_weights(store, topic, init_from, rows, module)
        tags["experiment"] += f", init_from={init_from}"
    if refit and "dlcourse.refit" not in tags:
        tags["dlcourse.refit"] = "true"
        tags["experiment"] += ", refit"
    return _run(store, plan, rows, module, processes, name or run_name, tags)


def train_module(
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    *,
    task: Task | TaskName,
    baselines: Mapping[str, Baseline] | None = None,
    experiment: str | None = None,
    name: str = "default",
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    callbacks: Sequence[Callback] = (),
    trainer: Mapping[str, Any] | None = None,
    seed: Seed = 0,
) -> Result:
    """Train any LightningModule on any LightningDataModule, as a run with verdict, baselines and a verified model.

    The module is trained in place, and has the weights of the best epoch afterwards. Rows are seen through the
    dataloaders alone: those for validation and test have to give theirs in the same order each time. The outputs of all
    their rows are kept in memory, the inputs are not.

    Args:
        module: The module. Its ``forward`` takes the inputs of a batch, and returns outputs as the task has them.
        datamodule: Its data. Without ``test_dataloader`` the verdict is on validation rows, without both on training
            rows, which show no learning.
        task: What the outputs mean: a `Task`, or the name of one that is made without arguments.
        baselines: What to compare with, the trivial one first; by default that and a linear model.
        experiment: The name of the MLflow experiment, by default that of the module's class.
        name: The name of the run.
        monitor: What early stopping and the best epoch go by: ``val/loss`` is the task's loss, and is always there;
            or any metric that the module logs.
        mode: Whether lower or higher values of it are better.
        callbacks: Further callbacks.
        trainer: Arguments of `make_trainer`, and of Lightning's Trainer.
        seed: Seed of batches and dropout; the module has its weights already.

    Raises:
        SettingsError: A setting is invalid, or there is no baseline for such a task.
        CourseError: Outputs or batches are not as the task needs them, or a problem outside the code.
    """
    topic = topic_of(module, datamodule, task, baselines, experiment)
    topic = dataclasses.replace(topic, monitor=monitor, mode=mode, callbacks=lambda: callbacks)
    settings = settings_of_objects(module, datamodule, trainer or {}, seed)
    settings = dataclasses.replace(settings, trainer=as_launched(settings.trainer))
    processes = Processes(settings.trainer)
    data = as_split_data(topic, datamodule)
    L.seed_everything(seed, workers=True, verbose=False)
    plan = Plan(topic, settings, _monitor(topic, module, data), Path("checkpoints"))
    if processes.rank:
        processes.take_part(plan, data, module)
    advice = "evaluate_module evaluates a module that is trained already"
    return _run(open_store(), plan, data, module, processes, name, {"experiment": name}, advice)


def evaluate_module(
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    *,
    task: Task | TaskName,
    baselines: Mapping[str, Baseline] | None = None,
    experiment: str | None = None,
    name: str = "default",
    trainer: Mapping[str, Any] | None = None,
) -> Result:
    """Evaluate a LightningModule that is already trained, as a run with verdict, baselines and a verified model.

    The arguments are those of `train_module`; of the Trainer only accelerator and precision matter. Overfitting is not
    measured, since no epoch was seen.
    """
    topic = topic_of(module, datamodule, task, baselines, experiment)
    settings = settings_of_objects(module, datamodule, trainer or {}, 0)
    data, store = as_split_data(topic, datamodule), open_store()
    prepare_pages(store, topic)
    with store.start_run(topic.name, name, {"dlcourse.kind": "training", "experiment": name}) as run:
        log_start(run, topic, data, settings)
        return conclude(run, topic, as_fitted(topic, module, data, settings))


def _run(
    store: Store,
    plan: Plan,
    data: SplitData,
    module: L.LightningModule,
    processes: Processes,
    name: str,
    tags: Mapping[str, str],
    advice: str | None = None,
) -> Result:
    """One run of the store: train by the plan, evaluate, and save all there is to know of it.

    ``advice`` says how to go on if the run is stopped; by default with ``--resume``.
    """
    topic, settings = plan.topic, plan.settings
    prepare_pages(store, topic)
    tags = {"dlcourse.kind": "training", **tags}
    if data.fingerprint:
        tags["dlcourse.split"] = data.fingerprint
    if processes.count > 1:
        tags["dlcourse.processes"] = str(processes.count)
    processes.start(data, settings)
    is_on_gpu = choose_accelerator(settings.trainer["accelerator"]) == "cuda"
    with store.start_run(topic.name, name, tags, watched=is_on_gpu) as run:
        run.advice = advice
        log_start(run, topic, data, settings)
        folder = run.path("checkpoints/last.ckpt").parent
        resumed = prepare_resume(plan.resumed, folder) if plan.resumed else None
        with processes.together():
            fitted = run_fit(dataclasses.replace(plan, folder=folder, resumed=resumed), data, module, run)
        return conclude(run, topic, fitted)


def _monitor(topic: Topic, module: L.LightningModule, data: SplitData) -> str | None:
    """The monitored metric; None without a validation. Raises `CourseError` if the model does not log it."""
    if isinstance(module, CourseModel):  # what another module logs is known when it has
        names = module.metric_names("val")
        if topic.monitor not in names:
            near = suggestion(topic.monitor, names) or f"; it logs {', '.join(names)}"
            raise CourseError(f"topic {topic.name} monitors {topic.monitor!r}, which its model does not log{near}")
    return topic.monitor if data.has("val") and is_overridden("validation_step", module) else None


def compare(
    topic: str | Topic,
    runs: Sequence[str | Path] = (),
    *,
    filter: str | None = None,
    last: PositiveInt | None = None,
    seeds: PositiveInt = 1,
    metric: str | None = None,
    margin: NonNegativeFloat | None = None,
    plot: Path | None = None,
    csv: Path | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed | None = None,
    refit: bool = False,
) -> Comparison:
    """Compare runs of the store in one table, and say of each whether it is better than the best, and how sure that is.

    An experiment stands for its runs with each seed; those that are missing are trained. Without ``runs`` all trainings
    of the topic are compared. A comparison of experiments is a run as well, with the table as its note.

    Args:
        topic: A topic's name, or your own `Topic`; or the name of an experiment of `train_module`.
        runs: YAML files or names of the topic's experiments, and names or ids of runs.
        filter: Compare the trainings that this condition in MLflow's syntax is true of.
        last: Compare the newest trainings, this number of them.
        seeds: Number of consecutive seeds that each experiment needs, the first of which is ``seed``, else the file's,
            else 0. What is in the store already, with the same settings, data and version, is not trained again.
        metric: The metric, by default the topic's primary one.
        margin: The smallest difference that is worth having, by default a point of accuracy, or 1 % of the best loss.
        plot: A file for the figure: curves, and differences with their intervals.
        csv: A file for the table.
        data: Settings of the topic's data. They override those of every experiment.
        model: Settings of the topic's model.
        trainer: Settings of the Trainer.
        seed: The first seed.
        refit: Train each experiment again on training and validation rows together.

    Raises:
        SettingsError: A setting is invalid, or there is no such metric or experiment.
        CourseError: There is no such run, or nothing to compare.
    """
    store = open_store()
    name, known = known_topic(store, topic)
    experiments = experiments_of(known) if known else {}
    files = [each for each in runs if known and (Path(each).is_file() or str(each) in experiments)]
    if not files and (seeds > 1 or refit or data or model or trainer or seed is not None):
        raise SettingsError("--seeds and settings are for experiments, not for runs: name a YAML file or an experiment")
    for flag, file in (("plot", plot), ("csv", csv)):
        if file and not file.absolute().parent.is_dir():
            raise SettingsError(f"--{flag} {file}: there is no folder {file.parent}")
    requests = {}
    for each in files:
        assert known
        request = resolve(known, each, data, model, trainer, seed)
        resolve(known, each, data, model, trainer, request.settings.seed + seeds - 1)
        check_one_process(request.settings.trainer, "compare")
        if Path(each).stem in requests:
            raise SettingsError(f"two experiments are called {Path(each).stem}: give each a different name")
        requests[Path(each).stem] = request
    experiment_id = store.experiment(name)
    candidates = chosen_runs(store, name, [str(each) for each in runs if each not in files])
    if filter or last or not runs:
        candidates += by_settings(trainings(store, experiment_id, filter or "", last))
    if not candidates and not requests:
        which = f"that match --filter {filter}" if filter else "yet"
        raise CourseError(f"{name} has no trainings {which} in {store.shown}: train one with dlcourse train")
    without_outputs = metrics_of(known) if known else ("loss", {"loss": False})
    with ExitStack() as stack:
        run = None
        if requests:
            title = f"compare: {', '.join([*requests, *(each.name for each in candidates)])}"[:120]
            run = stack.enter_context(store.start_run(name, title, {"dlcourse.kind": "comparison"}))
            run.advice = "start the command again: trainings that are finished are not trained again"
        of_experiments = [
            _with_seeds(store, request, experiment, seeds, refit) for experiment, request in requests.items()
        ]
        comparison = compare_candidates(
            store, name, experiment_id, with_different_names([*of_experiments, *candidates]), metric, margin,
            without_outputs,
        )  # fmt: skip
        if run or plot:
            figure = figure_of(store, comparison)
            dpi = MOST_PIXELS / figure.get_figwidth()
        if plot:
            figure.savefig(plot, dpi=2 * dpi)
        if csv:
            csv.write_text(comparison.as_csv(), encoding="utf-8")
        if run:
            comparison = dataclasses.replace(comparison, run_id=run.run_id, lost=run.lost)
            with run.attempt(FIGURE):
                figure.savefig(run.path(FIGURE), dpi=dpi)
            run.log_text("comparison.txt", f"{comparison}\n")
            run.log_text("comparison.csv", comparison.as_csv())
            note = f"{comparison.note(run.experiment_id)}\n\n{picture(run, FIGURE)}"
            run.set_tags({"mlflow.note.content": note})
            if pairs := comparison.tables[0].pairs:
                run.set_tags({"verdict": pairs[0].sentence})
    return comparison


def _with_seeds(store: Store, request: Request, name: str, seeds: int, refit: bool) -> Candidate:
    """The runs of an experiment, from the store, and trained now for those of the seeds that it has none for."""
    rows, settings = load_data(request.topic, request.settings)
    by_seed: dict[str, list[StoredRun]] = {}
    for run in trainings(store, store.experiment(request.topic.name), "attributes.status = 'FINISHED'"):
        if is_same(run, settings.flat(), rows.fingerprint, refit):
            by_seed.setdefault(run.data.params["seed"], []).append(run)
    wanted = [str(request.settings.seed + place) for place in range(seeds)]
    missing = [number for number in wanted if number not in by_seed]
    told = {"from the store": sorted(by_seed, key=int), "to be trained": missing}
    log.info("%s: %s", name, "; ".join(f"seed {', '.join(each)} {what}" for what, each in told.items() if each))
    for number in missing:
        one = dataclasses.replace(request, settings=dataclasses.replace(request.settings, seed=int(number)))
        result = _train(one, refit=refit)
        by_seed[number] = [store.client.get_run(result.run_id)]
    return candidate(by_seed, name)
