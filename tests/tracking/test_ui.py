"""MLflow's pages as a browser shows them."""

import html
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest

import dlcourse
from dlcourse.cli import main
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.ui import links
from tests.processes import free_port, start_command, wait_for_line

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ONLY_FOR_LANGUAGE_MODELS = {"Judges", "Sessions", "Playground", "Prompts", "Observability"}

pytestmark = pytest.mark.slow
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to look at the pages with")


@dataclass
class Pages:
    """`dlcourse ui`, serving one training, and a browser that has just been installed."""

    process: ForkServerProcess
    output: Path
    run: dlcourse.Result
    link: str
    browser: Path

    def words(self, address: str, *flags: str) -> list[str]:
        """The texts of a page, once its scripts have run."""
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += [f"--user-data-dir={self.browser}", "--virtual-time-budget=15000", "--window-size=1600,1000"]
        page = subprocess.run([*command, *flags, address], capture_output=True, text=True, timeout=120, check=True)
        shown = re.sub(r"<(script|style).*?</\1>", "", page.stdout, flags=re.DOTALL)
        return [html.unescape(word).strip() for word in re.split(r"<[^>]*>", shown) if word.strip()]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Pages]:
    project = tmp_path_factory.mktemp("project")
    (project / "mlruns").mkdir()
    shutil.copy(made_store, project / "mlruns" / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(project)
        run = dlcourse.train("height-weight", trainer={"max_epochs": 3}, name="my first training")
    process, output = start_command(project, "ui", "--port", free_port())
    try:
        wait_for_line("  height-weight  ", output, process)
        link = output.read_text().split()[-1]
        yield Pages(process, output, run, link, tmp_path_factory.mktemp("browser"))
    finally:
        process.terminate()


@needs_chromium
def test_the_link_opens_the_runs_as_trainings(pages: Pages) -> None:
    words = pages.words(pages.link, "--dump-dom")
    assert {"my first training", "baseline: mean", "baseline: least-squares", "baseline: ridge"} <= set(words)
    assert {"Model training", "Runs", "Models", "Model registry"} <= set(words)
    assert not ONLY_FOR_LANGUAGE_MODELS & set(words)
    assert not any(word.startswith("Ask questions about your experiments") for word in words)


@needs_chromium
def test_pages_opened_from_there_stay_with_trainings(pages: Pages) -> None:
    pages.words(pages.link, "--dump-dom")
    address = pages.link.partition("/start")[0]
    words = pages.words(f"{address}/#/experiments/1/runs/{pages.run.run_id}", "--dump-dom")
    assert {"my first training", "test/mse", "model.lr", "verdict"} <= {word.rstrip(":") for word in words}
    assert "Models" in words
    assert not ONLY_FOR_LANGUAGE_MODELS & set(words)


@needs_chromium
def test_a_picture_of_the_runs(pages: Pages, tmp_path: Path) -> None:
    pages.words(pages.link, f"--screenshot={tmp_path / 'runs.png'}")
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


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
