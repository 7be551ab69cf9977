"""One step behind the three stages: what it logs is what scikit-learn says of the same rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from sklearn import metrics as sk

from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Rows, Split
from dlcourse.models.base import CourseModel
from dlcourse.training.trainer import make_trainer
from tests.models.training import fitted
from tests.samples import Kinds, Line, Stuck, YesOrNo, data_of, iris, numbers, two_classes


def outputs(model: CourseModel, data: CourseData, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's outputs and the targets, computed here without Lightning."""
    rows = data.splits[split]
    with torch.no_grad():
        return model(data.rows.inputs[rows]), data.rows.targets[rows]


def measured(trainer: L.Trainer, model: CourseModel, data: CourseData) -> dict[str, float]:
    """Everything that the last epoch logged, and what a test logs."""
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return logged | dict(trainer.test(model, datamodule=data, verbose=False)[0])


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    data = data_of(numbers(90), batch_size=16)
    model, trainer = fitted(Line, data)
    logged = measured(trainer, model, data)
    for split in ("val", "test"):
        predicted, targets = outputs(model, data, split)
        assert logged[f"{split}/mse"] == pytest.approx(sk.mean_squared_error(targets, predicted))
        assert logged[f"{split}/mae"] == pytest.approx(sk.mean_absolute_error(targets, predicted))
        assert logged[f"{split}/loss"] == pytest.approx(logged[f"{split}/mse"])


def test_regression_of_several_columns_weighs_them_alike() -> None:
    rows = numbers(60)
    data = data_of(replace(rows, targets=torch.cat([rows.targets, -2 * rows.targets], 1)))
    assert data.outputs == 2
    model, trainer = fitted(Line, data)
    predicted, targets = outputs(model, data, "test")
    assert measured(trainer, model, data)["test/loss"] == pytest.approx(sk.mean_squared_error(targets, predicted))


def test_metrics_of_two_classes_are_those_of_scikit_learn() -> None:
    data = data_of(two_classes(), batch_size=16)
    model, trainer = fitted(YesOrNo, data, lr=0.1)
    logged = measured(trainer, model, data)
    for split in ("val", "test"):
        logits, targets = outputs(model, data, split)
        probabilities = model.predictions(logits)
        assert probabilities.shape == (len(targets),)
        assert logged[f"{split}/accuracy"] == pytest.approx(sk.accuracy_score(targets, probabilities > 0.5))
        assert logged[f"{split}/loss"] == pytest.approx(sk.log_loss(targets, probabilities.double()), rel=1e-5)
        assert logged[f"{split}/auroc"] == pytest.approx(sk.roc_auc_score(targets, probabilities))


def test_metrics_of_several_classes_are_those_of_scikit_learn() -> None:
    data = data_of(iris(), batch_size=16)
    model, trainer = fitted(Kinds, data, lr=0.1)
    logged = measured(trainer, model, data)
    for split in ("val", "test"):
        logits, targets = outputs(model, data, split)
        probabilities = model.predictions(logits.double())
        assert logged[f"{split}/accuracy"] == pytest.approx(sk.accuracy_score(targets, probabilities.argmax(1)))
        assert logged[f"{split}/loss"] == pytest.approx(sk.log_loss(targets, probabilities), rel=1e-5)


@pytest.mark.parametrize(("kind", "rows"), [(Line, numbers()), (YesOrNo, two_classes()), (Kinds, iris())])
def test_scores_of_rows_average_to_the_metrics(kind: type[CourseModel], rows: Rows) -> None:
    data = data_of(rows)
    model, trainer = fitted(kind, data)
    logged = measured(trainer, model, data)
    scores = model.per_sample_metrics(*outputs(model, data, "test"))
    assert model.primary_metric in scores
    for name, values in scores.items():
        assert values.shape == (len(data.splits["test"]),)
        assert float(values.mean()) == pytest.approx(logged[f"test/{name}"], rel=1e-5)


def test_every_metric_announced_is_logged() -> None:
    data = data_of(two_classes())
    model, trainer = fitted(YesOrNo, data)
    logged = measured(trainer, model, data)
    for split in ("train", "val", "test"):
        assert set(model.metric_names(split)) <= set(logged)


