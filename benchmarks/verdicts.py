"""How often the verdict is right, on cases built so that the right answer is known.

    python -m benchmarks.verdicts [--parts losses trainings] [--runs 3000] [--seeds 60] [--first-seed 0] [--json FILE]

``losses`` draws what a model and its baselines say of the rows, and gives it to the same `judge` as every run: cheap
enough for thousands of runs a case. ``trainings`` trains a model a run, through the same fit and assessment as every
run. Seeds from 1000 on are those that thresholds of ``trainings`` are set by; what is reported comes from seeds below.
"""

import argparse
import dataclasses
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Rows, Split
from dlcourse.evaluation import baselines
from dlcourse.evaluation.assessment import fit_baselines, judge_model
from dlcourse.evaluation.differences import Comparison
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.overfitting import Overfitting
from dlcourse.evaluation.verdict import Verdict, compare_with, judge, quantities_of
from dlcourse.models.tasks import Regressor
from dlcourse.topics import Topic
from dlcourse.topics.diabetes import DiabetesNetwork
from dlcourse.tracking.opening import open_store
from dlcourse.training.fit import fit, new_model
from dlcourse.training.request import resolve

# Losses without trainings

Values = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""From outputs and targets to "loss" and scores, N each."""


def of_classes(log_probabilities: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Outputs N x classes."""
    losses = -log_probabilities.gather(1, targets[:, None])[:, 0]
    return {"loss": losses, "accuracy": (log_probabilities.argmax(1) == targets).double()}


def of_numbers(means: Tensor, targets: Tensor) -> dict[str, Tensor]:
    losses = (means - targets).square()
    return {"loss": losses, "mse": losses}


