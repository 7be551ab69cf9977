"""Which model becomes the champion, which is refused, and that the registry says why."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.artifacts
import pytest
import torch
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model

import dlcourse
from dlcourse import topics
from dlcourse.cli import main
from dlcourse.errors import CourseError
from dlcourse.evaluation.differences import compare_chosen
from dlcourse.export.registry import champion, registered_name
from dlcourse.reporting.result import Result
from dlcourse.training.initial_weights import check_validation_unseen
from tests.conftest import shared_project
from tests.servers import Server

NAME = "dlcourse-diabetes"
Runs = dict[str, Result]


def trained(name: str, lr: float = 0.02, epochs: int = 8, **arguments: Any) -> Result:
    result = dlcourse.train(
        "diabetes", model={"hidden": [4], "lr": lr}, trainer={"max_epochs": epochs}, name=name, **arguments
    )
    assert isinstance(result, Result)
    return result


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Runs]:
    """Trainings of diabetes by name; their project is the current folder."""
    with shared_project(tmp_path_factory, made_store):
        first = {"bad": trained("bad", 1e-6, 1), "good": trained("good"), "alike": trained("alike", seed=1)}
        yield first | {
            "from good": trained("from good", epochs=2, init_from="good"),
            "other": trained("other", data={"split_seed": 1}),
            "refit": trained("refit", refit=True),
        }


@pytest.fixture(autouse=True)
def no_champion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins without one."""
    yield
    if "runs" in request.fixturenames:
        client = dlcourse.open_store().client
        for model in client.search_registered_models():
            client.delete_registered_model(model.name)


def versions() -> list[ModelVersion]:
    """What is registered, the first version first."""
    client = dlcourse.open_store().client
    return sorted(client.search_model_versions(f"name = '{NAME}'"), key=lambda each: int(each.version))


