"""Small truths: layers without activation are one layer, and probabilities come from a sigmoid."""

import pytest
import torch
from docs.draw_activations import FIGURES, collapsed
from torch import nn
from torch.nn import functional as F

from dlcourse.errors import CourseError
from dlcourse.experiment import train
from dlcourse.topics import Topic
from tests.samples import YesOrNo, data_of, two_classes


def test_linear_layers_without_activation_are_one_layer() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 3)]
    inputs = torch.randn(100, 5)
    assert torch.allclose(nn.Sequential(*layers)(inputs), collapsed(layers)(inputs), atol=1e-6)
    bent = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    assert not torch.allclose(bent(inputs), collapsed(layers)(inputs), atol=1e-2)


class WithoutSigmoid(YesOrNo):
    """As the course warns of: ReLU at the end, and the loss of probabilities."""

    def per_sample_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy(5 * outputs.squeeze(1).relu(), targets.float(), reduction="none")


def test_a_missing_sigmoid_is_named(project: object) -> None:
    data = type(data_of(two_classes()))
    topic = Topic("made", "made for a test", data, WithoutSigmoid, {"majority": lambda *_: lambda rows: rows})
    with pytest.raises(CourseError, match="a sigmoid is missing at its end"):
        train(topic)


@pytest.mark.parametrize("name", FIGURES)
def test_pictures_are_drawn(name: str) -> None:
    figure = FIGURES[name]()
    figure.canvas.draw()
    assert figure.axes
