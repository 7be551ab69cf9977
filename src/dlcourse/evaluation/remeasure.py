"""Evaluate a trained model again, from its checkpoint alone."""

from pathlib import Path

from dlcourse import topics
from dlcourse.data.datamodule import CourseData
from dlcourse.errors import CourseError, SettingsError
from dlcourse.evaluation.evaluate import evaluate
from dlcourse.topics import Topic
from dlcourse.tracking.opening import open_store
from dlcourse.training.checkpoints import load_checkpoint, read_checkpoint
from dlcourse.training.fit import task_of
from dlcourse.training.start import as_split_data, kept_checkpoint
from dlcourse.training.trainer import make_trainer


def test(topic: str | Topic, *, run: str | None = None, checkpoint: str | Path | None = None) -> dict[str, float]:
    """Evaluate a trained model on its test rows again, from its checkpoint alone. Writes nothing to the store.

    The precision is that of the training, if this hardware supports it.

    Args:
        topic: A topic's name, or your own `Topic`.
        run: Id or name of the run whose kept weights are evaluated.
        checkpoint: A checkpoint file to evaluate instead.

    Returns:
        ``test/<metric>``, and the 95 % interval as ``test/<metric>_low`` and ``_high``; without test rows
        ``val/final_<metric>`` or ``train/final_<metric>``.

    Raises:
        SettingsError: Both or neither of ``run`` and ``checkpoint`` are set.
        CourseError: There is no such run, its rows have changed, or the file is not a checkpoint of this topic.
    """
    topic = topic if isinstance(topic, Topic) else topics.find(topic)
    if (run is None) == (checkpoint is None):
        raise SettingsError("specify what to test: either --run with a run's id or name, or --checkpoint with a file")
    store = open_store() if run else None
    stored = store.find_run(run, topic.name) if store and run else None
    path = kept_checkpoint(store.files_of(stored)) if store and stored else Path(str(checkpoint))
    model, datamodule = load_checkpoint(topic, path)
    task, data = task_of(topic, model), as_split_data(topic, datamodule)
    if isinstance(data, CourseData):
        data.prepare_data()
        data.setup("test")
    if stored and data.fingerprint and stored.data.tags["dlcourse.split"] != data.fingerprint:
        raise CourseError(
            f"the rows of {stored.info.run_name} ({stored.info.run_id}) or their split have changed since: restore its "
            "data, or train again"
        )
    if path.parent.name == "refit":
        assert isinstance(data, CourseData)
        data.refit()
    hardware = read_checkpoint(path).get("dlcourse_hardware", {})
    trainer = make_trainer(patience=None, precision=hardware.get("precision", "auto"))
    evaluation = evaluate(trainer, model, task, data, data.eval_split)
    metrics = evaluation.finals
    for name, (low, high) in evaluation.intervals.items():
        metrics |= {f"{evaluation.final_name(name)}_low": low, f"{evaluation.final_name(name)}_high": high}
    return metrics
