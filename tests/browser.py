"""Chromium as it has just been installed, in a window of 1440 by 900, for tests that look at MLflow's pages."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
PATIENCE = 60_000
"""Milliseconds until a text has to be there: two test processes share two cores."""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to look at the pages with")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window with a profile of its own, in which nothing is kept yet."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def headers(page: Page) -> list[str]:
    """The names of the table's columns that are within the window, from left to right."""
    heads = page.locator(".ag-header-cell:not(.ag-header-cell-hidden)")
    boxes = [(head.bounding_box(), head.inner_text().strip()) for head in heads.all()]
    shown = sorted((box["x"], text) for box, text in boxes if box and text and box["x"] + box["width"] <= 1440)
    return [text for _, text in shown]


def column(page: Page, identifier: str) -> list[str]:
    """The texts of a table's column, from top to bottom; its identifier is as in a saved view."""
    cells = page.locator(f'.ag-row .ag-cell[col-id="{identifier}"]')
    boxes = [(cell.bounding_box(), cell.inner_text().strip()) for cell in cells.all()]
    return [text for _, text in sorted((box["y"], text) for box, text in boxes if box)]


def charts(page: Page) -> dict[str, tuple[float, float]]:
    """Where the charts that are whole in the window begin, x and y, by their titles."""
    places = {}
    for card in page.get_by_test_id("experiment-view-compare-runs-card").all():
        box = card.bounding_box()
        if box and box["y"] + box["height"] <= 900:
            places[card.locator("h4").first.inner_text()] = (box["x"], box["y"])
    return places
