"""The factory of Lightning Trainers."""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from dlcourse.errors import SettingsError, one_line
from dlcourse.settings import NonNegativeFloat, PositiveFloat, PositiveInt
from dlcourse.training.callbacks.checkpoints import AtomicCheckpointIO, KeptCheckpoint
from dlcourse.training.callbacks.divergence import Divergence
from dlcourse.training.callbacks.early_stopping import Patience
from dlcourse.training.callbacks.epoch_seed import EpochSeed
from dlcourse.training.callbacks.hardware import Hardware
from dlcourse.training.callbacks.lr_and_speed import LrAndSpeed
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
    """A Trainer for any LightningModule: it chooses the hardware, stops early, keeps checkpoints and is repeatable.

    Side effects, for the whole process: Lightning logs only warnings, those of its warnings that need no answer are
    filtered out, and with ``deterministic`` PyTorch uses deterministic algorithms.

    Args:
        max_epochs: Largest number of epochs.
        patience: Epochs without improvement of the monitored metric before training stops; null never stops it.
        min_delta: What counts as an improvement, in the metric's unit.
        stopping_threshold: Stop at the first epoch in which the monitored metric is better than this; without a
            monitored metric, the training loss.
        accelerator: Where to train; auto takes a GPU (CUDA, then MPS) before the CPU.
        devices: Number of devices; the batch size is that of each device, so that more than one must be asked for.
        strategy: Lightning's name of how devices share the work, such as ddp.
        num_nodes: Number of machines that train together.
        precision: auto is bf16-mixed on a CUDA GPU that supports it, else 32-true. Where the hardware does not support
            a precision, the next best one is used, with a warning.
        gradient_clip_val: Largest norm of the gradient; null for no clipping.
        deterministic: Only algorithms that give the same result each time, which costs speed on a GPU.
        tensorboard: Also write TensorBoard files, beside the checkpoints; `tensorboard --logdir mlruns` shows them.
        limit_batches: Use only this many batches of each split, for a quick try.
        fast_dev_run: Run one batch of each split and stop, to see whether it works at all.
        monitor: The metric that early stopping and the best checkpoint go by; without one there is neither.
        mode: Whether lower (min) or higher (max) values of the monitored metric are better.
        folder: Where ``best.ckpt`` and ``last.ckpt`` are saved; without one there are no checkpoints.
        logger: Lightning's logger, or none.
        callbacks: Further callbacks.

    Raises:
        SettingsError: The accelerator or so many devices are not available, or settings contradict each other.
    """
    quiet()
    accelerator = choose_accelerator(accelerator)
    check_devices(devices, strategy, accelerator)
    standard: list[Callback] = [Hardware(), Divergence(), EpochSeed(), LrAndSpeed(), Progress()]
    if monitor or stopping_threshold is not None:  # without patience too: a resumed run may be given some
        standard.append(
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
            standard.append(KeptCheckpoint(folder, "best", monitor=monitor, mode=mode))
        standard.append(KeptCheckpoint(folder, "last"))
    loggers = [logger] if logger else []
    if tensorboard and folder:
        loggers.append(_tensorboard(Path(folder).parent))
    try:
        return L.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            num_nodes=num_nodes,
            precision=choose_precision(precision, accelerator),
            plugins=AtomicCheckpointIO(),
            logger=loggers or False,
            callbacks=[*standard, *callbacks],
            fast_dev_run=fast_dev_run,
            max_epochs=max_epochs,
            limit_train_batches=limit_batches,
            limit_val_batches=limit_batches,
            limit_test_batches=limit_batches,
            gradient_clip_val=gradient_clip_val,
            deterministic=deterministic,
            num_sanity_val_steps=0,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in (*standard, *callbacks)),
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


def quiet() -> None:
    """Hide Lightning's messages that tell nothing new, or nothing that a user could act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for reason in (
        "does not have many workers",  # rows are in memory: a worker process would only copy them
        "The number of training batches .* is smaller than the logging interval",  # only epochs are logged
        "Total length of `list` across ranks is zero",  # fit-only data has no validation rows
        "GPU available but not used",  # by the user's own setting
        "Checkpoint directory .* exists and is not empty",  # a resumed run starts with copies of its checkpoints
        "Be aware that when using `ckpt_path`",  # the callbacks may differ: a resumed run may have other patience
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own call
    ):
        warnings.filterwarnings("ignore", f".*{reason}")
