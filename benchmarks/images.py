"""Training on images: the course notes' own loop and Lightning's defaults beside the package, on the same rows.

Each thing is measured in a process of its own, `python -m benchmarks.images THING`, which prints a list of numbers, so
that none inherits another's memory or threads.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import torch
from torch import nn
from torch.utils.data import DataLoader

from dlcourse.data.datamodule import CourseData
from dlcourse.images.convolutional_network import ConvolutionalNetwork
from dlcourse.topics import find
from dlcourse.training.fit import new_model
from dlcourse.training.request import resolve
from dlcourse.training.trainer import make_trainer

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
STEPS = {"plain": 5, "ours": 15}
WARM_STEPS = 2


def whole(topic: str) -> CourseData:
    """All images of a topic, downloaded and decoded if need be; raises `CourseError` where they cannot be had."""
    data = find(topic).data(source="full")
    data.prepare_data()
    return data


class Watch(L.Callback):
    """Seconds of each step and of each epoch of training; how long the first step took to come, and in what memory."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.epochs: list[float] = []
        self.until_first_step = self.peak_gigabytes = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.epoch_began = self.step_began = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.step_began)
        self.step_began = now
        if not self.until_first_step:
            self.until_first_step = time.time() - psutil.Process().create_time()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.epochs.append(time.perf_counter() - self.epoch_began)

    def on_train_end(self, *_: Any) -> None:
        self.peak_gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes, on Linux


def ours(topic_name: str, experiment: str, trainer: dict[str, Any], model: dict[str, Any] | None = None) -> Watch:
    """Train an experiment of the package by its own Trainer, without a store."""
    topic = find(topic_name)
    file = EXPERIMENTS / topic_name / f"{experiment}.yaml"
    settings = resolve(topic, file, {"source": "full"}, model, trainer, None).settings
    data = topic.data(**settings.data)
    data.prepare_data()
    data.setup("fit")
    watch = Watch()
    make_trainer(**settings.trainer, callbacks=[watch]).fit(new_model(topic, data, settings), datamodule=data)
    return watch


def ours_by_step(model: dict[str, Any], **trainer: Any) -> Watch:
    steps = STEPS["ours"] + WARM_STEPS
    return ours("cifar10", "default", {"max_epochs": 1, "limit_batches": steps, **trainer}, model)


def by_hand(batches: Callable[[], Iterator[tuple[Any, Any]]], epochs: int) -> list[float]:
    """The loop of the course notes, with its loss and accuracy: seconds of each epoch."""
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128, bias=False), nn.ReLU(), nn.Linear(128, 10, bias=False), nn.LogSoftmax(1)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.15, momentum=0.8)
    criterion = nn.NLLLoss()
    seconds = []
    for _ in range(epochs):
        started = time.perf_counter()
        total, correct = 0.0, 0
        for inputs, targets in batches():
            optimizer.zero_grad()
            outputs = network(inputs)
            loss = criterion(outputs, targets)
            loss.backward()
            optimizer.step()
            total += loss.item()
            correct += int((outputs.argmax(1) == targets).sum())
        seconds.append(time.perf_counter() - started)
    return seconds


def notes_loop() -> list[float]:
    """Torchvision's data set, ToTensor image by image, a DataLoader: seconds of an epoch."""
    from torchvision.datasets import FashionMNIST
    from torchvision.transforms import ToTensor

    rows = whole("fashion-mnist").rows
    images = FashionMNIST.__new__(FashionMNIST)  # over the decoded images: the archives need not be there
    images.data, images.targets = rows.inputs[:60000, 0], rows.targets[:60000]
    images.transform, images.target_transform = ToTensor(), None
    loader = DataLoader(images, batch_size=128, shuffle=True)
    return by_hand(lambda: iter(loader), 2)


def tensor_loop() -> list[float]:
    """Slices of one tensor of pixels from 0 to 1: seconds of an epoch."""
    rows = whole("fashion-mnist").rows
    images, labels = rows.inputs[:60000].float() / 255, rows.targets[:60000]

    def batches() -> Iterator[tuple[Any, Any]]:
        for places in torch.split(torch.randperm(len(images)), 128):
            yield images[places], labels[places]

    return by_hand(batches, 4)[1:]


def plain_lightning() -> Watch:
    """The default CIFAR-10 network as Lightning trains by default.

    That is float32, contiguous images, transforms image by image in torchvision's data set, no worker processes.
    """
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    rows = whole("cifar10").rows
    images = CIFAR10.__new__(CIFAR10)  # over the decoded images: the archive need not be there
    images.data, images.targets = rows.inputs[:50000].permute(0, 2, 3, 1).numpy(), rows.targets[:50000].tolist()
    images.target_transform = None
    images.transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=2, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        ]
    )

    class Plain(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = ConvolutionalNetwork([3, 32, 32], 10, widths=[64, 256, 256])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, targets = batch
            loss = nn.functional.cross_entropy(self.network(inputs), targets, label_smoothing=0.2)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            parameters = [each for each in self.parameters() if each.requires_grad]
            return torch.optim.SGD(parameters, 0.1, 0.85, nesterov=True)

    watch = Watch()
    trainer = L.Trainer(
        max_steps=STEPS["plain"] + WARM_STEPS,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Plain(), DataLoader(images, batch_size=512, shuffle=True))
    return watch


def figures_of(watch: Watch) -> list[float]:
    """Images a second, once what happens only once has happened; seconds to the first step; peak memory in GiB."""
    rate = 512 / statistics.median(watch.steps[WARM_STEPS:])
    return [rate, watch.until_first_step, watch.peak_gigabytes]


THINGS: dict[str, Callable[[], list[float]]] = {
    "notes-loop": lambda: [statistics.median(notes_loop())],
    "tensor-loop": lambda: [statistics.median(tensor_loop())],
    "our-notes": lambda: [statistics.median(ours("fashion-mnist", "lecture", {"max_epochs": 4}).epochs[1:])],
    "plain": lambda: figures_of(plain_lightning()),
    "ours": lambda: figures_of(ours_by_step({})),
    "ours-compiled": lambda: figures_of(ours_by_step({"compile": True})),
    "ours-float32": lambda: figures_of(ours_by_step({}, precision="32-true")),
}


def measured(thing: str) -> list[float]:
    """The numbers of one thing, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.images", thing]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=EXPERIMENTS.parent)
    numbers: list[float] = json.loads(told.stdout.splitlines()[-1])
    return numbers


if __name__ == "__main__":
    print(json.dumps(THINGS[sys.argv[1]]()))
