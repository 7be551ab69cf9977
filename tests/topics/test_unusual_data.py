"""Data and models that no topic here has: each trains, or is refused in one line that says what is taken."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import dlcourse
from dlcourse.data.datamodule import CourseData
from dlcourse.data.rows import Rows
from dlcourse.errors import CourseError, SettingsError
from dlcourse.evaluation import baselines
from dlcourse.images.classifier import ImageClassifier
from dlcourse.images.datasets import ImageData
from dlcourse.models.base import CourseModel
from dlcourse.models.tasks import BinaryClassifier, Classifier
from dlcourse.reporting.result import Result
from dlcourse.topics import Topic
from tests.image_sets import made_images
from tests.samples import Kinds, Line, YesOrNo, data_of, iris, numbers, two_classes

pytestmark = pytest.mark.usefixtures("project")


def trained(data_class: type[CourseData], model_class: type[CourseModel], epochs: int = 2, **settings: Any) -> Result:
    """Through everything that a training does; the model is in the store, and nothing else is missing there."""
    topic = Topic(
        name="unusual", title="Unusual", data=data_class, model=model_class,
        baselines={"majority": baselines.majority, "linear": baselines.logistic_regression},
    )  # fmt: skip
    result = dlcourse.train(topic, trainer={"max_epochs": epochs, "accelerator": "cpu"}, **settings)
    assert isinstance(result, Result)
    assert result.lost == {}
    assert result.model_uri, result
    assert set(result.baseline_runs) == {"majority", "linear"}
    return result


def of(rows: Rows) -> type[CourseData]:
    return type(data_of(rows))


class MadeImages(ImageData):
    """An image set as it is decoded: made here."""

    set_name = "made"
    made: ClassVar[dict[str, Any]]

    def decode(self, folder: Path) -> dict[str, Tensor]:
        return self.made


class Flat(ImageClassifier):
    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Sequential(nn.Flatten(), nn.LazyLinear(outputs))
        self.network(torch.zeros(1, *shape))


def images_of(made: dict[str, Any], classes: int) -> type[ImageData]:
    return type("MadeImages", (MadeImages,), {"made": made, "classes": tuple(f"class {n}" for n in range(classes))})


FLAT: dict[str, Any] = {"data": {"batch_size": 16}, "model": {"compile": False}}


def test_images_of_two_classes_have_an_output_for_each() -> None:
    result = trained(images_of(made_images((1, 8, 8), 60, 20, classes=2), 2), Flat, **FLAT)
    assert result.assessment
    assert result.assessment.evaluation.outputs.shape == (20, 2)
    assert result.assessment.baselines["majority"].outputs.shape == (20, 2)


def test_images_of_more_than_256_classes() -> None:
    made = made_images((1, 6, 6), 900, 300, classes=300)
    assert int(made["train_labels"].max()) == 255
    with pytest.raises(CourseError, match=r"uint8, which cannot hold 300 classes: make them int16$"):
        trained(images_of(made, 300), Flat, **FLAT)
    for split, count in (("train", 900), ("test", 300)):
        made[f"{split}_labels"] = (torch.arange(count) % 300).to(torch.int16)
    result = trained(images_of(made, 300), Flat, **FLAT)
    assert result.assessment
    assert result.assessment.evaluation.outputs.shape == (300, 300)


@pytest.mark.parametrize(
    ("name", "wrong", "line"),
    [
        ("train_images", [torch.zeros(3, 8, 8), torch.zeros(3, 9, 7)], "train_images as list, not as one tensor"),
        ("test_images", torch.zeros(20, 1, 8, 8), "test_images of another type than uint8"),
        ("test_labels", torch.zeros(20), "test_labels of another type than uint8"),
        ("test_labels", None, "test_labels as NoneType"),
        ("train_labels", torch.zeros(7, dtype=torch.uint8), "7 labels for images of shape"),
    ],
)
def test_what_cannot_be_an_image_set_is_one_line(project: Path, name: str, wrong: object, line: str) -> None:
    made = made_images((1, 8, 8), 60, 20, classes=2) | {name: wrong}
    with pytest.raises(CourseError, match=rf"^decode of MadeImages gives [^\n]*{line}"):
        trained(images_of(made, 2), Flat, **FLAT)
    assert list(project.rglob("*.safetensors")) == []


class Bag(Classifier):
    """The mean of the tokens' embeddings."""

    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, outputs))


