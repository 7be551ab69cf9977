"""What MLflow's pages show of a topic: two saved views of its runs, and a note with links to them.

A saved view is a tag of the experiment, which the runs page lists in its menu "Views". Its format is not documented: it
is what MLflow 3.16 to 3.18 read, and ``tests/tracking/test_views.py`` looks at the pages with a browser. Whatever a page
does not know of it, it leaves out.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dlcourse.errors import CourseError, address
from dlcourse.tracking.run import reason
from dlcourse.tracking.store import Store

log = logging.getLogger(__name__)

RESULTS = "dlcourse-results"
SEEDS = "dlcourse-seeds"
MARKER = "dlcourse.views"
"""The tag of an experiment whose views were written, with the format's number: what is missing was deleted since."""
FORMAT = "1"
NOTE = "mlflow.note.content"
STATE = "mlflow.sharedViewState."

# Widths in pixels that cut a figure after some four digits and leave room for a sentence, of the 1200 that a window of
# 1440 has.
WIDTHS = {"tags.`verdict`": 320, "tags.`overfitting`": 150}
NUMBER_WIDTH = 100
SETTING_WIDTH = 105

State = dict[str, Any]
"""What a page keeps of itself: JSON."""


@dataclass(frozen=True)
class Page:
    """What the pages show of a topic.

    Attributes:
        title: The topic in one line.
        lesson: Where to read about it, such as ``docs/diabetes.md``; may be empty.
        metric: The primary metric, such as ``accuracy``.
        monitor: The metric by which the epoch is chosen, such as ``val/loss``.
        settings: Names of the parameters that are columns, such as ``model.lr``.
    """

    title: str
    lesson: str
    metric: str
    monitor: str
    settings: tuple[str, ...]


def prepare_views(store: Store, experiment: str, describe: Callable[[], Page], *, again: bool = False) -> None:
    """Write an experiment's views and note, once: later nothing that was changed or deleted is written again.

    The experiment is made where there is none. What the store refuses costs one warning.

    Args:
        store: The store.
        experiment: The experiment's name.
        describe: Gives its page, and is called only if the views are to be written.
        again: Write views that were written before, too.

    Raises:
        CourseError: The experiment was deleted.
    """
    try:
        stored = store.client.get_experiment_by_name(experiment)
        if stored and MARKER in stored.tags and not again:
            return
        tags = views(describe())
        identifier = store.experiment(experiment, tags)
        for name, value in tags.items() if stored else []:
            store.client.set_experiment_tag(identifier, name, value)
        if not stored or NOTE not in stored.tags:
            store.client.set_experiment_tag(identifier, NOTE, note(identifier, describe()))
    except CourseError:
        raise
    except Exception as error:  # an older server, one that lets nobody write here, or a view that is too long
        log.warning("the views of %s could not be saved in %s: %s", experiment, store.shown, reason(error))


def views(page: Page) -> dict[str, str]:
    """The tags of an experiment that make its views, and the one that says that they were written."""
    saved = {RESULTS: ("Results", results(page)), SEEDS: ("Means over seeds", means_over_seeds(page))}
    return {f"{STATE}{key}": envelope(*view) for key, view in saved.items()} | {MARKER: FORMAT}


def envelope(name: str, state: State) -> str:
    """A state as the pages save it, under the name that their menu shows."""
    now = int(time.time() * 1000)
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def note(experiment_id: str, page: Page) -> str:
    """The experiment's line above its runs, in Markdown."""
    runs = f"#/experiments/{experiment_id}/runs?viewStateShareKey="
    parts = [f"{page.title}.", f"[Results]({runs}{RESULTS}),", f"[means over seeds]({runs}{SEEDS})"]
    return " ".join([*parts, f"; lesson: `{page.lesson}`" if page.lesson else ""])


def runs_address(store: Store, experiment_id: str) -> str:
    """The address of an experiment's runs on the server that the store is, shown as the view "Results"."""
    query = f"?viewStateShareKey={RESULTS}&workflowType=machine_learning"
    return f"{address(store.uri)}/#/experiments/{experiment_id}/runs{query}"


def results(page: Page) -> State:
    """Newest first, without baselines: the verdict, the figures it rests on, and the settings that people change."""
    finals = [f"test/{page.metric}", f"val/final_{page.metric}", f"train/final_{page.metric}"]
    columns = ["tags.`verdict`", *(f"metrics.`{name}`" for name in finals), "tags.`overfitting`"]
    columns += [f"params.`{name}`" for name in (*page.settings, "seed")]
    return {
        "searchFilter": "tags.`dlcourse.kind` != 'baseline'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {name: WIDTHS.get(name, NUMBER_WIDTH) for name in columns},
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [*charts(page)],
        "compareRunSections": [section("Results", True), *(section(name, False) for name in CLOSED)],
        "isAccordionReordered": True,  # else the pages sort the sections by name
    }


def means_over_seeds(page: Page) -> State:
    """The same, of the runs of one experiment and split together: with their means, and charts of these."""
    keys = [{"mode": "tag", "groupByData": name} for name in ("experiment",)]
    return results(page) | {"groupBy": {"aggregateFunction": "average", "groupByKeys": keys}}


CLOSED = ("test", "val", "train", "Model metrics", "System metrics")
"""The sections that the pages fill themselves, with a chart for each metric."""


def section(name: str, is_open: bool) -> State:
    return {
        "uuid": name,
        "name": name,
        "display": is_open,
        "columns": 2,
        "cardHeight": 330,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def charts(page: Page) -> Iterator[State]:
    """The section "Results": what was reached beside the best baseline, how, and what the runs differ in."""
    yield chart("BAR", f"test/{page.metric}", f"test/baseline_{page.metric}")
    yield chart("LINE", page.monitor)
    yield chart("LINE", "train/loss")
    yield chart("LINE", "train/loss", "val/loss")
    yield chart("BAR", f"train/final_{page.metric}", f"train/baseline_{page.metric}")
    groups = ["Parameters", "Model metrics", "Tags"]
    yield chart("DIFFERENCE") | {"compareGroups": groups, "showDifferencesOnly": True, "showChangeFromBaseline": False}


def chart(kind: str, *metrics: str) -> State:
    return {
        "uuid": " ".join((kind, *metrics)),
        "type": kind,
        "metricKey": metrics[0] if metrics else "",
        "selectedMetricKeys": list(metrics) or None,
        "metricSectionId": "Results",
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": False,
    }
