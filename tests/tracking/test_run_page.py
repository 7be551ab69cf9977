"""What MLflow's pages of a run and of models show at first, in a window of 1440 by 900."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import dlcourse
from tests.browser import browser, needs_chromium, page
from tests.conftest import shared_project
from tests.processes import free_port, start_command, wait_for_line

__all__ = ["browser", "page"]  # fixtures
pytestmark = [pytest.mark.slow, needs_chromium]


@dataclass
class Pages:
    """`dlcourse ui` on two trainings, the second of which diverged."""

    address: str
    result: dlcourse.Result
    diverged: dlcourse.Result


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Pages]:
    with shared_project(tmp_path_factory, made_store) as project:
        result = dlcourse.train("height-weight", trainer={"max_epochs": 3})
        diverged = dlcourse.train("height-weight", model={"lr": 50.0}, trainer={"max_epochs": 3}, name="too fast")
    port = free_port()
    process, output = start_command(project, "ui", "--port", port)
    try:
        wait_for_line("  height-weight  ", output, process)
        yield Pages(f"http://127.0.0.1:{port}/start#/experiments/1", result, diverged)
    finally:
        process.terminate()


def bottom_of_box(page: Page) -> float:
    """Where the part of the description that is shown at first ends, in pixels from above."""
    box = page.get_by_test_id("truncation-gradient").bounding_box()
    assert box
    return box["y"] + box["height"]


def test_a_runs_page_shows_verdict_metric_and_curves_without_a_click(pages: Pages, page: Page) -> None:
    page.goto(f"{pages.address}/runs/{pages.result.run_id}")
    curves = page.locator("img[src*='learning-curves-small.png']")
    expect(curves).to_have_js_property("naturalWidth", 200)
    box = curves.bounding_box()
    assert box
    assert box["y"] + 70 <= bottom_of_box(page), "all of it but its lower margin"
    for text in (pages.result.verdict.sentence.partition(": ")[2], "test mse", "overfitting"):
        line = page.locator("td", has_text=text).bounding_box()
        assert line
        assert line["y"] + line["height"] <= bottom_of_box(page) + 20, text


def test_no_picture_pushes_the_right_column_out_of_the_window(pages: Pages, page: Page) -> None:
    page.goto(f"{pages.address}/runs/{pages.result.run_id}")
    page.get_by_test_id("show-comment-toggle").click()
    for name in ("learning-curves.png", "fitted-line.png"):
        expect(page.locator(f"img[src*='figures%2F{name}']")).not_to_have_js_property("naturalWidth", 0)
    column = page.get_by_text("About this run").bounding_box()
    assert column
    assert column["x"] + column["width"] <= 1440
    expect(page.get_by_text("same predictions on 20 rows")).to_be_visible()


def test_a_baselines_page_is_a_click_away(pages: Pages, page: Page) -> None:
    page.goto(f"{pages.address}/runs/{pages.result.run_id}")
    with page.expect_popup() as opened:
        page.get_by_role("link", name="least-squares").click()
    expect(opened.value.get_by_role("heading", name="baseline: least-squares")).to_be_visible()


def test_a_training_that_diverged_says_why(pages: Pages, page: Page) -> None:
    page.goto(f"{pages.address}/runs/{pages.diverged.run_id}")
    expect(page.locator("td", has_text="diverged: the loss was")).to_be_visible()


def test_models_are_listed_by_name(pages: Pages, page: Page) -> None:
    page.goto(f"{pages.address}/models")
    expect(page.get_by_role("link", name=pages.result.run_name.replace(".", "_")).first).to_be_visible()


def test_a_runs_description_leads_to_the_metrics_of_all_models_as_bars(pages: Pages, page: Page) -> None:
    page.goto(f"{pages.address}/runs/{pages.result.run_id}")
    page.get_by_test_id("show-comment-toggle").click()
    with page.expect_popup() as opened:
        page.locator("a[href*='models?viewMode=CHART']").click()
    expect(opened.value.get_by_text("test/mse").first).to_be_visible()


def test_a_models_page_has_metrics_data_set_and_settings(pages: Pages, page: Page) -> None:
    page.goto(f"{pages.address}/models/{str(pages.result.model_uri).removeprefix('models:/')}")
    for text in ("Metrics (3)", "test/mse", "Parameters (", "model.lr", "height-weight (test)"):
        expect(page.get_by_text(text).first).to_be_visible()
    expect(page.get_by_text(pages.result.verdict.sentence.partition(": ")[2])).to_be_visible()
