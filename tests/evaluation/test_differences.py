"""Differences of models and settings: of nothing where there is nothing, and in a sentence that says whose they are."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from dlcourse.evaluation.differences import (
    Answer,
    compare,
    compare_models,
    compare_settings,
    holm,
    mean_over_seeds,
    sentence,
)
from dlcourse.evaluation.intervals import interval_of_mean

UP: dict[str, Any] = {"higher_is_better": True, "margin": 0.01}
DOWN: dict[str, Any] = {"higher_is_better": False, "margin": 0.01}


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


# Two models


def shares(right: int, rows: int) -> Tensor:
    return (torch.arange(rows) < right).double()


def test_models_are_compared_by_the_paired_t_test() -> None:
    values, others = noise(0, 50), noise(1, 50) + 1
    answer, expected = compare_models(values, others, **DOWN), stats.ttest_rel(values, others)
    assert answer.p_value == pytest.approx(expected.pvalue)
    assert (answer.low, answer.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert answer.outcome == "better", "a loss that is lower"
    assert compare_models(others, values, **DOWN).outcome == "worse"
    assert compare_models(values, others, **UP).outcome == "worse"


def test_models_are_compared_by_mcnemar_where_rows_are_right_or_wrong() -> None:
    mine, other = torch.zeros(100), torch.zeros(100)
    mine[:60], other[8:61] = 1, 1  # 8 rows to 1
    answer = compare_models(mine, other, **UP)
    assert answer.p_value == pytest.approx(stats.binomtest(8, 9).pvalue)
    assert (answer.outcome, answer.difference) == ("better", pytest.approx(0.07))
    assert (answer.low, answer.high) == pytest.approx((compare(mine, other).low, compare(mine, other).high))


def test_models_are_the_same_if_both_one_sided_tests_say_so() -> None:
    values = noise(0, 1000)
    others = values + 0.1 * noise(1, 1000)
    answer = compare_models(values, others, **UP)
    below = stats.ttest_1samp(values - others, 0.01, alternative="less").pvalue
    above = stats.ttest_1samp(values - others, -0.01, alternative="greater").pvalue
    assert answer.p_same == pytest.approx(max(below, above))
    assert answer.outcome == "the same"
    assert compare_models(values, others, higher_is_better=True, margin=0.001).outcome == "not told apart"
    assert compare_models(values, values + 0.005, **UP).outcome == "the same", "a difference that does not matter"


def test_a_few_rows_that_agree_are_not_the_same() -> None:
    assert compare_models(torch.ones(30), torch.ones(30), **UP).outcome == "not told apart"
    assert compare_settings(torch.ones(3, 30), torch.ones(3, 30), **UP).outcome == "not told apart"
    assert compare_settings(torch.ones(3, 30_000), torch.ones(3, 30_000), **UP).outcome == "the same"


def test_rules_forbid_claims_of_means() -> None:
    few = compare_models(noise(0, 19) - 10, noise(1, 19), **UP)
    assert (few.outcome, few.p_value, "20 rows" in few.rule) == ("not tested", 1, True)
    given_rule = compare_models(noise(0, 50) - 10, noise(1, 50), rule="rare classes", **UP)
    assert (given_rule.outcome, given_rule.rule) == ("not tested", "rare classes")
    rare = torch.zeros(1000, dtype=torch.float64)
    rare[0] = 1.0  # more such rows, and the mean would be another
    assert compare_models(rare, torch.zeros(1000), higher_is_better=True, margin=0.1).outcome == "the same", "shares"
    assert compare_models(3 * rare, torch.zeros(1000), higher_is_better=True, margin=0.1).outcome == "not told apart"


# Two settings


def of_means(*means: float, rows: int = 100) -> Tensor:
    """Models that have the same value on every row."""
    return torch.tensor(means, dtype=torch.float64)[:, None].expand(-1, rows)


def test_where_rows_do_not_matter_settings_are_compared_by_welch() -> None:
    mine, other = (3.0, 3.2, 3.7), (1.0, 1.1, 1.9, 1.2)
    answer = compare_settings(of_means(*mine), of_means(*other), **UP)
    expected = stats.ttest_ind(mine, other, equal_var=False)
    assert answer.p_value == pytest.approx(expected.pvalue)
    assert (answer.low, answer.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert (answer.outcome, answer.seeds, answer.probability) == ("better", (3, 4), 1)


def test_where_seeds_do_not_matter_settings_are_compared_by_rows() -> None:
    values, others = noise(0, 50), noise(1, 50) + 1
    answer = compare_settings(values.expand(3, -1), others.expand(2, -1), **DOWN)
    expected = stats.ttest_rel(values, others)
    assert answer.p_value == pytest.approx(expected.pvalue)
    assert (answer.low, answer.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_rows_on_which_each_seed_errs_anew_are_counted_once() -> None:
    """They are in the spread of the seeds' means already: then the rows in common add nothing."""
    values, others = noise(0, 40_000).view(4, -1), noise(1, 40_000).view(4, -1)
    answer = compare_settings(values, others, **UP)
    assert answer.seed_variance / 4 == pytest.approx(2 / 40_000, rel=0.8), "of 3 + 3 degrees of freedom"
    assert answer.row_variance < 0.1 * 2 / 40_000


