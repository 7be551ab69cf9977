"""A folder of your own images, with one subfolder per class."""

import hashlib
import logging
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torchvision.transforms import v2

from dlcourse.data.datamodule import CourseData, data_folder
from dlcourse.data.rows import Rows, Split
from dlcourse.errors import SettingsError, some_of
from dlcourse.evaluation import baselines
from dlcourse.images import figures as image_figures
from dlcourse.images import hymenoptera
from dlcourse.images.classifier import ImageClassifier
from dlcourse.images.convolutional_network import ConvolutionalNetwork
from dlcourse.images.decoded import DecodedImages
from dlcourse.images.decoding import decode_all
from dlcourse.images.folders import FolderContents, classes_to_train_on, read_folder
from dlcourse.images.torchvision_networks import check_takes, scaling_of, torchvision_network
from dlcourse.reporting.fonts import legible
from dlcourse.settings import Fraction, PositiveInt
from dlcourse.topics import Topic

log = logging.getLogger(__name__)


class ImageFolderData(DecodedImages):
    """Images in folders that are named after their classes.

    The split follows the folders ``train/``, ``val/`` and ``test/`` (see `read_folder`); a split without a folder is
    taken from the training images by ``val_fraction`` or ``test_fraction``. Images are cropped to their central square.

    Args:
        root: The folder. null is the ants and bees of PyTorch's tutorial on transfer learning, which are downloaded
            once, to hymenoptera in the data folder.
        size: Height and width in pixels.
        crop: Largest fraction of its area that a training image loses to a random crop; 0 for none.
        colour: Largest relative change of brightness, contrast and saturation of training images; 0 for none.
        flip: Mirror training images left and right, each at random.
    """

    tensor_names = ("images", "readable")

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
        self.needs_download = root is None
        self.root = (Path(root).expanduser() if root is not None else data_folder() / "hymenoptera").absolute()
        self.hparams["root"] = str(self.root)  # a run may be resumed from another folder
        self.size, self.crop, self.colour, self.flip = size, crop, colour, flip

    def prepare_data(self) -> None:
        if self.needs_download:
            hymenoptera.fetch(self.root)
        super().prepare_data()

    @cached_property
    def folder(self) -> FolderContents:
        return read_folder(self.root)

    @cached_property
    def cache(self) -> Path:
        """The file of the decoded images. Its name depends on ``size`` and on each image file's path, size and date."""
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
        for number, image in enumerate(decode_all(paths, self.size)):
            if image is not None:
                images[number], readable[number] = image, 1
        return {"images": images, "readable": readable}

    def inconsistency(self, tensors: Mapping[str, Tensor]) -> str | None:
        images, count = tensors["images"], len(self.folder.files)
        if images.shape != (count, 3, self.size, self.size) or tensors["readable"].shape != (count,):
            return f"images of shape {tuple(images.shape)} for {count} images"
        return None

    def load(self) -> Rows:
        """The readable images of the classes that have training images; logs a warning about what is left out."""
        with safe_open(self.cache, "pt") as file:
            images, readable = file.get_tensor("images"), file.get_tensor("readable").bool()
        files = dict(enumerate(self.folder.files))
        unreadable = [files.pop(number) for number in (~readable).nonzero()[:, 0].tolist()]
        classes = classes_to_train_on(self.root, list(files.values()))
        kept = {number: file for number, file in files.items() if file.class_name in classes}
        kinds = {
            "images that cannot be read": [str(each.path.relative_to(self.root)) for each in unreadable],
            "classes without an image to train on": sorted({each.class_name for each in files.values()} - set(classes)),
        }
        lines = [*self.folder.left_out, *(f"{kind}: {some_of(names)}" for kind, names in kinds.items() if names)]
        if lines:
            log.warning("left out of %s: %s", self.root, "; ".join(lines))
        splits: dict[Split, list[int]] = {"train": [], "val": [], "test": []}
        for row, file in enumerate(kept.values()):
            splits[file.split].append(row)
        return Rows(
            images[list(kept)],
            torch.tensor([classes.index(file.class_name) for file in kept.values()]),
            f"the images in {self.root}",
            classes=classes,
            fixed_splits={split: torch.tensor(rows) for split, rows in splits.items() if rows and split != "train"},
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        counts = torch.bincount(self.rows.targets[self.splits["train"]], minlength=self.outputs)
        if few := [name for name, count in zip(self.rows.classes, counts, strict=True) if not count]:
            raise SettingsError(
                f"--data.root {self.root} has too few images of {', '.join(few)} to leave one to train on: "
                "add some, or lower --data.val_fraction and --data.test_fraction"
            )

    @cached_property
    def transforms(self) -> list[v2.Transform]:
        """The random transforms of training images."""
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
        """Transform each image separately: given a batch, torchvision would transform all images in the same way."""
        for transform in self.transforms:
            images = torch.stack([transform(image) for image in images])
        return images


class ImageFolderNetwork(ImageClassifier):
    """Images to the classes of a folder.

    Args:
        network: convolutional is a compact network for few images; any other name is one of torchvision's, such as
            resnet18.
        widths: Channels of the compact network's blocks, each of which halves height and width.
        pretrained: Start torchvision's network from its weights for ImageNet, which are downloaded once.
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
        self.pretrained_scaling = scaling_of(network) if pretrained else None
        check_takes(self.network, network, shape)

    def prepare(self, data: CourseData) -> None:
        super().prepare(data)
        if self.pretrained_scaling:
            self.set_scaling(*self.pretrained_scaling)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["pretrained"] = False  # it has all weights, so loading it needs no download


TOPIC = Topic(
    name="image-folder",
    title="Image folder: your own images, with one folder per class",
    lesson="docs/image-folder.md",
    data=ImageFolderData,
    model=ImageFolderNetwork,
    baselines={
        "majority": baselines.majority,
        "logistic-regression": baselines.logistic_regression_on_pixels,
    },
    figures=legible(image_figures.FIGURES),
)
