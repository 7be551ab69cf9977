"""Serve a topic's champion by MLflow's scoring server."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from numpy.typing import NDArray

from dlcourse.data.rows import SPLITS
from dlcourse.errors import CourseError
from dlcourse.evaluation.chosen import known_topic, metrics_of
from dlcourse.evaluation.evaluation import final_name
from dlcourse.export.registry import ALIAS, Champion, champion, registered_name
from dlcourse.settings import PositiveInt
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.run import reason
from dlcourse.tracking.server import base_address, run_server
from dlcourse.tracking.store import Store

MOST_NUMBERS = 50
"""Of an input that is shown as a command for curl."""


def serve(topic: str | Topic, *, host: str = "127.0.0.1", port: PositiveInt = 5001) -> int:
    """Serve a topic's champion until Ctrl-C.

    Starts ``mlflow models serve``, and prints the address, which model it is, and a request to try.

    Args:
        topic: A topic's name, or your own `Topic`; or the name of an experiment of `train_module`.
        host: Address to serve on; 0.0.0.0 lets other machines in, and the server asks nobody who they are.
        port: Port to serve on.

    Returns:
        The exit status: 0 after Ctrl-C, 128 and the signal's number after another signal.

    Raises:
        SettingsError: There is no such topic or experiment.
        CourseError: There is no champion, the port is taken, or the server ended by itself.
    """
    store = open_store()
    name, known = known_topic(store, topic)
    current = champion(store, name)
    if current is None:
        raise CourseError(f"{name} has no champion in {store.shown}: choose one by dlcourse promote {name}")
    address = f"{base_address(host, port)}/invocations"
    command = request(address, example(store, name, current.version))
    text = f"{address} answers by\n  {described(store, known, current)}\ntry\n  {command}"
    variables = {
        "MLFLOW_TRACKING_URI": store.uri,
        # MLflow starts uvicorn by its name, and a Python that was called by its path has not its folder on the path.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "UVICORN_ACCESS_LOG": "false",  # a line for each request
    }
    arguments = ["models", "serve", "--model-uri", f"models:/{registered_name(name)}@{ALIAS}", "--env-manager", "local"]
    return run_server(arguments, variables, host, port, name="MLflow's scoring server", describe=lambda: text)


def described(store: Store, topic: Topic | None, current: Champion) -> str:
    """The champion in words: version, run, and the metric that its verdict is based on."""
    run = store.get_run(current.run_id)
    if run is None:
        return f"version {current.version}, whose run is gone"
    metric = metrics_of(topic)[0] if topic else "loss"
    names = [final_name(split, metric) for split in reversed(SPLITS)]
    measured = next((f", {name} {run.data.metrics[name]:.4g}" for name in names if name in run.data.metrics), "")
    return f"version {current.version}: {run.info.run_name} ({current.run_id}){measured}"


def example(store: Store, experiment: str, version: str) -> NDArray[Any]:
    """The first row of the input example of a champion's version, 1 x shape.

    Raises:
        CourseError: Its files cannot be had.
    """
    try:
        location = store.client.get_model_version_download_uri(registered_name(experiment), version)
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(location, dst_path=folder, tracking_uri=store.uri)
            rows: Any = Model.load(path).load_input_example(path)  # MLflow calls its type a text
    except (MlflowException, OSError) as error:
        raise CourseError(
            f"the files of the champion, version {version}, cannot be had ({reason(error)}): promote another run by "
            f"dlcourse promote {experiment} RUN --force"
        ) from error
    first: NDArray[Any] = rows[:1]
    return first


def request(address: str, rows: NDArray[Any]) -> str:
    """A command that asks a server for the predictions of some rows: by curl, or of large inputs by Python."""
    if rows.size > MOST_NUMBERS:
        inputs = f"numpy.zeros({rows.shape}, '{rows.dtype}').tolist()"
        post = f"requests.post('{address}', json={{'inputs': {inputs}}})"
        return f'python -c "import numpy, requests; print({post}.json())"'
    # As text, a float32 has no more digits than it needs: 0.1, and not 0.10000000149011612.
    numbers = rows.astype(str).astype(float) if rows.dtype.kind == "f" else rows
    return f"curl {address} -H 'Content-Type: application/json' -d '{json.dumps({'inputs': numbers.tolist()})}'"
