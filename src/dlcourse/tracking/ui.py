"""MLflow's web pages on the store, served until Ctrl-C."""

from collections.abc import Callable

from dlcourse.errors import address
from dlcourse.tracking.server import base_address, run_server
from dlcourse.tracking.store import Store
from dlcourse.tracking.views import runs_address

KEEP = 'a click on "Override saved view" keeps the columns when the page is loaded again'
"""The button is one of MLflow's, over a view that an address has opened."""


def serve(store: Store, topic: str | None, host: str, port: int) -> int:
    """Serve a store's pages until Ctrl-C, and print a link for each topic, or for one.

    Of a store that is a server the links alone.

    Returns:
        The exit status: 0 after Ctrl-C, 128 and the signal's number after another signal.

    Raises:
        CourseError: The port is taken, or the server ended by itself.
    """
    if store.uri.startswith("http"):
        pages = links(store, topic, f"{address(store.uri)}/", lambda each: runs_address(store, each))
        print(f"the runs are on a server; open\n{pages}\n{KEEP}")
        return 0
    arguments = ["server", "--app-name", "dlcourse", "--workers", "1"]
    if store.folder:
        arguments += ["--default-artifact-root", (store.folder / "artifacts").as_uri()]
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight more processes, for language models
    variables["MLFLOW_BACKEND_STORE_URI"] = store.uri
    start = f"{base_address(host, port)}/start"

    def describe() -> str:
        return f"open\n{links(store, topic, start, lambda each: f'{start}#/experiments/{each}/runs')}"

    return run_server(arguments, variables, host, port, name="MLflow's pages", describe=describe)


def links(store: Store, topic: str | None, start: str, page: Callable[[str], str]) -> str:
    """A line for each topic that has runs, or for one, with the address of their page.

    Args:
        store: The store.
        topic: The only topic that is wanted, or None.
        start: The address before the list of experiments, which is shown where there are no runs.
        page: Gives the address of an experiment by its id.
    """
    experiments = store.client.search_experiments(order_by=["name ASC"])
    pages = {
        each.name: page(each.experiment_id)
        for each in experiments
        if topic in (None, each.name) and store.client.search_runs([each.experiment_id], max_results=1)
    }
    pages = pages or {"no runs yet": f"{start}#/experiments?workflowType=machine_learning"}
    width = max(map(len, pages))
    return "\n".join(f"  {name:<{width}}  {link}" for name, link in pages.items())
