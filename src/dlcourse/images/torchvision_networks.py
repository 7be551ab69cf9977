"""torchvision's networks for classification, by name, with random weights or with those trained on ImageNet."""

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
"""Seconds to wait for each response of a server."""


def torchvision_network(name: str, outputs: int, pretrained: bool) -> nn.Module:
    """A network of torchvision, from images N x 3 x H x W to logits N x outputs.

    Args:
        name: Its name in torchvision.
        outputs: How many classes.
        pretrained: Whether to start from torchvision's default weights. Layers of another shape, such as the last one,
            which is for other classes, start at random.

    Raises:
        SettingsError: torchvision has no such network.
        CourseError: The weights cannot be downloaded.
    """
    known = list_models(torchvision.models)
    if name not in known:
        near = suggestion(name, known) or f"; there are {', '.join(known[:3])} and {len(known) - 3} others"
        raise SettingsError(f"--model.network {name} is none of torchvision's networks, nor convolutional{near}")
    with warnings.catch_warnings(action="ignore"):  # some networks warn that their initialisation is slow
        network = _without_auxiliaries(get_model(name, num_classes=outputs))
    if pretrained:
        random, trained = network.state_dict(), _trained_weights(name)
        fits = {key: trained[key].shape == random[key].shape for key in random}
        network.load_state_dict({key: trained[key] if fits[key] else random[key] for key in random})
    return network


def scaling_of(name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, 0 to 255, by which a network's weights expect images scaled."""
    transforms = get_model_weights(name).DEFAULT.transforms()
    return torch.tensor(transforms.mean) * 255, torch.tensor(transforms.std) * 255


def check_takes(network: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Raises `SettingsError` where the network does not take images of this shape, C x H x W."""
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, *shape))
    except Exception as error:  # each network raises another type
        size = " x ".join(map(str, shape))
        raise SettingsError(
            f"--model.network {name} does not take images of {size} ({one_line(error)[:120]}): set --data.size 224, "
            "or take another network"
        ) from error
    network.train(was_training)


def _without_auxiliaries(network: nn.Module) -> nn.Module:
    """GoogLeNet and Inception without auxiliary outputs and without scaling inputs themselves."""
    for name in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, name):
            setattr(network, name, None)
    for name in ("aux_logits", "transform_input"):
        if hasattr(network, name):
            setattr(network, name, False)
    return network


def _trained_weights(name: str) -> dict[str, Tensor]:
    """Torchvision's default weights; raises `CourseError` where they cannot be downloaded."""
    address = get_model_weights(name).DEFAULT.url
    try:
        # torchvision reports downloads on stdout, which is for results.
        with answers_within(PATIENCE), redirect_stdout(sys.stderr):
            network = get_model(name, weights="DEFAULT", progress=sys.stderr.isatty())
    except Exception as error:  # no network, a lost connection, a full disk: each raises another type
        path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(address).path).name)
        raise CourseError(
            f"the weights of {name} are not available ({one_line(error)[:120]}): put {address} to {path}, or take "
            "--model.pretrained false"
        ) from error
    weights: dict[str, Tensor] = network.state_dict()
    return weights
