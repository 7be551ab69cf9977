"""One experiment, from settings to verdict."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import mlflow.entities as mlflow
import numpy as np
import torch
import yaml
from torch import Tensor

from dlcourse import figures, topics
from dlcourse.data import SPLITS, CourseData
from dlcourse.errors import CourseError, SettingsError, one_line, suggestion
from dlcourse.evaluating import Evaluation, evaluate, evaluate_outputs
from dlcourse.exporting import load_checkpoint, log_model, read_checkpoint
from dlcourse.learning import CourseModel
from dlcourse.ranges import NonNegativeInt
from dlcourse.settings import Settings, resolve, settings_parser
from dlcourse.topics import Topic
from dlcourse.tracking import Curve, Run, RunLogger, Store, environment, open_store
from dlcourse.trainer import Divergence, KeptCheckpoint, choose_accelerator, make_trainer
from dlcourse.verdict import Verdict, diverged, judge

log = logging.getLogger(__name__)


@dataclass
class Result:
    """What a training came to. ``model`` and ``data`` are there to go on with; the rest is in the store as well."""

    topic: str
    run_id: str
    run_name: str
    store: str
    metrics: dict[str, float]
    verdict: Verdict
    card: str
    checkpoint: str | None = None
    model_uri: str | None = None
    answers: dict[str, float] = field(default_factory=dict)
    model: CourseModel | None = field(default=None, repr=False)
    data: CourseData | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """All that JSON can hold."""
        kept = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(self)
            if each.name not in ("card", "model", "data", "verdict")
        }
        return {**kept, "verdict": dataclasses.asdict(self.verdict)}


def train(
    topic: str | Topic,
    *,
    config: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: NonNegativeInt = 0,
    name: str | None = None,
    refit: bool = False,
    resume: str | None = None,
) -> Result:
    """Train a topic's model, measure it, compare it with its baselines and keep all of that as a run.

    Args:
        topic: A topic's name, or a `Topic` of one's own.
        config: YAML file with settings, over which the other arguments go.
        data: Settings of the topic's data.
        model: Settings of the topic's model.
        trainer: Settings of the Trainer, as `make_trainer` has them.
        seed: Seed of weights and batches; the split has its own.
        name: Name of the run; by default the experiment's, with the settings that were changed.
        refit: After choosing on the validation rows, train anew on training and validation rows together.
        resume: Id or name of an interrupted run to carry on with, as a new run.

    Raises:
        SettingsError: A setting is unknown, of the wrong type or out of range.
        CourseError: Something outside the code is in the way: a file, the store, the hardware.
    """
    found = topic if isinstance(topic, Topic) else topics.find(topic)
    parser = settings_parser(found, train, f"dlcourse train {found.name}")
    groups = {"data": data, "model": model, "trainer": trainer}
    given: dict[str, Any] = {group: dict(values) for group, values in groups.items() if values}
    given |= {"seed": seed} if seed else {}
    file = str(config) if config else None
    if resume:
        if file:
            raise SettingsError("resume takes its settings from the run it carries on with: leave config out")
        file = str(_files_of(found, resume) / "settings.yaml")
    settings, _ = resolve(parser.parse_values(given, file))
    experiment, _ = resolve(parser.parse_values({}, file))
    return run_experiment(found, settings, experiment, _stem(file), name=name, refit=refit, resume=resume)


def train_from_flags(topic: Topic, flags: list[str]) -> Result:
    """The same, from a command line."""
    parser = settings_parser(topic, train, f"dlcourse train {topic.name}")
    _, own = resolve(parser.parse_flags([flag for flag in flags if flag != "--print_config"]))
    if own["resume"]:
        if any(flag.split("=")[0] == "--config" for flag in flags):
            raise SettingsError("--resume takes its settings from the run it carries on with: leave --config out")
        flags = ["--config", str(_files_of(topic, own["resume"]) / "settings.yaml"), *flags]
    parsed = parser.parse_flags(flags)
    settings, own = resolve(parsed)
    file = str(parsed.config[-1]) if parsed.config else None
    experiment, _ = resolve(parser.parse_values({}, file))
    return run_experiment(topic, settings, experiment, _stem(file), **own)


def run_experiment(
    topic: Topic,
    settings: Settings,
    experiment: Settings,
    experiment_name: str,
    *,
    name: str | None = None,
    refit: bool = False,
    resume: str | None = None,
) -> Result:
    """Train by settings that are resolved. ``experiment`` are those before any were changed; they name the run."""
    choose_accelerator(settings.trainer["accelerator"])
    data = topic.data(**settings.data)
    data.prepare_data()
    data.setup("fit")
    model = _new_model(topic, data, settings)
    monitor = topic.monitor if len(data.splits["val"]) else None
    _check_monitor(topic, model)
    if refit and not monitor:
        raise SettingsError("--refit needs validation rows to choose by: set --data.val_fraction above 0")
    store = open_store()
    old = store.find_run(resume, topic.name) if resume else None
    if not name:
        changes = [f"{key.removeprefix('trainer.')}={value}" for key, value in settings.changes(experiment).items()]
        name = f"{old.info.run_name} (resumed)" if old else ", ".join([experiment_name, *changes])[:120]
    tags = {"dlcourse.kind": "training", "dlcourse.split": data.fingerprint}
    if old:
        tags["dlcourse.resumed_from"] = old.info.run_id
    with store.start_run(topic.name, name, tags) as run:
        _log_start(run, topic, data, settings)
        resumed = Resumed(old, store.files_of(old)) if old else None
        fitted = _fit(topic, run, data, model, settings, monitor, resumed)
        if fitted.divergence.epoch is not None:
            verdict = diverged(fitted.divergence.epoch, fitted.divergence.loss, model.lr, data.standardize)
            return _finish(topic, run, fitted, verdict, [], {})
        if refit:
            fitted = _refit(topic, run, data, settings, fitted)
        evaluations = [
            evaluate(fitted.trainer, fitted.model, data, split) for split in SPLITS if len(data.splits[split])
        ]
        measured = next(each for each in evaluations if each.split == data.judged)
        losses = _baselines(topic, store, data, fitted.model)

        def shuffled(order: Tensor) -> Tensor:
            return fitted.model.row_losses(measured.outputs, measured.targets[order])

        verdict = judge(data.judged, measured.losses, shuffled, {name: each.losses for name, each in losses.items()})
        return _finish(topic, run, fitted, verdict, evaluations, losses)


@dataclass(frozen=True)
class Resumed:
    """The run to carry on with, and where its files are."""

    run: mlflow.Run
    files: Path


@dataclass
class _Fitted:
    """A model with the weights to keep, and how it came by them."""

    model: CourseModel
    data: CourseData
    trainer: L.Trainer
    divergence: Divergence
    checkpoint: Path | None
    why_stopped: str
    epochs: int
    epoch: int
    seconds: float
    refitted: bool = False


def _new_model(topic: Topic, data: CourseData, settings: Settings) -> CourseModel:
    L.seed_everything(settings.seed, workers=True, verbose=False)
    return topic.model(data.shape, data.outputs, **settings.model)


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


def _log_start(run: Run, topic: Topic, data: CourseData, settings: Settings) -> None:
    run.log_params(settings.flat())
    sizes = {split: len(data.splits[split]) for split in SPLITS}
    run.log_rows(topic.name, data.rows.digest, data.rows.source, sizes)
    text = yaml.safe_dump(settings.as_dict(), sort_keys=False, allow_unicode=True)
    run.path("settings.yaml").write_text(text, encoding="utf-8")
    run.path("environment.txt").write_text(environment(), encoding="utf-8")
    rows = ", ".join(f"{count} {figures.NAMES[split]}" for split, count in sizes.items() if count)
    log.info("%s: %s rows of %s; run %s", topic.name, rows, data.rows.source, run.run_id)


def _fit(
    topic: Topic,
    run: Run,
    data: CourseData,
    model: CourseModel,
    settings: Settings,
    monitor: str | None,
    resumed: "Resumed | None",
) -> _Fitted:
    folder = run.path("checkpoints/last.ckpt").parent
    divergence = Divergence()
    trainer = make_trainer(
        **settings.trainer,
        monitor=monitor,
        mode=topic.mode,
        folder=folder,
        logger=RunLogger(run),
        callbacks=[divergence, Curve(run)],
    )
    last = _carry_on(resumed, folder, trainer) if resumed else None
    started = time.perf_counter()
    trainer.fit(model, datamodule=data, ckpt_path=last, weights_only=True)
    seconds = time.perf_counter() - started
    kept = [each.path for each in trainer.checkpoint_callbacks if isinstance(each, KeptCheckpoint)]
    checkpoint = next((path for path in kept if path.is_file()), None)
    epoch = max(trainer.current_epoch - 1, 0)
    if checkpoint and divergence.epoch is None:
        state = read_checkpoint(checkpoint)
        model.load_state_dict(state["state_dict"])
        epoch = state["epoch"]
    why = "at the last epoch" if trainer.current_epoch >= (trainer.max_epochs or 0) else "early"
    if divergence.epoch is not None:
        why = "diverging"
    return _Fitted(model, data, trainer, divergence, checkpoint, why, trainer.current_epoch, epoch, seconds)


def _carry_on(old: Resumed, folder: Path, trainer: L.Trainer) -> Path:
    """Take over the old run's checkpoints; the curve up to the last of them is in it."""
    last = old.files / "checkpoints" / "last.ckpt"
    if not last.is_file():
        raise CourseError("the run to resume has no checkpoint, since it ended before its first epoch: train anew")
    state = read_checkpoint(last)
    epochs = state["epoch"] + 1
    stopped = any(each.get("stopped_epoch") for each in state["callbacks"].values())
    if stopped or epochs >= (trainer.max_epochs or 0):
        if old.run.info.status == "FINISHED":
            raise CourseError(
                f"the run to resume is complete after {epochs} epochs: raise --trainer.max_epochs to go on"
            )
        trainer.fit_loop.max_epochs = epochs  # it was interrupted after its last epoch: only the rest is to be done
    for name in ("best.ckpt", "last.ckpt"):
        if (old.files / "checkpoints" / name).is_file():
            shutil.copy2(old.files / "checkpoints" / name, folder / name)
    log.info("carrying on after epoch %d", epochs - 1)
    return folder / "last.ckpt"


