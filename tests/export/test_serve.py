"""Serving the champion: real requests to MLflow's own scoring server, as docs/serving.md has them."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import requests
import torch
import uvicorn
from mlflow import pyfunc
from mlflow.pyfunc import scoring_server
from torch import Tensor

import dlcourse
from dlcourse.cli import main
from dlcourse.export.serve import request
from dlcourse.reporting.result import Result
from tests.conftest import ROOT, shared_project
from tests.examples import block
from tests.export.test_model import BLOCKED
from tests.image_sets import write_fashion_mnist
from tests.processes import free_port, start_command, wait_for_line, words_of

JSON = {"Content-Type": "application/json"}
PARQUET = {"Content-Type": "application/vnd.apache.parquet"}

pytestmark = pytest.mark.slow


@dataclass
class Served:
    """`dlcourse serve diabetes`, with a champion that was trained for two epochs."""

    process: ForkServerProcess
    output: Path
    run: Result
    address: str

    def post(self, data: str, headers: dict[str, str] = JSON) -> requests.Response:
        return requests.post(self.address, data, headers=headers, timeout=60)

    def rows(self, count: int) -> Tensor:
        """Test rows, count x 8."""
        assert self.run.data
        return self.run.data.rows.inputs[self.run.data.splits["test"][:count]]  # type: ignore[union-attr]

    def answers(self, rows: Tensor) -> Tensor:
        """What the trained module says: the probability of each class, count x 2."""
        assert self.run.model
        with torch.no_grad():
            second = torch.sigmoid(self.run.model.eval()(rows))
        return torch.cat([1 - second, second], 1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[Served]:
    with shared_project(tmp_path_factory, made_store) as project:
        run = dlcourse.train("diabetes", trainer={"max_epochs": 2})
        assert isinstance(run, Result)
        dlcourse.promote("diabetes")
        port = free_port()
        process, output = start_command(project, "serve", "diabetes", "--port", port)
        try:
            wait_for_line("Ctrl-C ends it", output, process)
            yield Served(process, output, run, f"http://127.0.0.1:{port}/invocations")
        finally:
            process.terminate()


def test_the_answer_is_the_models_own(served: Served) -> None:
    rows = served.rows(5)
    answer = served.post(json.dumps({"inputs": rows.tolist()}))
    assert answer.status_code == 200
    torch.testing.assert_close(torch.tensor(answer.json()["predictions"]), served.answers(rows))


def test_it_says_which_model_answers_and_a_request_that_can_be_typed(served: Served) -> None:
    text = served.output.read_text()
    assert served.address in text
    for what in ("version 1", served.run.run_id, f"test/accuracy {served.run.metrics['test/accuracy']:.4g}"):
        assert what in text
    command = next(line for line in text.splitlines() if line.strip().startswith("curl "))
    address, header, data = [word for word in shlex.split(command)[1:] if not word.startswith("-")]
    assert (address, header) == (served.address, "Content-Type: application/json")
    assert len(served.post(data).json()["predictions"]) == 1


@pytest.mark.parametrize(
    "inputs", [[[1.0, 2.0]], [[1.0], [1.0, 2.0]], [["one"] * 8], "text", [], {"a": 1}], ids=lambda each: str(each)[:12]
)
def test_what_it_cannot_take_is_refused_and_it_goes_on(served: Served, inputs: Any) -> None:
    assert served.post(json.dumps({"inputs": inputs})).status_code == 400
    assert served.post("no JSON").status_code == 400
    assert served.post(json.dumps({"inputs": served.rows(1).tolist()})).status_code == 200


def test_many_clients_at_once_get_the_same_answer(served: Served) -> None:
    data = json.dumps({"inputs": served.rows(1).tolist()})

    def ask(count: int) -> set[tuple[int, str]]:
        with requests.Session() as session:
            answers = [session.post(served.address, data, headers=JSON, timeout=60) for _ in range(count)]
        return {(each.status_code, each.text) for each in answers}

    with ThreadPoolExecutor(8) as clients:
        (answer,) = set.union(*clients.map(ask, [125] * 8))
    assert answer[0] == 200


def test_the_request_of_the_page_and_its_answer(served: Served) -> None:
    """The figures are those of another training: the form is compared."""
    page, shown = block("docs/serving.md", "request"), block("docs/serving.md", "answer")
    _, address, _, _, _, data = shlex.split(page)
    assert address == "http://127.0.0.1:5001/invocations"
    number = re.compile(r"[\d.]+")
    assert number.sub("#", served.post(data).text) == number.sub("#", shown.strip())


def test_another_project_loads_the_champion_without_this_package(served: Served, tmp_path: Path) -> None:
    example = block("docs/serving.md", "example: consumer.py")
    store = re.search(r"set_tracking_uri\((.*)\)", example)
    assert store
    example = example.replace(store[1], repr(dlcourse.open_store().uri))
    (tmp_path / "consumer.py").write_text(BLOCKED + example, encoding="utf-8")
    command = [sys.executable, "consumer.py"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert process.returncode == 0, process.stderr
    rows = torch.tensor(json.loads(block("docs/serving.md", "request").split("'")[-2])["inputs"])
    numbers = [float(each) for each in re.findall(r"\d\.\d+(?:e-\d+)?", process.stdout)]
    torch.testing.assert_close(torch.tensor([numbers]), served.answers(rows), rtol=1e-4, atol=1e-4)


def test_commands_of_the_page(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    lines = [line for code in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in code.splitlines()]
    typed = [line.partition("#")[0].strip() for line in lines]
    promotions = [shlex.split(line)[1:] for line in typed if line.startswith("dlcourse promote")]
    assert promotions
    for words in promotions:
        assert main(words) == 0, words
    assert [words_of(line, ROOT) for line in typed if line.startswith("make serve-")] == [["serve", "diabetes"]]


def test_a_port_that_is_taken(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    port = served.address.split(":")[2].partition("/")[0]
    assert main(["serve", "diabetes", "--port", port]) == 1
    said = capsys.readouterr().err
    assert "--port" in said
    assert said.count("\n") == 1


def test_ctrl_c_ends_the_server_and_all_that_it_started(served: Served) -> None:
    assert served.process.pid
    family = psutil.Process(served.process.pid).children(recursive=True)
    assert family
    assert "mlflow.db" not in str([process.cmdline() for process in family]), "an address may hold a password"
    os.kill(served.process.pid, signal.SIGINT)
    served.process.join(30)
    assert served.process.exitcode == 0
    assert "Traceback" not in served.output.read_text()
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []


def test_without_a_champion(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "diabetes"]) == 1
    said = capsys.readouterr().err
    assert "dlcourse promote diabetes" in said
    assert said.count("\n") == 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> Iterator[tuple[str, Result]]:
    """MLflow's server in a thread, with a model of uint8 pixels: its address, and the model's run."""
    with shared_project(tmp_path_factory, made_store) as project, pytest.MonkeyPatch.context() as patch:
        write_fashion_mnist(project / "data", patch, train=30, test=10)
        run = dlcourse.train(
            "fashion-mnist",
            data={"val_rows": 10, "batch_size": 10},
            model={"compile": False},
            trainer={"max_epochs": 1},
        )
        assert isinstance(run, Result)
        store = dlcourse.open_store()
        model = pyfunc.load_model(store.client.get_logged_model(str(run.model_uri)[8:]).artifact_location)
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "")  # which the server sets
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(scoring_server.init(model), port=port, log_level="critical"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/invocations", run
        server.should_exit = True
        thread.join()


def test_what_it_takes_of_pictures(pictures: tuple[str, Result]) -> None:
    address, run = pictures
    assert run.data
    assert run.model
    images = run.data.rows.inputs[run.data.splits["test"]].numpy()  # type: ignore[union-attr]
    flat = BytesIO()
    pd.DataFrame({"pixels": list(images.reshape(len(images), -1))}).to_parquet(flat)
    with torch.no_grad():
        expected = run.model.eval()(torch.from_numpy(images)).softmax(1)
    for data, headers in ((json.dumps({"inputs": images.tolist()}), JSON), (flat.getvalue(), PARQUET)):
        answer = requests.post(address, data, headers=headers, timeout=60)
        torch.testing.assert_close(torch.tensor(answer.json()["predictions"]), expected, rtol=1e-3, atol=1e-4)
    for pixel in (256, -1, "a"):
        wrong = json.dumps({"inputs": [[[[pixel] * 28] * 28]]})
        assert requests.post(address, wrong, headers=JSON, timeout=60).status_code == 400


def test_pictures_as_on_the_page(pictures: tuple[str, Result], tmp_path: Path) -> None:
    address, _ = pictures
    code = block("docs/serving.md", "example: pictures").replace("http://127.0.0.1:5001/invocations", address)
    np.save(tmp_path / "pictures.npy", np.zeros((3, 1, 28, 28), "uint8"))
    (tmp_path / "send.py").write_text(code, encoding="utf-8")
    process = subprocess.run([sys.executable, "send.py"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert process.returncode == 0, process.stderr
    assert np.array(json.loads(process.stdout.replace("'", '"'))).shape == (3, 10)


def test_the_request_that_is_printed_for_pictures(pictures: tuple[str, Result]) -> None:
    command = shlex.split(request(pictures[0], np.zeros((1, 1, 28, 28), np.uint8)))
    process = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert "predictions" in process.stdout
