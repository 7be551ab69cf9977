"""One experiment, from settings to verdict: data, model, fit, evaluation, baselines, verdict, report."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from dlcourse.data.datamodule import CourseData
from dlcourse.errors import CourseError, SettingsError, suggestion
from dlcourse.evaluation.assessment import Assessment, evaluate_splits, final_metrics, judge_model
from dlcourse.evaluation.baseline_runs import fingerprint_of, measure_baselines
from dlcourse.evaluation.baselines import Baseline
from dlcourse.evaluation.comparison import FIGURE, Comparison, plot_curves
from dlcourse.evaluation.cross_validation import CrossValidation, cross_validate
from dlcourse.evaluation.predictions import PREDICTIONS, save_predictions
from dlcourse.evaluation.split_data import SplitData
from dlcourse.evaluation.tasks import Task, TaskName
from dlcourse.evaluation.verdict import diverged
from dlcourse.export.model import ModelPage, export_model
from dlcourse.models.base import CourseModel
from dlcourse.reporting.note import MOST_PIXELS, headline, note_of, run_page
from dlcourse.reporting.pages import prepare_pages
from dlcourse.reporting.report import answer_questions, draw_figures
from dlcourse.reporting.result import Result
from dlcourse.settings import PositiveInt, Seed
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.run import CONTEXTS, Run
from dlcourse.tracking.store import Store
from dlcourse.tracking.views import runs_address
from dlcourse.training.fit import Fitted, Plan, as_fitted, new_model, remedy, run_fit
from dlcourse.training.hardware import choose_accelerator, described
from dlcourse.training.processes import Processes, as_launched, check_one_process
from dlcourse.training.request import resolve, settings_of_objects, topic_of
from dlcourse.training.resume import prepare_resume
from dlcourse.training.start import (
    as_split_data,
    check_in_memory,
    load_data,
    load_initial_weights,
    log_data,
    log_start,
    resume_run,
    settings_of,
)

log = logging.getLogger(__name__)


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
    folds: PositiveInt | None = None,
    repeats: PositiveInt = 1,
) -> Result | CrossValidation:
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
        folds: Cross-validate with this number of folds, each of which is the test set once.
        repeats: How often to repeat the cross-validation with new folds, for a more precise estimate.

    Returns:
        The result of the run, or of the cross-validation if there are folds.

    Raises:
        SettingsError: A setting is unknown, of the wrong type or out of range.
        CourseError: A problem outside the code: a file, the store, the hardware.
    """
    if repeats > 1 and not folds:
        raise SettingsError(f"--repeats {repeats} repeats a cross-validation with new folds: add --folds")
    if folds and (refit or resume or init_from):
        raise SettingsError("--folds cannot be combined with --refit, --resume or --init_from: each fold trains anew")
    if resume:
        if config:
            raise SettingsError("--resume takes its settings from the run that it continues: leave --config out")
        config = settings_of(resume, topic)
    request = resolve(topic, config, data, model, trainer, seed)
    if folds:
        return cross_validate(request, folds, repeats, name)
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
        return _conclude(run, topic, as_fitted(topic, module, data, settings))


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
        return _conclude(run, topic, fitted)


