"""The programs of docs/ that use an exported model, each in an environment that has only the packages it names.

`.ci/run pages` makes the environments, by ``python -m tests.test_pages FOLDER``, and then runs these tests without a
network.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, expect

import dlcourse
from dlcourse.export.exporting import export
from tests.browser import browser, needs_chromium, page
from tests.conftest import ROOT, shared_project
from tests.examples import block

__all__ = ["browser", "page"]

PROGRAMS = {
    "classify.py": "docs/export.md",
    "diabetic.py": "docs/export.md",
    "page.py": "docs/export.md",
    "consumer.py": "docs/serving.md",
}
"""The pages that the programs are on, each after a line that says what to install."""
ENVIRONMENTS = Path(os.environ.get("DLCOURSE_TEST_ENVIRONMENTS", "environments"))

pytestmark = pytest.mark.pages


def packages(program: str) -> list[str]:
    """What the line before a program says to install."""
    before = (ROOT / PROGRAMS[program]).read_text(encoding="utf-8").partition(f"<!-- example: {program} -->")[0]
    return re.findall(r"^pip install (.*)$", before, re.MULTILINE)[-1].split()  # type: ignore[no-any-return]


def make_environments(folder: Path) -> None:
    """Install each program's packages in an environment of its own, if it can in the versions of requirements.lock."""
    uv = shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")
    pins = folder / "pins.txt"
    folder.mkdir(parents=True)
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins.write_text("\n".join(re.findall(r"^[\w.-]+==[^\s\\]+", lock, re.MULTILINE)), encoding="utf-8")
    for program in PROGRAMS:
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / program], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", folder / program / "bin" / "python", *packages(program)]
        # Gradio needs an older version of a package than the lock has.
        pinned = subprocess.run([*install, "--constraint", pins], capture_output=True, check=False)
        if pinned.returncode:
            subprocess.run(install, check=True)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Path]:
    """A folder with the two exported models, the programs, and three of FashionMNIST's test pictures."""
    with shared_project(tmp_path_factory, made_store) as project:
        small = {"max_epochs": 3, "accelerator": "cpu"}
        clothes = dlcourse.train("fashion-mnist", config="quick", data={"source": "sample"}, trainer=small)
        women = dlcourse.train("diabetes", trainer={"max_epochs": 20})
        assert isinstance(clothes, dlcourse.Result)
        assert isinstance(women, dlcourse.Result)
        folder = project / "exports"
        export("fashion-mnist", run=clothes.run_id, format="onnx")
        export("diabetes", run=women.run_id)
        dlcourse.promote("diabetes", women.run_id)
        for number, pixels in enumerate(clothes.data.example_inputs()[:3, 0].numpy()):
            Image.fromarray(pixels).save(folder / f"{number}.png")
        for name, results in (("clothes", clothes), ("women", women)):
            rows = results.data.example_inputs()[:3]
            with torch.no_grad():
                outputs = results.model(rows)
            probabilities = outputs.softmax(1) if name == "clothes" else outputs.sigmoid()
            np.savez(folder / f"{name}.npz", rows=rows, probabilities=probabilities)
        store = f'"{dlcourse.open_store().uri}"'
        for program, place in PROGRAMS.items():
            code = re.sub(r'(?<=set_tracking_uri\()"[^"]*"', store, block(place, f"example: {program}"))
            (folder / program).write_text(code, encoding="utf-8")
        yield folder


def python(program: str) -> str:
    return str(ENVIRONMENTS / program / "bin" / "python")


def run(program: str, *arguments: str, folder: Path) -> str:
    command = [python(program), program, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=240)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_environment_has_no_dlcourse(program: str) -> None:
    command = [python(program), "-c", "import dlcourse"]
    assert "ModuleNotFoundError" in subprocess.run(command, capture_output=True, text=True, cwd="/").stderr


def test_pictures_are_classified_by_onnxruntime(exports: Path) -> None:
    told = run("classify.py", "0.png", "1.png", "2.png", folder=exports).splitlines()
    classes = json.loads((exports / "fashion-mnist.onnx.json").read_text())["classes"]
    with np.load(exports / "clothes.npz") as kept:
        best = kept["probabilities"].argmax(1)
        for number, line in enumerate(told):
            name, probability = re.fullmatch(rf"{number}.png: ([\w -]+), ([\d.]+)%", line).groups()  # type: ignore[union-attr]
            assert name == classes[best[number]]
            assert float(probability) / 100 == pytest.approx(kept["probabilities"][number].max(), abs=0.001)


def test_weights_are_used_by_torch_alone(exports: Path) -> None:
    with np.load(exports / "women.npz") as kept:
        row, (probability,) = kept["rows"][0], kept["probabilities"][0]
        told = run("diabetic.py", *map(repr, row.tolist()), folder=exports)
        assert told == f"diabetic: {probability:.4f}\n"


def test_the_champion_is_loaded_by_mlflow_alone(exports: Path) -> None:
    told = [float(each) for each in re.findall(r"\d\.\d+", run("consumer.py", folder=exports))]
    row = re.findall(r"-?\d\.\d+", block("docs/serving.md", "example: consumer.py"))
    assert f"diabetic: {told[1]:.4f}\n" == run("diabetic.py", *row, folder=exports)
    assert sum(told) == pytest.approx(1)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The page of gradio; it takes its port from the environment."""
    port = 17861
    settings = {"GRADIO_SERVER_PORT": str(port), "no_proxy": "127.0.0.1,localhost"}
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    with (folder / "page.log").open("w") as log:
        process = subprocess.Popen(
            [python("page.py"), "page.py"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, **settings, **nowhere},
        )
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(300):
            assert process.poll() is None, (folder / "page.log").read_text()
            with suppress(OSError):
                direct.open(f"http://127.0.0.1:{port}", timeout=5).close()
                break
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@needs_chromium
def test_a_picture_is_classified_on_the_page_and_nobody_else_is_asked(exports: Path, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with np.load(exports / "clothes.npz") as kept, served(exports) as address:
        best = kept["probabilities"][0].argmax()
        name = json.loads((exports / "fashion-mnist.onnx.json").read_text())["classes"][best]
        page.goto(address)
        page.locator("input[type=file]").first.set_input_files(exports / "0.png")
        expect(page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first).to_be_visible()
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_text(name).first).to_be_visible()
        page.screenshot(path=exports / "page.png")
    assert [each for each in asked if not each.startswith((address, "data:", "blob:"))] == []


if __name__ == "__main__":
    make_environments(Path(sys.argv[1]))
