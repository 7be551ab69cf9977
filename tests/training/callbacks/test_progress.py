"""Progress: a bar on a terminal, lines elsewhere."""

import itertools
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from dlcourse.training.callbacks import progress
from dlcourse.training.callbacks.progress import about
from dlcourse.training.trainer import make_trainer
from tests.samples import Line, data_of, numbers
from tests.terminal import terminal
from tests.training.scripted import PulledError, Scripted, loader, run


def test_on_a_terminal_a_bar_shows_the_remaining_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dlcourse")
    with terminal(monkeypatch) as read:
        run(Scripted([1.0] * 4, pause=0.05), max_epochs=4)
        shown = read()
    assert re.search(r"\d+/12 \[00:0\d<00:0\d", shown), shown
    assert shown.rstrip(" ").endswith("\r"), "the bar is cleared in the end"
    assert not [message for message in caplog.messages if message.startswith("epoch")]


def test_bar_is_cleared_when_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fail(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise PulledError

    with terminal(monkeypatch) as read:
        with pytest.raises(PulledError):
            run(Scripted([1.0]), max_epochs=1, callbacks=[Fail()])
        shown = read()
    assert "0/3" in shown
    assert shown.rstrip(" ").endswith("\r")


def test_elsewhere_an_epoch_is_one_line(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO, "dlcourse")
    data = data_of(numbers())
    make_trainer(max_epochs=11, patience=None, accelerator="cpu").fit(Line(data.shape, 1), datamodule=data)
    assert len(caplog.messages) == 11
    for epoch, message in enumerate(caplog.messages):
        assert re.fullmatch(rf"epoch {epoch:>2}/10  train/loss \S+  val/loss \S+", message)
    assert capfd.readouterr() == ("", "")


def test_line_of_any_module_has_its_own_metrics(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dlcourse")
    run(Scripted([0.5, 0.25]), max_epochs=2)
    assert caplog.messages == ["epoch 0/1  score 0.5", "epoch 1/1  score 0.25"]


def test_a_long_training_has_some_twenty_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dlcourse")
    run(Scripted([0.5] * 90), max_epochs=90)
    epochs = [int(message.split()[1].partition("/")[0]) for message in caplog.messages]
    assert epochs[0] == 0
    assert epochs[-1] == 89
    assert {later - earlier for earlier, later in itertools.pairwise(epochs[:-1])} == {5}
    assert len(epochs) <= 21


def test_last_epoch_has_a_line_when_training_stops_early(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dlcourse")
    run(Scripted([0.5] * 400), max_epochs=400, patience=3, monitor="score", mode="min")
    assert [message.split()[1] for message in caplog.messages] == ["0/399", "3/399"]


def forecasts(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    """What a training says of its duration, if it may say so at once."""
    monkeypatch.setattr(progress, "MEASURED", 0.0)
    caplog.set_level(logging.INFO, "dlcourse")
    run(Scripted([0.5] * 20, pause=0.01), **settings)
    return [message for message in caplog.messages if not message.startswith("epoch")]


def test_a_long_training_says_how_long_it_takes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LONG", 0.0)
    (text,) = forecasts(caplog, monkeypatch, max_epochs=20, patience=None)
    assert re.fullmatch(r"about \d+ s on cpu, 32-true; 20 epochs", text)
    caplog.clear()
    (text,) = forecasts(caplog, monkeypatch, max_epochs=20, patience=3, monitor="score")
    assert text.startswith("at most about ")


def test_a_short_training_does_not(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert forecasts(caplog, monkeypatch, max_epochs=20) == []


def test_durations_are_rounded_like_estimates() -> None:
    assert [about(seconds) for seconds in (3, 44, 86, 700, 9000)] == [
        "about 10 s", "about 40 s", "about 90 s", "about 12 min", "about 2.5 h"
    ]  # fmt: skip


class Stream(IterableDataset[list[Tensor]]):
    """Rows without a known number."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        return iter([[torch.ones(4, 2)]] * 3)


def test_a_stream_of_rows_has_a_bar_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as read:
        trainer = make_trainer(accelerator="cpu", max_epochs=2, patience=None)
        trainer.fit(Scripted([1.0] * 2), DataLoader(Stream(), batch_size=None), loader())
        assert "step" in read()
