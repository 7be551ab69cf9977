"""Screenshots of MLflow's pages for docs/mlflow.md: ``python docs/take_screenshots.py FOLDER``.

Trains eight runs of diabetes and three of FashionMNIST's sample in a new project, serves them with ``dlcourse ui``, and
looks at them in headless Chromium with a new profile.
"""

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import dlcourse

WINDOW = {"width": 1440, "height": 900}
SECONDS_TO_DRAW = 3
OTHERS = ["folds", "too fast", "too slow", "seed 2", "seed 1"]
"""All but three."""
COLOURS = 96
"""A picture of a page with so few colours takes a third of its bytes, and looks the same."""


def train_examples(epochs: int | None = None) -> dict[str, str]:
    """Train in the current folder; returns the ids of the runs by name. With ``epochs``, at most so many each."""
    short = {"max_epochs": epochs} if epochs else {}
    wide = {"hidden": [64, 64]}
    results = [dlcourse.train("diabetes", seed=seed, name=f"default, seed {seed}", trainer=short) for seed in range(3)]
    results.append(dlcourse.train("diabetes", name="wide", model=wide, trainer=short))
    results.append(dlcourse.train("diabetes", name="wide, dropout", model={**wide, "dropout": 0.5}, trainer=short))
    results.append(dlcourse.train("diabetes", name="too slow", model={"lr": 1e-5}, trainer=short))
    dlcourse.train("diabetes", name="too fast", model={"optimizer": "sgd", "lr": 1e9}, trainer=short)
    dlcourse.train("diabetes", folds=5, trainer=short)
    for name, hidden in {"narrow": 16, "default": 128, "wide": 512}.items():
        network = {"network": "mlp", "hidden": hidden}
        few = {"max_epochs": epochs or 5}
        dlcourse.train("fashion-mnist", name=name, data={"source": "sample"}, model=network, trainer=few)
    return {result.run_name: result.run_id for result in results}


@contextmanager
def served() -> Iterator[str]:
    """Serve the current folder's runs; gives the link to those of diabetes."""
    command = [sys.executable, "-m", "dlcourse", "ui", "--topic", "diabetes", "--port", "5123"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield next(line.split()[-1] for line in process.stdout if "/start" in line)
        finally:
            process.terminate()


def take(page: Page, address: str, text: str, file: Path) -> None:
    """Save a picture of a page, once this text is on it."""
    page.goto(address)
    page.get_by_text(text).first.wait_for(timeout=60_000)
    save(page, file)


def save(page: Page, file: Path) -> None:
    """Save a picture of what is in the window."""
    page.wait_for_timeout(SECONDS_TO_DRAW * 1000)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(COLOURS).save(file, optimize=True)


def choose(page: Page, hidden: list[str]) -> None:
    """Hide runs from the charts by the eyes in the list."""
    for name in hidden:
        page.locator(f".ag-row:has-text('{name}') label:has(.is-visibility-toggle-checkbox)").first.click()


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as project, contextlib.chdir(project):
        runs = train_examples()
        with served() as link, sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport=WINDOW)
            experiment = link.replace("/start", "/").partition("/runs")[0]
            take(page, link, "too slow", folder / "mlflow-runs.png")
            take(page, f"{experiment}/runs/{runs['default, seed 0']}", "learned", folder / "mlflow-run.png")
            take(page, f"{experiment}/runs?compareRunsMode=CHART", "test/accuracy vs", folder / "mlflow-charts.png")
            choose(page, OTHERS)
            save(page, folder / "mlflow-chosen.png")
            seeds = f"{experiment}/runs?viewStateShareKey=dlcourse-seeds"
            take(page, seeds, "Group: default", folder / "mlflow-seeds.png")
            take(page, f"{experiment}/models?viewMode=CHART", "test/accuracy", folder / "mlflow-models.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
