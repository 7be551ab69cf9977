"""No warnings that are not true of the course's own data."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import lightning as L
from lightning.pytorch.callbacks import Callback

from dlcourse.data.datamodule import CourseData

UNTRUE = (
    "does not have many workers",  # rows are in memory: a worker process would only copy them
    "The number of training batches .* is smaller than the logging interval",  # only epochs are logged
    "Total length of `list` across ranks is zero",  # fit-only data has no validation rows
    "Checkpoint directory .* exists and is not empty",  # a resumed run starts with copies of its checkpoints
    "Be aware that when using `ckpt_path`",  # the callbacks may differ: a resumed run may have other patience
)


@contextmanager
def only_true_warnings(data: object) -> Iterator[None]:
    """Hide those of Lightning's warnings that are not true of `CourseData`. Of any other data they may well be."""
    with warnings.catch_warnings():
        for reason in UNTRUE if isinstance(data, CourseData) else ():
            warnings.filterwarnings("ignore", f".*{reason}")
        yield


class OnlyTrueWarnings(Callback):
    """`only_true_warnings` for as long as a Trainer trains or tests."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.stack.enter_context(only_true_warnings(getattr(trainer, "datamodule", None)))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.stack.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.stack.close()
