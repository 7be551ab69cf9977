"""Gradient descent: every number that the course prints, and where each descent ends."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger

import dlcourse
from dlcourse import topics
from dlcourse.cli import main
from dlcourse.data.datamodule import CourseData
from dlcourse.doctor.topic import numerical_gradient
from dlcourse.errors import SettingsError
from dlcourse.models.convergence import assess_convergence
from dlcourse.models.trajectory import TrajectoryModel, exhaustive_search
from dlcourse.training.fit import new_model
from dlcourse.training.request import resolve
from dlcourse.training.trainer import make_trainer
from tests.conftest import EXPERIMENTS

X, Y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])


class Recorder(Logger):
    """What a run is told, by metric: one value an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.curves: dict[str, list[float]] = {}
        self.steps: dict[str, list[int | None]] = {}

    name = "recorder"
    version = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.curves.setdefault(name, []).append(value)
            self.steps.setdefault(name, []).append(step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Descended:
    """An experiment's training by the shared Trainer, without a store."""

    def __init__(self, name: str, topic: str = "gradient-descent", seed: int = 0, **changed: dict[str, Any]) -> None:
        found = topics.find(topic)
        groups = (changed.get(group) for group in ("data", "model", "trainer"))
        settings = resolve(found, EXPERIMENTS / topic / f"{name}.yaml", *groups, seed).settings
        self.data: CourseData = found.data(**settings.data)
        self.recorder = Recorder()
        model = new_model(found, self.data, settings)
        assert isinstance(model, TrajectoryModel)
        self.model = model
        self.trainer: L.Trainer = make_trainer(**settings.trainer, logger=self.recorder)
        assert self.trainer.progress_bar_callback
        self.trainer.progress_bar_callback.disable()
        self.trainer.fit(model, datamodule=self.data)

    @property
    def loss(self) -> list[float]:
        return self.recorder.curves["lecture/loss"]

    def weight(self, name: str) -> list[float]:
        return self.recorder.curves[f"param/{name}"]

    def answer(self, x: float) -> float:
        with torch.no_grad():
            return float(self.model.cpu()(torch.tensor([[x]])))

    @property
    def sentence(self) -> str:
        return assess_convergence(self.model, self.data).sentence


def by_hand(epochs: int = 100, lr: float = 0.01) -> tuple[list[float], list[float]]:
    """Whole-batch descent on y = w x from w = 1: weights after each epoch, losses before its step."""
    w, weights, losses = 1.0, [], []
    for _ in range(epochs):
        losses.append(float(np.mean((w * X - Y) ** 2)))
        w -= lr * float(np.mean(2 * X * (w * X - Y)))
        weights.append(w)
    return weights, losses


def one_at_a_time(epochs: int = 100, lr: float = 0.01) -> tuple[list[float], list[float]]:
    """The same a point at a time: weights after each epoch, the last point's loss after its step."""
    w, weights, losses = 1.0, [], []
    for _ in range(epochs):
        for x, y in zip(X, Y, strict=True):
            w -= lr * 2 * x * (w * x - y)
        losses.append((w * X[-1] - Y[-1]) ** 2)
        weights.append(w)
    return weights, losses


# What the course prints


def test_descent_along_the_exact_gradient() -> None:
    run = Descended("default")
    weights, losses = by_hand()
    assert run.weight("w") == pytest.approx(weights, rel=1e-12)
    assert run.loss == pytest.approx(losses, rel=1e-12)
    printed = {0: 1.0933333333333333, 1: 1.1779555555555554, 2: 1.2546797037037036, 10: 1.659651263674342}
    printed[99] = 1.9999444396553017
    assert {epoch: run.weight("w")[epoch] for epoch in printed} == pytest.approx(printed, rel=1e-12)
    printed = {0: 4.666666666666667, 1: 3.8362074074074086, 2: 3.1535329869958857, 10: 0.6575969151946154}
    printed[99] = 1.752432687141379e-08
    assert {epoch: run.loss[epoch] for epoch in printed} == pytest.approx(printed, rel=1e-12)
    assert run.answer(4) == pytest.approx(7.999777758621207, rel=1e-12)
    assert run.recorder.steps["param/w"] == run.recorder.steps["lecture/loss"] == list(range(100))
    assert run.sentence == "converged: at the minimum"


def test_descent_a_point_at_a_time() -> None:
    run = Descended("sgd")
    weights, losses = one_at_a_time()
    assert run.weight("w") == pytest.approx(weights, rel=1e-12)
    # Where the weight is within rounding of 2, its square is rounding itself.
    assert run.loss == pytest.approx(losses, rel=1e-12, abs=1e-12 * 6**2 * 1e-12)
    printed = {0: 1.260688, 1: 1.453417766656, 2: 1.5959051959019805, 10: 1.9639333911678687, 50: 1.9999997957248556}
    printed[99] = 1.9999999999999236
    assert {epoch: run.weight("w")[epoch] for epoch in printed} == pytest.approx(printed, rel=1e-12)
    printed = {0: 4.919240100095999, 1: 2.688769240265834, 2: 1.4696334962911515, 10: 0.01170720245384975}
    printed |= {50: 3.7555501141274804e-13, 99: 5.250973729513143e-26}
    assert {epoch: run.loss[epoch] for epoch in printed} == pytest.approx(printed, rel=1e-12)
    assert run.answer(4) == pytest.approx(7.9999999999996945, rel=1e-12)


def test_autograd_in_float32() -> None:
    run = Descended("autograd-float32")
    printed = {0: 7.315943717956543, 1: 3.9987640380859375, 2: 2.1856532096862793, 10: 0.017410902306437492}
    printed[99] = 9.094947017729282e-13
    assert {epoch: run.loss[epoch] for epoch in printed} == pytest.approx(printed, rel=1e-5, abs=1e-6)
    w, losses = torch.tensor(1.0, requires_grad=True), []
    for _ in range(100):
        for x, y in zip(X.tolist(), Y.tolist(), strict=True):
            loss = (w * x - y) ** 2
            (gradient,) = torch.autograd.grad(loss, w)
            w = (w - 0.01 * gradient).detach().requires_grad_()
        losses.append(float(loss.detach()))
    assert run.loss == pytest.approx(losses, rel=1e-5, abs=1e-6)
    assert run.answer(4) == pytest.approx(7.999998569488525, rel=1e-5)


def test_quadratic() -> None:
    run = Descended("quadratic")
    printed = {0: 18.321826934814453, 1: 2.858394145965576, 2: 1.1675907373428345, 10: 0.02848036028444767}
    printed[99] = 0.00631808303296566
    assert {epoch: run.loss[epoch] for epoch in printed} == pytest.approx(printed, rel=1e-5, abs=1e-6)
    weights, losses = torch.ones(3), []
    for _ in range(100):
        for x, y in zip(X.tolist(), Y.tolist(), strict=True):
            weights.requires_grad_()
            loss = (weights @ torch.tensor([x * x, x, 1.0]) - y) ** 2
            (gradient,) = torch.autograd.grad(loss, weights)
            weights = (weights - 0.01 * gradient).detach()
        losses.append(float(loss.detach()))
    assert run.loss == pytest.approx(losses, rel=1e-5, abs=1e-6)
    assert run.answer(4) == pytest.approx(8.544172286987305, rel=1e-5)
    assert run.model.names == ["w1", "w2", "b"]


def test_exhaustive_search() -> None:
    found = topics.find("gradient-descent")
    data = found.data(val_fraction=0.0, test_fraction=0.0)
    model = found.model(data.shape, data.outputs)
    assert isinstance(model, TrajectoryModel)
    grid = torch.arange(41, dtype=torch.float64)[:, None] / 10
    losses = exhaustive_search(model, (data.rows.inputs, data.rows.targets), grid)
    assert losses.tolist() == pytest.approx([float(np.mean((w * X - Y) ** 2)) for w in np.arange(41) / 10], abs=1e-12)
    printed = {0: 18.666666666666668, 10: 4.666666666666667, 20: 0.0, 30: 4.666666666666667, 40: 18.666666666666668}
    assert {place: float(losses[place]) for place in printed} == pytest.approx(printed, abs=1e-12)


def test_theta_squared() -> None:
    run = Descended("theta-squared")
    assert run.weight("theta")[:4] == pytest.approx([0.2, 0.04, 0.008, 0.0016], rel=1e-12)
    assert run.weight("theta") == pytest.approx([0.2**epoch for epoch in range(1, 21)], rel=1e-12)


# Steps


@pytest.mark.parametrize(("name", "steps"), [("default", 1), ("minibatch", 2), ("sgd", 3)])
def test_the_trainer_takes_every_step(name: str, steps: int) -> None:
    run = Descended(name, trainer={"max_epochs": 7})
    assert run.trainer.global_step == 7 * steps
    other = Descended(name, trainer={"max_epochs": 7}, model={"lr": 0.02})
    assert all(one != another for one, another in zip(run.weight("w"), other.weight("w"), strict=True))


def test_another_start_is_another_descent() -> None:
    assert Descended("default", model={"start": [3.5]}, trainer={"max_epochs": 1}).model.path[0] == [3.5]
    with pytest.raises(SettingsError, match=r"--model\.start needs 2 numbers \(w, b\)"):
        Descended("line", model={"start": [1.0]})


def test_a_formula_without_its_data_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--model\.formula saddle goes with --data\.source pushes"):
        Descended("default", model={"formula": "saddle"})
    with pytest.raises(SettingsError, match=r"--model\.formula proportional goes with --data\.source doubled or line"):
        Descended("default", data={"source": "nothing"})


# Where descents end


def test_minibatches_get_there_too() -> None:
    run = Descended("minibatch")
    assert run.weight("w")[-1] == pytest.approx(2, abs=1e-3)


@pytest.mark.slow
def test_line() -> None:
    """Seeds 0 to 19, and 8,000 steps, by `python -m benchmarks.descents`."""
    run = Descended("line", trainer={"max_epochs": 3000})
    assert run.weight("w")[-1] == pytest.approx(3, abs=0.25)
    assert run.weight("b")[-1] == pytest.approx(0.8, abs=0.13)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_linear_layer(seed: int) -> None:
    run = Descended("linear-layer", seed=seed)
    assert run.weight("w")[-1] == pytest.approx(2, abs=1e-3)
    assert run.weight("b")[-1] == pytest.approx(0, abs=3e-3)
    assert run.answer(4) == pytest.approx(8, abs=2e-3)
    assert run.loss[-1] < 5e-6


def test_saddle_holds_whoever_has_no_noise() -> None:
    run = Descended("saddle")
    assert run.model.path[-1] == [0.0, 0.0]
    assert run.sentence == "stuck: at a saddle point"
    left = Descended("saddle-noise")
    assert abs(left.weight("y")[-1]) > 1
    assert left.sentence == "unfinished: the loss still falls"


@pytest.mark.slow
def test_momentum_leaves_a_local_minimum() -> None:
    plain, carried = Descended("local-minimum"), Descended("momentum")
    assert plain.weight("theta")[-1] == pytest.approx(0.9601, abs=1e-4)
    assert carried.weight("theta")[-1] == pytest.approx(-1.0356, abs=1e-4)
    assert plain.sentence == "converged: at a minimum, but not the lowest"
    assert carried.sentence == "converged: at the minimum"


def test_crawling_is_told() -> None:
    run = Descended("crawling")
    verdict = assess_convergence(run.model, run.data)
    assert verdict.sentence == "unfinished: it crawls"
    assert "raise --model.lr (1e-05)" in verdict.advice
    assert not verdict.learned


def test_a_threshold_ends_a_descent() -> None:
    losses = by_hand(1000)[1]
    epochs = next(epoch for epoch, loss in enumerate(losses, start=1) if loss < 0.001)
    assert Descended("threshold").loss == pytest.approx(losses[:epochs], rel=1e-12)


def test_diverging_is_stopped_and_blamed_on_the_learning_rate(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = EXPERIMENTS / "gradient-descent" / "diverging.yaml"
    assert main(["train", "gradient-descent", "--config", str(file)]) == 1
    card = capsys.readouterr().out
    assert "diverged" in card
    assert "lower --model.lr (0.25)" in card
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("gradient-descent")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id], "tags.`dlcourse.kind` = 'training'")
    assert run.info.status == "FAILED"
    assert all(np.isfinite(value) for value in run.data.metrics.values())


