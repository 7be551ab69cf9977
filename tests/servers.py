"""MLflow servers that tests start, and a proxy before them that lets in who knows the password."""

import base64
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from tests.processes import free_port, wait_until_it_answers


class Server:
    """A real MLflow server on a database of its own, with artifacts of its own."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        shutil.copy(database, folder / "server.db")
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "kept"), "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, text=True, cwd=self.folder, start_new_session=True
            )
        wait_until_it_answers(f"{self.address}/health", self.process)

    def stop(self) -> None:
        """End it and its workers at once, as where a machine is switched off."""
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for each in family:
            each.kill()
        psutil.wait_procs(family, 30)
        self.process.wait(30)


class Gate:
    """A proxy before a server, to be opened and closed at will, that asks for a name and a password if it has one."""

    def __init__(self, server: str, credentials: str | None = None) -> None:
        expected = f"Basic {base64.b64encode(credentials.encode()).decode()}" if credentials else None
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        self.connections: set[socket.socket] = set()
        connections = self.connections

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keeps connections open, as MLflow's server does

            def setup(self) -> None:
                super().setup()
                connections.add(self.connection)

            def finish(self) -> None:
                connections.discard(self.connection)
                super().finish()

            def pass_on(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if expected and self.headers.get("Authorization") != expected:
                    self.reply(401, b"who are you?", None)
                    return
                own = ("host", "connection", "authorization")
                headers = {name: value for name, value in self.headers.items() if name.lower() not in own}
                asked = urllib.request.Request(server + self.path, content or None, headers, method=self.command)
                try:
                    with direct.open(asked, timeout=60) as answer:
                        self.reply(answer.status, answer.read(), answer.headers.get("Content-Type"))
                except urllib.error.HTTPError as error:
                    self.reply(error.code, error.read(), error.headers.get("Content-Type"))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

            def reply(self, status: int, content: bytes, kind: str | None) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind or "text/plain")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self.handler = Handler
        self.port = free_port()
        self.open()

    def open(self) -> None:
        self.proxy = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        self.proxy.daemon_threads = True
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Refuse connections and cut those that are open, as where the server's process is killed."""
        self.proxy.shutdown()
        self.proxy.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
