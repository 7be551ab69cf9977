"""Folds as laws over many data sets, the estimate against cases worked by hand, and the runs of folds and of seeds."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor

import dlcourse
from dlcourse import topics
from dlcourse.cli import main
from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import SPLITS, Split
from dlcourse.errors import CourseError, SettingsError
from dlcourse.evaluation import baselines
from dlcourse.evaluation.baselines import Predictor
from dlcourse.evaluation.repeated import Repeated, compare, estimate
from dlcourse.experiment import train
from dlcourse.topics.diabetes import DiabetesData, DiabetesNetwork
from tests.conftest import shared_project
from tests.samples import data_of, labelled, numbers

QUICK: dict[str, Any] = {"max_epochs": 2}
BUNDLED = {"source": "bundled"}

fold_counts = st.integers(2, 6)
class_labels = st.lists(st.integers(6, 40), min_size=1, max_size=4).map(
    lambda sizes: [label for label, size in enumerate(sizes) for _ in range(size)]
)
val_fractions = st.one_of(st.just(0.0), st.floats(0.05, 0.6))
seeds = st.integers(0, 2**40)


# Folds


def dealt(data: CourseData, number: int, folds: int, repeat: int = 0) -> dict[Split, Tensor]:
    """The splits of one fold; fractions that give no row are another test's."""
    try:
        data.fold(number, folds, repeat)
    except SettingsError as refused:
        assume("is none" not in str(refused))
        raise
    return data.splits


@settings(max_examples=50)
@given(class_labels, fold_counts, val_fractions, seeds, st.integers(0, 20))
def test_every_row_is_a_test_row_exactly_once_a_repeat(
    labels: list[int], folds: int, val: float, seed: int, repeat: int
) -> None:
    data = data_of(labelled(labels), val_fraction=val, split_seed=seed)
    tests = torch.cat([dealt(data, number, folds, repeat)["test"] for number in range(folds)])
    assert sorted(tests.tolist()) == list(range(len(labels)))


@settings(max_examples=50)
@given(class_labels, fold_counts, val_fractions, seeds, st.data())
def test_splits_of_a_fold_are_disjoint_complete_and_in_order(
    labels: list[int], folds: int, val: float, seed: int, draw: st.DataObject
) -> None:
    data = data_of(labelled(labels), val_fraction=val, split_seed=seed)
    splits = dealt(data, draw.draw(st.integers(0, folds - 1)), folds)
    together = torch.cat([splits[split] for split in SPLITS])
    assert sorted(together.tolist()) == list(range(len(labels)))
    assert all(rows.tolist() == sorted(rows.tolist()) for rows in splits.values())
    assert bool(len(splits["val"])) == bool(val)
    assert len(splits["train"])


@settings(max_examples=50)
@given(class_labels, fold_counts, val_fractions, seeds, st.data())
def test_folds_are_stratified_within_one_row_a_class(
    labels: list[int], folds: int, val: float, seed: int, draw: st.DataObject
) -> None:
    data = data_of(labelled(labels), val_fraction=val, split_seed=seed)
    splits = dealt(data, draw.draw(st.integers(0, folds - 1)), folds)

    def counts(rows: Tensor) -> np.ndarray[Any, Any]:
        return np.bincount(np.array(labels)[rows.numpy()], minlength=max(labels) + 1)

    every = np.bincount(labels)
    assert (abs(counts(splits["test"]) - every / folds) < 1).all()
    assert (abs(counts(splits["val"]) - (every - counts(splits["test"])) * val) < 1).all()


@settings(max_examples=50)
@given(class_labels, fold_counts, seeds, st.integers(1, 100), st.integers(0, 5))
def test_folds_are_a_function_of_rows_and_split_seed_alone(
    labels: list[int], folds: int, seed: int, batch_size: int, repeat: int
) -> None:
    data = data_of(labelled(labels), split_seed=seed)
    other = data_of(data.rows, split_seed=seed, batch_size=batch_size, standardize=False)
    first = dealt(data, 1, folds, repeat)
    torch.manual_seed(batch_size)
    np.random.seed(batch_size)  # noqa: NPY002  # scikit-learn would draw from it
    dealt(other, 0, folds, repeat + 1)
    second = dealt(other, 1, folds, repeat)
    assert all(torch.equal(first[split], second[split]) for split in SPLITS)
    assert data.fingerprint == other.fingerprint