def test_a_run_keeps_weights_losses_and_pictures(project: Path) -> None:
    result = dlcourse.train("gradient-descent", trainer={"max_epochs": 30})
    assert result.answers == {"4": pytest.approx(4 * by_hand(30)[0][-1], rel=1e-9)}
    assert result.verdict.sentence == "unfinished: the loss still falls"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")
    for name, values in zip(("param/w", "lecture/loss"), by_hand(30), strict=True):
        kept = client.get_metric_history(result.run_id, name)
        assert [metric.step for metric in kept] == list(range(30))
        assert [metric.value for metric in kept] == pytest.approx(values, rel=1e-12)
    pictures = {Path(each.path).stem for each in client.list_artifacts(result.run_id, "figures")}
    assert pictures == {"learning-curves", "way-down", "points-and-curve"}


def test_nothing_to_memorise_without_targets(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = EXPERIMENTS / "gradient-descent" / "saddle.yaml"
    assert main(["overfit", "gradient-descent", "--config", str(file)]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("dlcourse: there is nothing to overfit")


# Gradients


def test_gradients_of_the_course_by_autograd_and_by_difference() -> None:
    """J(a, b, c) = 3 (a + b c), and the squared error of w x + b against 0 at x = 5."""

    def j(at: torch.Tensor) -> torch.Tensor:
        a, b, c = at
        return 3 * (a + b * c)

    def squared(at: torch.Tensor) -> torch.Tensor:
        w, b = at
        return (w * 5 + b) ** 2

    for function, point, expected in ((j, [1.0, 2.0, 5.0], [3.0, 15.0, 6.0]), (squared, [1.0, 3.0], [80.0, 16.0])):
        at = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        (by_autograd,) = torch.autograd.grad(function(at), at)
        assert by_autograd.tolist() == pytest.approx(expected, rel=1e-12)
        assert numerical_gradient(function, point).tolist() == pytest.approx(expected, rel=1e-6)
