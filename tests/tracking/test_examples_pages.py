"""The pages of docs/mlflow.md: eight trainings of diabetes and three of FashionMNIST, seen by a browser that is new."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docs.take_screenshots import OTHERS, choose, train_examples
from playwright.sync_api import Page, expect

from dlcourse import topics
from dlcourse.reporting.pages import page_of
from dlcourse.tracking.opening import open_store
from tests.browser import browser, charts, column, headers, needs_chromium, page
from tests.conftest import ROOT, shared_project
from tests.processes import free_port, start_command, wait_for_line

__all__ = ["browser", "page"]  # fixtures
pytestmark = [pytest.mark.slow, needs_chromium]
NEWEST_FIRST = ["default, max_epochs=2, 1 x 5 folds", "too fast", "too slow", "wide, dropout", "wide"]
NEWEST_FIRST += [f"default, seed {seed}" for seed in (2, 1, 0)]


@dataclass
class Pages:
    """Links to the runs of both topics, the ids of runs by name, and the project that they are of."""

    diabetes: str
    fashion_mnist: str
    runs: dict[str, str]
    project: Path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Pages]:
    with shared_project(tmp_path_factory, made_store) as project:
        runs = train_examples(epochs=2)
    process, output = start_command(project, "ui", "--port", free_port())
    try:
        wait_for_line("  fashion-mnist  ", output, process)
        diabetes, fashion_mnist = re.findall(r"http\S+", output.read_text())
        yield Pages(diabetes, fashion_mnist, runs, project)
    finally:
        process.terminate()


def look(page: Page, address: str, name: str) -> None:
    """Open a page, and wait until this run is in its list."""
    page.goto(address)
    expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()


def test_the_table_has_verdicts_and_metrics_and_no_baseline(pages: Pages, page: Page) -> None:
    columns = ["verdict", "test/accuracy", "val/final_accuracy", "overfitting"]
    for link, topic, names in (
        (pages.diabetes, "diabetes", NEWEST_FIRST),
        (pages.fashion_mnist, "fashion-mnist", ["wide", "default", "narrow"]),
    ):
        look(page, link, names[-1])
        for _ in ("opened", "loaded again"):
            expect(page.locator(".ag-cell[col-id='tags.`verdict`']").first).to_be_visible()
            settings = page_of(topics.find(topic)).settings
            assert headers(page) == ["Run Name", "Created", *columns, *settings, "seed", "Duration"]
            verdicts = column(page, "tags.`verdict`")
            assert len(verdicts) == len(names)
            assert all(re.match("learned|diverged", verdict) for verdict in verdicts), verdicts
            assert not page.get_by_text(re.compile("baseline: ")).count()
            page.reload()


def test_sorted_by_the_test_metric_the_best_is_on_top(pages: Pages, page: Page) -> None:
    look(page, pages.diabetes, NEWEST_FIRST[-1])
    client = open_store(pages.project).client
    experiment = client.get_experiment_by_name("diabetes")
    assert experiment
    runs = client.search_runs([experiment.experiment_id], "tags.experiment IS NOT NULL")
    best = max(run.data.metrics.get("test/accuracy", 0) for run in runs)
    page.get_by_test_id("sort-header-test/accuracy").click()
    expect(page.locator(".ag-row[row-index='0'] .ag-cell[col-id='metrics.`test/accuracy`']")).to_have_text(str(best))


def test_charts_of_three_chosen_runs(pages: Pages, page: Page) -> None:
    look(page, f"{pages.diabetes}?compareRunsMode=CHART", NEWEST_FIRST[-1])
    choose(page, OTHERS)
    for _ in ("chosen", "loaded again"):
        expect(page.get_by_role("heading", name="val/loss", exact=True)).to_be_visible()
        assert [*charts(page)][:2] == ["test/accuracy vs test/baseline_accuracy", "val/loss"]
        differences = page.get_by_test_id("experiment-view-compare-runs-card").filter(
            has_text="What the runs differ in"
        )
        for name in ("verdict", "experiment", "overfitting"):
            expect(differences.get_by_text(name, exact=True)).to_be_in_viewport()
        told = [text for text in differences.get_by_text(re.compile("^learned")).all() if text.is_visible()]
        assert len(told) == 3
        page.reload()


def test_the_page_of_a_run_and_that_of_one_which_failed(pages: Pages, page: Page) -> None:
    address = pages.diabetes.replace("/start", "/")
    for _ in ("opened", "loaded again"):
        look(page, f"{address}/{pages.runs['wide']}", "majority")
        expect(page.locator("img[src*='learning-curves-small.png']")).to_be_in_viewport()
        expect(page.get_by_text("About this run")).to_be_in_viewport()
        page.reload()
    store = open_store(pages.project)
    failed = store.find_run("too fast", "diabetes")
    page.goto(f"{address}/{failed.info.run_id}")
    expect(page.get_by_role("cell", name="diverged: the loss was")).to_be_in_viewport()


def test_the_model_in_five_lines_of_python(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "mlflow.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(pages.project)
    names: dict[str, object] = {}
    exec(compile(example, "mlflow.md", "exec"), names)
    import torch

    assert names["model"](torch.zeros(3, 8)).shape == (3, 2)  # type: ignore[operator]
