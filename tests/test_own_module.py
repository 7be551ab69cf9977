"""Any LightningModule on any LightningDataModule: the run that `train_module` and `evaluate_module` make of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.profilers import SimpleProfiler
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import ConfusionMatrix, R2Score
from torchmetrics.classification import MulticlassAccuracy

import dlcourse
from dlcourse import (
    BinaryClassification,
    Classification,
    CourseError,
    OverfittingMonitor,
    Regression,
    Result,
    SettingsError,
    Task,
    baselines,
    evaluate_module,
    open_store,
    train_module,
)
from dlcourse.cli import main
from tests import foreign_modules as foreign
from tests.conftest import shared_project
from tests.examples import block, topic_package
from tests.processes import start_script

pytestmark = [
    pytest.mark.usefixtures("project"),
    # True of these rows, of which there are few.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

ROWS = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
CLASSES = (ROWS[:, 0] + ROWS[:, 1] ** 2 > 0.7).long()
FEW: dict[str, Any] = {"max_epochs": 4, "accelerator": "cpu"}


class Named(Dataset[dict[str, Tensor]]):
    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.inputs[index], "label": self.targets[index]}


class Loaders(L.LightningDataModule):
    """240 training, 60 validation and 100 test rows."""

    def __init__(
        self,
        targets: Tensor,
        inputs: Tensor = ROWS,
        make: Callable[[Tensor, Tensor], Dataset[Any]] = TensorDataset,
        shuffled: str = "train",
    ) -> None:
        super().__init__()
        self.rows, self.make, self.shuffled = (inputs, targets), make, shuffled

    def loader(self, split: str, start: int, end: int) -> DataLoader[Any]:
        return DataLoader(self.make(*(each[start:end] for each in self.rows)), 30, shuffle=split in self.shuffled)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train", 0, 240)

    def val_dataloader(self) -> Any:
        return self.loader("val", 240, 300)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader("test", 300, 400)


class Net(L.LightningModule):
    """A module as its author has it; ``loss`` takes what forward returns, and the targets of the batch."""

    def __init__(self, outputs: int, loss: Callable[[Any, Tensor], Tensor], places: Any = (0, 1)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, outputs))
        self.loss, self.places = loss, places

    def forward(self, inputs: Tensor) -> Any:
        return self.layers(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = (batch[place] for place in self.places)
        return self.loss(self(inputs), targets)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def classifier(**options: Any) -> Net:
    return Net(2, F.cross_entropy, **options)


def of_logit(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs.flatten(), targets.flatten().float())


class TwoValLoaders(Loaders):
    def val_dataloader(self) -> Any:
        return [self.loader("val", 240, 300), self.loader("val", 0, 20)]


NAMED = Classification(inputs="image", targets="label", classes=["no", "yes"])
LEARNERS = {
    "classification": lambda: (classifier(), Loaders(CLASSES), "classification"),
    "binary": lambda: (Net(1, of_logit), Loaders(CLASSES), "binary"),
    "binary, targets N x 1 floats": lambda: (Net(1, of_logit), Loaders(CLASSES.float()[:, None]), "binary"),
    "dictionaries": lambda: (classifier(places=("image", "label")), Loaders(CLASSES, make=Named), NAMED),
    "two targets": lambda: (Net(2, F.mse_loss), Loaders(ROWS[:, :2] * ROWS[:, 1:3]), Regression()),
    "an autoencoder": lambda: (Net(5, F.mse_loss, places=(0, 0)), Loaders(CLASSES), Regression(targets=0)),
    "two validation loaders": lambda: (classifier(), TwoValLoaders(CLASSES), "classification"),
}


@pytest.mark.parametrize("case", LEARNERS.values(), ids=LEARNERS.keys())
def test_a_module_is_trained_to_a_verdict(case: Callable[[], tuple[L.LightningModule, Loaders, Any]]) -> None:
    result = train_module(*case()[:2], task=case()[2], trainer={**FEW, "max_epochs": 6})
    assert result.ok, result.lost
    assert result.verdict.learned
    assert result.verdict.eval_split == "test"
    assert "verified" in str(result)
    assert len(result.baseline_runs) == 2
    assert result.overfitting is not None
    assert {"val/loss", "train/eval_loss", f"val/{result.primary_metric}"} <= result.history.keys()
    run = open_store().client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    contexts = {tag.value for each in run.inputs.dataset_inputs for tag in each.tags}
    assert contexts == {"training", "validation", "test"}
    assert run.data.tags["dlcourse.split"]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory, made_store: Path) -> tuple[Path, Result]:
    with shared_project(tmp_path_factory, made_store) as folder:
        return folder, train_module(classifier(), Loaders(CLASSES), task="classification", trainer=FEW)


@pytest.fixture
def trained(trained_once: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> Result:
    """A training for tests that only look at it; its project is the current folder."""
    folder, result = trained_once
    monkeypatch.chdir(folder)
    return result


def test_metrics_are_those_of_the_modules_own_outputs(trained: Result) -> None:
    inputs, targets = ROWS[300:], CLASSES[300:]
    with torch.no_grad():
        outputs = trained.model(inputs)
    assert trained.metrics["test/loss"] == pytest.approx(float(F.cross_entropy(outputs, targets)), rel=1e-5)
    assert trained.metrics["test/accuracy"] == pytest.approx(float((outputs.argmax(1) == targets).float().mean()))


def test_the_weights_are_those_of_the_best_epoch(trained: Result) -> None:
    losses = dict(trained.history["val/loss"])
    with torch.no_grad():
        loss = F.cross_entropy(trained.model(ROWS[240:300]), CLASSES[240:300])
    assert float(loss) == pytest.approx(min(losses.values()), rel=1e-5)
    assert trained.metrics["best_epoch"] == min(losses, key=lambda epoch: losses[epoch])


def test_validation_loss_is_that_of_the_module_where_it_logs_the_same(trained: Result) -> None:
    assert dict(trained.history["val/loss"]) == pytest.approx(dict(trained.history["val_loss"]), rel=1e-5)


def test_a_trained_module_is_evaluated_alike_and_its_baselines_are_found_again(trained: Result) -> None:
    again = evaluate_module(trained.model, Loaders(CLASSES), task="classification", name="again")
    assert again.ok, again.lost
    assert again.verdict == trained.verdict
    assert again.baseline_runs == trained.baseline_runs
    assert again.overfitting is None
    assert "stopped" not in str(again)


def test_other_training_rows_have_other_baselines(trained: Result) -> None:
    other = ROWS.clone()
    other[:240] += 1
    again = evaluate_module(trained.model, Loaders(CLASSES, inputs=other), task="classification")
    assert again.baseline_runs.keys() == trained.baseline_runs.keys()
    assert not set(again.baseline_runs.values()) & set(trained.baseline_runs.values())


def test_without_test_rows_the_verdict_is_on_validation_rows() -> None:
    class NoTest(Loaders):
        test_dataloader = L.LightningDataModule.test_dataloader

    result = train_module(classifier(), NoTest(CLASSES), task="classification", trainer=FEW)
    assert result.verdict.eval_split == "val"
    assert "val/final_accuracy" in result.metrics


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_training_rows_alone_show_no_learning() -> None:
    class FitOnly(L.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return Loaders(CLASSES).train_dataloader()

    result = train_module(classifier(), FitOnly(), task="classification", trainer=FEW)
    assert result.verdict.eval_split == "train"
    assert result.verdict.learned is None
    assert "train/final_accuracy" in result.metrics
    assert result.overfitting is None


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
def test_without_a_validation_step_nothing_is_monitored() -> None:
    class NoStep(Net):
        validation_step = L.LightningModule.validation_step  # type: ignore[assignment]

    result = train_module(NoStep(2, F.cross_entropy), Loaders(CLASSES), task="classification", trainer=FEW)
    assert result.ok
    assert result.overfitting is None
    assert result.metrics["best_epoch"] == 3, "the last weights are kept"


def test_token_ids_have_the_trivial_baseline_alone() -> None:
    class Words(Net):
        def __init__(self) -> None:
            super().__init__(2, F.cross_entropy)
            self.layers = nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 2))

    tokens = torch.randint(20, (400, 7), generator=torch.Generator().manual_seed(0))
    labels = (tokens == 3).any(1).long()
    result = train_module(Words(), Loaders(labels, inputs=tokens), task="classification", trainer=FEW)
    assert result.ok, result.lost
    assert result.baseline_runs.keys() == {"majority"}


def test_the_loss_of_the_module_is_that_of_its_rows() -> None:
    class Own(Net):
        def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return 7 * (outputs - targets).abs().mean(1)

    module = Own(1, lambda outputs, targets: F.l1_loss(outputs[:, 0], targets))
    result = train_module(module, Loaders(ROWS[:, 0]), task="regression", trainer=FEW)
    assert result.metrics["test/loss"] == pytest.approx(7 * result.metrics["test/mae"], rel=1e-5)


def test_further_metrics_have_directions_and_curves() -> None:
    task = Regression(metrics={"r2": R2Score()}, loss=lambda outputs, targets: (outputs - targets).abs().mean(1))
    module = Net(1, lambda outputs, targets: F.l1_loss(outputs[:, 0], targets))
    result = train_module(module, Loaders(ROWS[:, 0]), task=task, trainer=FEW, monitor="val/r2", mode="max")
    assert result.metrics["test/r2"] > 0.5
    assert result.metrics["test/loss"] == pytest.approx(result.metrics["test/mae"], rel=1e-5)
    assert "r2" not in task.lower_is_better
    curve = dict(result.history["val/r2"])
    assert result.metrics["best_epoch"] == max(curve, key=lambda epoch: curve[epoch])


def test_options_may_be_objects_and_the_trainer_may_end_by_steps() -> None:
    options = {"accelerator": "cpu", "max_steps": 20, "profiler": SimpleProfiler(filename="profile", dirpath=".")}
    result = train_module(classifier(), Loaders(CLASSES), task="classification", trainer=options)
    assert result.ok, result.lost
    assert "at the last step" in str(result)
    params = open_store().client.get_run(result.run_id).data.params
    assert params["trainer.max_steps"] == "20"
    assert "SimpleProfiler" in params["trainer.profiler"]


def test_a_diverged_training_says_what_to_change() -> None:
    module = Net(1, lambda outputs, targets: (outputs[:, 0] - targets).square().mean() * float("inf"))
    result = train_module(module, Loaders(ROWS[:, 0]), task="regression", trainer=FEW)
    assert result.verdict.sentence == "diverged"
    assert "learning rate (0.01)" in result.verdict.advice
    assert "--model" not in result.verdict.advice
    assert open_store().client.get_run(result.run_id).info.status == "FAILED"


class Probabilities(Net):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs).softmax(1)


class More(Net):
    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(inputs)}


def of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.nll_loss(outputs.log(), targets)


def of_more(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs["logits"], targets)


MISTAKES: dict[str, tuple[Callable[[], L.LightningModule], Callable[[], Loaders], Any, str]] = {
    "one logit too many": (classifier, lambda: Loaders(CLASSES), "binary", "Classification()"),
    "one logit too few": (lambda: Net(1, of_logit), lambda: Loaders(CLASSES), "classification", "Binary"),
    "probabilities": (
        lambda: Probabilities(2, of_probabilities), lambda: Loaders(CLASSES), "classification", "forward="
    ),
    "more than outputs": (lambda: More(2, of_more), lambda: Loaders(CLASSES), "classification", "forward="),
    "places not named": (
        lambda: classifier(places=("image", "label")), lambda: Loaders(CLASSES, make=Named), "classification", "inputs="
    ),
    "other columns": (
        lambda: Net(2, lambda outputs, targets: outputs.mean()), lambda: Loaders(ROWS[:, 0]), "regression", "target"
    ),
    "a class too many": (classifier, lambda: Loaders(CLASSES + 1), "classification", "class 2"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_what_does_not_fit_the_task_is_said_before_the_first_step(mistake: Any) -> None:
    module, data, task, named = mistake
    steps: list[int] = []

    class Counting(L.Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            steps.append(1)

    with pytest.raises(CourseError) as raised:
        train_module(module(), data(), task=task, trainer=FEW, callbacks=[Counting()])
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not steps


def test_a_module_that_returns_probabilities_or_more_is_told_by_forward() -> None:
    logarithms = Classification(forward=lambda module, inputs: module(inputs).log())
    logits = Classification(forward=lambda module, inputs: module(inputs)["logits"])
    for module, task in ((Probabilities(2, of_probabilities), logarithms), (More(2, of_more), logits)):
        result = train_module(module, Loaders(CLASSES), task=task, trainer=FEW)
        assert result.ok, result.lost
        assert result.verdict.learned


@pytest.mark.filterwarnings("ignore:Your `(val|predict)_dataloader`'s sampler has shuffling enabled")
@pytest.mark.parametrize("split", ["val", "test"])
def test_rows_in_another_order_each_time_are_no_verdict(split: str) -> None:
    with pytest.raises(CourseError, match=f"{split}_dataloader"):
        train_module(classifier(), Loaders(CLASSES, shuffled=split), task="classification", trainer=FEW)


def test_a_metric_that_nobody_logs_is_named_with_those_there_are() -> None:
    with pytest.raises(CourseError, match=r"val_f1.*val_loss"):
        train_module(classifier(), Loaders(CLASSES), task="classification", trainer=FEW, monitor="val_f1")


def test_arguments_that_cannot_be_taken() -> None:
    module, data = classifier(), Loaders(CLASSES)
    with pytest.raises(SettingsError, match="classification"):
        train_module(module, data, task="classifying")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="baselines"):
        train_module(module, data, task="classification", baselines={})
    with pytest.raises(SettingsError, match="higher_is_better"):
        Classification(metrics={"confusion": ConfusionMatrix(task="binary")})
    with pytest.raises(SettingsError, match="max_epoch"):
        train_module(module, data, task="classification", trainer={"max_epoch": 3})


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning's own call
def test_the_monitor_alone_watches_any_trainer() -> None:
    monitor = OverfittingMonitor(BinaryClassification())
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[monitor], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, val_check_interval=0.5,
    )  # fmt: skip
    trainer.fit(Net(1, of_logit), datamodule=Loaders(CLASSES))
    assert monitor.finding is not None
    assert monitor.last is not None
    assert len(monitor.last.losses) == 60, "each validation row once, though an epoch has two validations"
    assert {"val/loss", "val/auroc", "train/eval_loss"} <= trainer.callback_metrics.keys()


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning's own call
@pytest.mark.filterwarnings("ignore:Found 1 module\\(s\\) in eval mode")  # on purpose
def test_the_monitor_leaves_the_training_as_it_is() -> None:
    def weights(*callbacks: L.Callback) -> Tensor:
        torch.manual_seed(0)
        module = Net(1, of_logit)
        module.layers.insert(1, nn.Dropout(0.5))
        module.layers.insert(1, nn.BatchNorm1d(32))
        module.layers[1].eval()  # as the frozen part of a pretrained network
        trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", callbacks=list(callbacks), logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=Loaders(CLASSES))
        return torch.cat([each.detach().flatten() for each in module.state_dict().values()])

    assert torch.equal(weights(), weights(OverfittingMonitor(BinaryClassification())))


STREAM = """
import json, resource, sys
import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
import dlcourse

