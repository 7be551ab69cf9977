"""MLflow's pages as a browser shows them."""

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Page, expect

import dlcourse
from dlcourse.cli import main
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.ui import links
from tests.browser import browser, needs_chromium, page
from tests.conftest import shared_project
from tests.processes import free_port, start_command, wait_for_line

__all__ = ["browser", "page"]  # fixtures
ONLY_FOR_LANGUAGE_MODELS = ("Judges", "Sessions", "Playground", "Prompts", "Observability")

pytestmark = pytest.mark.slow


@dataclass
class Pages:
    """`dlcourse ui`, serving one training."""

    process: ForkServerProcess
    output: Path
    run: dlcourse.Result
    link: str


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Pages]:
    with shared_project(tmp_path_factory, made_store) as project:
        run = dlcourse.train("height-weight", trainer={"max_epochs": 3}, name="my first training")
    process, output = start_command(project, "ui", "--port", free_port())
    try:
        wait_for_line("  height-weight  ", output, process)
        link = output.read_text().split()[-1]
        yield Pages(process, output, run, link)
    finally:
        process.terminate()


def opened(page: Page, address: str, text: str) -> str:
    """All that a page shows, once a text is there."""
    page.goto(address)
    expect(page.get_by_text(text, exact=True).first).to_be_visible()
    return " ".join(page.locator("body").inner_text().split())


def check_it_is_for_trainings(shown: str) -> None:
    for word in ("Model training", "Runs", "Models", "Model registry"):
        assert word in shown
    for word in (*ONLY_FOR_LANGUAGE_MODELS, "Ask questions about your experiments"):
        assert word not in shown


@needs_chromium
def test_the_link_opens_the_runs_as_trainings(page: Page, pages: Pages) -> None:
    shown = opened(page, pages.link, "my first training")
    assert "baseline: mean" not in shown
    check_it_is_for_trainings(shown)


@needs_chromium
def test_pages_opened_from_there_stay_with_trainings(page: Page, pages: Pages) -> None:
    opened(page, pages.link, "my first training")
    address = pages.link.replace("/start", "/").partition("#")[0]
    shown = opened(page, f"{address}#/experiments/1/runs/{pages.run.run_id}", "test/mse")
    for word in ("my first training", "model.lr", "verdict"):
        assert word in shown
    check_it_is_for_trainings(shown)


def test_ctrl_c_ends_the_server_and_all_that_it_started(pages: Pages) -> None:
    family = psutil.Process(pages.process.pid).children(recursive=True)
    assert len(family) >= 2
    assert "mlflow.db" not in str([process.cmdline() for process in family]), "an address may hold a password"
    assert pages.process.pid
    os.kill(pages.process.pid, signal.SIGINT)
    pages.process.join(30)
    assert pages.process.exitcode == 0
    assert "Traceback" not in pages.output.read_text()
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_port_that_is_taken(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"dlcourse: port {port} of 127.0.0.1 cannot be served on (Address already in use)")
    assert "choose another with --port" in said
    assert said.count("\n") == 1


def test_without_runs_the_link_is_to_the_list_of_experiments(project: Path) -> None:
    shown = links(open_store(), None, "http://a.server/", str)
    assert shown == "  no runs yet  http://a.server/#/experiments?workflowType=machine_learning"
