"""The factory of Lightning Trainers."""

import inspect
import logging
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins import Precision as PrecisionPlugin

from dlcourse.errors import SettingsError, one_line, suggestion
from dlcourse.settings import NonNegativeFloat, PositiveFloat, PositiveInt
from dlcourse.training.callbacks.checkpoints import AtomicCheckpointIO, KeptCheckpoint
from dlcourse.training.callbacks.divergence import Divergence
from dlcourse.training.callbacks.early_stopping import Patience
from dlcourse.training.callbacks.epoch_seed import EpochSeed
from dlcourse.training.callbacks.hardware import Hardware
from dlcourse.training.callbacks.lr_and_speed import LrAndSpeed
from dlcourse.training.callbacks.progress import Progress
from dlcourse.training.callbacks.untrue_warnings import OnlyTrueWarnings
from dlcourse.training.hardware import (
    Accelerator,
    Devices,
    Precision,
    StrategyName,
    check_devices,
    choose_accelerator,
    choose_precision,
)

log = logging.getLogger(__name__)

EPOCHS = 100


def make_trainer(
    *,
    max_epochs: PositiveInt | None = None,
    patience: PositiveInt | None = 10,
    min_delta: NonNegativeFloat = 0.0,
    stopping_threshold: float | None = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
    strategy: StrategyName = "auto",
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
    logger: Logger | Iterable[Logger] | bool | None = None,
    callbacks: Sequence[Callback] | Callback | None = None,
    **trainer_options: Any,
) -> L.Trainer:
    """A Trainer for any LightningModule: it chooses the hardware, stops early, keeps checkpoints and is repeatable.

    Side effects, for the whole process: Lightning's reports of what it has chosen are not logged, and with
    ``deterministic`` PyTorch uses deterministic algorithms.

    Args:
        max_epochs: Largest number of epochs; -1 for no limit. None is 100, or no limit where ``max_steps`` or
            ``max_time`` is set.
        patience: Epochs without improvement of the monitored metric before training stops; null never stops it.
            Validations, where these are not once an epoch.
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
        logger: Lightning's logger, or several; True for Lightning's own choice.
        callbacks: Further callbacks.
        **trainer_options: Whatever else Lightning's Trainer takes, such as ``accumulate_grad_batches`` or ``profiler``.
            Its options are taken as they are, in place of what would be chosen here.

    Raises:
        SettingsError: The accelerator or so many devices are not available, an option does not exist, or settings
            contradict each other.
    """
    check_options(trainer_options)
    quiet()
    accelerator_name = choose_accelerator(accelerator)
    check_devices(devices, strategy, accelerator_name)
    if max_epochs is None:
        max_epochs = -1 if trainer_options.keys() & {"max_steps", "max_time"} else EPOCHS
    given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
    standard: list[Callback] = [OnlyTrueWarnings(), Hardware(), Divergence(), EpochSeed(), LrAndSpeed()]
    has_bar = trainer_options.get("enable_progress_bar", not trainer_options.get("barebones"))
    if has_bar and not any(isinstance(callback, ProgressBar) for callback in given):
        standard.append(Progress())
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
    loggers = [logger] if isinstance(logger, Logger) else [] if isinstance(logger, bool) else list(logger or ())
    if tensorboard and folder:
        loggers.append(_tensorboard(Path(folder).parent))
    plugins = trainer_options.get("plugins") or []
    plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
    has_own_precision = any(isinstance(plugin, PrecisionPlugin) for plugin in plugins)
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    decided: dict[str, Any] = {
        "accelerator": accelerator_name,
        "devices": devices,
        "strategy": strategy,
        "num_nodes": num_nodes,
        "precision": None if has_own_precision else choose_precision(precision, accelerator_name),
        "logger": loggers or logger is True,
        "callbacks": [*standard, *given],
        "fast_dev_run": fast_dev_run,
        "max_epochs": max_epochs,
        "limit_train_batches": limit_batches,
        "limit_val_batches": limit_batches,
        "limit_test_batches": limit_batches,
        "gradient_clip_val": gradient_clip_val,
        "deterministic": deterministic,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in (*standard, *given)),
        "enable_model_summary": False,
    }
    try:
        return L.Trainer(**decided | trainer_options | {"plugins": plugins})
    except (MisconfigurationException, ValueError, RuntimeError, TypeError, ImportError) as error:
        raise SettingsError(f"the Trainer cannot be made: {one_line(error)}") from error


def check_options(options: Mapping[str, Any]) -> None:
    """Raises `SettingsError` for an option that neither `make_trainer` nor Lightning's Trainer has."""
    known = {name for each in (L.Trainer, make_trainer) for name in inspect.signature(each).parameters}
    for name in options:
        if name not in known:
            near = suggestion(name, known)
            raise SettingsError(f"Lightning's Trainer has no option {name}{near or '; see lightning.Trainer'}")


def _tensorboard(folder: Path) -> Logger:
    try:
        return TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise SettingsError(
            "--trainer.tensorboard true needs the package tensorboard: pip install 'dlcourse[tensorboard]'"
        ) from error


def quiet() -> None:
    """Hide Lightning's reports of what it has chosen, and the warnings that are news to nobody."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.WARNING)
    for reason in (
        "GPU available but not used",  # by the user's own setting
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own call
    ):
        warnings.filterwarnings("ignore", f".*{reason}")