def test_luck_of_a_seed_is_no_difference_of_settings() -> None:
    difficulty = noise(0, 5000)
    lucky, unlucky, middling = ((difficulty + shift > 0).double() for shift in (0.1, -0.1, 0.0))
    assert compare_models(lucky, unlucky, **UP).outcome == "better"
    mine, others = torch.stack([lucky, unlucky, middling]), torch.stack([middling, lucky, unlucky])
    answer = compare_settings(mine, others, **UP)
    assert (answer.outcome, answer.probability) == ("not told apart", 0.5)


def test_a_baseline_has_rows_and_no_seeds() -> None:
    baseline = of_means(1.0)[0]
    answer = compare_settings(of_means(1.2, 1.4, 0.9), baseline, **UP)
    assert answer.p_value == pytest.approx(stats.ttest_1samp([1.2, 1.4, 0.9], 1.0).pvalue)
    assert (answer.seeds, answer.probability) == ((3, 0), pytest.approx(2 / 3))


def test_probability_counts_pairs_of_seeds_and_half_of_ties() -> None:
    mine, others = of_means(1.0, 2.0), of_means(1.0, 3.0)
    assert compare_settings(mine, others, **UP).probability == (0.5 + 0 + 1 + 0) / 4
    assert compare_settings(mine, others, **DOWN).probability == (0.5 + 1 + 0 + 1) / 4


def test_exchanged_sides_exchange_the_answer() -> None:
    mine, others = noise(0, 300).view(3, -1), noise(1, 300).view(3, -1) + 0.3
    one, other = compare_settings(mine, others, **UP), compare_settings(others, mine, **UP)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert (one.p_value, one.p_same) == pytest.approx((other.p_value, other.p_same))
    assert {one.outcome, other.outcome} == {"better", "worse"}


# How many more


def settings_answer(difference: float, seed_variance: float, row_variance: float) -> Answer:
    return Answer(
        "settings", difference, -1, 1, 0.5, 0.5, 0.001, True, 1000, row_variance, (3, 3), seed_variance, probability=0.5
    )


@pytest.mark.parametrize("effect", [0.6, 1.0, 1.5])
def test_the_seeds_needed_have_the_power_that_is_said(effect: float) -> None:
    """By the power of the two-sample t-test (Cohen 1988), with rows that do not matter."""
    needed = settings_answer(effect, 2.0, 0.0).needed
    seeds = int("".join(filter(str.isdigit, needed)))
    critical = stats.t.isf(0.025, 2 * seeds - 2)
    assert stats.nct.sf(critical, 2 * seeds - 2, effect * (seeds / 2) ** 0.5) == pytest.approx(0.8, abs=0.04)
    assert "seeds of each" in needed


def test_where_rows_are_too_few_no_seeds_are_enough() -> None:
    assert "rows" in settings_answer(0.01, 1e-4, 1e-4).needed
    assert "seeds of each" in settings_answer(0.01, 1e-4, 1e-6).needed
    told = dataclasses.replace(settings_answer(0.01, 1e-4, 1e-6), p_value=0.01)
    assert (told.outcome, told.needed) == ("better", "")


