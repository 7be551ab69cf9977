"""Measure a trained model once more, from its checkpoint alone."""

from pathlib import Path

from dlcourse import topics
from dlcourse.errors import CourseError, SettingsError
from dlcourse.evaluation.assessment import final_metrics
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.training.checkpoints import load_checkpoint, read_checkpoint
from dlcourse.training.start import kept_checkpoint
from dlcourse.training.trainer import make_trainer


def test(topic: str | Topic, *, run: str | None = None, checkpoint: str | Path | None = None) -> dict[str, float]:
    """Measure a trained model on its own test rows once more, from its checkpoint alone; nothing is written.

    It is computed in the precision of the training, as far as this hardware has it.

    Args:
        topic: A topic's name, or a `Topic` of one's own.
        run: Id or name of the run whose kept weights are measured.
        checkpoint: A checkpoint file to measure instead.

    Returns:
        ``test/<metric>`` with 95 % intervals; of validation or training rows (``best/...``) without test rows.

    Raises:
        CourseError: There is no such run, or the file is no checkpoint of this topic.
    """
    topic = topic if isinstance(topic, Topic) else topics.find(topic)
    if (run is None) == (checkpoint is None):
        raise SettingsError("say what to test: either --run with a run's id or name, or --checkpoint with a file")
    store = open_store() if run else None
    stored = store.find_run(run, topic.name) if store and run else None
    path = kept_checkpoint(store.files_of(stored)) if store and stored else Path(str(checkpoint))
    model, data = load_checkpoint(topic, path)
    data.prepare_data()
    data.setup("test")
    if stored and stored.data.tags["dlcourse.split"] != data.fingerprint:
        raise CourseError(
            f"the rows of {stored.info.run_name} ({stored.info.run_id}) or their split have changed since: restore its "
            "data, or train anew"
        )
    if path.parent.name == "refit":
        data.refit()
    hardware = read_checkpoint(path).get("dlcourse_hardware", {})
    trainer = make_trainer(patience=None, precision=hardware.get("precision", "auto"))
    return final_metrics([evaluate(trainer, model, data, data.eval_split)])
