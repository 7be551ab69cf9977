"""One experiment, from settings to verdict."""

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.entities import Run as StoredRun
from torch import Tensor

from dlcourse import baselines, topics
from dlcourse.crossvalidation import CrossValidation, run_folds
from dlcourse.data import SPLITS, CourseData
from dlcourse.distributed import Plan, carry_out, check_shares, count_processes, helpers
from dlcourse.errors import CourseError, SettingsError, suggestion
from dlcourse.evaluating import Evaluation, evaluate, evaluate_outputs
from dlcourse.exporting import load_checkpoint
from dlcourse.fitting import carry_on, new_model, start_from
from dlcourse.learning import CourseModel
from dlcourse.memorising import Memory, memorise
from dlcourse.ranges import PositiveInt, Seed
from dlcourse.reporting import Result, finish, log_start, named
from dlcourse.settings import OneLineParser, Settings, resolve, settings_parser
from dlcourse.topics import Topic
from dlcourse.tracking import Run, open_store
from dlcourse.trainer import make_trainer
from dlcourse.verdict import diverged, judge

log = logging.getLogger(__name__)


def train(
    topic: str | Topic,
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
    found = topic if isinstance(topic, Topic) else topics.find(topic)
    parser = settings_parser(found, train, f"dlcourse train {found.name}")
    groups = {"data": data, "model": model, "trainer": trainer}
    own: dict[str, Any] = {"seed": seed, "name": name, "refit": refit, "resume": resume, "init_from": init_from}
    given = {key: value for key, value in (groups | own).items() if value}
    file = str(config) if config else None
    settings, own = resolve(parser.parse_values(given, file))
    if own["resume"]:
        if file:
            raise SettingsError("resume takes its settings from the run it carries on with: leave config out")
        file = str(_files_of(found, own["resume"]) / "settings.yaml")
        settings, own = resolve(parser.parse_values(given, file))
    experiment, _ = resolve(parser.parse_values({}, file))
    return run_experiment(found, settings, experiment, _stem(file), **own)


def train_from_flags(topic: Topic, flags: list[str]) -> Result | CrossValidation:
    """The same, from a command line."""
    parser = _train_parser(topic)
    _, own = resolve(parser.parse_flags([flag for flag in flags if flag != "--print_config"]))
    if own["folds"] and (own["refit"] or own["resume"] or own["init_from"]):
        raise SettingsError("--folds goes with none of --refit, --resume, --init_from: each fold starts from nothing")
    if own["resume"]:
        if any(flag.split("=")[0] == "--config" for flag in flags):
            raise SettingsError("--resume takes its settings from the run it carries on with: leave --config out")
        flags = ["--config", str(_files_of(topic, own["resume"]) / "settings.yaml"), *flags]
    parsed = parser.parse_flags(flags)
    settings, own = resolve(parsed)
    file = str(parsed.config[-1]) if parsed.config else None
    experiment, _ = resolve(parser.parse_values({}, file))
    folds, repeats = own.pop("folds"), own.pop("repeats")
    if not folds:
        if repeats > 1:
            raise SettingsError(f"--repeats {repeats} deals folds anew, and there are none: give --folds as well")
        return run_experiment(topic, settings, experiment, _stem(file), **own)
    return run_cross_validation(topic, settings, experiment, _stem(file), folds, repeats, own["name"])


def cross_validate(  # noqa: D417  # the others are described at train
    topic: str | Topic,
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
    found = topic if isinstance(topic, Topic) else topics.find(topic)
    parser = _train_parser(found)
    groups = {"data": data, "model": model, "trainer": trainer}
    own: dict[str, Any] = {"seed": seed, "name": name, "folds": folds, "repeats": repeats}
    file = str(config) if config else None
    settings, own = resolve(parser.parse_values({key: value for key, value in (groups | own).items() if value}, file))
    experiment, _ = resolve(parser.parse_values({}, file))
    return run_cross_validation(found, settings, experiment, _stem(file), own["folds"], own["repeats"], own["name"])


def _train_parser(topic: Topic) -> OneLineParser:
    parser = settings_parser(topic, train, f"dlcourse train {topic.name}")
    parser.add_function_arguments(cross_validate, None, as_group=False, skip=_NOT_OF_FOLDS)
    parser.set_defaults({"folds": None})
    return parser


_NOT_OF_FOLDS: set[str | int] = {"topic", "config", "data", "model", "trainer", "seed", "name"}


def overfit(  # noqa: D417  # the others are described at train
    topic: str | Topic,
    *,
    config: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed = 0,
    name: str | None = None,
) -> Memory:
    """Try whether a topic's model can memorise one fixed batch; the other arguments are those of `train`.

    Args:
        name: Name of the run.
    """
    found = topic if isinstance(topic, Topic) else topics.find(topic)
    parser = settings_parser(found, overfit, f"dlcourse overfit {found.name}")
    groups = {"data": data, "model": model, "trainer": trainer}
    own: dict[str, Any] = {"seed": seed, "name": name}
    file = str(config) if config else None
    settings, own = resolve(parser.parse_values({key: value for key, value in (groups | own).items() if value}, file))
    return run_overfit(found, settings, own["name"] or _stem(file))


def overfit_from_flags(topic: Topic, flags: list[str]) -> Memory:
    """The same, from a command line."""
    parsed = settings_parser(topic, overfit, f"dlcourse overfit {topic.name}").parse_flags(flags)
    settings, own = resolve(parsed)
    return run_overfit(topic, settings, own["name"] or _stem(str(parsed.config[-1]) if parsed.config else None))


def run_overfit(topic: Topic, settings: Settings, name: str) -> Memory:
    """Memorise by settings that are resolved, on one device; the run keeps figures and settings, and no model."""
    settings = dataclasses.replace(settings, trainer={**settings.trainer, "devices": 1, "strategy": "auto"})
    count_processes(settings.trainer)
    data = _prepared(topic, settings)
    settings = _understood(settings, data)
    if not data.rows.targets.numel():
        raise SettingsError("there is nothing to memorise: the rows have no targets, only the weights are in the loss")
    with open_store().start_run(topic.name, f"overfit: {name}", {"dlcourse.kind": "overfit"}, watched=False) as run:
        log_start(run, topic, data, settings)
        memory = dataclasses.replace(memorise(topic, settings, data, run), lost=run.lost)
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
    settings = _understood(settings, data)
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
    if old:
        tags["dlcourse.resumed_from"] = old.info.run_id
    if init_from:
        if resume or refit:
            raise SettingsError("--init_from goes with neither --resume nor --refit, which have weights of their own")
        first = store.find_run(init_from, topic.name)
        tags["dlcourse.init_from"] = first.info.run_id
        start_from(model, _kept(store.files_of(first)))
    settings = _understood(settings, data)
    with store.start_run(topic.name, name, tags) as run:
        log_start(run, topic, data, settings)
        folder = run.path("checkpoints/last.ckpt").parent
        resumed = carry_on(old, store.files_of(old), folder, settings.trainer["max_epochs"]) if old else None
        plan = Plan(topic, settings, data.fingerprint, monitor, folder, resumed, refit)
        with helpers(plan, processes):
            fitted = carry_out(plan, data, model, run)
        if fitted.divergence.epoch is not None:
            verdict = diverged(fitted.divergence.epoch, fitted.divergence.loss, model.lr, data.standardize)
            return finish(topic, run, fitted, verdict, [], {})
        evaluations = [
            evaluate(fitted.trainer, fitted.model, data, split) for split in SPLITS if len(data.splits[split])
        ]
        measured = next(each for each in evaluations if each.split == data.judged)
        losses = _baselines(topic, run, data, fitted.model)

        def shuffled(order: Tensor) -> Tensor:
            return fitted.model.row_losses(measured.outputs, measured.targets[order])

        curve = [value for _, value in run.history["train/loss"]]
        theirs = {name: each.losses for name, each in losses.items()}
        verdict = (
            topic.judge(fitted.model, data)
            if topic.judge
            else judge(data.judged, measured.losses, shuffled, theirs, curve)
        )
        return finish(topic, run, fitted, verdict, evaluations, losses)


def _prepared(topic: Topic, settings: Settings) -> CourseData:
    """The topic's data, there and split."""
    data = topic.data(**settings.data)
    data.prepare_data()
    data.setup("fit")
    return data


def _understood(settings: Settings, data: CourseData) -> Settings:
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


def _stem(file: str | None) -> str:
    return Path(file).stem if file else "default"


def _baselines(topic: Topic, whole: Run, data: CourseData, model: CourseModel) -> dict[str, Evaluation]:
    """Each baseline on the judged rows: measured once for these rows in these roles, then found again.

    None where there is nothing to predict.
    """
    if not data.rows.targets.numel():
        return {}
    judge_by = f"{data.judged} {model.headline}"
    fitted_on = data.splits["train"]
    seen = baselines.with_every_class(data.rows.inputs[fitted_on], data.rows.targets[fitted_on], data.rows.classes)
    measured = {}
    there: dict[str, StoredRun] = {}
    store = whole.store
    whole.write()
    with store.alone("baselines"):
        with suppress(Exception):  # a store that is gone does not cost the verdict
            if whole.reachable:
                there = store.baselines(topic.name, data.fingerprint, judge_by)
        for name, baseline in topic.baselines.items():
            if name in there:
                outputs = torch.from_numpy(np.load(store.files_of(there[name]) / "outputs.npy"))
                measured[name] = evaluate_outputs(model, data, data.judged, outputs)
                continue
            predict = baseline(*seen)
            tags = {
                "dlcourse.kind": "baseline",
                "dlcourse.baseline": name,
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
                    if split == data.judged:
                        measured[name] = evaluation
                        with run.attempt("outputs.npy"):
                            np.save(run.path("outputs.npy"), outputs.numpy())
    return measured


def test(topic: str | Topic, *, run: str | None = None, checkpoint: str | Path | None = None) -> dict[str, float]:
    """Measure a trained model on its own test rows once more, from its checkpoint alone; nothing is written.

    Args:
        topic: A topic's name, or a `Topic` of one's own.
        run: Id or name of the run whose kept weights are measured.
        checkpoint: A checkpoint file to measure instead.

    Returns:
        ``test/<metric>`` with standard errors; of training rows, where there are no test rows.

    Raises:
        CourseError: There is no such run, or the file is no checkpoint of this topic.
    """
    found = topic if isinstance(topic, Topic) else topics.find(topic)
    if (run is None) == (checkpoint is None):
        raise SettingsError("say what to test: either --run with a run's id or name, or --checkpoint with a file")
    path = Path(checkpoint) if checkpoint else _kept(_files_of(found, str(run)))
    model, data = load_checkpoint(found, path)
    data.prepare_data()
    data.setup("test")
    if path.parent.name == "refit":
        data.refit()
    trainer = make_trainer(patience=None)
    return named(evaluate(trainer, model, data, data.judged))


def _kept(files: Path) -> Path:
    for name in ("refit/last", "best", "last"):
        path = files / "checkpoints" / f"{name}.ckpt"
        if path.is_file():
            return path
    raise CourseError("that run has no checkpoint: it ended before its first epoch")