class Stream(IterableDataset):
    def __init__(self, rows, seed):
        self.rows, self.seed = rows, seed

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.rows // 5000):
            inputs = torch.randn(5000, 8, generator=generator)
            noise = torch.randn(5000, generator=generator) / 2
            yield inputs, (inputs[:, 0] * inputs[:, 1] + inputs[:, 2] / 2 + noise > 0).float()

class Clicks(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Stream(5_000_000, 0), batch_size=None)

    def val_dataloader(self):
        return DataLoader(Stream(100_000, 1), batch_size=None)

    def test_dataloader(self):
        return DataLoader(Stream(100_000, 2), batch_size=None)

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))

    def forward(self, inputs):
        return self.layers(inputs)

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

result = dlcourse.train_module(Net(), Clicks(), task="binary", trainer={"max_epochs": 1, "accelerator": "cpu"})
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
print(json.dumps({"peak": peak, "learned": result.verdict.learned, "card": str(result)}))
"""


def test_five_million_generated_rows_take_less_than_2_gb(project: Path) -> None:
    (project / "stream.py").write_text(STREAM, encoding="utf-8")
    process, output = start_script(project / "stream.py")
    process.join(250)
    assert process.exitcode == 0, output.read_text()
    told = json.loads(output.read_text().splitlines()[-1])
    assert told["peak"] < 2e9
    assert told["learned"] is True
    assert "fitted to 10000 training rows" in told["card"]


def test_a_folder_of_images_read_by_workers(tmp_path: Path) -> None:
    """Torchvision's ImageFolder, from disk in each epoch: two classes of noise, one of them redder."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    noise = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 15), ("test", 20)):
        for name, red in (("ants", 0), ("bees", 60)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 190, (8, 8, 3))
                pixels[..., 0] += red
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")

    class Folders(L.LightningDataModule):
        def __init__(self, root: str, num_workers: int = 0, persistent_workers: bool = False) -> None:
            super().__init__()
            self.root = Path(root)
            self.workers: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": persistent_workers}

        def loader(self, split: str) -> DataLoader[Any]:
            transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
            return DataLoader(ImageFolder(self.root / split, transform), 20, shuffle=split == "train", **self.workers)

        def train_dataloader(self) -> DataLoader[Any]:
            return self.loader("train")

        def val_dataloader(self) -> DataLoader[Any]:
            return self.loader("val")

        def test_dataloader(self) -> DataLoader[Any]:
            return self.loader("test")

    class Colours(Net):
        def __init__(self) -> None:
            super().__init__(2, F.cross_entropy)
            self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 2))

    task = Classification(classes=["ants", "bees"])
    topic = dlcourse.Topic("folders", "Folders", Folders, Colours, baselines.of_task(task), task=task)
    data = {"root": str(tmp_path / "images"), "num_workers": 1, "persistent_workers": True}
    result = dlcourse.train(topic, data=data, trainer={**FEW, "max_epochs": 15})
    assert isinstance(result, Result)
    assert result.ok, result.lost
    assert result.verdict.learned
    assert "80 training, 30 validation, 40 test rows of Folders" in str(result)