class TwoBags(BinaryClassifier):
    def __init__(self, shape: list[int], outputs: int, **settings: Any) -> None:
        super().__init__(shape, outputs, **settings)
        self.network = nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, outputs))


def sentences(classes: int) -> Rows:
    """Six token ids each; which third or half of the vocabulary they are from is the class."""
    draw, labels = torch.Generator().manual_seed(0), torch.arange(120) % classes
    size = 20 // classes
    tokens = labels[:, None] * size + torch.randint(0, size, (120, 6), generator=draw)
    return Rows(tokens, labels, "made for a test", classes=tuple(f"topic {number}" for number in range(classes)))


@pytest.mark.parametrize(("model", "classes"), [(Bag, 3), (TwoBags, 2)])
def test_token_ids_reach_the_network_as_they_are(model: type[CourseModel], classes: int) -> None:
    result = trained(of(sentences(classes)), model, epochs=12, model={"lr": 1.0})
    assert result.metrics["test/accuracy"] > 0.8


def test_a_classifier_of_two_classes_names_the_one_that_takes_them() -> None:
    with pytest.raises(SettingsError, match=r"^a Classifier has an output for each class[^\n]*: take BinaryClassifier"):
        trained(of(two_classes()), Kinds)
    with pytest.raises(SettingsError, match=r"^a BinaryClassifier has one output, not 3: [^\n]*take Classifier$"):
        trained(of(iris()), YesOrNo)


def test_a_classifier_takes_two_classes_of_data_that_has_an_output_for_each() -> None:
    data = type("Data", (of(two_classes()),), {"outputs": 2})
    result = trained(data, Kinds)
    assert result.assessment
    assert {each.outputs.shape[1] for each in result.assessment.baselines.values()} == {2}


@pytest.mark.parametrize(
    ("inputs", "targets", "classes", "line"),
    [
        ([torch.zeros(3, 8, 8), torch.zeros(3, 9, 7)], torch.zeros(2, 1), (), "inputs of Rows must be one tensor"),
        (torch.zeros(4, 2), [0, 1, 0, 1], ("a", "b"), "targets of Rows must be one tensor, not a list"),
        (torch.zeros(4), torch.zeros(4, 1), (), "inputs of Rows must be N x features"),
        (torch.zeros(4, 2), torch.zeros(4), (), "targets of a regression must be N x columns"),
        (torch.zeros(4, 2), torch.zeros(4), ("a", "b"), "N class numbers in int64, not float32 of shape"),
        (torch.zeros(4, 2), torch.zeros(4, dtype=torch.uint8), ("a", "b"), "N class numbers in int64, not uint8"),
        (torch.zeros(4, 2), torch.tensor([0, 1, 2, 3]), ("a", "b", "c"), "class numbers go from 0 to 3 in 3 classes"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_are_one_line(inputs: Any, targets: Any, classes: tuple[str, ...], line: str) -> None:
    class Wrong(CourseData):
        def load(self) -> Rows:
            return Rows(inputs, targets, "made for a test", classes=classes)

    with pytest.raises(CourseError, match=rf"^[^\n]*{line}[^\n]*$"):
        dlcourse.train(Topic("wrong", "Wrong", Wrong, Line, {"mean": baselines.mean}), trainer={"max_epochs": 1})


def test_whole_numbers_that_are_no_ids_are_standardised() -> None:
    rows = numbers()
    counts = data_of(Rows((100 * rows.inputs).round().long(), rows.targets, "made for a test"))
    model = Line(counts.shape, counts.outputs)
    model.prepare(counts)
    inputs = model.standardised(counts.rows.inputs[counts.splits["train"]])
    assert inputs.std(0, correction=0).tolist() == pytest.approx([1] * 3)