@settings(max_examples=50)
@example(2, [(0, 1), (1, 0)])
@given(fold_counts, st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=2, unique=True))
def test_another_repeat_and_another_split_seed_deal_anew(folds: int, pairs: list[tuple[int, int]]) -> None:
    rows = labelled([0] * 60)
    first, second = (dealt(data_of(rows, split_seed=seed), 0, folds, repeat)["test"].tolist() for seed, repeat in pairs)
    assert first != second


def test_folds_of_a_regression() -> None:
    data = data_of(numbers(10))
    sizes = []
    for number in range(4):
        data.fold(number, 4)
        sizes.append(len(data.splits["test"]))
    assert sorted(sizes) == [2, 2, 3, 3]
    with pytest.raises(SettingsError, match="--folds 11 needs as many rows, and there are 10"):
        data.fold(0, 11)


def test_scaling_is_measured_on_each_fold_s_training_rows() -> None:
    data = data_of(numbers(30))
    for number in range(3):
        data.fold(number, 3)
        train = data.rows.inputs[data.splits["train"]]
        assert data.scaling[0].tolist() == pytest.approx(train.mean(0).tolist(), rel=1e-5)


# Estimate and comparison


def test_corrected_interval_of_a_case_worked_by_hand() -> None:
    # Mean 0.8; squares of the differences 0.01, 0, 0.01, 0; 0.02 / 3 is 0.00667, whose root is 0.08165.
    # For 2 folds and 2 repeats that is multiplied by the root of 1/4 + 1/1, and by 3.1824 for 3 degrees of freedom.
    found = estimate([0.7, 0.8, 0.9, 0.8], folds=2)
    assert found.mean == pytest.approx(0.8)
    assert found.std == pytest.approx(0.0816497, rel=1e-5)
    assert (found.low, found.high) == pytest.approx((0.8 - 3.1824463 * 0.0912871, 0.8 + 3.1824463 * 0.0912871))
    assert str(found) == "0.8 (0.5095 to 1.091)"


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=10), st.integers(1, 5))
def test_corrected_interval_is_what_nadeau_and_bengio_have(values: list[float], repeats: int) -> None:
    """With test and training rows in the proportion of K folds, 1 to K - 1."""
    folds = len(values)
    found = estimate(values * repeats, folds)
    corrected = (1 / (folds * repeats) + 1 / (folds - 1)) * np.var(values * repeats, ddof=1)
    half = stats.t.ppf(0.975, folds * repeats - 1) * math.sqrt(corrected)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=1e-6)


def test_two_models_are_compared_by_their_differences_on_the_same_folds() -> None:
    # Differences d - 1, d, d, d + 1: std 0.8165, corrected error 0.9129 for 2 x 2 folds. The t quantile for
    # 3 degrees of freedom is 3.1824, so that the difference has to be above 2.905.
    others = [10.0, 20.0, 30.0, 40.0]
    for shift, larger_is_better, outcome in [
        (2.90, True, "not told apart"),
        (2.91, True, "better"),
        (2.91, False, "worse"),
        (-2.91, True, "worse"),
        (-2.91, False, "better"),
        (-2.90, False, "not told apart"),
        (0.0, True, "not told apart"),
    ]:
        values = [other + shift + step for other, step in zip(others, [-1, 0, 0, 1], strict=True)]
        difference = compare(values, others, 2, larger_is_better)
        assert difference.comparison == outcome
        assert difference.mean == pytest.approx(shift)


def test_equal_models_and_what_is_no_number_cannot_be_told_apart() -> None:
    assert compare([0.5, 0.6], [0.5, 0.6], 2, True).comparison == "not told apart"
    assert compare([0.5, math.nan], [0.4, 0.3], 2, True).comparison == "not told apart"
    assert compare([0.5, math.nan], [0.6, 0.7], 2, False).comparison == "not told apart"


# The runs


def metrics_of(run: Any) -> dict[str, float]:
    return dict(run.data.metrics)