def test_the_names_are_there_without_the_libraries() -> None:
    assert {"train_module", "evaluate_module", "Regression", "OverfittingMonitor"} <= set(dir(dlcourse))


def test_the_pages_topic_of_lightning_classes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with topic_package(project / "site", "bikes", block("docs/own-module.md", "example: topic bikes.py")):
        few = ["--trainer.max_epochs", "5", "--data.rows", "200"]
        assert main(["train", "bikes", "--model.hidden", "16", "--name", "small", *few]) == 0
        assert "learned" in capsys.readouterr().out
        (run,) = open_store().client.search_runs(
            [open_store().client.get_experiment_by_name("bikes").experiment_id], "tags.`dlcourse.kind` = 'training'"
        )
        assert run.data.params["model.hidden"] == "16"
        assert run.data.params["data.rows"] == "200"
        assert {"test/r2", "test/loss"} <= run.data.metrics.keys()
        assert main(["test", "bikes", "--run", "small"]) == 0
        tested = dict(line.split() for line in capsys.readouterr().out.splitlines())
        assert float(tested["test/mse"]) == pytest.approx(run.data.metrics["test/mse"], rel=1e-4)
        for refused in (["train", "bikes", "--folds", "3"], ["overfit", "bikes"], ["doctor", "bikes"]):
            assert main([*refused]) == 2, refused
            assert "CourseData" in capsys.readouterr().err
        for flag in (["--refit"], ["--init_from", "small"]):
            assert main(["train", "bikes", *flag, *few]) == 2, flag
            assert flag[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "data", "task", "epochs"),
    [
        (foreign.LitAutoEncoder, foreign.WavesDataModule, Regression(targets=0), 12),
        (foreign.BlobClassifier, foreign.BlobsDataModule, "classification", 6),
        (foreign.StreamRegressor, lambda: foreign.StreamDataModule(200), "regression", 4),
    ],
)
def test_modules_of_other_projects_come_to_a_verdict(module: Any, data: Any, task: Any, epochs: int) -> None:
    torch.manual_seed(0)
    result = train_module(module(), data(), task=task, trainer={**FEW, "max_epochs": epochs})
    assert result.ok, result.lost
    assert result.verdict.learned
    assert result.overfitting is not None