def _conclude(run: Run, topic: Topic, fitted: Fitted) -> Result:
    """From a trained model to the result: evaluation, baselines, verdict, figures, export and report."""
    task, data, divergence = fitted.task, fitted.data, fitted.divergence
    assessment: Assessment | None = None
    metrics, baseline_runs = dict[str, float](), dict[str, str]()
    if divergence.epoch is not None:
        verdict = diverged(divergence.epoch, divergence.loss, remedy(fitted))
        run.fail(f"diverged: {verdict.advice}")
    else:
        evaluations = evaluate_splits(fitted.trainer, fitted.model, task, data)
        evaluation = evaluations[data.eval_split]
        if not data.fingerprint:
            log_data(run, topic, data, evaluations)
            run.set_tags({"dlcourse.split": fingerprint_of(data, evaluation)})
        baselines, baseline_runs = measure_baselines(run, topic, data, task, evaluation)
        assessment = judge_model(topic, fitted.model, task, data, evaluations, baselines, run.history, fitted.epoch)
        metrics, verdict = final_metrics(task, assessment), assessment.verdict
        with run.attempt(PREDICTIONS):
            save_predictions(run.path(PREDICTIONS), task, data, evaluations)

    metrics |= {"best_epoch": float(fitted.epoch), "fit_seconds": fitted.seconds} if fitted.epochs else {}
    overfitting = fitted.overfitting if assessment else None
    run.set_tags(
        {
            "verdict": verdict.text,
            "overfitting": str(overfitting or "not measured"),
            "dlcourse.hardware": described(fitted.trainer),
        }
    )
    run.log_metrics(metrics)
    answers = answer_questions(run, fitted) if assessment else {}
    draw_figures(run, topic, fitted, assessment)
    pages = {baseline: run_page(run.experiment_id, run_id) for baseline, run_id in baseline_runs.items()}
    lines = headline(verdict, task.primary_metric, assessment, fitted.overfitting, pages)
    exported = None
    if assessment:
        evaluation = assessment.evaluation
        page = ModelPage(
            description="<br>".join(lines),
            metrics=list(evaluation.finals),
            dataset=f"{topic.name} ({CONTEXTS[evaluation.split]})",
            digest=data.digest(data.splits[evaluation.split]) if isinstance(data, CourseData) else evaluation.digest,
        )
        exported = export_model(run, fitted.model, task, data.example_inputs(), fitted.epoch, page)
    result = Result(
        topic=topic.name,
        run_id=run.run_id,
        run_name=run.name,
        store=run.store.shown,
        view=runs_address(run.store, run.experiment_id) if run.store.uri.startswith("http") else "",
        metrics=metrics,
        verdict=verdict,
        primary_metric=task.primary_metric,
        baseline_runs=baseline_runs,
        answers=answers,
        checkpoint=str(fitted.checkpoint) if assessment and fitted.checkpoint else None,
        model_uri=exported.uri if exported else None,
        overfitting=fitted.overfitting,
        lost=run.lost,
        history={key: list(points) for key, points in run.history.items()},
        fitted=fitted,
        assessment=assessment,
        exported=exported,
    )
    run.set_tags({"mlflow.note.content": note_of(run, topic, result, lines)})
    return result


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
    files: Sequence[str | Path],
    *,
    seeds: PositiveInt = 1,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed | None = None,
    refit: bool = False,
) -> Comparison:
    """Train experiments one after another, and compare them in one table and one figure.

    The comparison is a separate run, with the table as its note. Each training is a run as well.

    Args:
        topic: A topic's name, or your own `Topic`.
        files: At least two YAML files, or names of the topic's experiments.
        seeds: Number of consecutive seeds to train each with, the first of which is ``seed``, else the file's, else 0.
        data: Settings of the topic's data. They override those of every file.
        model: Settings of the topic's model.
        trainer: Settings of the Trainer.
        seed: The first seed.
        refit: Train each again on training and validation rows together.

    Raises:
        SettingsError: There are fewer than two files, or a setting is invalid.
    """
    names = [Path(file).stem for file in files]
    if len(files) < 2:
        raise SettingsError(f"compare needs at least two experiments, not {len(files)}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"two experiments are called {twice[0]}: give each a different name")
    # All settings are checked before anything is trained.
    requests = [resolve(topic, file, data, model, trainer, seed) for file in files]
    for file, request in zip(files, requests, strict=True):
        resolve(topic, file, data, model, trainer, request.settings.seed + seeds - 1)
        check_one_process(request.settings.trainer, "compare")
    topic = requests[0].topic
    tags = {"dlcourse.kind": "comparison"}
    with open_store().start_run(topic.name, f"compare: {', '.join(names)}"[:120], tags) as run:
        results: dict[str, list[Result]] = {}
        for name, file, request in zip(names, files, requests, strict=True):
            numbers = range(request.settings.seed, request.settings.seed + seeds)
            log.info("-- %s, seed%s %s", name, "s" * (seeds > 1), ", ".join(map(str, numbers)))
            results[name] = []
            for number in numbers:
                finished = [f"{each.run_name} ({each.run_id})" for trained in results.values() for each in trained]
                run.advice = "; these trainings are finished and saved: ".join(
                    ["start the command again", *([", ".join(finished)] if finished else [])]
                )
                result = train(topic, config=file, data=data, model=model, trainer=trainer, seed=number, refit=refit)
                assert isinstance(result, Result)  # not a CrossValidation: no folds
                results[name].append(result)
        comparison = Comparison(topic.name, run.run_id, results, run.lost)
        with run.attempt(FIGURE):
            figure = plot_curves(results)
            figure.savefig(run.path(FIGURE), dpi=MOST_PIXELS / figure.get_figwidth())
        with run.attempt("comparison.txt"):
            run.path("comparison.txt").write_text(f"{comparison}\n", encoding="utf-8")
        run.set_tags({"mlflow.note.content": comparison.note(run)})
    return comparison
