"""The hardware: what is chosen, and what is refused."""

import os
import re
from typing import Any

import pytest
import torch

from dlcourse.errors import SettingsError
from dlcourse.training.hardware import choose_accelerator, choose_precision
from dlcourse.training.trainer import make_trainer
from tests.samples import Noisy, data_of, numbers


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)


@pytest.mark.parametrize("accelerator", ["cuda", "mps", "gpu"])
def test_an_accelerator_that_is_not_there_is_one_line(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    with pytest.raises(SettingsError) as caught:
        make_trainer(accelerator=accelerator)
    assert re.fullmatch(
        rf"--trainer\.accelerator {accelerator} is not there \(.*\): use auto or cpu", str(caught.value)
    )


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    assert choose_accelerator("auto") == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_accelerator("auto") == choose_accelerator("gpu") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_accelerator("auto") == choose_accelerator("gpu") == "cuda"
    assert choose_accelerator("cpu") == "cpu"


def test_more_devices_than_there_are_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=rf"^--trainer\.devices 4096 is too many.* {os.cpu_count()} CPU cores$"):
        make_trainer(accelerator="cpu", devices=4096)
    with_gpus(monkeypatch, count=2, bf16=True)
    with pytest.raises(SettingsError, match=r"^--trainer\.devices 3 is too many: this machine has 2 cuda devices$"):
        make_trainer(accelerator="cuda", devices=3)


def test_an_unknown_strategy_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^--trainer\.strategy dpp is unknown; did you mean ddp\?$"):
        make_trainer(accelerator="cpu", strategy="dpp")


def test_a_strategy_that_does_not_go_with_the_hardware_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^the Trainer cannot be made: [^\n]*$"):
        make_trainer(accelerator="cpu", strategy="fsdp")


def test_precision_is_bf16_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 1, bf16=True)
    assert choose_precision("auto", "cuda") == "bf16-mixed"
    with_gpus(monkeypatch, 1, bf16=False)
    assert choose_precision("auto", "cuda") == "32-true"
    assert choose_precision("auto", "cpu") == "32-true"
    assert choose_precision("auto", "mps") == "32-true"


@pytest.mark.parametrize(
    ("wanted", "accelerator", "used"),
    [
        ("16-mixed", "cpu", "bf16-mixed"),
        ("16-mixed", "cpu", "32-true"),
        ("bf16-mixed", "cpu", "32-true"),
        ("bf16-mixed", "cuda", "16-mixed"),
        ("bf16-true", "cuda", "16-mixed"),
        ("64-true", "mps", "32-true"),
    ],
)
def test_a_precision_that_is_not_to_be_had_falls_back_and_says_so(
    wanted: Any, accelerator: str, used: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_gpus(monkeypatch, 1, bf16=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: used == "bf16-mixed")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_precision(wanted, accelerator) == used
    assert caplog.messages == [
        f"--trainer.precision {wanted} is not to be had on this {accelerator}: using {used}",
    ]


@pytest.mark.parametrize("wanted", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_a_precision_that_the_cpu_has_is_used_in_silence(
    wanted: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_precision(wanted, "cpu") == wanted
    assert caplog.messages == []


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "16-mixed"])
def test_training_runs_in_other_precisions(precision: Any) -> None:
    data = data_of(numbers())
    trainer = make_trainer(max_epochs=2, accelerator="cpu", precision=precision, monitor="val/loss")
    trainer.fit(Noisy(data.shape, data.outputs), datamodule=data)
    assert float(trainer.callback_metrics["train/loss"]) > 0
