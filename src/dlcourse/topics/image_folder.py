"""A folder of one's own images: what is in a class's folder is of that class."""

import hashlib
import logging
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torchvision.transforms import v2

from dlcourse.data.datamodule import CourseData, data_folder
from dlcourse.data.rows import SPLITS, Rows, Split
from dlcourse.data.splits import stratified_split
from dlcourse.errors import SettingsError
from dlcourse.evaluation import baselines
from dlcourse.images import figures as image_figures
from dlcourse.images import hymenoptera as ants_and_bees
from dlcourse.images.classifier import ImageClassifier
from dlcourse.images.convolutional_network import ConvolutionalNetwork
from dlcourse.images.decoded import DecodedImages
from dlcourse.images.decoding import decode_all
from dlcourse.images.folders import FolderContents, classes_to_train_on, read_folder, some_of
from dlcourse.images.torchvision_networks import check_takes, scaling_of, torchvision_network
from dlcourse.ranges import Fraction, PositiveInt
from dlcourse.reporting.fonts import legible
from dlcourse.topics import Topic

log = logging.getLogger(__name__)


class ImageFolderData(DecodedImages):
    """Images in folders that are named like their classes.

    Those of ``train/`` are there to train on, with those of ``val/`` or ``test/`` as test rows; or those of one folder
    are split into training, validation and test rows. Each is cut to its middle square and kept in one size.

    Args:
        root: The folder; without one the ants and bees of PyTorch's tutorial on transfer learning, which are downloaded
            once, to hymenoptera in the data folder.
        size: Height and width in pixels.
        crop: Share of its area that a training image may lose to a random crop; 0 for none.
        colour: By which share brightness, contrast and saturation of training images change at most; 0 for none.
        flip: Mirror training images left and right, each at random.
    """

    names = ("images", "readable")

    def __init__(
        self,
        *,
        root: str | None = None,
        size: PositiveInt = 64,
        crop: Fraction = 0.65,
        colour: Fraction = 0.3,
        flip: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.is_given = root is not None
        self.root = (Path(root).expanduser() if root is not None else data_folder() / "hymenoptera").absolute()
        self.hparams["root"] = str(self.root)  # where it was is part of the run, wherever that was started
        self.size, self.crop, self.colour, self.flip = size, crop, colour, flip

    def prepare_data(self) -> None:
        if not self.is_given:
            ants_and_bees.fetch(self.root)
        super().prepare_data()

    @cached_property
    def folder(self) -> FolderContents:
        return read_folder(self.root)

    @cached_property
    def cache(self) -> Path:
        """Another one for other files, for files of another size or date, and for other images."""
        digest = hashlib.sha256(str(self.size).encode())
        for file in self.folder.files:
            state = file.path.stat()
            name = os.fsencode(file.path.relative_to(self.root))
            digest.update(b"\0".join([b"", name, str(state.st_size).encode(), str(state.st_mtime_ns).encode()]))
        return data_folder() / "image-folder" / f"{digest.hexdigest()[:16]}.safetensors"

    def decode(self, folder: Path) -> dict[str, Tensor]:
        paths = [file.path for file in self.folder.files]
        images = torch.zeros(len(paths), 3, self.size, self.size, dtype=torch.uint8)
        readable = torch.zeros(len(paths), dtype=torch.uint8)
        for place, image in enumerate(decode_all(paths, self.size)):
            if image is not None:
                images[place], readable[place] = image, 1
        return {"images": images, "readable": readable}

    def inconsistency(self, tensors: Mapping[str, Tensor]) -> str | None:
        images, count = tensors["images"], len(self.folder.files)
        if images.shape != (count, 3, self.size, self.size) or tensors["readable"].shape != (count,):
            return f"images of shape {tuple(images.shape)} for {count} images"
        return None

    def load(self) -> Rows:
        """What can be read, of the classes that there is something to train on of; says once what is left out."""
        with safe_open(self.cache, "pt") as file:
            images, readable = file.get_tensor("images"), file.get_tensor("readable").bool()
        files = dict(enumerate(self.folder.files))
        broken = [files.pop(place) for place in (~readable).nonzero()[:, 0].tolist()]
        classes = classes_to_train_on(self.root, list(files.values()))
        kept = {place: file for place, file in files.items() if file.of_class in classes}
        kinds = {
            "images that cannot be read": [str(each.path.relative_to(self.root)) for each in broken],
            "classes without an image to train on": sorted({each.of_class for each in files.values()} - set(classes)),
        }
        lines = [*self.folder.left_out, *(f"{kind}: {some_of(names)}" for kind, names in kinds.items() if names)]
        if lines:
            log.warning("left out of %s: %s", self.root, "; ".join(lines))
        self.meant_for = np.array([file.split for file in kept.values()])
        labels = torch.tensor([classes.index(file.of_class) for file in kept.values()])
        return Rows(images[list(kept)], labels, f"the images in {self.root}", classes=classes)

    @property
    def outputs(self) -> int:
        """One a class, of two classes as well."""
        return len(self.rows.classes)

    @cached_property
    def splits(self) -> dict[Split, Tensor]:
        """Rows as their folders mean them; what has no folder is cut from the training rows, class by class."""
        labels = self.rows.targets
        given = {split: torch.from_numpy(np.flatnonzero(self.meant_for == split)) for split in SPLITS}
        val, test = (0.0 if len(given[split]) else self.fractions[split] for split in ("val", "test"))
        cut = stratified_split(labels[given["train"]].numpy(), val, test, self.split_seed)
        splits = {split: given["train"][cut[split]] for split in SPLITS}
        splits |= {split: rows for split, rows in given.items() if len(rows) and split != "train"}
        counts = torch.bincount(labels[splits["train"]], minlength=self.outputs)
        if few := [name for name, count in zip(self.rows.classes, counts, strict=True) if not count]:
            raise SettingsError(
                f"--data.root {self.root} has too few images of {', '.join(few)} to leave one to train on: "
                "add some, or lower --data.val_fraction and --data.test_fraction"
            )
        return splits

    def fold(self, number: int, folds: int, repeat: int = 0) -> None:
        if "test" in self.meant_for:
            raise SettingsError(
                "--folds would train on the test images: vary --seed and --data.split_seed, or take their folder away"
            )
        super().fold(number, folds, repeat)

    @cached_property
    def transforms(self) -> list[v2.Transform]:
        """What each training image goes through, each time anew."""
        transforms: list[v2.Transform] = []
        if self.crop:
            transforms.append(v2.RandomResizedCrop(self.size, scale=(1 - self.crop, 1)))
        if self.colour:
            transforms.append(v2.ColorJitter(self.colour, self.colour, self.colour))
        if self.flip:
            transforms.append(v2.RandomHorizontalFlip())
        return transforms

    @property
    def augments(self) -> bool:
        return bool(self.transforms)

    def augmented(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """One image after the other: torchvision's transforms draw once for all that they are given."""
        for transform in self.transforms:
            images = torch.stack([transform(image) for image in images])
        return images


class ImageFolderNetwork(ImageClassifier):
    """Images to the classes of a folder.

    Args:
        network: convolutional is a compact network for few images; any other name is torchvision's, such as resnet18.
        widths: Channels of the compact network's blocks, each of which halves height and width.
        pretrained: Start torchvision's network from what it learned on ImageNet, downloaded once.
    """

    def __init__(
        self,
        shape: list[int],
        outputs: int,
        *,
        network: str = "convolutional",
        widths: list[PositiveInt] = [32, 64, 128],  # noqa: B006  # read by jsonargparse, never changed
        pretrained: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(shape, outputs, **settings)
        if network != "convolutional":
            self.network = torchvision_network(network, outputs, pretrained)
        elif pretrained:
            raise SettingsError(
                "--model.pretrained true needs one of torchvision's networks: add --model.network resnet18"
            )
        else:
            self.network = ConvolutionalNetwork(shape, outputs, widths=widths)
        self.learned_scaling = scaling_of(network) if pretrained else None
        check_takes(self.network, network, shape)

    def prepare(self, data: CourseData) -> None:
        super().prepare(data)
        if self.learned_scaling:
            self.set_scaling(*self.learned_scaling)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["pretrained"] = False  # they are all in it: nothing is to be had from elsewhere


TOPIC = Topic(
    name="image-folder",
    title="Image folder: images of one's own, in folders that are named like their classes",
    data=ImageFolderData,
    model=ImageFolderNetwork,
    baselines={
        "majority": baselines.a_column_a_class(baselines.majority),
        "logistic-regression": baselines.a_column_a_class(baselines.logistic_regression_on_pixels),
    },
    figures=legible(image_figures.FIGURES),
)