def _refit(topic: Topic, run: Run, data: CourseData, settings: Settings, chosen: _Fitted) -> _Fitted:
    """Train anew on training and validation rows together, for as many epochs as the best weights took."""
    data.refit()
    log.info("training anew on %d rows for %d epochs", len(data.splits["train"]), chosen.epoch + 1)
    model = _new_model(topic, data, settings)
    divergence = Divergence()
    trainer = make_trainer(
        **{**settings.trainer, "max_epochs": chosen.epoch + 1, "patience": None},
        folder=run.path("checkpoints/refit/last.ckpt").parent,
        logger=RunLogger(run, "refit/"),
        callbacks=[divergence],
    )
    started = time.perf_counter()
    trainer.fit(model, datamodule=data)
    seconds = chosen.seconds + time.perf_counter() - started
    checkpoint = run.path("checkpoints/refit/last.ckpt")
    return dataclasses.replace(
        chosen, model=model, trainer=trainer, checkpoint=checkpoint, seconds=seconds, refitted=True
    )


def _baselines(topic: Topic, store: Store, data: CourseData, model: CourseModel) -> dict[str, Evaluation]:
    """Each baseline on the judged rows: measured once for these rows in these roles, then found again."""
    judge_by = f"{data.judged} {model.headline}"
    fitted_on = data.splits["train"]
    measured = {}
    with store.alone("baselines"):
        there = store.baselines(topic.name, data.fingerprint, judge_by)
        for name, baseline in topic.baselines.items():
            if name in there:
                outputs = torch.from_numpy(np.load(store.files_of(there[name]) / "outputs.npy"))
                measured[name] = evaluate_outputs(model, data, data.judged, outputs)
                continue
            predict = baseline(data.rows.inputs[fitted_on], data.rows.targets[fitted_on])
            tags = {
                "dlcourse.kind": "baseline",
                "dlcourse.baseline": name,
                "dlcourse.split": data.fingerprint,
                "dlcourse.judge": judge_by,
            }
            with store.start_run(topic.name, f"baseline: {name}", tags, watched=False) as run:
                for split in SPLITS:
                    if not len(data.splits[split]):
                        continue
                    outputs = predict(data.rows.inputs[data.splits[split]])
                    evaluation = evaluate_outputs(model, data, split, outputs)
                    run.log_metrics(_named(evaluation))
                    if split == data.judged:
                        np.save(run.path("outputs.npy"), outputs.numpy())
                        measured[name] = evaluation
    return measured


