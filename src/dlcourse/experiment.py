"""One experiment, from settings to verdict."""

import dataclasses
import inspect
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlcourse import topics
from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLITS
from dlcourse.errors import CourseError, SettingsError, suggestion
from dlcourse.evaluation import baselines
from dlcourse.evaluation.assessment import assess, fitting_rows
from dlcourse.evaluation.cross_validation import CrossValidation, run_folds
from dlcourse.evaluation.evaluate import evaluate, evaluate_outputs
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.verdict import diverged
from dlcourse.models.base import CourseModel
from dlcourse.ranges import PositiveInt, Seed
from dlcourse.reporting.card import finish, log_start, named
from dlcourse.reporting.result import Result
from dlcourse.settings import Request, Settings, perform, request_from_flags, settings_parser, verb
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.run import Run
from dlcourse.tracking.store import StoredRun
from dlcourse.training.checkpoints import load_checkpoint, read_checkpoint
from dlcourse.training.fit import new_model
from dlcourse.training.initial_weights import check_unseen, start_from
from dlcourse.training.overfit_batch import OverfitBatchResult, overfit_batch
from dlcourse.training.processes import Plan, check_shares, count_processes, run_fit, workers
from dlcourse.training.resume import check_changes, find_resume_point, prepare_resume
from dlcourse.training.trainer import make_trainer

log = logging.getLogger(__name__)


@verb("train")
def train(  # noqa: D417  # called with a topic, of which `verb` makes a request
    asked: Request,
    *,
    config: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed = 0,
    name: str | None = None,
    refit: bool = False,
    resume: str | None = None,
    init_from: str | None = None,
) -> Result:
    """Train a topic's model, measure it, compare it with its baselines and keep all of that as a run.

    Args:
        topic: A topic's name, or a `Topic` of one's own.
        config: YAML file with settings, over which the other arguments go.
        data: Settings of the topic's data.
        model: Settings of the topic's model.
        trainer: Settings of the Trainer, as `make_trainer` has them. For more than one device further processes are
            started, which import the topic's classes and load its data themselves, and end with the training.
        seed: Seed of weights and batches; the split has its own.
        name: Name of the run; by default the experiment's, with the settings that were changed.
        refit: After choosing on the validation rows, train anew on training and validation rows together.
        resume: Id or name of an interrupted run to carry on with, as a new run.
        init_from: Id or name of a run from whose weights to start, as far as their shapes fit (fine-tuning).

    Raises:
        SettingsError: A setting is unknown, of the wrong type or out of range.
        CourseError: Something outside the code is in the way: a file, the store, the hardware.
    """
    asked = _settled(asked)
    return run_experiment(
        asked.topic, asked.settings, asked.experiment, asked.name,
        name=name, refit=refit, resume=resume, init_from=init_from,
    )  # fmt: skip


def _settled(asked: Request) -> Request:
    """With the settings of the run that is carried on with, where there is one."""
    resume = asked.own["resume"]
    if not resume:
        return asked
    if asked.file:
        raise SettingsError("--resume takes its settings from the run it carries on with: leave --config out")
    return asked.over(str(_files_of(asked.topic, resume) / "settings.yaml"))


def train_from_flags(topic: Topic, flags: list[str]) -> Result | CrossValidation:
    """The same, from a command line, on which ``--folds`` makes a cross-validation of it."""
    parser = settings_parser(topic, train, f"dlcourse train {topic.name}")
    parser.add_function_arguments(inspect.unwrap(cross_validate), None, as_group=False, skip=_NOT_OF_FOLDS)
    parser.set_defaults({"folds": None})
    asked = request_from_flags(topic, parser, [flag for flag in flags if flag != "--print_config"])
    if "--print_config" in flags:
        print(_settled(asked).settings.as_yaml(), end="")
        parser.exit()
    folds, repeats = asked.own.pop("folds"), asked.own.pop("repeats")
    if not folds:
        if repeats > 1:
            raise SettingsError(f"--repeats {repeats} deals folds anew, and there are none: give --folds as well")
        return perform(train, asked)
    if asked.own["refit"] or asked.own["resume"] or asked.own["init_from"]:
        raise SettingsError("--folds goes with none of --refit, --resume, --init_from: each fold starts from nothing")
    return run_cross_validation(topic, asked.settings, asked.experiment, asked.name, folds, repeats, asked.own["name"])


@verb("train")
def cross_validate(  # noqa: D417  # the others are described at train
    asked: Request,
    *,
    folds: PositiveInt | None = 10,
    repeats: PositiveInt = 1,
    config: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed = 0,
    name: str | None = None,
) -> CrossValidation:
    """Train and measure a topic's model on each of K folds; the other arguments are those of `train`.

    Args:
        folds: Cross-validate: how many parts, of which each is the test rows once.
        repeats: How often the folds are dealt anew, for a surer figure.
    """
    return run_cross_validation(asked.topic, asked.settings, asked.experiment, asked.name, folds or 0, repeats, name)


_NOT_OF_FOLDS: set[str | int] = {"asked", "config", "data", "model", "trainer", "seed", "name"}


