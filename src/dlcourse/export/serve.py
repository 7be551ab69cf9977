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

from dlcourse.errors import CourseError
from dlcourse.evaluation.chosen import known_topic
from dlcourse.export.description import Description
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
    name, _ = known_topic(store, topic)
    current = champion(store, name)
    if current is None:
        raise CourseError(f"{name} has no champion in {store.shown}: choose one by dlcourse promote {name}")
    address = f"{base_address(host, port)}/invocations"
    said, rows = model_of(store, name, current)
    text = f"{address} answers by\n  {said}\ntry\n  {request(address, rows)}"
    variables = {
        "MLFLOW_TRACKING_URI": store.uri,
        # MLflow starts uvicorn by its name, and a Python that was called by its path has not its folder on the path.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "UVICORN_ACCESS_LOG": "false",  # a line for each request
    }
    arguments = ["models", "serve", "--model-uri", f"models:/{registered_name(name)}@{ALIAS}", "--env-manager", "local"]
    return run_server(arguments, variables, host, port, name="MLflow's scoring server", describe=lambda: text)


def model_of(store: Store, experiment: str, current: Champion) -> tuple[str, NDArray[Any]]:
    """A champion in words, and the first row of its input example, 1 x shape.

    Raises:
        CourseError: Its files cannot be had.
    """
    try:
        location = store.client.get_model_version_download_uri(registered_name(experiment), current.version)
        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(location, dst_path=folder, tracking_uri=store.uri)
            model = Model.load(path)
            rows: Any = model.load_input_example(path)  # MLflow calls its type a text
    except (MlflowException, OSError) as error:
        raise CourseError(
            f"the files of the champion, version {current.version}, cannot be had ({reason(error)}): promote another "
            f"run by dlcourse promote {experiment} RUN --force"
        ) from error
    about = (model.metadata or {}).get("dlcourse")
    known = Description.of(about) if about else None  # None of an earlier version
    said = f"{known.run['name']} ({current.run_id}), {known.quality}" if known else f"run {current.run_id}"
    first: NDArray[Any] = rows[:1]
    return f"version {current.version}: {said}", first


def request(address: str, rows: NDArray[Any]) -> str:
    """A command that asks a server for the predictions of some rows: by curl, or of large inputs by Python."""
    if rows.size > MOST_NUMBERS:
        inputs = f"numpy.zeros({rows.shape}, '{rows.dtype}').tolist()"
        post = f"requests.post('{address}', json={{'inputs': {inputs}}})"
        return f'python -c "import numpy, requests; print({post}.json())"'
    # As text, a float32 has no more digits than it needs: 0.1, and not 0.10000000149011612.
    numbers = rows.astype(str).astype(float) if rows.dtype.kind == "f" else rows
    return f"curl {address} -H 'Content-Type: application/json' -d '{json.dumps({'inputs': numbers.tolist()})}'"