def of_densities(parameters: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Outputs N x (mean, standard deviation) of a normal density; the negative log-likelihood may be below 0."""
    mean, deviation = parameters.unbind(1)
    losses = ((targets - mean) / deviation).square() / 2 + deviation.log() + math.log(2 * math.pi) / 2
    return {"loss": losses, "nll": losses}


@dataclass(frozen=True)
class Drawn:
    """Targets of N rows, and what the model and each baseline say of them; the trivial baseline comes first."""

    values: Values
    targets: Tensor
    model: Tensor
    baselines: dict[str, Tensor]

    def measured(self, outputs: Tensor, split: Split) -> Evaluation:
        values = self.values(outputs, self.targets)
        metrics = {name: float(each.mean()) for name, each in values.items()}
        return Evaluation(split, metrics, outputs, self.targets, values.pop("loss"), values)

    @property
    def training_classes(self) -> list[int]:
        return list(range(self.model.shape[1])) if self.values is of_classes else []

    def verdict(self, split: Split = "test") -> Verdict:
        model = self.measured(self.model, split)
        (primary_metric,) = model.scores
        return judge(
            model,
            self.values,
            {name: self.measured(outputs, split) for name, outputs in self.baselines.items()},
            primary_metric,
            higher_is_better=primary_metric == "accuracy",
            training_classes=self.training_classes,
        )

    def comparisons(self) -> list[Comparison]:
        """With the last baseline, of loss and primary metric, as `judge` makes them."""
        model, (name, outputs) = self.measured(self.model, "test"), list(self.baselines.items())[-1]
        (primary_metric,) = model.scores
        quantities = quantities_of(model, primary_metric, primary_metric == "accuracy")
        differences = compare_with(model, {name: self.measured(outputs, "test")}, quantities, self.training_classes)
        return [each.comparison for each in differences[name].values()]


EVEN, RARE_CLASS = (0.5, 0.5), (0.95, 0.05)
TEN_CLASSES = (0.3, 0.25, 0.15, 0.1, 0.07, 0.05, 0.04, 0.02, 0.01, 0.01)
Shares = tuple[float, ...]


def normal(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64)


def drawn_classes(logits: Tensor) -> Tensor:
    """A class for each of N rows of logits."""
    return torch.multinomial(logits.softmax(1), 1)[:, 0]


def share_logits(rows: int, shares: Shares) -> Tensor:
    return torch.tensor(shares, dtype=torch.float64).log().expand(rows, -1)


def unrelated_classes(rows: int, shares: Shares, size: float) -> Drawn:
    """A network whose logits are noise of some size about the shares'."""
    level = share_logits(rows, shares)
    noise = size * normal(rows, len(shares))
    return Drawn(of_classes, drawn_classes(level), (level + noise).log_softmax(1), {"majority": level})


def unrelated_numbers(rows: int, size: float) -> Drawn:
    """Normal noise whose deviation varies from row to row (log-normal)."""
    targets = normal(rows).exp() * normal(rows)
    return Drawn(of_numbers, targets, size * normal(rows), {"mean": torch.zeros(rows, dtype=torch.float64)})


def unrelated_densities(rows: int) -> Drawn:
    """Targets of deviation 0.01, so that losses are about -3; the network's means and deviations are noise."""
    scale = 0.01
    noise = torch.stack([0.003 * normal(rows), scale * (0.2 * normal(rows)).exp()], 1)
    trivial = torch.tensor([0.0, scale], dtype=torch.float64).expand(rows, -1)
    return Drawn(of_densities, scale * normal(rows), noise, {"mean": trivial})


def lucky_constant(rows: int) -> Drawn:
    """A network that says the true mean of every row, beside a mean of few training rows that is off."""
    trivial = torch.full((rows,), 0.3, dtype=torch.float64)
    return Drawn(of_numbers, normal(rows), torch.zeros(rows, dtype=torch.float64), {"mean": trivial})


def true_logits(rows: int, shares: Shares, signal: float) -> Tensor:
    return share_logits(rows, shares) + signal * normal(rows, len(shares))


@cache
def temperature_as_good(shares: Shares, signal: float, temperature: float) -> float:
    """The temperature above 1 whose expected loss is that of one below 1: too unsure beside too sure."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    logits = true_logits(200_000, shares, signal)
    torch.set_rng_state(generator_state)
    truth = logits.softmax(1)

    def loss(at: float) -> float:
        return float(-(truth * (logits / at).log_softmax(1)).sum(1).mean())

    low, high, wanted = 1.0, 1000.0, loss(temperature)
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if loss(middle) < wanted else (low, middle)
    return low


def too_sure(rows: int, shares: Shares, signal: float = 1.0, temperature: float = 0.6) -> Drawn:
    """Model and baseline know the same; one is too sure of it, the other too unsure, at the same expected loss."""
    logits = true_logits(rows, shares, signal)
    other = temperature_as_good(shares, signal, temperature)
    model, baseline = ((logits / each).log_softmax(1) for each in (temperature, other))
    return Drawn(of_classes, drawn_classes(logits), model, {"majority": share_logits(rows, shares), "linear": baseline})


def certain_of_the_majority(rows: int) -> Drawn:
    """One class in twenty is rare: the model gives it 0.8 %, the baseline as much too much. Both lose the same."""
    rare, too_little = 0.05, 0.008

    def loss(said: float) -> float:
        return -rare * math.log(said) - (1 - rare) * math.log(1 - said)

    low, high = rare, 0.9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) < loss(too_little) else (low, middle)
    model, baseline, trivial = (share_logits(rows, (1 - each, each)) for each in (too_little, low, rare))
    return Drawn(of_classes, drawn_classes(trivial), model, {"majority": trivial, "linear": baseline})


def as_good_classes(rows: int, shares: Shares) -> Drawn:
    """Two models that miss the truth by noise of the same size."""
    logits = true_logits(rows, shares, 1.0)
    model, baseline = ((logits + 0.5 * normal(*logits.shape)).log_softmax(1) for _ in range(2))
    return Drawn(of_classes, drawn_classes(logits), model, {"majority": share_logits(rows, shares), "linear": baseline})


def as_good_numbers(rows: int) -> Drawn:
    """The same of numbers, with noise whose deviation varies from row to row."""
    level = normal(rows)
    targets = level + normal(rows).exp() * normal(rows)
    model, baseline = (level + 0.3 * normal(rows) for _ in range(2))
    return Drawn(of_numbers, targets, model, {"mean": torch.zeros_like(level), "least-squares": baseline})


def as_good_densities(rows: int) -> Drawn:
    """One density too narrow by a third, one as much too wide as loses the same."""
    narrow = 2 / 3
    low, high, wanted = 1.0, 10.0, math.log(narrow) + 1 / (2 * narrow**2)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.log(middle) + 1 / (2 * middle**2) < wanted else (low, middle)
    level, scale = normal(rows), 0.01
    model, baseline = (torch.stack([level, torch.full_like(level, scale * each)], 1) for each in (narrow, low))
    trivial = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(rows, -1)
    return Drawn(of_densities, level + scale * normal(rows), model, {"mean": trivial, "least-squares": baseline})


def related_classes(rows: int, shares: Shares) -> Drawn:
    """A network that knows half of what there is to know; the linear model knows less."""
    known, unknown = 1.5 * normal(rows, len(shares)), normal(rows, len(shares))
    level = share_logits(rows, shares)
    linear = (level + 0.25 * known).log_softmax(1)
    model = (level + 0.9 * known).log_softmax(1)
    return Drawn(of_classes, drawn_classes(level + known + unknown), model, {"majority": level, "linear": linear})


def related_numbers(rows: int) -> Drawn:
    """Of the variance of the targets the model explains 0.4, the linear model 0.25."""
    first, second = normal(rows) / 2, normal(rows) * 0.15**0.5
    targets = first + second + 0.6**0.5 * normal(rows)
    trivial = torch.zeros(rows, dtype=torch.float64)
    return Drawn(of_numbers, targets, first + second, {"mean": trivial, "least-squares": first})


def related_densities(rows: int) -> Drawn:
    """A strong signal whose loss is far below 0."""
    level, scale = normal(rows), 0.005
    model = torch.stack([level, torch.full_like(level, scale)], 1)
    trivial = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(rows, -1)
    return Drawn(of_densities, level + scale * normal(rows), model, {"mean": trivial})


def overconfident(rows: int) -> Drawn:
    """Right on 74 % of the rows where the majority is half of them, and far too sure."""
    targets = torch.randint(2, (rows,))
    right = torch.rand(rows) < 0.74
    side = torch.where(right, targets, 1 - targets)
    logits = 6.0 * F.one_hot(side, 2).double() + normal(rows, 2)
    return Drawn(of_classes, targets, logits.log_softmax(1), {"majority": share_logits(rows, EVEN)})


def memorised(rows: int) -> Drawn:
    """Noise that a network knows by heart."""
    targets = torch.randint(2, (rows,))
    return Drawn(
        of_classes,
        targets,
        (9.0 * F.one_hot(targets, 2)).double().log_softmax(1),
        {"majority": share_logits(rows, EVEN)},
    )


def duplicated(rows: int) -> tuple[Rows, Tensor, Tensor]:
    """Rows of which a random number is there twice, and a random half of them as test rows, the others for training."""
    copies = int(torch.randint(rows // 2, ()))
    once = torch.randn(rows - copies, 3)
    inputs = torch.cat([once, once[:copies]])
    order = torch.randperm(rows)
    return Rows(inputs, torch.zeros(rows, 1), "made"), order[: rows // 2], order[rows // 2 :]


def miscounted(case: tuple[Rows, Tensor, Tensor]) -> bool:
    """Whether the number of test rows that are training rows again is another than that of equal pairs."""
    rows, test, train = case
    pairs = (rows.inputs[test][:, None] == rows.inputs[train][None]).all(2)
    return rows.count_shared(test, train) != int(pairs.any(1).sum())


def learned(drawn: Drawn) -> bool:
    return drawn.verdict().learned is True


def learned_from_training_rows(drawn: Drawn) -> bool:
    verdict = drawn.verdict("train")
    return verdict.learned is True or verdict.sentence.startswith("learned:")


def not_learned(drawn: Drawn) -> bool:
    return not learned(drawn)


def better(drawn: Drawn) -> bool:
    return "better" in drawn.comparisons()


def not_better(drawn: Drawn) -> bool:
    return not better(drawn)


def not_named(drawn: Drawn) -> bool:
    return "probabilities are worse than the classes' shares" not in drawn.verdict().sentence


@dataclass(frozen=True)
class Built:
    """A case without training: how a run is drawn, what is counted, and the share that may be so."""

    draw: Callable[[], Any]
    count: Callable[[Any], bool]
    at_most: float

    @property
    def counted(self) -> str:
        return self.count.__name__.replace("_", " ")


FALSE_CLAIMS, MISSES = 0.07, 0.10


def built_cases() -> dict[str, Built]:
    cases: dict[str, Built] = {}

    def null(
        name: str, count: Callable[[Drawn], bool], rows: Sequence[int], draw: Callable[..., Drawn], *arguments: Any
    ) -> None:
        for number in rows:
            cases[f"{name}, {number} rows"] = Built(partial(draw, number, *arguments), count, FALSE_CLAIMS)

    null("unrelated: two even classes", learned, (20, 1000), unrelated_classes, EVEN, 0.1)
    null("unrelated: 95/5", learned, (20, 50, 1000), unrelated_classes, RARE_CLASS, 1.0)
    null("unrelated: 95/5, outputs near the shares", learned, (20, 1000), unrelated_classes, RARE_CLASS, 0.05)
    null("unrelated: ten classes, some rare", learned, (20, 1000, 5000), unrelated_classes, TEN_CLASSES, 1.0)
    null("unrelated: numbers, uneven noise", learned, (20, 1000, 5000), unrelated_numbers, 0.1)
    null("unrelated: densities, losses below 0", learned, (20, 1000), unrelated_densities)
    null("unrelated: a constant that is nearer than the mean", learned, (20, 5000), lucky_constant)
    null("memorised noise, judged by training rows", learned_from_training_rows, (400,), memorised)
    null("as good: two even classes", better, (20, 1000, 5000), as_good_classes, EVEN)
    null("as good: ten classes, some rare", better, (20, 1000), as_good_classes, TEN_CLASSES)
    null("as good: numbers, uneven noise", better, (20, 1000, 5000), as_good_numbers)
    null("as good: densities, too narrow beside too wide", better, (20, 1000), as_good_densities)
    null("as good: two even classes, too sure beside too unsure", better, (20, 1000), too_sure, EVEN)
    null("as good: 95/5, too sure beside too unsure", better, (20, 50, 200, 1000, 5000), too_sure, RARE_CLASS)
    null("as good: ten classes, too sure beside too unsure", better, (20, 200, 1000), too_sure, TEN_CLASSES)
    null(
        "as good: 95/5, too little beside too much",
        better,
        (20, 50, 100, 200, 1000, 5000),
        certain_of_the_majority,
    )
    related: dict[str, tuple[Any, ...]] = {
        "two even classes": (related_classes, 1000, EVEN),
        "95/5": (related_classes, 1000, RARE_CLASS),
        "ten classes, some rare": (related_classes, 1000, TEN_CLASSES),
        "numbers": (related_numbers, 1000),
        "densities, losses below 0": (related_densities, 1000),
    }
    for name, draw in related.items():
        cases[f"related: {name}, 1000 rows"] = Built(partial(*draw), not_learned, MISSES)
    for name in ("two even classes", "ten classes, some rare", "numbers"):
        cases[f"better: {name}, 1000 rows"] = Built(partial(*related[name]), not_better, MISSES)
    cases["duplicates across the split, 1000 rows"] = Built(partial(duplicated, 1000), miscounted, MISSES)
    cases["overconfident: right on 74 %, 1000 rows"] = Built(partial(overconfident, 1000), not_named, MISSES)
    return cases


# Trainings


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
class Trained:
    """A case with training: what is built, what is counted, and in which share of the runs that may or must be so."""

    topic: Topic
    data: dict[str, Any]
    model: dict[str, Any]
    trainer: dict[str, Any]
    counted: str
    count: Callable[[Verdict, Overfitting | None], bool]
    bound: str


def says_learned(verdict: Verdict, overfitting: Overfitting | None) -> bool:
    return verdict.learned is True


def says_better(verdict: Verdict, overfitting: Overfitting | None) -> bool:
    return verdict.sentence.startswith("learned: this model is better than")


def overfits(verdict: Verdict, overfitting: Overfitting | None) -> bool:
    return overfitting is not None and overfitting.epoch is not None


USUAL_TRAINER = {"max_epochs": 100, "patience": 20, "precision": "32-true"}
NUMBER = {"kind": "number"}
TRAINED = {
    "random classes": Trained(
        CLASSES, {"relation": "none"}, USUAL, USUAL_TRAINER, "learned", says_learned, "at most 5 %"
    ),
    "random numbers": Trained(
        NUMBERS, {"relation": "none", **NUMBER}, USUAL, USUAL_TRAINER, "learned", says_learned, "at most 5 %"
    ),
    "healthy classes": Trained(
        CLASSES, {"rows": 4000}, USUAL | {"lr": 0.002}, USUAL_TRAINER, "overfitting", overfits, "at most 10 %"
    ),
    "healthy numbers": Trained(
        NUMBERS, {"rows": 4000, **NUMBER}, USUAL | {"lr": 0.002}, USUAL_TRAINER, "overfitting", overfits, "at most 10 %"
    ),
    "healthy classes, 80 validation rows": Trained(
        CLASSES,
        {"rows": 4000, "val_fraction": 0.02},
        USUAL | {"lr": 0.002},
        USUAL_TRAINER,
        "overfitting",
        overfits,
        "(how far chance misleads)",
    ),
    "healthy numbers, 80 validation rows": Trained(
        NUMBERS,
        {"rows": 4000, "val_fraction": 0.02, **NUMBER},
        USUAL | {"lr": 0.002},
        USUAL_TRAINER,
        "overfitting",
        overfits,
        "(how far chance misleads)",
    ),
    "wide network, 40 rows, classes": Trained(
        CLASSES,
        {"rows": 400, "val_fraction": 0.45, "test_fraction": 0.45},
        {"optimizer": "adam", "lr": 0.005, "hidden": [512]},
        USUAL_TRAINER,
        "overfitting",
        overfits,
        "at least 90 %",
    ),
    "wide network, 40 rows, numbers": Trained(
        NUMBERS,
        {"rows": 400, "val_fraction": 0.45, "test_fraction": 0.45, **NUMBER},
        {"optimizer": "adam", "lr": 0.005, "hidden": [512]},
        USUAL_TRAINER,
        "overfitting",
        overfits,
        "at least 90 %",
    ),
    "linear classes": Trained(
        CLASSES, {}, USUAL, USUAL_TRAINER, "better than logistic regression", says_better, "at most 5 %"
    ),
    "linear numbers": Trained(
        NUMBERS, NUMBER, USUAL, USUAL_TRAINER, "better than least squares", says_better, "at most 5 %"
    ),
    "bent classes": Trained(
        CLASSES,
        {"relation": "bent", "rows": 4000},
        USUAL | {"hidden": [64]},
        USUAL_TRAINER,
        "better than logistic regression",
        says_better,
        "(power: the more the better)",
    ),
}


def run_case(case: Trained, seed: int) -> tuple[Verdict, Overfitting | None]:
    """One seed of a case, through the package's own parts."""
    rows = {**case.data, "made_by": seed, "split_seed": seed}
    settings = resolve(case.topic, None, rows, case.model, case.trainer, seed).settings
    data = case.topic.data(**settings.data)
    data.setup("fit")
    model = new_model(case.topic, data, settings)
    with (
        open_store().start_run(case.topic.name, str(seed), {"dlcourse.kind": "study"}, watched=False) as run,
        tempfile.TemporaryDirectory() as folder,
    ):
        fitted = fit(case.topic, run, data, model, settings, case.topic.monitor, Path(folder), light=True)
        split, task = data.eval_split, fitted.task
        evaluation = evaluate(fitted.trainer, fitted.model, task, data, split)
    baselines = fit_baselines(case.topic.baselines, task, data, evaluation)
    assessment = judge_model(
        case.topic, fitted.model, task, data, {split: evaluation}, baselines, run.history, fitted.epoch
    )
    return assessment.verdict, fitted.overfitting


def report(name: str, counted: str, hits: int, runs: int, bound: str) -> None:
    """A line of the table, with the interval of Clopper and Pearson."""
    interval = stats.binomtest(hits, runs).proportion_ci(method="exact")
    share = f"{hits / runs:.1%} ({interval.low:.1%} to {interval.high:.1%})"
    print(f"| {name} | {counted} | {runs} | {share} | {bound} |", flush=True)


def run_built(runs: int, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name, case in built_cases().items():
        if names and name not in names:
            continue
        torch.manual_seed(0)
        count = runs if case.at_most == FALSE_CLAIMS else max(runs // 10, 1)
        hits = sum(case.count(case.draw()) for _ in range(count))
        report(name, case.counted, hits, count, f"upper limit {case.at_most:.0%}")
        rows.append({"case": name, "counted": case.counted, "hits": hits, "runs": count})
    return rows


def run_trained(seeds: range, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.chdir(folder)
        for name, case in TRAINED.items():
            if names and name not in names:
                continue
            seen = [run_case(case, seed) for seed in seeds]
            hits = sum(case.count(*each) for each in seen)
            report(name, case.counted, hits, len(seen), case.bound)
            details = [
                {"sentence": verdict.sentence, "overfitting": overfitting and dataclasses.asdict(overfitting)}
                for verdict, overfitting in seen
            ]
            rows.append({"case": name, "counted": case.counted, "hits": hits, "runs": len(seen), "details": details})
        os.chdir("/")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="*", choices=["losses", "trainings"], default=["losses", "trainings"])
    parser.add_argument(
        "--runs", type=int, default=3000, help="of each case of losses; a tenth where misses are counted"
    )
    parser.add_argument("--seeds", type=int, default=60, help="of each case of trainings")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cases", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    logging.getLogger("dlcourse").setLevel(logging.ERROR)
    target = asked.json.resolve() if asked.json else None
    print("| case | counted | runs | share, with its 95 % interval | must be |\n| --- | --- | --- | --- | --- |")
    rows = run_built(asked.runs, asked.cases) if "losses" in asked.parts else []
    if "trainings" in asked.parts:
        rows += run_trained(range(asked.first_seed, asked.first_seed + asked.seeds), asked.cases)
    if target:
        target.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