@verb("overfit")
def overfit(  # noqa: D417  # the others are described at train
    asked: Request,
    *,
    config: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed = 0,
    name: str | None = None,
) -> OverfitBatchResult:
    """Try whether a topic's model can overfit_batch one fixed batch; the other arguments are those of `train`.

    Args:
        name: Name of the run.
    """
    return run_overfit(asked.topic, asked.settings, name or asked.name)


def overfit_from_flags(topic: Topic, flags: list[str]) -> OverfitBatchResult:
    """The same, from a command line."""
    parser = settings_parser(topic, overfit, f"dlcourse overfit {topic.name}")
    return perform(overfit, request_from_flags(topic, parser, flags))


def run_overfit(topic: Topic, settings: Settings, name: str) -> OverfitBatchResult:
    """Memorise by settings that are resolved, on one device; the run keeps figures and settings, and no model."""
    settings = dataclasses.replace(settings, trainer={**settings.trainer, "devices": 1, "strategy": "auto"})
    count_processes(settings.trainer)
    data = _prepared(topic, settings)
    settings = with_resolved_auto(settings, data)
    if not data.rows.targets.numel():
        raise SettingsError(
            "there is nothing to overfit_batch: the rows have no targets, only the weights are in the loss"
        )
    with open_store().start_run(topic.name, f"overfit: {name}", {"dlcourse.kind": "overfit"}, watched=False) as run:
        log_start(run, topic, data, settings)
        memory = dataclasses.replace(overfit_batch(topic, settings, data, run), lost=run.lost)
        run.set_tags({"dlcourse.verdict": str(memory), "mlflow.note.content": str(memory)})
    return memory


def run_cross_validation(
    topic: Topic,
    settings: Settings,
    experiment: Settings,
    experiment_name: str,
    folds: int,
    repeats: int,
    name: str | None = None,
) -> CrossValidation:
    """Cross-validate by settings that are resolved."""
    if count_processes(settings.trainer) > 1:
        raise SettingsError(
            f"--folds trains on one device, a fold after the other: set --trainer.devices 1, not "
            f"{settings.trainer['devices']}"
        )
    data = _prepared(topic, settings)
    name = name or _name(settings, experiment, experiment_name)
    settings = with_resolved_auto(settings, data)
    return run_folds(topic, settings, open_store(), data, f"{name}, {repeats} x {folds} folds", folds, repeats)


def run_experiment(
    topic: Topic,
    settings: Settings,
    experiment: Settings,
    experiment_name: str,
    *,
    name: str | None = None,
    refit: bool = False,
    resume: str | None = None,
    init_from: str | None = None,
) -> Result:
    """Train by settings that are resolved. ``experiment`` are those before any were changed; they name the run."""
    processes = count_processes(settings.trainer)
    if init_from and (resume or refit):
        raise SettingsError("--init_from goes with neither --resume nor --refit, which have weights of their own")
    if resume:
        check_changes(settings, experiment, resume)
    data = _prepared(topic, settings)
    check_shares(topic, data, processes)
    model = new_model(topic, data, settings)
    monitor = topic.monitor if len(data.splits["val"]) else None
    _check_monitor(topic, model)
    if refit and not monitor:
        flag = next(name for name in settings.data if name.startswith("val_"))
        raise SettingsError(f"--refit needs validation rows to choose by: set --data.{flag} above 0")
    store = open_store()
    old = store.find_run(resume, topic.name) if resume else None
    if not name:
        name = f"{old.info.run_name} (resumed)" if old else _name(settings, experiment, experiment_name)
    tags = {"dlcourse.kind": "training", "dlcourse.split": data.fingerprint}
    resumed = None
    if old:
        tags["dlcourse.resumed_from"] = old.info.run_id
        tags |= {tag: old.data.tags[tag] for tag in ("dlcourse.init_from", "dlcourse.refit") if tag in old.data.tags}
        if old.data.tags.get("dlcourse.split") != data.fingerprint:
            raise CourseError(
                f"{old.info.run_name} cannot be resumed: its rows, or their split, are others by now "
                f"({data.rows.source}); put them back as they were, or train anew"
            )
        refit = refit or "dlcourse.refit" in tags
        resumed = find_resume_point(old, store.files_of(old), model, settings, experiment, processes)
    if init_from:
        first = store.find_run(init_from, topic.name)
        tags["dlcourse.init_from"] = first.info.run_id
        check_unseen(store, topic, first, data)
        start_from(model, _kept(store.files_of(first)))
    if refit:
        tags["dlcourse.refit"] = "true"
    settings = with_resolved_auto(settings, data)
    with store.start_run(topic.name, name, tags) as run:
        log_start(run, topic, data, settings)
        folder = run.path("checkpoints/last.ckpt").parent
        resumed = prepare_resume(resumed, folder) if resumed else None
        plan = Plan(topic, settings, data.fingerprint, monitor, folder, resumed, refit)
        with workers(plan, processes):
            fitted = run_fit(plan, data, model, run)
        if fitted.divergence.epoch is not None:
            verdict = diverged(fitted.divergence.epoch, fitted.divergence.loss, model.lr, data.standardize)
            return finish(topic, run, fitted, verdict, None)
        assessment = assess(
            topic,
            fitted.trainer,
            fitted.model,
            data,
            baselines=partial(_baselines, run),
            curves=run.history,
            kept_epoch=fitted.epoch,
        )
        return finish(topic, run, fitted, assessment.verdict, assessment)