def test_the_rows_needed_for_models() -> None:
    values, others = noise(0, 200), noise(1, 200)
    answer = compare_models(values, others, **UP)
    rows = int(answer.needed.split()[1].replace(",", ""))
    z = 1.96 + 0.8416  # of 97.5 % and of 80 %
    assert rows == pytest.approx((z * float((values - others).std()) / answer.difference) ** 2, rel=0.1)


# Several comparisons


def test_holm_multiplies_by_the_hypotheses_that_are_left() -> None:
    answers = [dataclasses.replace(settings_answer(1, 1, 1), p_value=p) for p in (0.01, 0.04, 0.03, 0.005)]
    adjusted = holm(answers)
    assert [each.p_value for each in adjusted] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [each.outcome for each in adjusted] == ["better", "not told apart", "not told apart", "better"]
    assert [each.p_value for each in holm(answers, 20)] == pytest.approx([0.19, 0.68, 0.54, 0.1])
    same = [dataclasses.replace(each, p_same=p) for each, p in zip(answers, (0.04, 0.02, 0.9, 0.9), strict=True)]
    assert [each.outcome for each in same][:2] == ["the same", "the same"]
    assert [each.p_same for each in holm(same)] == pytest.approx([0.12, 0.08, 1, 1])


# Means over seeds


def test_the_mean_over_seeds_has_the_variance_of_seeds_and_of_rows() -> None:
    expected = mean_over_seeds(of_means(1.2, 1.4, 0.9))
    interval = stats.ttest_1samp([1.2, 1.4, 0.9], 0).confidence_interval()
    assert (expected.low, expected.high) == pytest.approx(tuple(interval))
    rows = noise(0, 100)
    expected = mean_over_seeds(rows.expand(3, -1))
    assert (expected.low, expected.high) == pytest.approx(interval_of_mean(rows))
    one = mean_over_seeds(shares(9, 10)[None])
    assert (one.mean, one.low, one.high) == pytest.approx((0.9, *interval_of_mean(shares(9, 10))))
    perfect = mean_over_seeds(torch.ones(3, 20))
    assert (perfect.mean, perfect.high) == (1, 1)
    assert perfect.low < 0.95


# Sentences


def test_the_sentence_says_which_question_it_answers() -> None:
    difficulty = noise(0, 5000)
    better, worse = (difficulty > -1).double(), (difficulty > -0.9).double()
    said = sentence(compare_models(better, worse, **UP), "relu", "tanh", "accuracy")
    assert "model (relu) is better in accuracy than tanh" in said
    assert "on these 5000 rows; nothing is known about their settings" in said
    said = sentence(compare_models(worse, better, **UP), "tanh", "relu", "accuracy")
    assert "worse" in said
    assert "by -" not in said
    said = sentence(compare_settings(better.expand(3, -1), worse.expand(3, -1), **UP), "relu", "tanh", "accuracy")
    assert said.startswith("settings relu: a new training is expected to be better in accuracy than tanh by 0.0")
    assert "better in 9 of 9 pairs of seeds" in said


def test_the_sentence_never_calls_equal_what_cannot_be_told_apart() -> None:
    values, others = noise(0, 60).view(3, -1), noise(1, 60).view(3, -1)
    answer = compare_settings(values, others, **UP)
    said = sentence(answer, "relu", "tanh", "loss")
    assert "cannot be told apart" in said
    assert "would be needed" in said
    assert "same" not in said
    assert "same in loss within 3" in sentence(
        compare_settings(values, others, higher_is_better=True, margin=3), "relu", "tanh", "loss"
    )
    few = compare_models(noise(0, 19) - 10, noise(1, 19), **UP)
    assert few.rule in sentence(few, "relu", "tanh", "loss")
    assert "Holm, 45 comparisons" in sentence(holm([answer], 45)[0], "relu", "tanh", "loss")


def test_an_answer_can_be_written_as_json() -> None:
    answer = compare_settings(noise(0, 60).view(3, -1), noise(1, 60).view(3, -1), **UP)
    written = json.loads(json.dumps(answer.as_dict(), allow_nan=False))
    assert (written["outcome"], written["needed"]) == (answer.outcome, answer.needed)
