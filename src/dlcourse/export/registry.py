"""The champion of a topic: the one model under a fixed name in MLflow's registry, replaced only by a better one.

The name is ``dlcourse-<topic>``, and the alias ``champion``: ``models:/dlcourse-diabetes@champion`` is loaded by MLflow
alone, in any project. Each version has its reason as its description.
"""

import dataclasses
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from mlflow.exceptions import MlflowException

from dlcourse.errors import CourseError
from dlcourse.evaluation.chosen import Chosen, choose
from dlcourse.evaluation.differences import compare_chosen, sentence
from dlcourse.evaluation.predictions import read_metrics, read_values
from dlcourse.evaluation.stored import Candidate, Outputs
from dlcourse.export.model import REFUSED_IN_NAMES
from dlcourse.reporting.card import in_columns
from dlcourse.reporting.note import link, run_page
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store, StoredRun
from dlcourse.training.initial_weights import check_validation_unseen

ALIAS = "champion"
MODEL_TAG = "dlcourse.model_id"
"""The tag of a version with the id of its model: MLflow's database does not keep that beside an address of files."""


Done = Literal["promoted", "not promoted", "the champion already"]


class Champion(NamedTuple):
    """The model with the alias, as the registry has it; its run or model may be gone from the store."""

    run_id: str
    model_id: str
    version: str


@dataclass(frozen=True)
class Promotion:
    """Whether a run's model is the champion now, and why.

    Attributes:
        topic: The topic's name.
        run_id: The run's id.
        run_name: The run's name.
        model_id: MLflow's id of its model.
        chosen: Why it is this run, in words.
        answer: What was done.
        reason: Why, in words.
        champion: The champion's address for MLflow.
        version: The champion's version: the new one, or that of the model which stays.
        store: The store.
    """

    topic: str
    run_id: str
    run_name: str
    model_id: str
    chosen: str
    answer: Done
    reason: str
    champion: str
    version: str
    store: str

    @property
    def ok(self) -> bool:
        """Whether the run's model is the champion."""
        return self.answer != "not promoted"

    def __str__(self) -> str:
        lines = [
            ("answer", self.answer),
            ("reason", self.reason if self.ok else f"{self.reason}; --force promotes it all the same"),
            ("champion", f"{self.champion}, version {self.version}"),
            ("chosen", self.chosen),
            ("run", f"{self.run_id} in {self.store}"),
        ]
        return in_columns(f"{self.topic}: {self.run_name}", lines)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain types for JSON."""
        return dataclasses.asdict(self)


def promote(topic: str | Topic, run: str | None = None, *, force: bool = False) -> Promotion:
    """Make a run's model the topic's champion, if it is better than the present one by more than chance.

    Both are compared on validation rows, which neither was trained on. If the best run is taken, the test is adjusted
    for the number of runs that it was chosen from on these rows. A model that is refused is not registered.

    Args:
        topic: A topic's name, or your own `Topic`; or the name of an experiment of `train_module`.
        run: Id or name of a run, by default the best by validation rows.
        force: Promote it whatever the comparison says, and if there can be none.

    Raises:
        SettingsError: There is no such topic or experiment.
        CourseError: There is no such run, or it has no verified model.
    """
    store = open_store()
    chosen = choose(store, topic, run)
    with store.lock("registry"):
        current = champion(store, chosen.experiment)
        if current and current.model_id == chosen.model_id:
            return _promotion(
                store, chosen, "the champion already", "it is registered, and has the alias", current.version
            )
        is_better, reason = decide(store, chosen, current)
        if current and not is_better:
            if not force:
                return _promotion(store, chosen, "not promoted", reason, current.version)
            reason = f"by --force, though {reason}"
        return _promotion(store, chosen, "promoted", reason, _register(store, chosen, reason))


def champion(store: Store, experiment: str) -> Champion | None:
    """The champion of a topic, or of another experiment; None where there is none."""
    try:
        version = store.client.get_model_version_by_alias(registered_name(experiment), ALIAS)
    except MlflowException as error:
        # The second is that of a model without this alias.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    model_id = version.tags.get(MODEL_TAG) or version.model_id or ""
    return Champion(version.run_id or "", model_id, str(version.version))


def registered_name(experiment: str) -> str:
    """The name of an experiment's champion in MLflow's registry."""
    return f"dlcourse-{REFUSED_IN_NAMES.sub('_', experiment)}"


def decide(store: Store, chosen: Chosen, current: Champion | None) -> tuple[bool, str]:
    """Whether a run's model is to be the champion, and why or why not."""
    if current is None:
        return True, f"there was no champion before; {chosen.run.data.tags.get('verdict', 'no verdict')}"
    old = _run_of(store, current)
    if old is None:
        return False, f"run or model of the champion are gone from {store.shown}: nothing can be compared with them"
    outputs = [Outputs.of(store, Candidate(str(each.info.run_name), [each])) for each in (chosen.run, old)]
    if obstacle := _obstacle(store, chosen, old, outputs):
        return False, obstacle
    mine, theirs = (each.files[0] for each in outputs if each)
    metric, higher = read_metrics(mine, "val")
    answer = compare_chosen(
        *(read_values(file, f"val_{metric}").double() for file in (mine, theirs)),
        higher_is_better=higher[metric],
        num_tried=chosen.others,
    )
    said = sentence(answer, chosen.name, _name(old), f"validation {metric}", "Bonferroni")
    return answer.outcome == "better", said


