"""Runs as trainings of diabetes leave them, written in milliseconds: for tests that look at MLflow's pages."""

import math

from mlflow.entities import Metric, Param, RunTag

from dlcourse.tracking.store import Store

EPOCHS = 12
PARAMS = {
    "data.batch_size": "32",
    "data.standardize": "True",
    "data.test_fraction": "0.2",
    "data.val_fraction": "0.2",
    "model.activation": "tanh",
    "model.hidden": "[16]",
    "model.lr": "0.005",
    "trainer.max_epochs": str(EPOCHS),
}
TRAININGS: dict[str, tuple[float, dict[str, str]]] = {
    "default": (0.7434210777282715, {}),
    "default, model.lr=0.5": (0.6513157894736842, {"model.lr": "0.5"}),
    "relu, max_epochs=300": (0.7763157894736842, {"model.activation": "relu", "trainer.max_epochs": "300"}),
}
"""Test accuracy, and the settings that differ, by the run's name."""
VERDICTS = {
    "default": "learned: not told apart from logistic-regression on these 152 test rows",
    "default, model.lr=0.5": "learned nothing that these 152 test rows show: not better than majority",
    "relu, max_epochs=300": "learned: it is better than logistic-regression on these 152 test rows",
}
BASELINES = {"majority": 0.6578947368421053, "logistic-regression": 0.7631578947368421}
BEST_BASELINE = max(BASELINES.values())


def make_runs(store: Store, topic: str = "diabetes", seeds: int = 1) -> dict[str, str]:
    """The trainings with each of so many seeds, oldest first, and the baselines; gives each run's id by its name."""
    ids = {}
    for name, accuracy in BASELINES.items():
        metrics = [point("test/accuracy", accuracy)]
        ids[name] = write(store, topic, f"baseline: {name}", {"dlcourse.kind": "baseline"}, {}, metrics)
    for seed in range(seeds):
        for name, (accuracy, changes) in TRAININGS.items():
            tags = {
                "dlcourse.kind": "training",
                "dlcourse.split": "8fd2697a2d7b",
                "experiment": name,
                "verdict": VERDICTS[name],
                "overfitting": "none seen; gap of validation to training loss 0.0123",
            }
            finals = {"test/accuracy": accuracy, "test/loss": 1 - accuracy, "val/final_accuracy": accuracy + 0.01}
            finals |= {"test/baseline_accuracy": BEST_BASELINE, "best_epoch": 9.0, "fit_seconds": 1.5}
            points = [point(key, value - seed / 1000) for key, value in finals.items()]
            points += [each for epoch in range(EPOCHS) for each in curves(epoch, accuracy + seed / 100)]
            params = PARAMS | changes | {"seed": str(seed)}
            ids[name] = write(store, topic, name if seeds == 1 else f"{name}, seed={seed}", tags, params, points)
    return ids


def curves(epoch: int, accuracy: float) -> list[Metric]:
    loss = 0.2 + math.exp(-accuracy * epoch / 3) / 2
    values = {"train/loss": loss, "val/loss": loss + 0.01 * epoch, "lr": 0.005, "samples_per_second": 9000.0}
    values |= {"train/accuracy": 1 - loss, "val/accuracy": 1 - loss, "train/eval_loss": loss}
    return [point(key, value, epoch) for key, value in values.items()]


def point(key: str, value: float, step: int = 0) -> Metric:
    return Metric(key, value, 0, step)


def write(
    store: Store, topic: str, name: str, tags: dict[str, str], params: dict[str, str], metrics: list[Metric]
) -> str:
    run = store.client.create_run(store.experiment(topic), run_name=name)
    run_id = str(run.info.run_id)
    pairs = ([Param(*each) for each in params.items()], [RunTag(*each) for each in tags.items()])
    store.client.log_batch(run_id, metrics, *pairs)
    store.client.set_terminated(run_id)
    return run_id