@pytest.mark.parametrize("batch_size", [7, 29, 64])
def test_loss_of_an_epoch_is_the_mean_over_rows_though_the_last_batch_is_smaller(batch_size: int) -> None:
    data = data_of(numbers(50), batch_size=batch_size)
    assert len(data.splits["train"]) % batch_size
    _, trainer = fitted(Stuck, data)
    targets = data.rows.targets[data.splits["train"]]
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(targets.square().mean()))
    assert float(trainer.callback_metrics["train/mae"]) == pytest.approx(float(targets.abs().mean()))


def test_each_epoch_is_measured_by_itself() -> None:
    class Losses(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.seen.append(float(trainer.callback_metrics["val/loss"]))

    losses, data = Losses(), data_of(numbers(), batch_size=64)
    model, _ = fitted(Line, data, losses, epochs=5, lr=0.1)
    predicted, targets = outputs(model, data, "val")
    assert losses.seen[-1] == pytest.approx(float((predicted - targets).square().mean()))
    assert losses.seen == sorted(losses.seen, reverse=True)


def test_absolute_error_leads_to_the_median_and_squared_error_to_the_mean() -> None:
    targets = torch.tensor([1.0, 2.0, 3.0, 4.0, 90.0])[:, None]
    data = data_of(Rows(torch.zeros(5, 1), targets, "made for a test"), val_fraction=0.0, test_fraction=0.0)
    squared, _ = fitted(Line, data, epochs=100, lr=0.3, loss="mse")
    absolute, _ = fitted(Line, data, epochs=100, lr=0.1, loss="mae")
    assert squared(torch.zeros(1, 1)).item() == pytest.approx(20, abs=0.01)
    assert absolute(torch.zeros(1, 1)).item() == pytest.approx(3, abs=0.2)
    assert (squared.primary_metric, absolute.primary_metric) == ("mse", "mae")


def test_checkpoint_holds_plain_values_and_loads_without_running_code(tmp_path: Path) -> None:
    data = data_of(numbers())
    model = Line(data.shape, data.outputs, lr=0.03, optimizer="adam")
    make_trainer(max_epochs=1, accelerator="cpu", folder=tmp_path).fit(model, datamodule=data)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"] | {"lr": 0.03, "optimizer": "adam", "shape": [3]} == content["hyper_parameters"]
    values = [*content["hyper_parameters"].values(), *content["datamodule_hyper_parameters"].values()]
    assert {type(value) for value in values} <= {bool, int, float, str, list, type(None)}
    loaded = Line(**content["hyper_parameters"])
    loaded.load_state_dict(content["state_dict"])
    assert torch.equal(loaded(data.rows.inputs), model(data.rows.inputs))
    assert type(data)(**content["datamodule_hyper_parameters"]).fingerprint == data.fingerprint


def test_model_takes_raw_inputs_once_its_scaling_is_set() -> None:
    data = data_of(numbers())
    mean, std = data.scaling
    model = Line(data.shape, data.outputs)
    assert torch.equal(model(data.rows.inputs), model.network(data.rows.inputs)), "unscaled before"
    model.set_scaling(mean, std)
    assert torch.equal(model(data.rows.inputs), model.network((data.rows.inputs - mean) / std))
    trained, _ = fitted(Line, data)
    assert torch.equal(trained.input_mean, mean), "training sets the scaling of its data"
    assert torch.equal(trained.input_std, std)


def test_images_are_scaled_by_channel_from_bytes() -> None:
    class Pixels(Kinds):
        def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
            super().__init__(shape, outputs, **settings)
            self.network = torch.nn.Flatten()

    model = Pixels([2, 1, 1], 2)
    model.set_scaling(torch.tensor([100.0, 10.0]), torch.tensor([50.0, 5.0]))
    pixels = torch.tensor([[150, 0], [0, 20]], dtype=torch.uint8).reshape(2, 2, 1, 1)
    assert model(pixels).tolist() == [[1.0, -2.0], [-2.0, 2.0]]
