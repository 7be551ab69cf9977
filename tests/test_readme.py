"""Every command and every example of the README, run."""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

import dlcourse
from dlcourse.cli import main
from dlcourse.export.model import load_model
from dlcourse.export.registry import champion
from tests.conftest import EXPERIMENTS, ROOT
from tests.examples import block, topic_package
from tests.image_sets import write_cifar10, write_fashion_mnist, write_image_folder
from tests.processes import words_of

pytestmark = pytest.mark.renders  # a training of each topic, with its figures
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = ["--trainer.max_epochs", "1"]


def commands(beginning: str) -> list[str]:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.startswith(beginning)]


@pytest.fixture
def checkout(project: Path) -> Path:
    """A project with what a clone has, beside a store of its own."""
    (project / "experiments").symlink_to(EXPERIMENTS)
    return project


def masked(card: str) -> str:
    """A card without what is another in every run."""
    card = re.sub(r"\b[0-9a-f]{32}\b", "ID", card)
    card = re.sub(r"[0-9.]+ s\b", "SECONDS s", card)
    return re.sub(r"in \S*mlruns", "in mlruns", card).strip()


def test_card_is_the_one_that_the_first_command_prints(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "height-weight", "--config", "experiments/height-weight/default.yaml"]) == 0
    assert masked(capsys.readouterr().out) == masked(block("README.md", "card"))
    assert main(["promote", "height-weight"]) == 0
    asked = json.loads(block("README.md", "request").split("'")[-2])["inputs"]
    answered = json.loads(block("README.md", "answer"))["predictions"]
    store = dlcourse.open_store()
    current = champion(store, "height-weight")
    assert current
    torch.testing.assert_close(load_model(store, current.model_id)(torch.tensor(asked)), torch.tensor(answered))


@pytest.mark.parametrize("command", [*commands("make train-"), *commands("make compare-"), *commands("make overfit-")])
def test_make_trains(checkout: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = []
    for name, write in {"fashion-mnist": write_fashion_mnist, "cifar10": write_cifar10}.items():
        if name in command:
            write(checkout / "data", monkeypatch, train=30, test=10)
            small = ["--data.val_rows", "10", "--data.batch_size", "10", "--model.compile", "false"]
            small += ["--trainer.limit_batches", "2"]
    if "image-folder" in command:
        write_image_folder(checkout / "data", monkeypatch)
        (checkout / "data" / "hymenoptera").rename(checkout / "pictures")
        small = ["--data.batch_size", "10", "--model.compile", "false"]
    few = [] if "make overfit" in command else FEW
    words = words_of(command, ROOT)
    if "--seeds" in words:
        few = [*FEW, "--seeds", "2"]  # which is said after the number of the README, and so wins
    if "activations" in command:
        eight = {file.stem for file in (EXPERIMENTS / "diabetes").glob("*.yaml")} - {"default", "minibatch"}
        assert len(eight & set(words)) == len(eight) == 8
        words = [word for word in words if word not in eight - {"sigmoid", "relu"}]  # test_trajectories trains all
    assert main([*words, *few, *small]) == 0


def test_dlcourse_commands(checkout: Path) -> None:
    assert main(["train", "height-weight", "--name", "default", *FEW]) == 0
    for command in commands("make export-"):
        assert main(words_of(command, ROOT)) == 0, command
    for command in commands("dlcourse "):
        arguments = shlex.split(command)[1:]
        few = FEW if arguments[0] == "train" else []
        assert main([*arguments, *few]) == 0, command


def test_python_example(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = next(each for each in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "dlcourse.train" in each)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("learned")


@pytest.mark.filterwarnings("ignore:The number of training batches")  # true, and no harm
def test_practitioners_example(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = checkout / "example.py"
    example.write_text(block("README.md", "example: practitioner"), encoding="utf-8")
    runpy.run_path(str(example))
    printed, shown = (masked(card) for card in (capsys.readouterr().out, block("README.md", "card: practitioner")))
    numbers = re.compile(r"[-+]?\d[\d.]*")  # which differ between processors
    assert numbers.sub("#", printed) == numbers.sub("#", shown)


def test_a_topic_of_ones_own(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'iris = "iris:TOPIC"' in block("README.md", "example: package pyproject.toml")
    (checkout / "default.yaml").write_text(block("README.md", "example: experiment default.yaml"), encoding="utf-8")
    with topic_package(checkout / "site", "iris", block("README.md", "example: topic iris.py")):
        assert main(["topics"]) == 0
        assert "iris\tIris: " in capsys.readouterr().out
        assert main(["train", "iris", "--config", "default.yaml"]) == 0
        assert "learned: this model is better than majority" in capsys.readouterr().out


def test_linked_files_are_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_topics_are_named() -> None:
    for name in dlcourse.topics.titles():
        assert f"| `{name}` |" in README
