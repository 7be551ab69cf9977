"""A page before MLflow's own: ``/start#/experiments/1/runs`` opens an experiment as model training, on its results.

MLflow's pages take every experiment for one of language models until the browser's local storage says otherwise, and
keep there how each was last shown. Where nothing is kept yet, this page puts the view "Results" there, which a person
may change from then on. The names in that storage are not documented; the tests look at the pages with a browser, and
fail first if they change.
"""

from functools import cached_property

from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from dlcourse.tracking.views import RESULTS, STATE

PAGE = """<!doctype html>
<title>dlcourse</title>
<script>
async function showResults(id) {
  const key = `MLflowLocalStorage-1.1-ExperimentPage-["${id}"]-ReactComponentState`;
  if (localStorage.getItem(key)) return;
  const answer = await fetch(`/ajax-api/2.0/mlflow/experiments/get?experiment_id=${id}`);
  const tag = (await answer.json()).experiment.tags.find(each => each.key === "VIEW");
  let state = JSON.parse(tag.value).state;
  if (state.startsWith("deflate;")) {  // as the pages save it, where somebody has changed the view
    const bytes = Uint8Array.from(atob(state.slice(8)), each => each.charCodeAt(0));
    state = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
  }
  localStorage.setItem(key, state);
}
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
const experiment = location.hash.match(/^#\\/experiments\\/(\\d+)\\/runs/);
Promise.resolve(experiment && showResults(experiment[1]))
  .catch(console.warn)  // without the view the page is MLflow's own
  .finally(() => location.replace("/" + location.hash));
</script>
""".replace("VIEW", f"{STATE}{RESULTS}")


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
