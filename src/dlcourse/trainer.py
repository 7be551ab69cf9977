"""The one place where a Trainer is made."""

import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor
from tqdm.auto import tqdm

from dlcourse.data import epoch_seed
from dlcourse.errors import SettingsError, one_line, suggestion
from dlcourse.ranges import NonNegativeFloat, PositiveFloat, PositiveInt

log = logging.getLogger(__name__)

SECONDS_BETWEEN_CHECKPOINTS = 1.0
LINES_OF_PROGRESS = 200
"""At the most about twice as many are printed where there is no terminal for a bar."""

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true"]


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


def choose_accelerator(wanted: Accelerator) -> Literal["cpu", "cuda", "mps"]:
    """The accelerator meant; raises `SettingsError` where the one asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted in ("auto", "gpu"):
        found = next(name for name, is_there in there.items() if is_there)
        if wanted == "auto" or found != "cpu":
            return cast(Literal["cpu", "cuda", "mps"], found)
    elif there[wanted]:
        return cast(Literal["cpu", "cuda", "mps"], wanted)
    why = "PyTorch finds no such device"
    if wanted != "mps" and torch.version.cuda is None:
        why = "this PyTorch is built without CUDA"
    raise SettingsError(f"--trainer.accelerator {wanted} is not there ({why}): use auto or cpu")


def check_devices(devices: int | Literal["auto"], strategy: str, accelerator: Accelerator) -> None:
    """Raises `SettingsError` where so many devices are not there, or no strategy has that name."""
    found = {"cuda": torch.cuda.device_count, "cpu": os.cpu_count}.get(accelerator, lambda: 1)() or 1
    if devices != "auto" and devices > found:
        what = "CPU cores" if accelerator == "cpu" else f"{accelerator} devices"
        raise SettingsError(f"--trainer.devices {devices} is too many: this machine has {found} {what}")
    known = ["auto", *StrategyRegistry.available_strategies()]
    if strategy not in known:
        near = suggestion(strategy, known) or "; there are auto, ddp, fsdp and others of Lightning's"
        raise SettingsError(f"--trainer.strategy {strategy} is unknown{near}")


def choose_precision(wanted: Precision, accelerator: str) -> Any:
    """Lightning's precision for what was asked; says so in one line where the hardware forces another."""
    has_bf16 = accelerator == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return "bf16-mixed" if has_bf16 else "32-true"
    fallback = None
    if wanted in ("16-mixed", "bf16-mixed") and accelerator == "cpu" and not _cpu_has_bf16():
        fallback = "32-true"
    elif wanted == "16-mixed" and accelerator == "cpu":
        fallback = "bf16-mixed"
    elif wanted.startswith("bf16") and accelerator == "cuda" and not has_bf16:
        fallback = "16-mixed"
    elif wanted == "64-true" and accelerator == "mps":
        fallback = "32-true"
    if fallback:
        log.warning("--trainer.precision %s is not to be had on this %s: using %s", wanted, accelerator, fallback)
    return fallback or wanted


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers by itself: where it does not, they are slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the old checkpoint and then take its place: whoever pulls the plug finds one or the other whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        partial = f"{path}.part"
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)  # on a full disk its room is needed
            raise


class KeptCheckpoint(ModelCheckpoint):
    """One file that holds the newest state, or with ``monitor`` the best one.

    The newest is written when the last writing is a second ago, and at the end: epochs that are shorter are trained
    again faster than they are saved.
    """

    def __init__(
        self, folder: Path | str, filename: str, *, monitor: str | None = None, mode: Literal["min", "max"] = "min"
    ) -> None:
        super().__init__(
            folder,
            filename,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._saved = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        is_last = trainer.should_stop or trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        is_due = bool(self.monitor) or is_last or time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        if trainer.strategy.broadcast(is_due):  # all processes save together, and each has a clock of its own
            super().on_train_epoch_end(trainer, pl_module)
            self._saved = time.monotonic()

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}({self.filename})"  # Lightning's takes longer, and is asked for each step

    @property
    def path(self) -> Path:
        return Path(str(self.dirpath)) / f"{self.filename}.ckpt"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run keeps its own files: what the state says of the old run's folder holds for the new one's."""
        here = str(self.path)
        paths = {"best_model_path": here, "kth_best_model_path": here, "last_model_path": ""}
        scores = dict.fromkeys([here], state_dict["best_model_score"]) if state_dict["best_k_models"] else {}
        super().load_state_dict(state_dict | paths | {"dirpath": self.dirpath, "best_k_models": scores})


class Patience(EarlyStopping):
    """Early stopping whose patience is the one that was set, in a resumed training as well.

    Lightning's takes the old one from the checkpoint, so that what had stopped would stop again at once.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        going_on = {"patience": self.patience, "stopped_epoch": 0, "stopping_reason": EarlyStoppingReason.NOT_STOPPED}
        super().load_state_dict(state_dict | going_on)


