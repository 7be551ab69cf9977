"""How often the verdict is right, on cases built so that the right answer is known.

    python -m benchmarks.verdicts [--seeds 60] [--first-seed 0] [--cases NAME ...] [--json FILE]

Each seed makes rows, split, weights and batches of its own, and goes through the same fit, evaluation, baselines and
judge as every run. Seeds from 1000 on are those that thresholds are set by; what is reported comes from seeds below.
"""

import argparse
import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from scipy import stats
from torch import Tensor, nn

from dlcourse import baselines
from dlcourse.data import SPLITS, CourseData, Rows
from dlcourse.evaluating import evaluate, evaluate_outputs
from dlcourse.experiment import train
from dlcourse.fitting import fit, new_model
from dlcourse.learning import Regressor
from dlcourse.overfitting import Overfitting
from dlcourse.settings import resolve, settings_parser
from dlcourse.topics import Topic
from dlcourse.topics.diabetes import DiabetesNetwork
from dlcourse.tracking import open_store
from dlcourse.verdict import Verdict, judge


class MadeData(CourseData):
    """Rows of ten normal inputs, whose target is known to depend on them in a straight way, a bent way, or not at all.

    Args:
        rows: How many.
        kind: Two classes or a number to tell.
        relation: linear, bent (products of inputs), or none.
        made_by: Seed of the rows.
    """

    def __init__(
        self,
        *,
        rows: int = 1000,
        kind: Literal["classes", "number"] = "classes",
        relation: Literal["linear", "bent", "none"] = "linear",
        made_by: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.count, self.kind, self.relation, self.made_by = rows, kind, relation, made_by

    def load(self) -> Rows:
        generator = torch.Generator().manual_seed(self.made_by)
        inputs = torch.randn(self.count, 10, generator=generator)
        weights = torch.randn(10, generator=generator)
        level = inputs @ weights / weights.norm()
        if self.relation == "bent":
            level = inputs[:, 0] * inputs[:, 1] + inputs[:, 2].abs() - 0.8
        if self.relation == "none":
            level = torch.zeros(self.count)
        if self.kind == "number":
            noise = torch.randn(self.count, generator=generator)
            return Rows(inputs, (level + noise)[:, None], "made")
        chance = torch.rand(self.count, generator=generator)
        return Rows(inputs, (chance < (2 * level).sigmoid()).long(), "made", classes=("no", "yes"))


class MadeRegressor(Regressor):
    """One hidden layer.

    Args:
        hidden: Its units.
    """

    def __init__(self, shape: list[int], outputs: int, *, hidden: list[int] = [16], **settings: Any) -> None:  # noqa: B006
        super().__init__(shape, outputs, **settings)
        self.network = nn.Sequential(nn.Linear(shape[0], hidden[0]), nn.Tanh(), nn.Linear(hidden[0], outputs))


CLASSES = Topic(
    name="made-classes",
    title="Two classes",
    data=MadeData,
    model=DiabetesNetwork,
    baselines={"majority": baselines.majority, "logistic-regression": baselines.logistic_regression},
)
NUMBERS = Topic(
    name="made-numbers",
    title="A number",
    data=MadeData,
    model=MadeRegressor,
    baselines={"mean": baselines.mean, "least-squares": baselines.least_squares},
)
USUAL = {"optimizer": "adam", "lr": 0.005, "weight_decay": 0.001}


@dataclass(frozen=True)
class Case:
    """What is built, what is counted, and in which share of the runs that may or must be so."""

    topic: Topic
    data: dict[str, Any]
    model: dict[str, Any]
    trainer: dict[str, Any]
    counted: str
    count: Callable[[Verdict, Overfitting | None], bool]
    bound: str


def learned(verdict: Verdict, overfitting: Overfitting | None) -> bool:
    return verdict.learned


def better(verdict: Verdict, overfitting: Overfitting | None) -> bool:
    return "better than" in verdict.headline and verdict.learned


def overfits(verdict: Verdict, overfitting: Overfitting | None) -> bool:
    return overfitting is not None and overfitting.epoch is not None


USUAL_TRAINER = {"max_epochs": 100, "patience": 20, "precision": "32-true"}
NUMBER = {"kind": "number"}
CASES = {
    "classes dealt at random": Case(
        CLASSES, {"relation": "none"}, USUAL, USUAL_TRAINER, "learned", learned, "at most 5 %"
    ),
    "numbers dealt at random": Case(
        NUMBERS, {"relation": "none", **NUMBER}, USUAL, USUAL_TRAINER, "learned", learned, "at most 5 %"
    ),
    "healthy classes": Case(
        CLASSES, {"rows": 4000}, USUAL | {"lr": 0.002}, USUAL_TRAINER, "overfitting", overfits, "at most 10 %"
    ),
    "healthy numbers": Case(
        NUMBERS, {"rows": 4000, **NUMBER}, USUAL | {"lr": 0.002}, USUAL_TRAINER, "overfitting", overfits, "at most 10 %"
    ),
    "healthy classes, 80 validation rows": Case(
        CLASSES,
        {"rows": 4000, "val_fraction": 0.02},
        USUAL | {"lr": 0.002},
        USUAL_TRAINER,
        "overfitting",
        overfits,
        "(how far chance misleads)",
    ),
    "healthy numbers, 80 validation rows": Case(
        NUMBERS,
        {"rows": 4000, "val_fraction": 0.02, **NUMBER},
        USUAL | {"lr": 0.002},
        USUAL_TRAINER,
        "overfitting",
        overfits,
        "(how far chance misleads)",
    ),
    "wide network, 40 rows, classes": Case(
        CLASSES,
        {"rows": 400, "val_fraction": 0.45, "test_fraction": 0.45},
        {"optimizer": "adam", "lr": 0.005, "hidden": [512]},
        USUAL_TRAINER,
        "overfitting",
        overfits,
        "at least 90 %",
    ),
    "wide network, 40 rows, numbers": Case(
        NUMBERS,
        {"rows": 400, "val_fraction": 0.45, "test_fraction": 0.45, **NUMBER},
        {"optimizer": "adam", "lr": 0.005, "hidden": [512]},
        USUAL_TRAINER,
        "overfitting",
        overfits,
        "at least 90 %",
    ),
    "linear classes": Case(CLASSES, {}, USUAL, USUAL_TRAINER, "better than logistic regression", better, "at most 5 %"),
    "linear numbers": Case(NUMBERS, NUMBER, USUAL, USUAL_TRAINER, "better than least squares", better, "at most 5 %"),
    "bent classes": Case(
        CLASSES,
        {"relation": "bent", "rows": 4000},
        USUAL | {"hidden": [64]},
        USUAL_TRAINER,
        "better than logistic regression",
        better,
        "(power: the more the better)",
    ),
}


def run_case(case: Case, seed: int) -> tuple[Verdict, Overfitting | None]:
    """One seed of a case, through the package's own parts."""
    parser = settings_parser(case.topic, train, "verdicts")
    data_settings = {**case.data, "made_by": seed, "split_seed": seed}
    values = {"data": data_settings, "model": case.model, "trainer": case.trainer, "seed": seed}
    settings, _ = resolve(parser.parse_values({key: value for key, value in values.items() if value}))
    data = case.topic.data(**settings.data)
    data.setup("fit")
    model = new_model(case.topic, data, settings)
    with (
        open_store().start_run(case.topic.name, str(seed), {"dlcourse.kind": "study"}, watched=False) as run,
        tempfile.TemporaryDirectory() as folder,
    ):
        fitted = fit(case.topic, run, data, model, settings, case.topic.monitor, Path(folder), light=True)
        measured = evaluate(fitted.trainer, fitted.model, data, data.judged)
    inputs = {split: data.rows.inputs[data.splits[split]] for split in SPLITS}
    fitted_on = data.rows.targets[data.splits["train"]]
    losses = {
        name: evaluate_outputs(
            model, data, data.judged, baseline(inputs["train"], fitted_on)(inputs[data.judged])
        ).losses
        for name, baseline in case.topic.baselines.items()
    }

    def shuffled(order: Tensor) -> Tensor:
        return model.row_losses(measured.outputs, measured.targets[order])

    return judge(data.judged, measured.losses, shuffled, losses), fitted.overfitting


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    logging.getLogger("dlcourse").setLevel(logging.ERROR)
    target = asked.json.resolve() if asked.json else None
    print("| case | counted | runs | share, with its 95 % interval | must be |\n| --- | --- | --- | --- | --- |")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.chdir(folder)
        for name in asked.cases:
            case = CASES[name]
            seen = [run_case(case, seed) for seed in range(asked.first_seed, asked.first_seed + asked.seeds)]
            hits = sum(case.count(*each) for each in seen)
            interval = stats.binomtest(hits, len(seen)).proportion_ci()
            share = f"{hits / len(seen):.0%} ({interval.low:.0%} to {interval.high:.0%})"
            print(f"| {name} | {case.counted} | {len(seen)} | {share} | {case.bound} |", flush=True)
            details = [
                {
                    "headline": verdict.headline,
                    "p_value": verdict.p_value,
                    "overfitting": overfitting and dataclasses.asdict(overfitting),
                }
                for verdict, overfitting in seen
            ]
            rows.append({"case": name, "counted": case.counted, "hits": hits, "runs": len(seen), "details": details})
        os.chdir("/")
    if target:
        target.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
