"""torchvision's networks by name, and the message where weights are not available. No test leaves this machine."""

import json
import socket
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ShuffleNet_V2_X0_5_Weights

from dlcourse.errors import CourseError, SettingsError
from dlcourse.images import torchvision_networks
from dlcourse.images.torchvision_networks import check_takes, scaling_of, torchvision_network
from tests.image_sets import NOWHERE, write_weights

SMALL = "shufflenet_v2_x0_5"


@pytest.mark.parametrize("name", [SMALL, "squeezenet1_1", "mobilenet_v3_small", "resnet18"])
def test_outputs_are_as_many_as_there_are_classes(name: str) -> None:
    network = torchvision_network(name, 3, pretrained=False)
    assert network.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_outputs_for_training_alone_have_them_no_more(name: str) -> None:
    network = torchvision_network(name, 3, pretrained=False)
    outputs = network.train()(torch.zeros(2, 3, 96, 96))
    assert isinstance(outputs, torch.Tensor)
    assert outputs.shape == (2, 3)


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"^--model\.network resnet19 is none of .*; did you mean resnet1"):
        torchvision_network("resnet19", 2, pretrained=False)
    with pytest.raises(SettingsError, match=r"; there are alexnet, .* and \d+ others$"):
        torchvision_network("qqqqqq", 2, pretrained=False)
    with pytest.raises(SettingsError, match="none of torchvision's networks"):
        torchvision_network("fasterrcnn_resnet50_fpn", 2, pretrained=False)  # it finds things, and tells no classes


def test_learned_weights_are_taken_but_for_the_last_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = write_weights(SMALL, tmp_path, monkeypatch)
    network = torchvision_network(SMALL, 3, pretrained=True)
    own = network.state_dict()
    last = {name for name, weight in own.items() if weight.shape != learned[name].shape}
    assert last == {"fc.weight", "fc.bias"}
    assert all(torch.equal(weight, learned[name]) for name, weight in own.items() if name not in last)


def test_learned_weights_are_for_inputs_scaled_by_imagenet() -> None:
    mean, std = scaling_of(SMALL)
    assert (mean / 255).tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert (std / 255).tolist() == pytest.approx([0.229, 0.224, 0.225])


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No weights are here, and nobody serves them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(ShuffleNet_V2_X0_5_Weights.DEFAULT.value, "url", f"{NOWHERE}shufflenet-f707e7126e.pth")
    return tmp_path / "hub" / "checkpoints"


def test_weights_that_cannot_be_had_are_told_with_where_they_belong(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CourseError) as refusal:
        torchvision_network(SMALL, 2, pretrained=True)
    assert str(refusal.value) == (
        f"the weights of {SMALL} are not available (<urlopen error [Errno 111] Connection refused>): put "
        f"{NOWHERE}shufflenet-f707e7126e.pth to {elsewhere}/shufflenet-f707e7126e.pth, or take --model.pretrained false"
    )
    assert capsys.readouterr().out == "", "stdout is for results"


def test_a_server_that_keeps_silent_is_given_up(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth"
        monkeypatch.setattr(ShuffleNet_V2_X0_5_Weights.DEFAULT.value, "url", address)
        monkeypatch.setattr(torchvision_networks, "PATIENCE", 0.2)
        with pytest.raises(CourseError, match=r"are not available \(.*timed out"):
            torchvision_network(SMALL, 2, pretrained=True)


def test_damaged_weights_are_named(elsewhere: Path) -> None:
    elsewhere.mkdir(parents=True)
    (elsewhere / "shufflenet-f707e7126e.pth").write_text("half a file")
    with pytest.raises(CourseError, match=rf"the weights of {SMALL} are not available \(.*\): put "):
        torchvision_network(SMALL, 2, pretrained=True)


def test_images_that_a_network_does_not_take_are_refused() -> None:
    network = torchvision_network("alexnet", 2, pretrained=False)
    check_takes(network, "alexnet", [3, 64, 64])
    assert network.training, "as it was"
    with pytest.raises(
        SettingsError, match=r"^--model\.network alexnet does not take images of 3 x 16 x 16 \(.*\): set"
    ):
        check_takes(network, "alexnet", [3, 16, 16])


def test_looking_changes_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    before = json.dumps({name: weight.tolist() for name, weight in network.state_dict().items()})
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    check_takes(network, "own", [3, 8, 8])
    assert torch.equal(torch.rand(1), expected)
    assert json.dumps({name: weight.tolist() for name, weight in network.state_dict().items()}) == before
