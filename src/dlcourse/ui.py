"""MLflow's own pages on the store in force."""

import os
import socket
import subprocess
import sys

from dlcourse.errors import CourseError
from dlcourse.ranges import PositiveInt
from dlcourse.tracking import open_store


def ui(*, host: str = "127.0.0.1", port: PositiveInt = 5000) -> int:
    """Serve the runs to a browser until Ctrl-C.

    Args:
        host: Address to serve on; 0.0.0.0 lets other machines in, whoever they are.
        port: Port to serve on.
    """
    store = open_store()
    if store.uri.startswith("http"):
        print(f"the runs are on a server: open {store.uri}")
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CourseError(f"port {port} of {host} is taken: choose another with --port, say {port + 1}") from error
    print(f"open http://{host}:{port}/#/experiments (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    if store.folder:
        command += ["--default-artifact-root", (store.folder / "artifacts").as_uri()]
    try:
        return subprocess.run(command, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}, check=False).returncode
    except KeyboardInterrupt:
        return 0