class NextToken(Task):
    """Sequences of tokens, N x T, of which each token after the first is to be predicted: outputs N x T - 1 x V."""

    primary_metric = "accuracy"

    def split_batch(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return batch[:, :-1], batch[:, 1:]

    def metrics(self) -> dict[str, Any]:
        return {"accuracy": MulticlassAccuracy(average="micro")}

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(2).transpose(1, 2)

    def per_sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)

    def per_sample_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (outputs.argmax(2) == targets).double().mean(1)}


def token_frequencies(inputs: Tensor, targets: Tensor) -> baselines.Predictor:
    logits = (torch.bincount(targets.flatten(), minlength=11).double() + 1).log().float()
    return lambda rows: logits.expand(len(rows), 11, -1)


def test_a_language_model_with_a_task_of_its_own_comes_to_a_verdict() -> None:
    class Sequences(L.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return foreign.sequences(96)

        def val_dataloader(self) -> DataLoader[Any]:
            return foreign.sequences(40)

    torch.manual_seed(0)
    module, known = foreign.LanguageModel(), {"token frequencies": token_frequencies}
    result = train_module(module, Sequences(), task=NextToken(), baselines=known, trainer={**FEW, "max_epochs": 8})
    assert result.ok, result.lost
    assert result.verdict.learned
    assert result.metrics["val/final_accuracy"] > 2 * result.metrics["val/baseline_accuracy"]
    with pytest.raises(SettingsError, match="baselines="):
        train_module(module, Sequences(), task=NextToken())


def test_rows_in_memory_with_a_module_of_ones_own() -> None:
    class Rows(dlcourse.CourseData):
        def load(self) -> dlcourse.Rows:
            return dlcourse.Rows(ROWS, CLASSES, "made up", classes=("no", "yes"))

    class TwoLogits(Net):
        def __init__(self) -> None:
            super().__init__(2, F.cross_entropy)

        def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]  # of one loader
            self.log("val_loss", self.training_step(batch, batch_idx))

    topic = dlcourse.Topic(
        "rows", "Rows", Rows, TwoLogits, {"majority": baselines.majority},
        task=Classification(),
    )  # fmt: skip
    result = dlcourse.train(topic, trainer=FEW)
    assert isinstance(result, Result)
    assert result.ok, result.lost
    assert result.verdict.learned
    assert result.overfitting is not None
    folds = dlcourse.train(topic, trainer=FEW, folds=3)
    assert folds.ok


def test_a_class_that_needs_a_task_says_so() -> None:
    class Plain(L.LightningDataModule):
        train_dataloader = Loaders.train_dataloader

    topic = dlcourse.Topic("rows", "Rows", Plain, L.LightningModule, {"mean": baselines.mean})
    with pytest.raises(SettingsError, match="task="):
        dlcourse.train(topic)


@pytest.mark.renders
def test_the_pages_topic_brings_callbacks_metrics_loss_and_figures(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with topic_package(project / "site", "wine", block("docs/own-module.md", "example: topic wine.py")):
        assert main(["train", "wine", "--trainer.max_epochs", "30", "--model.optimizer", "adam", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"test/f1", "test/accuracy"} <= told["metrics"].keys()
    assert told["metrics"]["test/f1"] > 0.8
    (run,) = Path("mlruns/artifacts").glob(f"**/{told['run_id']}")
    assert {"confidence.png", "f1-curves.png"} <= {each.name for each in run.glob("**/figures/*.png")}
    baseline = open_store().client.get_run(told["baseline_runs"]["majority"])
    assert baseline.data.metrics["test/f1"] < 0.5
