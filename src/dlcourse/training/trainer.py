"""The one place where a Trainer is made."""

import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler

from dlcourse.errors import SettingsError, one_line
from dlcourse.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from dlcourse.training.callbacks.checkpoints import AtomicCheckpointIO, Hardware, KeptCheckpoint
from dlcourse.training.callbacks.divergence import Divergence
from dlcourse.training.callbacks.early_stopping import Patience
from dlcourse.training.callbacks.epochs import Epochs
from dlcourse.training.callbacks.progress import Progress
from dlcourse.training.hardware import Accelerator, Precision, check_devices, choose_accelerator, choose_precision

log = logging.getLogger(__name__)


def make_trainer(
    *,
    max_epochs: PositiveInt = 100,
    patience: PositiveInt | None = 10,
    min_delta: NonNegativeFloat = 0.0,
    stopping_threshold: float | None = None,
    accelerator: Accelerator = "auto",
    devices: PositiveInt | Literal["auto"] = 1,
    strategy: str = "auto",
    num_nodes: PositiveInt = 1,
    precision: Precision = "auto",
    gradient_clip_val: PositiveFloat | None = None,
    deterministic: bool = True,
    tensorboard: bool = False,
    limit_batches: PositiveInt | None = None,
    fast_dev_run: bool = False,
    monitor: str | None = None,
    mode: Literal["min", "max"] = "min",
    folder: Path | str | None = None,
    logger: Logger | None = None,
    callbacks: Sequence[Callback] = (),
) -> L.Trainer:
    """A Trainer for any LightningModule: hardware chosen, early stopping, best and last checkpoint, repeatable.

    Args:
        max_epochs: Epochs at the most.
        patience: Epochs without improvement of the monitored metric before training stops; null never stops it.
        min_delta: What counts as an improvement, in the metric's unit.
        stopping_threshold: Stop at the first epoch in which the monitored metric is better than this; without a
            monitored metric, the training loss.
        accelerator: Where to train; auto takes a GPU (CUDA, then MPS) before the CPU.
        devices: How many devices; the batch size is each device's own, so that more than one must be asked for.
        strategy: Lightning's name of how devices share the work, such as ddp.
        num_nodes: Machines that train together.
        precision: auto is bf16-mixed on a CUDA GPU that has it, else 32-true; what the hardware lacks falls back.
        gradient_clip_val: Largest norm of the gradient; null for no clipping.
        deterministic: Only algorithms that give the same result each time, which costs speed on a GPU.
        tensorboard: Write TensorBoard's files too, beside the checkpoints; `tensorboard --logdir mlruns` shows them.
        limit_batches: Use only so many batches of each split, to try a thing out.
        fast_dev_run: One batch of each split and no more: does it run at all?
        monitor: The metric that early stopping and the best checkpoint go by; without one there is neither.
        mode: Whether the monitored metric is to fall (min) or to rise (max).
        folder: Where ``best.ckpt`` and ``last.ckpt`` are kept; without one there are no checkpoints.
        logger: Lightning's logger, or none.
        callbacks: Further callbacks.

    Raises:
        SettingsError: The accelerator or so many devices are not there, or settings contradict each other.
    """
    _quiet()
    # With deterministic algorithms torch would fill new memory too, which only a program needs that reads it unwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    accelerator = choose_accelerator(accelerator)
    check_devices(devices, strategy, accelerator)
    keep: list[Callback] = []
    if monitor or stopping_threshold is not None:  # without patience too: a resumed run may be given some
        keep.append(
            Patience(
                monitor or "train/loss",
                min_delta,
                patience if monitor and patience else sys.maxsize,
                mode=mode if monitor else "min",
                check_on_train_epoch_end=True,
                check_finite=False,
                stopping_threshold=stopping_threshold,
            )
        )
    if folder and not fast_dev_run:
        if monitor:
            keep.append(KeptCheckpoint(folder, "best", monitor=monitor, mode=mode))
        keep.append(KeptCheckpoint(folder, "last"))
    loggers = [logger] if logger else []
    if tensorboard and folder:
        loggers.append(_tensorboard(Path(folder).parent))
    own: list[Callback] = [Hardware(), Divergence(), Epochs(), Progress()]
    try:
        return L.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            num_nodes=num_nodes,
            precision=choose_precision(precision, accelerator),
            plugins=AtomicCheckpointIO(),
            logger=loggers or False,
            callbacks=[*own, *keep, *callbacks],
            fast_dev_run=fast_dev_run,
            max_epochs=max_epochs,
            limit_train_batches=limit_batches,
            limit_val_batches=limit_batches,
            limit_test_batches=limit_batches,
            gradient_clip_val=gradient_clip_val,
            deterministic=deterministic,
            profiler=Unprofiled(),
            num_sanity_val_steps=0,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in (*keep, *callbacks)),
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError, TypeError, ImportError) as error:
        raise SettingsError(f"the Trainer cannot be made: {one_line(error)}") from error


def _tensorboard(folder: Path) -> Logger:
    try:
        return TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise SettingsError(
            "--trainer.tensorboard true needs the package tensorboard: pip install 'dlcourse[tensorboard]'"
        ) from error


def _quiet() -> None:
    """Lightning's announcements say nothing that the run's own lines do not."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for reason in (
        "does not have many workers",  # rows are in memory: a worker process would only copy them
        "The number of training batches .* is smaller than the logging interval",  # epochs are logged
        "Total length of `list` across ranks is zero",  # fit-only data has no validation rows
        "GPU available but not used",  # whoever sets the accelerator to cpu knows
        "Checkpoint directory .* exists and is not empty",  # a resumed run starts with copies of its checkpoints
        "Be aware that when using `ckpt_path`",  # a resumed run may be told to stop by less
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own call
    ):
        warnings.filterwarnings("ignore", f".*{reason}")


class Unprofiled(PassThroughProfiler):
    """No profiler, in less time than Lightning's: it is asked some fifty times a step."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return self.nothing