@pytest.fixture(scope="module")
def validated(made_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Repeated:
    """Two times three folds, made once, in a project of their own."""
    folder = tmp_path_factory.mktemp("validated")
    (folder / "mlruns").mkdir()
    shutil.copy(made_store, folder / "mlruns")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        return train("diabetes", data=BUNDLED, trainer=QUICK, folds=3, repeats=2)


def test_folds_are_light_runs_within_one_that_has_the_figures(validated: Repeated) -> None:
    store = dlcourse.open_store(Path(validated.store).parent)
    parent = store.client.get_run(validated.run_id)
    everyone = store.client.search_runs([parent.info.experiment_id])
    folds = [run for run in everyone if run.data.tags.get("mlflow.parentRunId") == validated.run_id]
    assert len(everyone) == 7, "no run but the folds and their parent, so none for a baseline either"
    assert len(folds) == 6
    assert {run.info.status for run in everyone} == {"FINISHED"}
    assert "mlflow.parentRunId" not in parent.data.tags
    assert (parent.data.params["folds"], parent.data.params["repeats"]) == ("3", "2")
    assert parent.data.params["data.source"] == "bundled"
    assert sorted((run.data.params["repeat"], run.data.params["fold"]) for run in folds) == [
        (str(repeat), str(fold)) for repeat in range(2) for fold in range(3)
    ]
    assert {run.data.tags["dlcourse.kind"] for run in folds} == {"fold"}
    assert not store.client.search_logged_models([parent.info.experiment_id])
    for run in folds:
        assert store.client.list_artifacts(run.info.run_id) == []
        assert {"train/loss", "val/loss", "test/auroc", "best_epoch"} <= metrics_of(run).keys()

    figures = metrics_of(parent)
    for name in ("loss", "accuracy", "auroc"):
        values = [run.data.metrics[f"test/{name}"] for run in folds]
        assert figures[f"test/{name}"] == pytest.approx(np.mean(values))
        corrected = np.std(values, ddof=1) * math.sqrt(1 / 6 + 1 / 2)
        half = stats.t.ppf(0.975, 5) * corrected
        estimate = validated.estimates[name]
        assert estimate.std == pytest.approx(np.std(values, ddof=1))
        assert (estimate.low, estimate.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    best = max(each["accuracy"].mean for each in validated.baselines.values())
    assert figures["test/baseline_accuracy"] == pytest.approx(best)
    assert parent.data.tags["verdict"] == validated.sentence
    first, second, third, _, *lines = parent.data.tags["mlflow.note.content"].replace("<br>", "\n").splitlines()
    assert first.replace("*", "") == validated.sentence
    assert f"{validated.estimates['accuracy'].mean:.4g}" in second
    assert all(name in second for name in validated.baselines)
    assert "2 x 3 folds" in third
    *lines, empty, pages = lines
    assert (empty, pages.count("/runs/")) == ("", 6)
    compared = [line.split(" | ")[:3] for line in lines[2:]]
    assert compared == [
        [f"| {metric}", str(each), name] for metric, each in validated.estimates.items() for name in validated.baselines
    ]


def test_card_tells_figures_baselines_and_comparisons(validated: Repeated) -> None:
    auroc = validated.estimates["auroc"]
    baseline = validated.baselines["logistic-regression"]["auroc"]
    (line,) = re.findall(r"test auroc +(.*)", validated.card)
    assert line == f"{auroc}; standard deviation {auroc.std:.2g}"
    difference = validated.differences["logistic-regression"]["auroc"]
    assert f"logistic-regression {baseline}; " in validated.card
    assert f" {difference.rounded_like(0.5)}" in validated.card
    assert difference.mean == pytest.approx(auroc.mean - baseline.mean)
    assert "2 x 3 folds" in validated.card
    assert validated.sentence in validated.card


def test_baselines_are_fitted_on_training_rows_alone_as_those_of_a_single_run(project: Path) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def watched(inputs: Tensor, targets: Tensor) -> Predictor:
        predict = baselines.majority(inputs, targets)

        def remember(rows: Tensor) -> Tensor:
            seen.append((inputs, targets, rows))
            return predict(rows)

        return remember

    topic = dataclasses.replace(topics.find("diabetes"), baselines={"majority": watched})
    train(topic, data=BUNDLED, trainer=QUICK, folds=3, repeats=2)
    data = DiabetesData(source="bundled")
    assert len(seen) == 6
    for place, (inputs, targets, tested) in enumerate(seen):
        data.fold(place % 3, 3, place // 3)
        fitted_on = data.splits["train"]
        assert torch.equal(inputs, data.rows.inputs[fitted_on])
        assert torch.equal(targets, data.rows.targets[fitted_on])
        assert torch.equal(tested, data.rows.inputs[data.splits["test"]])


def test_logistic_regression_s_figure_is_that_of_scikit_learn(validated: Repeated) -> None:
    data = DiabetesData(source="bundled")
    aurocs = []
    for place in range(6):
        data.fold(place % 3, 3, place // 3)
        seen = data.splits["train"]
        test = data.splits["test"]
        predict = baselines.logistic_regression(data.rows.inputs[seen], data.rows.targets[seen])
        aurocs.append(roc_auc_score(data.rows.targets[test], predict(data.rows.inputs[test])))
    found, expected = validated.baselines["logistic-regression"]["auroc"], estimate(aurocs, 3)
    assert found.mean == pytest.approx(expected.mean, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_folds_from_the_command_line_as_json(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.source", "bundled", "--trainer.max_epochs", "2", "--folds", "3", "--repeats", "2", "--json"]
    assert main(["train", "diabetes", *flags]) == 0
    said = capsys.readouterr()
    content = json.loads(said.out)
    assert (content["over"], len(content["runs"])) == ("2 x 3 folds", 6)
    assert content["run_name"].endswith("2 x 3 folds")
    assert content["estimates"].keys() == {"loss", "accuracy", "auroc"}
    assert content["differences"].keys() == {"majority", "logistic-regression"}
    assert content["differences"]["majority"]["loss"].keys() == {"mean", "low", "high", "comparison", "rule"}
    assert "mean and 95 % interval over 2 x 3 folds" in said.err


def test_same_seed_same_figures_and_another_split_seed_others(project: Path, validated: Repeated) -> None:
    def again(**settings: Any) -> Repeated:
        data = BUNDLED | settings
        return train("diabetes", data=data, trainer=QUICK, folds=3, repeats=2)

    assert again().estimates == validated.estimates
    assert again(split_seed=1).estimates != validated.estimates


def test_a_regression_without_validation_rows(project: Path) -> None:
    result = train("height-weight", data={"val_fraction": 0.0}, trainer={"max_epochs": 40}, folds=4)
    assert result.sentence == "learned: not told apart from least-squares on these folds"
    assert result.differences["mean"]["mse"].comparison == "better"


def test_a_topic_that_judges_by_training_rows_is_cross_validated_by_test_rows(project: Path) -> None:
    result = train("gradient-descent", data={"source": "line"}, model={"formula": "line", "start": [1.0, 0.0]},
        trainer={"max_epochs": 5}, folds=3)  # fmt: skip
    assert result.estimates["mse"].mean > 0
    assert result.differences["mean"]["mse"].comparison in ("better", "worse", "not told apart")


def test_a_network_that_has_not_moved_has_learned_nothing(project: Path) -> None:
    result = train("diabetes", data=BUNDLED, model={"lr": 1e-9}, trainer=QUICK, folds=3)
    assert result.sentence == "learned nothing that these folds show: not better than majority"
    run = dlcourse.open_store().client.get_run(result.run_id)
    assert run.data.tags["verdict"] == result.sentence


# What is refused


def statuses() -> list[str]:
    client = dlcourse.open_store().client
    return [run.info.status for run in client.search_runs([each.experiment_id for each in client.search_experiments()])]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--folds", "1"], "--folds must be at least 2"),
        (["--folds", "3", "--refit"], "--folds cannot be combined with --refit"),
        (["--folds", "3", "--resume", "default"], "--folds cannot be combined with --refit"),
        (["--folds", "0"], "--folds must be a whole number above 0"),
        (["--folds", "300"], "--folds 300 needs as many rows of class progression below the median, and there are 221"),
        (["--repeats", "3"], "--repeats 3"),
        (["--folds", "3", "--repeats", "0"], "--repeats must be a whole number above 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    project: Path, capfd: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["train", "diabetes", "--data.source", "bundled", *flags]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"dlcourse: {said}")
    assert statuses() == []


def test_no_folds_are_refused_from_python_too(project: Path) -> None:
    with pytest.raises(SettingsError, match="--folds must be at least 2"):
        train("diabetes", data=BUNDLED, folds=1)


def test_a_fold_that_diverges_ends_it_in_one_line(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--model.optimizer=sgd", "--model.lr=1e30", "--model.activation=relu", "--trainer.max_epochs=5"]
    assert main(["train", "diabetes", "--data.source", "bundled", "--folds", "3", *flags]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert re.match(r"dlcourse: .*: fold 0 diverged: the loss was .* lower --model\.lr \(1e\+30\)", line)
    assert statuses() == ["FAILED", "FAILED"]


def test_a_class_that_is_too_small_leaves_no_run(project: Path) -> None:
    rows = [f"{row},{row % 7},{int(row < 3)}" for row in range(30)]
    (project / "own.csv").write_text("\n".join(rows))
    with pytest.raises(CourseError, match="--folds 4 needs as many rows of class label 1, and there are 3"):
        train("diabetes", data={"file": "own.csv"}, folds=4)
    assert statuses() == []


# Seeds


@pytest.fixture(scope="module")
def seeds_run(made_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repeated]:
    """Three seeds, the first of which is 4; their project is the current folder."""
    with shared_project(tmp_path_factory, made_store):
        yield train("diabetes", data=BUNDLED, trainer=QUICK, seed=4, seeds=3)


def test_seeds_are_trainings_within_one_run_and_the_best_has_model_and_figures(seeds_run: Repeated) -> None:
    store = dlcourse.open_store()
    parent = store.client.get_run(seeds_run.run_id)
    assert (parent.data.tags["dlcourse.kind"], parent.data.params["seeds"]) == ("seeds", "3")
    assert seeds_run.ok, seeds_run.lost
    assert seeds_run.runs.keys() == {"seed 4", "seed 5", "seed 6"}
    children = {part: store.client.get_run(run_id) for part, run_id in seeds_run.runs.items()}
    best = max(children, key=lambda part: children[part].data.metrics["val/final_accuracy"])
    assert seeds_run.best == best
    for part, run in children.items():
        assert (run.info.status, run.data.tags["dlcourse.kind"]) == ("FINISHED", "training")
        assert run.data.tags["mlflow.parentRunId"] == seeds_run.run_id
        assert f"seed {run.data.params['seed']}" == part
        assert {"verdict", "overfitting", "dlcourse.split", "experiment"} <= run.data.tags.keys()
        names = {file.path for file in store.client.list_artifacts(run.info.run_id)}
        light = {"predictions.npz", "settings.yaml", "environment.txt"}
        assert names == (light | {"figures", "checkpoints"} if part == best else light)
        assert bool(run.outputs and run.outputs.model_outputs) == (part == best)
    values = [run.data.metrics["test/accuracy"] for run in children.values()]
    assert parent.data.metrics["test/accuracy"] == pytest.approx(np.mean(values))
    estimate = seeds_run.estimates["accuracy"]
    assert (estimate.mean, estimate.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert estimate.low < estimate.mean < estimate.high
    assert parent.data.tags["verdict"] == seeds_run.sentence
    assert all(f"/runs/{run_id})" in parent.data.tags["mlflow.note.content"] for run_id in seeds_run.runs.values())
    assert "3 seeds" in seeds_run.card
    assert len(store.client.search_runs([parent.info.experiment_id], "tags.`dlcourse.kind` = 'baseline'")) == 2


def test_a_seed_is_the_training_that_it_would_be_alone(seeds_run: Repeated) -> None:
    alone = train("diabetes", data=BUNDLED, trainer=QUICK, seed=5)
    child = dlcourse.open_store().client.get_run(seeds_run.runs["seed 5"])
    assert alone.metrics["test/loss"] == child.data.metrics["test/loss"]
    assert dlcourse.test("diabetes", run=seeds_run.runs[seeds_run.best])["test/accuracy"] in [
        dlcourse.open_store().client.get_run(run).data.metrics["test/accuracy"] for run in seeds_run.runs.values()
    ]


def test_a_seed_that_diverges_is_told_and_the_others_count(project: Path) -> None:
    class Jumpy(DiabetesNetwork):
        def on_fit_start(self) -> None:
            self.is_bad = torch.initial_seed() == 1

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (math.inf if self.is_bad else 1)

    topic = dataclasses.replace(topics.find("diabetes"), model=Jumpy)
    result = train(topic, data=BUNDLED, trainer=QUICK, seeds=3)
    assert result.failed.keys() == {"seed 1"}
    assert not result.ok
    assert "seed 1" in result.card
    assert dlcourse.open_store().client.get_run(result.runs["seed 1"]).info.status == "FAILED"
    with pytest.raises(CourseError, match="of 2 trainings failed"):
        train(topic, data=BUNDLED, model={"lr": 1e6}, trainer=QUICK, seeds=2)


def test_seeds_without_other_rows_claim_nothing(project: Path) -> None:
    for topic, config in [("study-hours", "default"), ("gradient-descent", "theta-squared")]:
        result = train(topic, config=config, trainer={"max_epochs": 3}, seeds=2)
        assert "2 of 2 seeds" in result.sentence
        assert "learned" not in result.sentence
        assert not any(result.differences.values())
        assert (result.best, result.eval_split) == ("seed 0", "train")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"seeds": 1}, "--seeds"),
        ({"seeds": 2, "folds": 2}, "--seeds"),
        ({"seeds": 2, "refit": True}, "--refit"),
        ({"seeds": 2, "seed": 2**32 - 1}, "--seed"),
    ],
)
def test_seeds_that_cannot_be(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        train("diabetes", **arguments)
