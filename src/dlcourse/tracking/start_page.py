"""A page before MLflow's own: ``/start#/experiments/1/runs`` opens an experiment as model training.

MLflow's pages take every experiment for one of language models until the browser's local storage says otherwise. The
names in that storage are not documented; the tests look at the pages with a browser, and fail first if they change.
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
    """MLflow's server with the start page, for ``mlflow server --app-name dlcourse`` (entry point ``mlflow.app``)."""

    @cached_property
    def mlflow_app(self) -> ASGIApp:
        from mlflow.server import fastapi_app  # takes seconds, and the command line imports this module as well

        app: ASGIApp = fastapi_app.app
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_start = scope["type"] == "http" and scope["path"] == "/start"
        await (HTMLResponse(PAGE) if is_start else self.mlflow_app)(scope, receive, send)


app = StartPage()
