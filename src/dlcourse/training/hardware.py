"""The one place where a Trainer is made."""

import logging
import os
from typing import Any, Literal, cast

import torch
from lightning.pytorch.strategies import StrategyRegistry

from dlcourse.errors import SettingsError, suggestion

log = logging.getLogger(__name__)

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true"]


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