def _named(evaluation: Evaluation) -> dict[str, float]:
    """A run's final figures: of the test rows ``test/...``, of the others ``best/...``, with standard errors."""
    prefix = "test/" if evaluation.split == "test" else f"best/{evaluation.split}_"
    metrics = {f"{prefix}{name}": value for name, value in evaluation.metrics.items()}
    errors = evaluation.standard_errors.items()
    return metrics | {f"{prefix}{name}_standard_error": value for name, value in errors if name in evaluation.metrics}


def _finish(
    topic: Topic,
    run: Run,
    fitted: _Fitted,
    verdict: Verdict,
    evaluations: list[Evaluation],
    baselines: Mapping[str, Evaluation],
) -> Result:
    """Write figures, pictures, model and verdict to the run."""
    metrics = {name: value for each in evaluations for name, value in _named(each).items()}
    metrics |= {"best/epoch": float(fitted.epoch), "fit_seconds": fitted.seconds}
    result = Result(
        topic.name, run.run_id, run.name, run.store.shown, metrics, verdict, "", model=fitted.model, data=fitted.data
    )
    run.log_metrics(metrics)
    _draw(topic, run, fitted, verdict, evaluations)
    model_line = "none, since there is nothing in it to use"
    if verdict.headline != "diverged":
        result.checkpoint = str(fitted.checkpoint) if fitted.checkpoint else None
        result.answers = _answers(fitted)
        run.log_metrics({f"answer/{question}": value for question, value in result.answers.items()})
        rows = fitted.data.rows.inputs[fitted.data.splits[fitted.data.judged][:256]]
        try:
            result.model_uri = log_model(run, fitted.model, rows, fitted.epoch)
            model_line = f"{result.model_uri}, verified: loaded back, same answers on {len(rows)} rows"
        except Exception as error:  # an export that fails must not cost the training
            log.warning("the model is not in the store: %s", one_line(error)[:300])
            model_line = f"not verified: {one_line(error)[:120]}"
    else:
        run.fail(f"diverged: {verdict.advice}")
    result.card = _card(result, run, fitted, evaluations, baselines, model_line)
    run.set_tags(
        {
            "mlflow.note.content": f"```\n{result.card}\n```",
            "dlcourse.verdict": verdict.headline,
            "dlcourse.learned": str(verdict.learned).lower(),
            "dlcourse.verified": str(result.model_uri is not None).lower(),
        }
    )
    return result


