"""Differences of models and settings: of nothing where there is nothing, and in a sentence that says whose they are."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from dlcourse.evaluation.differences import compare


def noise(seed: int, count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_comparison_is_paired() -> None:
    difficulty = noise(0, 50).exp()
    slightly_worse = difficulty + 0.01 + 0.001 * noise(1, 50)
    difference = compare(slightly_worse, difficulty)
    assert difference.comparison == "worse", "every row is worse by about a hundredth"
    assert difference.mean == pytest.approx(0.01, abs=0.001)
    expected = stats.ttest_rel(slightly_worse, difficulty).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert compare(difficulty, slightly_worse).comparison == "better"
    assert compare(slightly_worse, difficulty[torch.randperm(50)]).comparison == "not told apart"


def test_shares_are_compared_by_mcnemar() -> None:
    mine, other = torch.zeros(100), torch.zeros(100)
    mine[:60], other[8:60] = 1, 1  # 8 rows to 0
    difference = compare(mine, other, higher_is_better=True)
    assert difference.comparison == "better"
    assert difference.mean == pytest.approx(0.08)
    assert (difference.low, difference.high) == pytest.approx((0.0197, 0.1372), abs=1e-3), "Bonett and Price"
    mine[:3] = 0  # 5 to 0: two-sided 6 %
    assert compare(mine, other, higher_is_better=True).comparison == "not told apart"


def test_no_difference_in_a_few_rows_is_not_certain() -> None:
    difference = compare(torch.ones(12), torch.ones(12))
    assert difference.comparison == "not told apart"
    assert difference.low < -0.05
    assert difference.high > 0.05


def test_too_few_rows_are_told_by_their_rule() -> None:
    assert compare(torch.tensor([1.0]), torch.tensor([2.5])).comparison == "not tested"
    few = compare(noise(0, 19) - 10, noise(1, 19))
    assert (few.comparison, "20 rows" in few.rule) == ("not tested", True)
    assert compare(noise(0, 20) - 10, noise(1, 20)).comparison == "better"


def test_skewed_differences_need_more_rows_only_where_they_could_mislead() -> None:
    rare = torch.full((60,), -0.5, dtype=torch.float64)
    rare[:2] = 5.0  # the rows that a smaller sample would not have had
    misled = compare(rare, torch.zeros(60))
    assert misled.comparison == "not tested"
    assert "Cochran" in misled.rule
    assert compare(-rare, torch.zeros(60)).comparison == "not tested"
    helped = torch.full((60,), -0.5, dtype=torch.float64)
    helped[:2] = -5.0
    assert compare(helped, torch.zeros(60)).comparison == "better", "skewed in its favour, which hides and never makes"


def test_equal_losses_cannot_be_told_apart() -> None:
    assert compare(torch.full((20,), 0.3), torch.full((20,), 0.3)).comparison == "not told apart"
