"""What a run comes to: judged on the right rows, beside baselines of the code that is there now."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dlcourse
from dlcourse import topics
from dlcourse.evaluation import baselines
from dlcourse.evaluation.assessment import evaluate_splits, fit_baselines, judge_model
from dlcourse.evaluation.baselines import Predictor
from dlcourse.models.base import CourseModel
from dlcourse.topics import Topic
from dlcourse.training.trainer import make_trainer
from tests.samples import Line, YesOrNo, data_of, numbers, two_classes

QUICK: dict[str, Any] = {"max_epochs": 2}


def topic_of(rows: dlcourse.Rows, model: type[CourseModel], **baselines_by_name: Any) -> Topic:
    return Topic(name="made", title="Made", data=type(data_of(rows)), model=model, baselines=baselines_by_name)


def test_rows_that_are_training_rows_too_are_counted() -> None:
    inputs = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.5], [1.0, 2.0], [1.0, 2.0]])
    rows = dlcourse.Rows(inputs, torch.tensor([0, 1, 0, 1, 0, 1]), "made", classes=("no", "yes"))
    assert rows.count_shared(torch.tensor([2, 3, 4, 5]), torch.tensor([0, 1])) == 2
    assert rows.count_shared(torch.tensor([3]), torch.tensor([0, 1])) == 0


def test_the_card_tells_how_many_test_rows_have_been_trained_on(project: Path) -> None:
    rows = numbers(40)
    twice = dataclasses.replace(
        rows, inputs=rows.inputs.repeat(2, 1), targets=rows.targets.repeat(2, 1), source="every row twice"
    )
    result = dlcourse.train(topic_of(twice, Line, mean=baselines.mean), trainer=QUICK)
    data = result.data
    assert data is not None
    train, test = ({row % 40 for row in data.splits[split].tolist()} for split in ("train", "test"))
    shared = sum(row % 40 in train for row in data.splits["test"].tolist())
    assert shared > len(test) / 4
    assert f"{shared} of 16 test rows" in result.card


class Density(dlcourse.CourseModel):
    """A normal density a row; its loss is far below 0 where the targets' unit is small."""

    primary_metric = "loss"

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Linear(shape[0], outputs)
        self.log_deviation = nn.Parameter(torch.tensor(-3.0))

    def metrics(self) -> dict[str, Any]:
        return {}

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs

    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        errors = (outputs - targets)[:, 0] * torch.exp(-self.log_deviation.detach())
        return errors.square() / 2 + self.log_deviation.detach() + 0.919

    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": self.per_sample_loss(outputs, targets)}


def test_a_loss_below_0_that_falls_is_learning(project: Path) -> None:
    rows = numbers(400)
    small = dataclasses.replace(rows, targets=(rows.targets - rows.targets.mean()) * 1e-2)
    topic = topic_of(small, Density, mean=baselines.mean)
    result = dlcourse.train(topic, model={"optimizer": "adam", "lr": 0.02}, trainer={"max_epochs": 100})
    assert result.metrics["test/loss"] < -1
    assert result.verdict.sentence == "learned: this model is better than mean on these 80 test rows"


def first_guess(inputs: Tensor, targets: Tensor) -> Predictor:
    return lambda rows: torch.full((len(rows), 1), 1.0)


def second_guess(inputs: Tensor, targets: Tensor) -> Predictor:
    return lambda rows: torch.full((len(rows), 1), 2.0)


def test_an_edited_baseline_is_measured_anew_and_an_old_one_found_again(project: Path) -> None:
    def measured(guess: Any) -> list[str]:
        result = dlcourse.train(topic_of(numbers(), Line, guess=guess), trainer=QUICK)
        store = dlcourse.open_store()
        runs = store.client.search_runs([store.experiment("made")], "tags.`dlcourse.kind` = 'baseline'")
        return [f"{run.data.metrics['test/mse']:.6g}" for run in runs] + [result.card]

    *before, card = measured(first_guess)
    assert len(before) == 1
    assert measured(first_guess)[:-1] == before
    *after, edited = measured(second_guess)
    assert len(after) == 2
    assert next(line for line in edited.splitlines() if "baselines" in line) != next(
        line for line in card.splitlines() if "baselines" in line
    )


def test_version_of_a_baseline_is_its_code_what_it_wraps_and_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapped(baseline: baselines.Baseline) -> baselines.Baseline:
        return lambda inputs, targets: baseline(inputs, targets)

    versions = {
        baselines.version(each)
        for each in (
            baselines.mean,
            baselines.majority,
            wrapped(baselines.majority),
            wrapped(baselines.mean),
            first_guess,
            lambda inputs, targets: None,
        )
    }
    assert len(versions) == 6
    before = baselines.version(baselines.mean)
    assert before == baselines.version(baselines.mean)
    monkeypatch.setattr("sklearn.__version__", "0.1")
    assert baselines.version(baselines.mean) != before


def test_validation_rows_alone_judge_where_there_are_no_test_rows() -> None:
    data = data_of(two_classes(), test_fraction=0.0)
    model = YesOrNo(data.shape, data.outputs)
    topic = topic_of(data.rows, YesOrNo, majority=baselines.majority)
    evaluations = evaluate_splits(make_trainer(accelerator="cpu"), model, model, data)
    measured = fit_baselines(topic.baselines, model, data, evaluations["val"])
    assessment = judge_model(topic, model, model, data, evaluations, measured)
    assert assessment.verdict.eval_split == "val"
    assert assessment.evaluation is assessment.evaluations["val"]
    assert assessment.evaluations.keys() == {"val"}
    assert "30 validation rows" in assessment.verdict.sentence


def test_every_topic_has_its_trivial_baseline_first() -> None:
    for name in topics.titles():
        assert next(iter(topics.find(name).baselines)) in ("mean", "majority")