def _draw(topic: Topic, run: Run, fitted: _Fitted, verdict: Verdict, evaluations: list[Evaluation]) -> None:
    pictures = {"learning-curves": figures.learning_curves(run.history, "loss", fitted.epoch)}
    if verdict.headline != "diverged":
        judged = next(each for each in evaluations if each.split == fitted.data.judged)
        fitted.model.cpu().eval()
        for name, draw in topic.pictures.items():
            pictures[name] = draw(fitted.model, fitted.data, judged)
    for name, figure in pictures.items():
        figure.savefig(run.path(f"figures/{name}.png"), dpi=120)


def _answers(fitted: _Fitted) -> dict[str, float]:
    questions = fitted.data.questions()
    if questions is None:
        return {}
    with torch.no_grad():
        answers = fitted.model.predictions(fitted.model.cpu().eval()(questions))
    return {f"{float(asked[0]):g}": float(answer[0]) for asked, answer in zip(questions, answers, strict=True)}


def _card(
    result: Result,
    run: Run,
    fitted: _Fitted,
    evaluations: list[Evaluation],
    baselines: Mapping[str, Evaluation],
    model_line: str,
) -> str:
    """The verdict for people: a dozen short lines."""
    data, verdict, headline = fitted.data, result.verdict, fitted.model.headline
    lines = [("verdict", verdict.headline)]
    if verdict.advice:
        lines.append(("why", verdict.advice))
    measured = [each for each in evaluations if each.split == data.judged]
    for each in measured:
        error = each.standard_errors.get(headline, float("nan"))
        text = f"{each.metrics[headline]:.4g} ± {error:.2g} (mean and standard error of {len(each.targets)} rows)"
        lines.append((f"{figures.NAMES[each.split]} {headline}", text))
    if baselines:
        text = ", ".join(f"{name} {each.metrics[headline]:.4g}" for name, each in baselines.items())
        lines.append(("baselines", f"{headline} of {text}"))
    if data.judged == "train":
        lines.append(("generalisation", "not measured: every row was a training row"))
    stopped = (
        f"{fitted.why_stopped}, after {fitted.epochs} epochs (0 to {fitted.epochs - 1}) and {fitted.seconds:.1f} s"
    )
    lines.append(("stopped", f"{stopped}; the weights of epoch {fitted.epoch} are kept"))
    if fitted.refitted:
        lines.append(("refit", f"anew on training and validation rows, for {fitted.epoch + 1} epochs"))
    for question, answer in result.answers.items():
        lines.append(("answer", f"{data.rows.features[0]} {question}: {data.rows.answers[0]} {answer:.2f}"))
    lines.append(("model", model_line))
    lines.append(("run", f"{run.run_id} in {run.store.shown}"))
    lines.append(("look", "make ui, or dlcourse ui"))
    width = max(len(name) for name, _ in lines)
    return "\n".join([f"{result.topic}: {run.name}", *(f"  {name:<{width}}  {text}" for name, text in lines)])


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
    return _named(evaluate(trainer, model, data, data.judged))


def _kept(files: Path) -> Path:
    for name in ("refit/last", "best", "last"):
        path = files / "checkpoints" / f"{name}.ckpt"
        if path.is_file():
            return path
    raise CourseError("that run has no checkpoint: it ended before its first epoch")
