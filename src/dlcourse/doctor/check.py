"""``dlcourse doctor``: this machine and its store, or a topic."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcourse.doctor.findings import Finding
from dlcourse.doctor.machine import check_machine
from dlcourse.doctor.topic import check_topic
from dlcourse.errors import SettingsError
from dlcourse.settings import Seed
from dlcourse.topics import Topic


@dataclass(frozen=True)
class Diagnosis:
    """What was looked at, in order."""

    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.ok for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """All that JSON can hold."""
        return {"ok": self.ok, "findings": [dataclasses.asdict(finding) for finding in self.findings]}

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        return "\n".join(f"{finding.mark:<5}  {finding.name:<{width}}  {finding}" for finding in self.findings)


def doctor(
    topic: str | Topic | None = None,
    *,
    fix: bool = False,
    config: str | Path | Sequence[str] | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: Seed | None = None,
) -> Diagnosis:
    """Check this machine and its store; or, if one is named, a topic with the settings of `train`.

    Args:
        topic: A topic's name, or a `Topic` of one's own.
        fix: Of the machine: end runs as KILLED whose process is gone, and let the database of a store that was moved
            or copied find its files.
        config: YAML files with settings, or names of the topic's experiments.
        data: Settings of the topic's data.
        model: Settings of the topic's model.
        trainer: Settings of the Trainer; of its devices one is used.
        seed: Seed of weights and batches.

    Raises:
        SettingsError: A setting is wrong, or goes without a topic.
    """
    if topic is None:
        if config or data or model or trainer or seed is not None:
            raise SettingsError("these settings are a topic's: name it, as in `dlcourse doctor height-weight`")
        return Diagnosis(check_machine(fix=fix))
    if fix:
        raise SettingsError("--fix is for the machine and the store: leave the topic out")
    return Diagnosis(check_topic(topic, config=config, data=data, model=model, trainer=trainer, seed=seed))
