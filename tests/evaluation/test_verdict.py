"""Verdicts: of nothing where there is nothing, of the difference where there is one, and of no more than was tested."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dlcourse.data.rows import Split
from dlcourse.evaluation import verdict
from dlcourse.evaluation.differences import Comparison, Difference
from dlcourse.evaluation.evaluation import Evaluation
from dlcourse.evaluation.verdict import (
    LEVEL,
    PERMUTATIONS,
    ValuesOf,
    Verdict,
    against,
    diverged,
    judge,
    permutation_test,
)

ROWS = 30


def evaluation(values_of: ValuesOf, outputs: Tensor, targets: Tensor, split: Split = "test") -> Evaluation:
    values = dict(values_of(outputs, targets))
    metrics = {name: float(each.mean()) for name, each in values.items()}
    return Evaluation(split, metrics, outputs, targets, values.pop("loss"), values)


def squared_errors(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    errors = (outputs - targets).square()
    return {"loss": errors, "mse": errors}


def errors_of_classes(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Logits N x classes."""
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()
    return {"loss": losses, "accuracy": (logits.argmax(1) == targets).double()}


def judged(targets: Tensor, outputs: Tensor, split: Split = "test", curve: Any = (), **baselines: Tensor) -> Verdict:
    """A regression by squared error."""
    return judge(
        evaluation(squared_errors, outputs, targets, split),
        squared_errors,
        {name: evaluation(squared_errors, each, targets, split) for name, each in baselines.items()},
        "mse",
        higher_is_better=False,
        curves={"train/loss": list(enumerate(curve))},
    )


def classified(
    targets: Tensor, logits: Tensor, split: Split = "test", curves: Any = None, kept_epoch: int = 0, **baselines: Tensor
) -> Verdict:
    """Classes, by cross-entropy and accuracy; outputs are N x classes."""
    return judge(
        evaluation(errors_of_classes, logits, targets, split),
        errors_of_classes,
        {name: evaluation(errors_of_classes, each, targets, split) for name, each in baselines.items()},
        "accuracy",
        higher_is_better=True,
        training_classes=range(logits.shape[1]),
        curves=curves,
        kept_epoch=kept_epoch,
    )


def noise(seed: int, count: int = ROWS) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shares(*of_classes: float, rows: int) -> Tensor:
    return torch.tensor(of_classes, dtype=torch.float64).log().expand(rows, -1)


# The permutation test


def one_by_one(measured: Evaluation, values_of: ValuesOf, higher_is_better: Mapping[str, bool]) -> dict[str, float]:
    """The permutation test as it is defined: a permutation at a time, each p-value at its own early stop."""
    enough = round(LEVEL * (PERMUTATIONS + 1)) + 1
    counts, p_values = dict.fromkeys(higher_is_better, 0), dict[str, float]()
    generator = torch.Generator().manual_seed(0)
    for draw in range(1, PERMUTATIONS + 1):
        order = torch.randperm(len(measured.targets), generator=generator)
        others = values_of(measured.outputs, measured.targets[order])
        for name in higher_is_better.keys() - p_values.keys():
            gain = float(others[name].double().mean() - measured.values[name].double().mean())
            tolerance = 1e-6 * float(measured.values[name].abs().mean())
            counts[name] += (gain if higher_is_better[name] else -gain) >= -tolerance
            if counts[name] == enough:
                p_values[name] = enough / draw
    return {name: p_values.get(name, (counts[name] + 1) / (PERMUTATIONS + 1)) for name in higher_is_better}


@pytest.mark.parametrize("strength", [0.0, 0.15, 0.3, 3.0])
def test_p_values_are_those_of_one_permutation_at_a_time(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "MOST_VALUES", 1000)  # several batches, the last of them smaller
    numbers = noise(0, 60)
    outputs = strength * numbers + noise(1, 60)
    measured = evaluation(squared_errors, outputs, numbers)
    assert permutation_test(measured, squared_errors, {"loss": False}) == one_by_one(
        measured, squared_errors, {"loss": False}
    )
    classes = (numbers > 0).long() + 2 * (numbers > 1).long()  # 0, 1 and 3 of the four classes
    logits = strength * torch.nn.functional.one_hot(classes, 4) + noise(2, 240).view(60, 4)
    measured = evaluation(errors_of_classes, logits, classes)
    quantities = {"loss": False, "accuracy": True}
    assert permutation_test(measured, errors_of_classes, quantities) == one_by_one(
        measured, errors_of_classes, quantities
    )


# Has it learned anything?