def champions_run() -> str:
    current = champion(dlcourse.open_store(), "diabetes")
    assert current
    return current.run_id


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The card of a promotion that changes nothing."""
    before = [each.version for each in versions()]
    capsys.readouterr()
    assert main(["promote", "diabetes", *arguments]) == 1
    card = capsys.readouterr().out
    assert [each.version for each in versions()] == before, "a refused model is not registered"
    (line,) = [line for line in card.splitlines() if line.startswith("  reason")]
    assert "--force" in line
    return line


def test_the_first_becomes_the_champion_and_its_version_says_why(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, good = dlcourse.open_store(), runs["good"]
    assert champion(store, "diabetes") is None
    assert main(["promote", "diabetes", "good"]) == 0
    card = capsys.readouterr().out
    assert champion(store, "diabetes") == (good.run_id, str(good.model_uri).removeprefix("models:/"), "1")
    (version,) = versions()
    assert good.verdict.sentence in version.description
    assert good.verdict.sentence in card
    assert f"/runs/{good.run_id})" in version.description
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)  # of models:/ MLflow looks nowhere else
    folder = mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion")
    assert Model.load(folder).model_id == champion(store, "diabetes")[1]  # type: ignore[index]


def test_the_champion_again_changes_nothing(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    dlcourse.promote("diabetes", "good")
    assert main(["promote", "diabetes", runs["good"].run_id, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["version"]) == ("the champion already", "1")
    assert len(versions()) == 1
    assert dlcourse.promote("diabetes", "good", force=True).version == "1"


def test_only_a_better_one_takes_over(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    dlcourse.promote("diabetes", "bad")
    assert main(["promote", "diabetes", "good"]) == 0
    assert champions_run() == runs["good"].run_id
    assert "better in validation accuracy" in versions()[-1].description
    assert "worse" in refused("bad", capsys=capsys)
    assert "cannot be told apart" in refused("alike", capsys=capsys)
    assert champions_run() == runs["good"].run_id


def test_the_best_is_tested_as_one_of_many(runs: Runs) -> None:
    dlcourse.promote("diabetes", "bad")
    promotion = dlcourse.promote("diabetes")
    assert promotion.ok
    assert "the best of 4 by val/final_accuracy" in promotion.chosen
    assert "Bonferroni, 4 comparisons" in promotion.reason


def test_force_overrides_and_is_told(runs: Runs) -> None:
    dlcourse.promote("diabetes", "good")
    promotion = dlcourse.promote("diabetes", "bad", force=True)
    assert promotion.ok
    assert champions_run() == runs["bad"].run_id
    for reason in (promotion.reason, versions()[-1].description):
        assert "--force" in reason
        assert "worse in validation accuracy" in reason


def test_what_was_trained_on_its_validation_rows_cannot_be_compared(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    dlcourse.promote("diabetes", "bad")
    assert "--refit" in refused("refit", capsys=capsys)
    assert dlcourse.promote("diabetes", "refit", force=True).ok
    assert "--refit" in refused("good", capsys=capsys)


def test_other_rows_cannot_be_compared(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    dlcourse.promote("diabetes", "bad")
    assert "split" in refused("other", capsys=capsys)


def test_initial_weights_that_know_the_same_training_rows_do_no_harm(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    dlcourse.promote("diabetes", "good")
    assert "told apart" in refused("from good", capsys=capsys)


def test_initial_weights_of_unknown_origin_may_know_the_validation_rows(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    dlcourse.promote("diabetes", "bad")
    store, run = dlcourse.open_store(), runs["from good"].run_id
    store.client.set_tag(run, "dlcourse.init_from", "0" * 32)
    try:
        assert "unknown" in refused("from good", capsys=capsys)
    finally:
        store.client.set_tag(run, "dlcourse.init_from", runs["good"].run_id)


def test_initial_weights_that_know_the_validation_rows(runs: Runs) -> None:
    """As of a training that was evaluated on test rows: only those does a training with initial weights refuse."""
    store = dlcourse.open_store()
    store.client.set_tag(runs["other"].run_id, "dlcourse.init_from", runs["good"].run_id)
    other = store.client.get_run(runs["other"].run_id)
    store.client.delete_tag(runs["other"].run_id, "dlcourse.init_from")
    with pytest.raises(CourseError, match="validation rows of other were training rows of good"):
        check_validation_unseen(store, topics.find("diabetes"), other)


def test_a_champion_that_is_gone_from_the_store(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    client = dlcourse.open_store().client
    dlcourse.promote("diabetes", "bad")
    client.delete_run(runs["bad"].run_id)
    try:
        assert "gone" in refused("good", capsys=capsys)
        assert dlcourse.promote("diabetes", "good", force=True).ok
    finally:
        client.restore_run(runs["bad"].run_id)
    dlcourse.promote("diabetes", "other", force=True)
    client.delete_logged_model(str(runs["other"].model_uri).removeprefix("models:/"))
    assert "gone" in refused("good", capsys=capsys)


def test_a_run_without_a_verified_model_is_one_line(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    client, model = dlcourse.open_store().client, str(runs["alike"].model_uri).removeprefix("models:/")
    client.finalize_logged_model(model, LoggedModelStatus.FAILED)
    try:
        for run in ("nobody", "alike"):
            assert main(["promote", "diabetes", run, "--force"]) == 1
            assert capsys.readouterr().err.count("\n") == 1
    finally:
        client.finalize_logged_model(model, LoggedModelStatus.READY)
    assert versions() == []
    assert main(["promote", "diabetes", "good", "--force", "perhaps"]) == 2


def test_a_store_that_is_a_server_and_runs_without_validation_rows(
    server: Server, made_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    for seed in (0, 1):
        dlcourse.train("study-hours", seed=seed, name=f"seed {seed}", trainer={"max_epochs": 1})
    assert dlcourse.promote("study-hours", "seed 0").ok
    second = dlcourse.promote("study-hours", "seed 1")
    assert not second.ok
    assert "validation rows" in second.reason
    assert dlcourse.promote("study-hours", "seed 1", force=True).ok
    assert champion(dlcourse.open_store(), "study-hours") == (second.run_id, second.model_id, "2")
    folder = mlflow.artifacts.download_artifacts(f"models:/{registered_name('study-hours')}@champion")
    assert Model.load(folder).model_id == second.model_id


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_best_of_many_equal_models_is_promoted_in_few_cases(metric: str) -> None:
    """Models whose rows are drawn alike, beside a champion that is one of them: the best of k is no better."""
    draw, count, rows = torch.Generator().manual_seed(0), 300, 100
    for tried in (1, 10):
        promoted = 0
        for _ in range(count):
            hard = torch.rand(rows, generator=draw)  # some rows are harder for all
            values = torch.rand(tried + 1, rows, generator=draw).add(hard).double()
            values = (values < 1.4).double() if metric == "accuracy" else values
            higher = metric == "accuracy"
            means = values[1:].mean(1)
            best = values[1:][means.argmax() if higher else means.argmin()]
            answer = compare_chosen(best, values[0], higher_is_better=higher, num_tried=tried)
            promoted += answer.outcome == "better"
        assert promoted <= 0.05 * count, tried


def test_a_model_that_is_much_better_is_so_as_the_best_of_ten() -> None:
    draw = torch.Generator().manual_seed(0)
    champions, best = ((torch.rand(200, generator=draw) < share).double() for share in (0.6, 0.9))
    answer = compare_chosen(best, champions, higher_is_better=True, num_tried=10)
    assert (answer.outcome, answer.hypotheses) == ("better", 10)