def _prepared(topic: Topic, settings: Settings) -> CourseData:
    """The topic's data, there and split."""
    data = topic.data(**settings.data)
    data.prepare_data()
    data.setup("fit")
    return data


def with_resolved_auto(settings: Settings, data: CourseData) -> Settings:
    """The settings as the data understands them: where one said auto, what that came to."""
    understood = {name: data.hparams[name] for name in settings.data}
    return dataclasses.replace(settings, data=understood)


def _name(settings: Settings, experiment: Settings, experiment_name: str) -> str:
    """The experiment's name, and the settings that were changed."""
    changes = [f"{key.removeprefix('trainer.')}={value}" for key, value in settings.changes(experiment).items()]
    return ", ".join([experiment_name, *changes])[:120]


def _check_monitor(topic: Topic, model: CourseModel) -> None:
    names = model.metric_names("val")
    if topic.monitor not in names:
        raise CourseError(
            f"topic {topic.name} monitors {topic.monitor!r}, which its model does not log"
            f"{suggestion(topic.monitor, names) or '; it logs ' + ', '.join(names)}"
        )


def _files_of(topic: Topic, resume: str) -> Path:
    store = open_store()
    return store.files_of(store.find_run(resume, topic.name))


def _baselines(whole: Run, topic: Topic, data: CourseData, model: CourseModel) -> dict[str, Evaluation]:
    """Each baseline on the judged rows: measured once for these rows in these roles and this code, then found again."""
    judge_by = f"{data.eval_split} {model.primary_metric}"
    rows, store = fitting_rows(data), whole.store
    measured = {}
    known: dict[tuple[str, str], StoredRun] = {}
    whole.write()
    with store.lock("baselines"):
        with suppress(Exception):  # a store that is gone does not cost the verdict
            if whole.reachable:
                known = store.baselines(topic.name, data.fingerprint, judge_by)
        for name, baseline in topic.baselines.items():
            version = baselines.version(baseline)
            if (name, version) in known:
                outputs = torch.from_numpy(np.load(store.files_of(known[name, version]) / "outputs.npy"))
                measured[name] = evaluate_outputs(model, data, data.eval_split, outputs)
                continue
            predict = baseline(*rows)
            tags = {
                "dlcourse.kind": "baseline",
                "dlcourse.baseline": name,
                "dlcourse.baseline_version": version,
                "dlcourse.split": data.fingerprint,
                "dlcourse.judge": judge_by,
            }
            with store.start_run(topic.name, f"baseline: {name}", tags, watched=False, within=whole) as run:
                for split in SPLITS:
                    if not len(data.splits[split]):
                        continue
                    outputs = predict(data.rows.inputs[data.splits[split]])
                    evaluation = evaluate_outputs(model, data, split, outputs)
                    run.log_metrics(named(evaluation))
                    if split == data.eval_split:
                        measured[name] = evaluation
                        with run.attempt("outputs.npy"):
                            np.save(run.path("outputs.npy"), outputs.numpy())
    return measured


def test(topic: str | Topic, *, run: str | None = None, checkpoint: str | Path | None = None) -> dict[str, float]:
    """Measure a trained model on its own test rows once more, from its checkpoint alone; nothing is written.

    It is computed in the precision of the training, as far as this hardware has it.

    Args:
        topic: A topic's name, or a `Topic` of one's own.
        run: Id or name of the run whose kept weights are measured.
        checkpoint: A checkpoint file to measure instead.

    Returns:
        ``test/<metric>`` with 95 % intervals; of training rows, where there are no test rows.

    Raises:
        CourseError: There is no such run, or the file is no checkpoint of this topic.
    """
    found = topic if isinstance(topic, Topic) else topics.find(topic)
    if (run is None) == (checkpoint is None):
        raise SettingsError("say what to test: either --run with a run's id or name, or --checkpoint with a file")
    store = open_store() if run else None
    stored = store.find_run(run, found.name) if store and run else None
    path = _kept(store.files_of(stored)) if store and stored else Path(str(checkpoint))
    model, data = load_checkpoint(found, path)
    data.prepare_data()
    data.setup("test")
    if stored and stored.data.tags["dlcourse.split"] != data.fingerprint:
        raise CourseError(
            f"the rows of {stored.info.run_name} ({stored.info.run_id}), or their split, were others than now: put its "
            "data back, or train anew"
        )
    if path.parent.name == "refit":
        data.refit()
    hardware = read_checkpoint(path).get("dlcourse_hardware", {})
    trainer = make_trainer(patience=None, precision=hardware.get("precision", "auto"))
    return named(evaluate(trainer, model, data, data.eval_split))


def _kept(files: Path) -> Path:
    for name in ("refit/last", "best", "last"):
        path = files / "checkpoints" / f"{name}.ckpt"
        if path.is_file():
            return path
    raise CourseError("that run has no checkpoint: it ended before its first epoch")
