"""MLflow's pages of the topics: what they show of each, and the verb that opens them."""

import logging
from collections.abc import Mapping
from contextlib import suppress

from dlcourse import topics
from dlcourse.errors import CourseError, SettingsError, suggestion
from dlcourse.settings import PositiveInt, read_yaml
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.tracking.store import Store
from dlcourse.tracking.ui import serve
from dlcourse.tracking.views import MARKER, Page, prepare_views
from dlcourse.training.request import experiments_of

log = logging.getLogger(__name__)

USUAL = ("model.lr", "data.batch_size", "trainer.max_epochs")
"""Settings that people change first, whatever the topic."""
NUM_SETTINGS = 3


def ui(
    *,
    topic: str | None = None,
    host: str = "127.0.0.1",
    port: PositiveInt = 5000,
    reset_views: bool = False,
) -> int:
    """Serve the runs to a browser until Ctrl-C.

    Starts ``mlflow server`` and prints a link for each topic; of a store that is a server the links alone.

    Args:
        topic: Print the link of this topic only.
        host: Address to serve on; 0.0.0.0 lets other machines in, which MLFLOW_SERVER_ALLOWED_HOSTS and
            MLFLOW_SERVER_CORS_ALLOWED_ORIGINS name.
        port: Port to serve on.
        reset_views: Write the views "Results" and "Means over seeds" of every topic again, over what was changed.

    Returns:
        The exit status: 0 after Ctrl-C, 128 and the signal's number after another signal.

    Raises:
        SettingsError: There is no such topic.
        CourseError: The port is taken, or the server ended by itself.
    """
    store = open_store()
    tags = {each.name: each.tags for each in store.client.search_experiments()}
    known = topics.titles()
    if topic and topic not in {**known, **tags}:
        near = suggestion(topic, known) or f"; the topics are {', '.join(known)}"
        raise SettingsError(f"--topic: no topic is called {topic!r}{near}")
    for name in known:
        if name in tags and (reset_views or MARKER not in tags[name]):
            try:
                prepare_pages(store, topics.find(name), again=reset_views)
            except CourseError as error:  # a topic that cannot be loaded; its runs can be looked at all the same
                log.warning("%s", error)
    return serve(store, topic, host, port)


def prepare_pages(store: Store, topic: Topic, *, again: bool = False) -> None:
    """Write the topic's views and note into its experiment, which is made where there is none; see `prepare_views`."""
    prepare_views(store, topic.name, lambda: page_of(topic), again=again)


def page_of(topic: Topic) -> Page:
    """What MLflow's pages show of a topic."""
    experiments = settings_by_experiment(topic)
    return Page(
        title=topic.title,
        lesson=topic.lesson,
        metric=getattr(topic.task or topic.model, "primary_metric", "loss"),  # each task has one, but not every class
        monitor=topic.monitor,
        settings=most_changed(experiments),
        is_validated=float(experiments.get("default", {}).get("data.val_fraction", 1)) > 0,
    )


def settings_by_experiment(topic: Topic) -> dict[str, dict[str, str]]:
    """The settings of each of the topic's YAML files over those of its default, by dotted names."""
    experiments = {}
    for name, file in experiments_of(topic).items():
        with suppress(SettingsError):  # a file that somebody is writing
            groups = {group: each for group, each in read_yaml(file).items() if isinstance(each, Mapping)}
            experiments[name] = {
                f"{group}.{key}": str(value) for group in groups for key, value in groups[group].items()
            }
    default = experiments.get("default", {})
    return {name: default | settings for name, settings in experiments.items()}


def most_changed(experiments: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """The settings that experiments differ in, those with the most values first; where there are none, `USUAL`."""
    values: dict[str, set[str]] = {name: set() for name in USUAL}
    for settings in experiments.values():
        for name, value in sorted(settings.items()):
            values.setdefault(name, set()).add(value)
    changed = [name for name in values if len(values[name]) > 1]
    return tuple(sorted(changed, key=lambda name: -len(values[name]))[:NUM_SETTINGS]) or USUAL