def test_on_shuffled_targets_it_rarely_claims_to_have_learned() -> None:
    claims = 0
    for seed in range(200):
        inputs, targets = noise(seed), noise(1000 + seed)  # nothing in one tells of the other
        slope = (inputs[: ROWS // 2] @ targets[: ROWS // 2]) / inputs[: ROWS // 2].square().sum()
        fresh_targets, outputs = targets[ROWS // 2 :], slope * inputs[ROWS // 2 :]
        trivial = targets[: ROWS // 2].mean().expand(ROWS // 2)
        claims += bool(judged(fresh_targets, outputs, mean=trivial).learned)
    assert claims <= 0.025 * 200 + 2 * (0.025 * 0.975 * 200) ** 0.5, "2.5 % and two standard errors"


def test_a_real_relation_is_found_nearly_always() -> None:
    found = 0
    for seed in range(50):
        inputs = noise(seed)
        targets = inputs + 0.7 * noise(1000 + seed)
        found += bool(judged(targets, inputs, mean=torch.zeros(ROWS)).learned)
    assert found >= 48


def test_the_trivial_answer_has_learned_nothing() -> None:
    targets = noise(0)
    verdict = judged(targets, targets.mean().expand(ROWS), mean=targets.mean().expand(ROWS), line=targets)
    assert verdict.sentence == "learned nothing that these 30 test rows show: not better than mean"
    assert verdict.learned is False
    assert verdict.p_values == {"loss": 1}


def test_a_constant_that_is_nearer_than_the_mean_has_learned_nothing() -> None:
    verdict = judged(noise(0, 5000), torch.zeros(5000), mean=torch.full((5000,), 0.5))
    assert verdict.differences["mean"]["loss"].comparison == "better"
    assert verdict.learned is False, "its outputs do not depend on anything"


def test_a_significant_but_tiny_advantage_is_nothing_learned() -> None:
    targets = noise(0, 5000)
    verdict = judged(targets, 0.001 * targets, mean=torch.zeros(5000))
    assert verdict.p_values["loss"] <= 0.025
    assert verdict.learned is False, "0.2 % less loss than the mean's"


def test_worse_than_the_mean_has_learned_nothing_though_it_follows_the_targets() -> None:
    targets = noise(0)
    verdict = judged(targets, 5 * targets, mean=torch.zeros(ROWS))
    assert verdict.p_values["loss"] <= 0.025
    assert verdict.learned is False


@pytest.mark.parametrize("level", [-4.0, 0.0, 100.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_neither_scale_nor_sign_of_the_loss_matters(level: float, scale: float) -> None:
    """A negative log-likelihood moves with the unit of the targets, and may be below 0."""
    targets = noise(0, 100)
    outputs = targets + 0.3 * noise(1, 100)

    def likelihoods(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        losses = scale * ((outputs - targets).square() + level)
        return {"loss": losses, "nll": losses}

    def verdict(each: Tensor) -> Verdict:
        return judge(
            evaluation(likelihoods, each, targets),
            likelihoods,
            {"mean": evaluation(likelihoods, torch.zeros(100, dtype=torch.float64), targets)},
            "nll",
            higher_is_better=False,
        )

    assert verdict(outputs).sentence == "learned: this model is better than mean on these 100 test rows"
    assert verdict(noise(5, 100)).learned is False


def test_where_the_trivial_answer_is_perfect_nothing_can_be_learned() -> None:
    targets = torch.ones(50, dtype=torch.float64)
    assert judged(targets, targets, mean=targets).learned is False
    assert judged(targets, targets + noise(0, 50), mean=targets).learned is False


def test_a_classifier_that_is_right_but_too_sure_is_told_both() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(2, (1000,), generator=generator)
    side = torch.where(torch.rand(1000, generator=generator) < 0.74, targets, 1 - targets)
    logits = 6.0 * torch.nn.functional.one_hot(side, 2).double()
    curves = {"val/loss": [(0, 0.7), (3, 0.5), (9, 1.2)]}
    verdict = classified(targets, logits, curves=curves, kept_epoch=9, majority=shares(0.5, 0.5, rows=1000))
    assert verdict.learned is True
    assert verdict.sentence == (
        "learned: classifies better than majority, but its probabilities are worse than the classes' shares"
    )
    assert "calibrate" in verdict.advice
    assert "lowest in epoch 3" in verdict.advice
    kept_earlier = classified(targets, logits, curves=curves, kept_epoch=3, majority=shares(0.5, 0.5, rows=1000))
    assert "stop earlier" not in kept_earlier.advice, "the weights are of that epoch already"


def test_a_better_loss_with_a_worse_accuracy_is_told_both() -> None:
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(5000, generator=generator)
    targets = (torch.rand(5000, generator=generator) < 0.2 + 0.25 * chance).long()  # never above one half
    said = (0.2 + 0.25 * chance).double()
    said = torch.where(said > 0.4, 0.51, said)  # a little too much, so that the majority loses
    logits = torch.stack([1 - said, said], 1).log()
    verdict = classified(targets, logits, majority=shares(0.675, 0.325, rows=5000))
    assert verdict.differences["majority"]["loss"].comparison == "better"
    assert verdict.sentence == "learned: a better loss than majority, but a worse accuracy"


# Training rows alone


def test_noise_that_is_known_by_heart_is_fitted_and_not_learned() -> None:
    targets = torch.randint(2, (400,), generator=torch.Generator().manual_seed(0))
    logits = 9.0 * torch.nn.functional.one_hot(targets, 2).double()
    half = shares(0.5, 0.5, rows=400)
    verdict = classified(targets, logits, split="train", majority=half, line=half + 0.01)
    assert verdict.sentence.startswith("fitted: accuracy 1 on its 400 training rows")
    assert verdict.learned is None
    assert verdict.p_values == {}


def test_training_rows_that_are_fitted_no_better_than_by_the_mean() -> None:
    targets = noise(0)
    verdict = judged(targets, 0.001 * targets, split="train", mean=torch.zeros(ROWS), line=0.5 * targets)
    assert verdict.sentence == "learned nothing: fits its training rows no better than mean"
    assert verdict.learned is False


@pytest.mark.parametrize(
    ("curve", "begins"),
    [
        ([1.0] + [0.5] * 20, "stuck"),
        (np.linspace(1, 0.5, 20), "unfinished"),
        (np.linspace(-1, -2, 20), "unfinished"),
        ([-1.0] + [-2.0] * 20, "stuck"),
    ],
)
def test_worse_than_the_line_on_its_own_training_rows(curve: Any, begins: str) -> None:
    targets = noise(0, 200)
    verdict = judged(
        targets, 0.3 * targets, split="train", curve=list(curve), mean=torch.zeros(200), line=0.9 * targets
    )
    assert verdict.sentence == f"{begins}: worse than line on the very rows it was trained on"
    assert verdict.advice


# Beside the baselines


@pytest.mark.parametrize(
    ("model_error", "line_error", "says"),
    [
        (0.1, 0.6, "learned: this model is better than line on these 200 test rows"),
        (0.3, 0.3, "learned: not told apart from line on these 200 test rows"),
        (0.6, 0.1, "learned: this model is worse than line on these 200 test rows"),
    ],
)
def test_headline_compares_with_the_best_baseline(model_error: float, line_error: float, says: str) -> None:
    targets = noise(0, 200)
    outputs, line = targets + model_error * noise(1, 200), targets + line_error * noise(4, 200)
    poor = targets + 0.9 * noise(3, 200)
    verdict = judged(targets, outputs, mean=torch.zeros(200), poor=poor, line=line)
    assert verdict.sentence == says
    assert verdict.differences["poor"]["loss"].comparison == "better"
    assert verdict.eval_split == "test"


def test_without_other_baselines_it_is_compared_with_the_trivial_one() -> None:
    targets = noise(0)
    sentence = judged(targets, targets + 0.1, mean=torch.zeros(ROWS)).sentence
    assert sentence == "learned: this model is better than mean on these 30 test rows"


def test_rows_too_few_for_a_paired_test_may_be_enough_for_a_permutation_test() -> None:
    targets = noise(0, 12)
    sentence = judged(targets, targets + 0.1, mean=torch.zeros(12)).sentence
    assert sentence == (
        "learned: its outputs follow the targets; not compared with mean: these 12 test rows are too few"
    )


@pytest.mark.parametrize(
    ("loss", "accuracy", "says"),
    [
        ("better", "better", "this model is better than line on rows"),
        ("better", "not told apart", "this model is better than line in loss on rows"),
        ("not tested", "worse", "this model is worse than line in accuracy on rows"),
        ("better", "worse", "this model has a better loss and a worse accuracy than line on rows"),
        ("not tested", "not told apart", "not told apart from line on rows"),
        ("not tested", "not tested", "not compared with line: rows are too few"),
    ],
)
def test_the_sentence_claims_what_was_tested(loss: Comparison, accuracy: Comparison, says: str) -> None:
    differences = {"loss": Difference(0, 0, 0, loss), "accuracy": Difference(0, 0, 0, accuracy)}
    assert against("line", differences, "rows") == says


def test_a_rare_class_without_rows_enough_is_no_ground_for_a_claim_by_loss() -> None:
    """The majority's certain friend: on 20 or 50 rows it looks better in 36 and 8 % of samples, and is worse."""
    claims = dict.fromkeys((20, 50, 200), 0)
    for rows in claims:
        trivial, sure = shares(0.95, 0.05, rows=rows), shares(0.99, 0.01, rows=rows)
        for seed in range(100):
            targets = (torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.05).long()
            verdict = classified(targets, sure, majority=trivial, line=trivial)
            claims[rows] += any(each.comparison == "better" for each in verdict.differences["line"].values())
    assert claims[20] == claims[50] == 0
    assert claims[200] <= 5


def test_verdict_repeats_itself_and_can_be_written_as_json() -> None:
    targets = noise(0)
    outputs = targets + noise(1)
    verdict = judged(targets, outputs, mean=torch.zeros(ROWS))
    assert verdict == judged(targets, outputs, mean=torch.zeros(ROWS))
    json.dumps(asdict(verdict), allow_nan=False)


def test_diverged_says_what_to_change() -> None:
    verdict = diverged(3, float("inf"), "lower --model.lr (0.5)")
    assert verdict.sentence == "diverged"
    assert verdict.learned is False
    assert "epoch 3" in verdict.advice
    assert "lower --model.lr (0.5)" in verdict.advice
