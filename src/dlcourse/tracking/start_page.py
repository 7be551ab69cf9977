"""MLflow's pages with one more, which opens a topic's runs as what they are: trainings.

MLflow's pages begin on language models and come back to them with every link, until the browser is told to keep to
model training. ``/start#/experiments/1/runs`` tells it so, and goes on to the page after the ``#``.
"""

from functools import cached_property

from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PAGE = """<!doctype html>
<title>dlcourse</title>
<script>
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
location.replace("/" + location.hash);
</script>
"""


class StartPage:
    """An ASGI application: the entry point ``dlcourse`` of ``mlflow.app``, for ``mlflow server --app-name``."""

    @cached_property
    def pages(self) -> ASGIApp:
        from mlflow.server import fastapi_app  # not with this module, which the command line imports as well

        served: ASGIApp = fastapi_app.app
        return served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_start = scope["type"] == "http" and scope["path"] == "/start"
        await (HTMLResponse(PAGE) if is_start else self.pages)(scope, receive, send)


app = StartPage()
