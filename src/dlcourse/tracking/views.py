"""What MLflow's pages show of a topic: two saved views of its runs, and a note with links to them.

A saved view is a tag of the experiment, which the runs page lists in its menu "Views". Its format is not documented: it
is what MLflow 3.16 to 3.18 read, and ``tests/tracking/test_views.py`` looks at the pages with a browser. What a page
does not know of it, it leaves out.
"""

import json
import logging
import time
from collections.abc import Callable
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

FIRST = ("attributes.`Run Name`", "runDateAndNestInfo")
"""A run's name, and when it was created."""

# In pixels, of the 1190 that a window of 1440 has, 85 of them for check boxes. Figures are cut after four digits.
WIDTHS = {
    "attributes.`Run Name`": 158,
    "runDateAndNestInfo": 132,
    "tags.`verdict`": 265,
    "tags.`overfitting`": 80,
    "params.`seed`": 45,
    "duration": 68,
}
METRIC_WIDTH = 76
SETTING_WIDTH = 65

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
        is_validated: Whether its runs have validation and test rows, unless somebody sets them to none.
    """

    title: str
    lesson: str
    metric: str
    monitor: str
    settings: tuple[str, ...]
    is_validated: bool


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
        page = describe()
        tags = views(page)
        identifier = store.experiment(experiment, tags)  # a new one has them from the start, which is a single write
        if stored is None:
            tags = {}
        if stored is None or NOTE not in stored.tags:
            tags[NOTE] = note(identifier, page)
        for name, value in tags.items():
            store.client.set_experiment_tag(identifier, name, value)
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
    text = f"{page.title}. [Results]({runs}{RESULTS}), [means over seeds]({runs}{SEEDS})"
    return f"{text}; lesson: `{page.lesson}`" if page.lesson else text


def runs_address(store: Store, experiment_id: str) -> str:
    """The address of an experiment's runs on the server that the store is, shown as the view "Results"."""
    query = f"?viewStateShareKey={RESULTS}&workflowType=machine_learning"
    return f"{address(store.uri)}/#/experiments/{experiment_id}/runs{query}"


def results(page: Page) -> State:
    """Newest first, without baselines, folds and trials: verdict, figures, and the settings that people change."""
    on_test = [f"metrics.`test/{page.metric}`", f"metrics.`val/final_{page.metric}`"]
    on_train = [f"metrics.`train/final_{page.metric}`"]
    settings = [f"params.`{name}`" for name in (*page.settings, "seed")]
    # Columns that no run has are not shown.
    first, last = (on_test, on_train) if page.is_validated else (on_train, on_test)
    columns = ["tags.`verdict`", *first, "tags.`overfitting`", *settings, *last]
    return {
        # Sorted by a metric, folds and trials would stand among the trainings: the page of their parent lists them.
        "searchFilter": " AND ".join(f"tags.`dlcourse.kind` != '{kind}'" for kind in ("baseline", "fold", "trial")),
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [*FIRST, *columns, "duration"],
        "columnWidths": dict.fromkeys([*first, *last], METRIC_WIDTH) | dict.fromkeys(settings, SETTING_WIDTH) | WIDTHS,
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts(page),
        "compareRunSections": sections(),
        "isAccordionReordered": True,  # else the pages sort the sections by name
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def means_over_seeds(page: Page) -> State:
    """The same, with the runs of one experiment together: their means in the table and in the charts."""
    state = results(page)
    verdict, *others = state["selectedColumns"]
    return state | {
        "searchFilter": "tags.`dlcourse.kind` = 'training'",
        "columnOrder": [*FIRST, *others, "duration", verdict],
        "columnWidths": state["columnWidths"] | {"attributes.`Run Name`": 260},
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "experiment"}]},
    }


def charts(page: Page) -> list[State]:
    """What was reached, beside the best baseline, and how; what the runs differ in; and further curves."""
    on_test = [("BAR", f"test/{page.metric}", f"test/baseline_{page.metric}"), ("LINE", "val/loss")]
    on_train = [("LINE", "train/loss"), ("BAR", f"train/final_{page.metric}", f"train/baseline_{page.metric}")]
    # Charts that no run has figures for are not shown.
    first, last = (on_test, on_train) if page.is_validated else (on_train, on_test)
    others = dict.fromkeys([("LINE", "val/loss", "train/loss"), ("LINE", page.monitor), *last])
    differences = {
        "chartName": "What the runs differ in",
        "compareGroups": ["Tags", "Parameters"],
        "showDifferencesOnly": True,
        "showChangeFromBaseline": False,
    }
    return [
        *(chart("Results", *each) for each in first),
        chart("Differences", "DIFFERENCE") | differences,
        *(chart("Curves", *each) for each in others if each not in first),
    ]


def chart(place: str, kind: str, *metrics: str) -> State:
    """A chart of some metrics in the section of that name."""
    return {
        "uuid": " ".join((place, kind, *metrics)),
        "type": kind,
        "metricSectionId": place,
        "metricKey": metrics[0] if metrics else "",
        "selectedMetricKeys": list(metrics),
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": False,
    }


def sections() -> list[State]:
    """Those of `charts`, open, and closed those that the pages fill themselves, with a chart for each metric."""
    common = {"isReordered": True, "deleted": False, "isGenerated": False}
    opened = {"Results": (2, 225), "Differences": (1, 420), "Curves": (2, 330)}
    closed = dict.fromkeys(("test", "val", "train", "Model metrics", "System metrics"), (3, 300))
    return [
        {"uuid": name, "name": name, "display": name in opened, "columns": columns, "cardHeight": height, **common}
        for name, (columns, height) in (opened | closed).items()
    ]