class Hardware(Callback):
    """Keep in each checkpoint, as ``dlcourse_hardware``, what computed it: ``precision``, as it came to, and how many
    ``processes``.
    """

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["dlcourse_hardware"] = {"precision": trainer.precision, "processes": trainer.world_size}


class Divergence(Callback):
    """Stop when an epoch's loss is no number any more, or a million times the first one's: nothing better can come.

    ``epoch`` then says which epoch it was, counted from 0, and ``loss`` what its loss was.
    """

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.loss = self.first = float("nan")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs is not None:
            self.losses.append(outputs["loss"] if isinstance(outputs, dict) else outputs)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.losses:
            return
        self.loss = float(trainer.strategy.reduce(torch.stack(self.losses).mean()))  # the mean over all processes
        if math.isnan(self.first):
            self.first = self.loss
        if not abs(self.loss) <= 1e6 * max(abs(self.first), 1e-30) or math.isinf(self.loss):
            self.epoch = trainer.current_epoch
            trainer.should_stop = True


def divergence_of(trainer: L.Trainer) -> Divergence:
    """The watch that `make_trainer` gave a Trainer."""
    return next(each for each in trainer.callbacks if isinstance(each, Divergence))  # type: ignore[attr-defined]


class Epochs(Callback):
    """Seed every epoch anew, and log its learning rate, and rows a second where batches are (inputs, targets).

    The seed comes from the run's and the epoch: a resumed run draws what it would have drawn. Each of several processes
    draws its own.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seed = torch.initial_seed()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seed = epoch_seed(self.seed, trainer.current_epoch)
        seed = epoch_seed(seed, trainer.global_rank) if trainer.global_rank else seed
        if pl_module.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed notes one for all devices it may ever use
        else:
            torch.manual_seed(seed)
        self.started, self.seconds, self.rows = time.perf_counter(), 0.0, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, (tuple, list)):
            self.rows += len(batch[0])
        if trainer.is_last_batch:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self.seconds = time.perf_counter() - self.started

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        figures = {}
        if trainer.optimizers:
            figures["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        if self.rows and self.seconds:
            figures["samples_per_second"] = self.rows * trainer.world_size / self.seconds
        for logger in trainer.loggers:  # directly: Lightning walks through all that a module logs, value by value
            logger.log_metrics({**figures, "epoch": trainer.current_epoch}, trainer.global_step - 1)


class Progress(ProgressBar):
    """On a terminal a bar over the whole training with the time that is left; elsewhere a line an epoch, or fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm[Any] | None = None
        self.shown = True

    def disable(self) -> None:
        self.shown = False

    def enable(self) -> None:
        self.shown = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.said = trainer.current_epoch
        if self.shown and sys.stderr.isatty():
            batches = int(trainer.num_training_batches)
            total = batches * (trainer.max_epochs or 0)
            start = batches * trainer.current_epoch
            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, leave=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._say(trainer, trainer.current_epoch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._say(trainer, trainer.current_epoch)
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _say(self, trainer: L.Trainer, epochs: int) -> None:
        """Tell of the epoch that is over. Its metrics are all there only when the next one starts."""
        if not self.shown or epochs == self.said:
            return
        self.said = epochs
        metrics = trainer.callback_metrics
        names: list[str] = [name for name in ("train/loss", "val/loss") if name in metrics]
        names = names or [name for name in metrics if name not in ("lr", "samples_per_second")]
        losses = "  ".join(f"{name} {float(metrics[name]):.5g}" for name in names)
        if self.bar is None:
            last = str((trainer.max_epochs or epochs) - 1)
            if (epochs - 1) % max((trainer.max_epochs or 0) // LINES_OF_PROGRESS, 1) and epochs <= int(last):
                return
            log.info("epoch %*d/%s  %s", len(last), epochs - 1, last, losses)
        else:
            self.bar.set_description(f"epoch {epochs}", refresh=False)
            self.bar.set_postfix_str(losses, refresh=False)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