def _run_of(store: Store, current: Champion) -> StoredRun | None:
    """The champion's run; None if that or its model is gone."""
    run = store.get_run(current.run_id) if current.run_id else None
    is_active = run is not None and run.info.lifecycle_stage != "deleted"
    return run if is_active and current.model_id and store.verified_model(current.model_id) else None


def _obstacle(store: Store, chosen: Chosen, old: StoredRun, outputs: Sequence[Outputs | None]) -> str:
    """Why two runs cannot be compared on validation rows that neither was trained on; empty if they can."""
    runs = (chosen.run, old)
    for run, out in zip(runs, outputs, strict=True):
        if "dlcourse.refit" in run.data.tags:
            return f"{_name(run)} was trained on its validation rows as well (--refit)"
        if out is None:
            return f"{_name(run)} has kept no outputs, as those of older versions"
    if runs[0].data.tags.get("dlcourse.split") != runs[1].data.tags.get("dlcourse.split"):
        return f"{_name(runs[0])} and {_name(runs[1])} have other rows, or another split of them"
    mine, theirs = (out.files[0] for out in outputs if out)
    metric, _ = read_metrics(mine, "val")
    if not all(metric in read_metrics(file, "val")[1] for file in (mine, theirs)):
        return f"{_name(runs[0])} and {_name(runs[1])} have no {metric} of validation rows"
    for what in ("rows", "targets"):  # the fingerprint of data that is not in memory is one of other splits
        if not torch.equal(*(read_values(file, f"val_{what}") for file in (mine, theirs))):
            return f"{_name(runs[0])} and {_name(runs[1])} have other validation rows"
    if len(read_values(mine, "val_rows")) < 2:
        return "there is only one validation row"
    return next(filter(None, (_why_seen(store, chosen.topic, run) for run in runs)), "")


def _why_seen(store: Store, topic: Topic | None, run: StoredRun) -> str:
    """Why a run's initial weights may know its validation rows; empty if they do not."""
    if "dlcourse.init_from" not in run.data.tags:
        return ""
    if topic is None:
        return f"{_name(run)} began with the weights of another run, and its topic is not known here"
    try:
        check_validation_unseen(store, topic, run)
    except CourseError as error:
        return str(error)
    return ""


def _register(store: Store, chosen: Chosen, reason: str) -> str:
    """Register the run's model as the champion, and return the number of its version."""
    name, info, client = registered_name(chosen.experiment), chosen.run.info, store.client
    page = link(str(info.run_name), run_page(info.experiment_id, info.run_id))
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not models:/<id>, of which MLflow would look for the model in its global store.
    location = store.location_of(client.get_logged_model(chosen.model_id))
    created = client.create_model_version(
        name,
        location,
        info.run_id,
        tags={MODEL_TAG: chosen.model_id},
        description=f"{html.escape(reason, quote=False)}\n\n{page}",
        model_id=chosen.model_id,
    )
    client.set_registered_model_alias(name, ALIAS, created.version)
    return str(created.version)


def _promotion(store: Store, chosen: Chosen, answer: Done, reason: str, version: str) -> Promotion:
    info = chosen.run.info
    return Promotion(
        topic=chosen.experiment,
        run_id=info.run_id,
        run_name=str(info.run_name),
        model_id=chosen.model_id,
        chosen=chosen.why,
        answer=answer,
        reason=reason,
        champion=f"models:/{registered_name(chosen.experiment)}@{ALIAS}",
        version=version,
        store=store.shown,
    )


def _name(run: StoredRun) -> str:
    return f"{run.info.run_name} ({run.info.run_id[:8]})"
