"""torchvision's networks for classification, by name, with random weights or with those learned on ImageNet."""

import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from dlcourse.data.downloads import answers_within
from dlcourse.errors import CourseError, SettingsError, one_line, suggestion

PATIENCE = 15.0
"""Seconds for each answer of a server."""


def torchvision_network(name: str, outputs: int, pretrained: bool) -> nn.Module:
    """A network of that name, from N x 3 x H x W to N x outputs logits.

    Args:
        name: What torchvision calls it.
        outputs: How many classes.
        pretrained: Whether to start from the weights that torchvision holds for the best; the last layer, which is
            for other classes, starts at random.

    Raises:
        SettingsError: There is no such network.
        CourseError: Its weights cannot be had.
    """
    known = list_models(torchvision.models)
    if name not in known:
        near = suggestion(name, known) or f"; there are {', '.join(known[:3])} and {len(known) - 3} others"
        raise SettingsError(f"--model.network {name} is none of torchvision's networks, nor convolutional{near}")
    with warnings.catch_warnings(action="ignore"):  # of some networks, that their way to draw weights is slow
        network = _without_auxiliaries(get_model(name, num_classes=outputs))
    if pretrained:
        own, learned = network.state_dict(), _learned(name)
        network.load_state_dict(
            {key: learned[key] if own[key].shape == learned[key].shape else own[key] for key in own}
        )
    return network


def scaling_of(name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by which a network's weights expect the bytes of each channel to be scaled."""
    transforms = get_model_weights(name).DEFAULT.transforms()
    return torch.tensor(transforms.mean) * 255, torch.tensor(transforms.std) * 255


def check_takes(network: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Raises `SettingsError` where images of that shape are too small, or of another size than the network is for."""
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, *shape))
    except Exception as error:  # each network complains in its own way
        size = " x ".join(map(str, shape))
        raise SettingsError(
            f"--model.network {name} does not take images of {size} ({one_line(error)[:120]}): set --data.size 224, "
            "or take another network"
        ) from error
    network.train(was_training)


def _without_auxiliaries(network: nn.Module) -> nn.Module:
    """GoogLeNet and Inception without the outputs that they have for training alone, and taking scaled images."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, name):
            setattr(network, name, None)
    for name in ("aux_logits", "transform_input"):
        if hasattr(network, name):
            setattr(network, name, False)
    return network


def _learned(name: str) -> dict[str, Tensor]:
    """Raises `CourseError` where the weights are not there and cannot be downloaded."""
    address = get_model_weights(name).DEFAULT.url
    try:
        # What torchvision says of a download goes to stdout, where results are.
        with answers_within(PATIENCE), redirect_stdout(sys.stderr):
            network = get_model(name, weights="DEFAULT", progress=sys.stderr.isatty())
    except Exception as error:  # no network, a cut connection, a full disk: each raises its own kind
        place = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(address).path).name)
        raise CourseError(
            f"the weights of {name} cannot be had ({one_line(error)[:120]}): put {address} to {place}, or take "
            "--model.pretrained false"
        ) from error
    weights: dict[str, Tensor] = network.state_dict()
    return weights
