"""The views that the package saves, as MLflow's pages show them: on its own server, and on any other."""

import json
import re
import shutil
import tarfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import compress

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page, expect

import dlcourse.reporting.pages
from dlcourse import topics
from dlcourse.cli import main
from dlcourse.reporting.pages import page_of, prepare_pages
from dlcourse.tracking import views
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store
from dlcourse.tracking.views import MARKER, NOTE, RESULTS, SEEDS, STATE, runs_address
from tests.browser import browser, column, needs_chromium, page
from tests.made_runs import BASELINES, TRAININGS, VERDICTS, make_runs
from tests.processes import free_port, start_command, wait_for_line
from tests.servers import Server

__all__ = ["browser", "page"]  # fixtures
pytestmark = pytest.mark.slow
NEWEST_FIRST = [*reversed(TRAININGS)]
COLUMNS = ["verdict", "test/accuracy", "val/final_accuracy", "overfitting", *page_of(topics.find("diabetes")).settings]
VERDICT = "tags.`verdict`"
ACCURACY = "metrics.`test/accuracy`"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Store:
    """A store with trainings of diabetes, in an experiment that has no views: `dlcourse ui` writes them."""
    project = tmp_path_factory.mktemp("project")
    (project / "mlruns").mkdir()
    shutil.copy(made_store, project / "mlruns" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = open_store(project)
    make_runs(store)
    return store


@pytest.fixture(scope="module")
def link(served: Store) -> Iterator[str]:
    """The link that `dlcourse ui` prints."""
    assert served.folder
    project = served.folder.parent
    process, output = start_command(project, "ui", "--port", free_port(), "--topic", "diabetes")
    try:
        wait_for_line("  diabetes  ", output, process)
        yield output.read_text().split()[-1]
    finally:
        process.terminate()


def look(page: Page, address: str) -> None:
    """Open the runs in the table, and wait until they are there."""
    page.goto(address)
    expect(page.get_by_role("link", name=NEWEST_FIRST[0], exact=True)).to_be_visible()


@needs_chromium
def test_the_format_is_that_of_these_pages(page: Page, link: str) -> None:
    look(page, link.replace("/start", "/") + "?compareRunsMode=CHART")  # as MLflow shows it without any view
    state = """localStorage.getItem('MLflowLocalStorage-1.1-ExperimentPage-["1"]-ReactComponentState')"""
    expect(page.get_by_test_id("experiment-view-compare-runs-card").first).to_be_visible()
    page.wait_for_timeout(1000)  # until it is kept
    kept = json.loads(page.evaluate(state))
    written = views.means_over_seeds(page_of(topics.find("diabetes")))
    unknown = written.keys() - kept.keys()
    assert not unknown, f"MLflow's pages keep their state by other names now; saved views lose {unknown}: {kept}"


@needs_chromium
def test_a_view_that_the_pages_have_saved_is_opened_too(page: Page, link: str, served: Store) -> None:
    view = json.loads(tags_of(served)[f"{STATE}{RESULTS}"])
    state = json.loads(view["state"]) | {"searchFilter": "tags.experiment = 'default'"}
    view["state"] = "deflate;" + b64encode(compress(json.dumps(state).encode())).decode()
    served.client.set_experiment_tag("1", f"{STATE}{RESULTS}", json.dumps(view))
    try:
        page.goto(link)
        expect(page.locator(f'.ag-cell[col-id="{VERDICT}"]')).to_have_text([VERDICTS["default"]])
    finally:
        prepare_pages(served, topics.find("diabetes"), again=True)


@needs_chromium
def test_means_over_seeds_are_grouped_by_experiment(page: Page, link: str) -> None:
    look(page, link)
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_test_id(f"saved-views-item-{SEEDS}").click()
    for name in TRAININGS:
        expect(page.get_by_text(f"Group: {name}", exact=True)).to_be_visible()


@needs_chromium
def test_columns_that_a_person_has_chosen_stay(page: Page, link: str) -> None:
    look(page, link)
    page.get_by_test_id("column-selection-dropdown").first.click()
    page.get_by_role("treeitem", name="overfitting").or_(page.get_by_title("overfitting")).first.click()
    page.keyboard.press("Escape")
    for _ in ("chosen", "opened by the link again"):
        expect(page.locator('.ag-header-cell[col-id="tags.`overfitting`"]')).to_have_count(0)
        look(page, link)


@needs_chromium
def test_a_server_elsewhere_shows_the_same_at_the_printed_address(
    page: Page, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    make_runs(open_store(), "image-folder")
    assert main(["ui", "--topic", "image-folder"]) == 0
    said = capsys.readouterr().out
    assert "Override saved view" in said
    (address,) = re.findall(r"http\S+", said)
    look(page, address)
    expect(page.locator(f'.ag-cell[col-id="{VERDICT}"]').first).to_be_visible()
    assert column(page, VERDICT) == [VERDICTS[name] for name in NEWEST_FIRST]
    assert not page.get_by_text(re.compile("baseline: ")).count()
    page.get_by_role("button", name="Override saved view").click()
    expect(page.get_by_role("button", name="Override saved view")).to_have_count(0)
    page.reload()
    expect(page.locator(f'.ag-cell[col-id="{VERDICT}"]').first).to_be_visible()


def tags_of(store: Store, experiment: str = "diabetes") -> dict[str, Any]:
    stored = store.client.get_experiment_by_name(experiment)
    assert stored
    return dict(stored.tags)


def test_what_a_person_has_changed_or_deleted_is_not_written_again(project: Path) -> None:
    store, topic = open_store(), topics.find("diabetes")
    prepare_pages(store, topic)
    identifier = store.experiment("diabetes")
    store.client.set_experiment_tag(identifier, f"{STATE}mine", "a view of my own")
    store.client.set_experiment_tag(identifier, f"{STATE}{RESULTS}", "changed")
    store.client.set_experiment_tag(identifier, NOTE, "my note")
    store.client.delete_experiment_tag(identifier, f"{STATE}{SEEDS}")
    before = tags_of(store)
    for _ in range(10):
        prepare_pages(store, topic)
    assert tags_of(store) == before
    prepare_pages(store, topic, again=True)
    after = tags_of(store)
    assert json.loads(after[f"{STATE}{RESULTS}"])["name"] == "Results"
    assert f"{STATE}{SEEDS}" in after
    assert (after[f"{STATE}mine"], after[NOTE]) == ("a view of my own", "my note")


def test_the_note_leads_to_the_views_and_the_lesson(project: Path) -> None:
    store = open_store()
    prepare_pages(store, topics.find("diabetes"))
    identifier, note = store.experiment("diabetes"), tags_of(store)[NOTE]
    for view in (RESULTS, SEEDS):
        assert f"(#/experiments/{identifier}/runs?viewStateShareKey={view})" in note
    assert "docs/diabetes.md" in note


def test_a_training_in_an_experiment_that_has_its_views_asks_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, topic = open_store(), topics.find("diabetes")
    prepare_pages(store, topic)
    monkeypatch.setattr(store.client, "set_experiment_tag", pytest.fail)
    monkeypatch.setattr(Store, "experiment", pytest.fail)
    prepare_pages(store, topic)


@pytest.mark.parametrize("exists", [False, True])
def test_a_view_that_is_refused_is_one_warning(
    project: Path, exists: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    if exists:
        store.experiment("diabetes")
    monkeypatch.setattr(views, "envelope", lambda *_: "x" * 20_001)
    prepare_pages(store, topics.find("diabetes"))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "diabetes" in record.message
    assert MARKER not in store.client.get_experiment(store.experiment("diabetes")).tags


def test_an_older_store_gets_the_views(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(Path(__file__).parent.parent / "old_store.tar.xz") as archive:
        archive.extractall(project, filter="data")
    monkeypatch.setattr(dlcourse.reporting.pages, "serve", lambda *_: 0)
    assert main(["ui"]) == 0
    experiments = MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}").search_experiments()
    assert {each.name for each in experiments if {MARKER, f"{STATE}{RESULTS}", NOTE} <= each.tags.keys()} == {
        *topics.titles()
    }


def test_views_are_written_again_where_it_is_asked_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    prepare_pages(store, topics.find("diabetes"))
    store.client.delete_experiment_tag(store.experiment("diabetes"), f"{STATE}{RESULTS}")
    monkeypatch.setattr(dlcourse.reporting.pages, "serve", lambda *_: 0)
    assert main(["ui"]) == 0
    assert f"{STATE}{RESULTS}" not in tags_of(store)
    assert main(["ui", "--reset-views"]) == 0
    assert f"{STATE}{RESULTS}" in tags_of(store)


def test_an_unknown_topic(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--topic", "diabtes"]) == 2
    said = capsys.readouterr().err
    assert "diabetes" in said
    assert "--topic" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", topics.titles())
def test_every_topic_has_a_page_with_a_lesson_that_is_there(name: str) -> None:
    page = page_of(topics.find(name))
    assert page.metric in ("accuracy", "mse")
    assert (Path(__file__).parents[2] / page.lesson).is_file()
    assert 3 <= len(page.settings) <= 5


def test_the_address_of_a_server_has_no_password() -> None:
    address = runs_address(Store("http://me:secret@a.server:5000", None), "7")
    assert address.startswith(f"http://a.server:5000/#/experiments/7/runs?viewStateShareKey={RESULTS}")


def test_baselines_are_what_the_view_leaves_out(project: Path) -> None:
    store = open_store()
    make_runs(store)
    query = views.results(page_of(topics.find("diabetes")))["searchFilter"]
    runs = store.client.search_runs([store.experiment("diabetes")], query)
    assert len(runs) == len(TRAININGS)
    assert not {f"baseline: {name}" for name in BASELINES} & {run.info.run_name for run in runs}
