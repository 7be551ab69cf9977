"""Verdicts: of nothing where there is nothing, and of the difference where there is one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dlcourse.verdict import Verdict, compare, diverged, judge

ROWS = 30


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square()


def against(targets: Tensor, outputs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The losses, and the losses with the targets in another order."""
    return squared(outputs, targets), lambda order: squared(outputs, targets[order])


def judged(targets: Tensor, outputs: Tensor, **baselines: Tensor) -> Verdict:
    losses, shuffled = against(targets, outputs)
    return judge("test", losses, shuffled, {name: squared(each, targets) for name, each in baselines.items()})


def noise(seed: int, count: int = ROWS) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_on_shuffled_targets_it_rarely_claims_to_have_learned() -> None:
    claims = 0
    for seed in range(200):
        inputs, targets = noise(seed), noise(1000 + seed)  # nothing in one tells of the other
        slope = (inputs[: ROWS // 2] @ targets[: ROWS // 2]) / inputs[: ROWS // 2].square().sum()
        fresh_targets, outputs = targets[ROWS // 2 :], slope * inputs[ROWS // 2 :]
        trivial = targets[: ROWS // 2].mean().expand(ROWS // 2)
        claims += judged(fresh_targets, outputs, mean=trivial).learned
    assert claims <= 0.05 * 200 + 2 * (0.05 * 0.95 * 200) ** 0.5, "5 % and two standard errors"


def test_a_real_relation_is_found_nearly_always() -> None:
    found = 0
    for seed in range(50):
        inputs = noise(seed)
        targets = inputs + 0.7 * noise(1000 + seed)
        found += judged(targets, inputs, mean=torch.zeros(ROWS)).learned
    assert found >= 48


def test_the_trivial_answer_has_learned_nothing() -> None:
    targets = noise(0)
    verdict = judged(targets, targets.mean().expand(ROWS), mean=targets.mean().expand(ROWS), line=targets)
    assert verdict.headline == "learned nothing: no better than mean"
    assert not verdict.learned
    assert verdict.p_value == 1


def test_a_significant_but_tiny_advantage_is_nothing_learned() -> None:
    targets = noise(0, 5000)
    verdict = judged(targets, 0.001 * targets, mean=torch.zeros(5000))
    assert verdict.p_value <= 0.05
    assert not verdict.learned, "0.2 % less loss than the mean's"


def test_worse_than_the_mean_has_learned_nothing_though_it_follows_the_targets() -> None:
    targets = noise(0)
    verdict = judged(targets, 5 * targets, mean=torch.zeros(ROWS))
    assert verdict.p_value <= 0.05
    assert not verdict.learned


@pytest.mark.parametrize(
    ("model_error", "line_error", "says"),
    [
        (0.1, 0.6, "learned: better than line"),
        (0.3, 0.3, "learned: no better and no worse than line"),
        (0.6, 0.1, "learned: worse than line"),
    ],
)
def test_headline_compares_with_the_best_baseline(model_error: float, line_error: float, says: str) -> None:
    targets = noise(0, 200)
    outputs, line = targets + model_error * noise(1, 200), targets + line_error * noise(4, 200)
    poor = targets + 0.9 * noise(3, 200)
    verdict = judged(targets, outputs, mean=torch.zeros(200), poor=poor, line=line)
    assert verdict.headline == says
    assert verdict.differences["poor"].comparison == "better"
    assert verdict.judged == "test"


def test_without_other_baselines_it_is_better_than_the_trivial_one() -> None:
    targets = noise(0)
    assert judged(targets, targets + 0.1, mean=torch.zeros(ROWS)).headline == "learned: better than mean"


def test_comparison_is_paired() -> None:
    difficulty = noise(0, 50).exp()
    slightly_worse = difficulty + 0.01 + 0.001 * noise(1, 50)
    difference = compare(slightly_worse, difficulty)
    assert difference.comparison == "worse", "every row is worse by about a hundredth"
    assert difference.mean == pytest.approx(0.01, abs=0.001)
    assert difference.standard_error == pytest.approx(0.001 / 50**0.5, rel=0.4)
    assert compare(difficulty, slightly_worse).comparison == "better"
    assert compare(slightly_worse, difficulty[torch.randperm(50)]).comparison == "as good"


def test_comparison_needs_two_rows() -> None:
    assert compare(torch.tensor([1.0]), torch.tensor([2.0])).comparison == "as good"


def test_equal_losses_are_as_good() -> None:
    assert compare(torch.ones(9), torch.ones(9)).comparison == "as good"


def test_verdict_repeats_itself() -> None:
    targets = noise(0)
    outputs = targets + noise(1)
    assert judged(targets, outputs, mean=torch.zeros(ROWS)) == judged(targets, outputs, mean=torch.zeros(ROWS))


def test_diverged_says_what_to_change() -> None:
    scaled = diverged(3, float("inf"), 0.5, standardized=True)
    assert scaled.headline == "diverged"
    assert not scaled.learned
    assert "epoch 3" in scaled.advice
    assert "lower --model.lr (0.5)" in scaled.advice
    assert "standardize" not in scaled.advice, "they are standardised already"
    assert "--data.standardize true" in diverged(3, 1e30, 0.01, standardized=False).advice
