"""Which device, how many of them, and which precision."""

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.strategies import Strategy, StrategyRegistry

from dlcourse.errors import SettingsError, suggestion
from dlcourse.settings import PositiveInt

log = logging.getLogger(__name__)

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true"]
if TYPE_CHECKING:  # flags are words and numbers; `make_trainer` takes Lightning's lists and objects too
    Devices = int | list[int] | str
    StrategyName = str | Strategy
else:
    Devices = PositiveInt | Literal["auto"]
    StrategyName = str


def choose_accelerator(wanted: str) -> str:
    """The accelerator that auto or gpu stands for here; raises `SettingsError` if the wanted one is not available.

    Others of Lightning's, such as tpu, stay what they are.
    """
    if wanted not in get_args(Accelerator):
        return wanted
    available: dict[str, bool] = {
        "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True
    }  # fmt: skip
    chosen = wanted
    if wanted in ("auto", "gpu"):
        chosen = next(name for name, is_available in available.items() if is_available)
    if available[chosen] and (wanted, chosen) != ("gpu", "cpu"):
        return chosen
    why = "PyTorch finds no such device"
    if wanted != "mps" and torch.version.cuda is None:
        why = "this PyTorch is built without CUDA"
    raise SettingsError(f"--trainer.accelerator {wanted} is not there ({why}): use auto or cpu")


def check_devices(devices: Devices, strategy: StrategyName, accelerator: str) -> None:
    """Raises `SettingsError` if there are fewer devices, or no strategy has that name."""
    counts = {"cuda": torch.cuda.device_count(), "cpu": os.cpu_count() or 1, "mps": 1}
    count = counts.get(accelerator, sys.maxsize)
    if isinstance(devices, int) and devices > count:
        what = "CPU cores" if accelerator == "cpu" else f"{accelerator} devices"
        raise SettingsError(f"--trainer.devices {devices} is too many: this machine has {count} {what}")
    known = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy not in known:
        near = suggestion(strategy, known) or "; there are auto, ddp, fsdp and others of Lightning's"
        raise SettingsError(f"--trainer.strategy {strategy} is unknown{near}")


def choose_precision(wanted: Precision, accelerator: str) -> Any:
    """The precision to give to Lightning; logs a warning where the hardware does not support the wanted one."""
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


def described(trainer: L.Trainer) -> str:
    """What a Trainer computes on, as text: device and precision, which results depend on in their last digits."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{device.type} ({name}), {trainer.precision}"


def _cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bfloat16 products; without them they are slower than float32."""
    # PyTorch has no public function for this.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
