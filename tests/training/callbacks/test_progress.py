"""Progress: a bar on a terminal, lines elsewhere."""

import logging
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from dlcourse.training.trainer import make_trainer
from tests.samples import Line, data_of, numbers
from tests.training.scripted import PulledError, Scripted, run


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """A real terminal as stderr; what is given tells all that it has shown.

    No fixture: pytest puts its own stderr back between a test's fixtures and its body.
    """
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        yield lambda: "".join(all_of(ours))
    os.close(ours)


def all_of(terminal: int) -> Iterator[str]:
    """What a terminal has been told: it does not pass everything on at once."""
    while select.select([terminal], [], [], 0.3)[0]:
        yield os.read(terminal, 65536).decode()


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
