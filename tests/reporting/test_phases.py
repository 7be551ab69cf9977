"""Phases: on a terminal a bar that goes away, elsewhere one line, and only if they take long."""

import logging
import threading

import pytest

from dlcourse.reporting.phases import phase
from tests.terminal import terminal


def test_on_a_terminal_a_phase_shows_itself_and_goes_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dlcourse")
    with terminal(monkeypatch) as read:
        with phase("waiting"):
            assert "waiting ..." in read()
        assert read().rstrip(" ").endswith("\r")
        with phase("counting", 3) as bar:
            assert "counting:   0%" in read()
            bar.update(3)
        assert read().rstrip(" ").endswith("\r")
    assert caplog.messages == []


def test_elsewhere_it_is_one_line_if_it_takes_long(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "dlcourse")
    with phase("counting", 3, after=3600) as bar:
        bar.update()
    assert caplog.messages == []
    with phase("counting", 3, after=0):
        wait_for_lines()
    assert caplog.messages == ["counting ..."]
    assert capfd.readouterr() == ("", "")


def test_nothing_is_shown_where_nobody_asked_for_messages(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a program that uses the package as a library."""
    caplog.set_level(logging.WARNING, "dlcourse")
    with phase("waiting", after=0):
        wait_for_lines()
    with terminal(monkeypatch) as read, phase("waiting"):
        assert read() == ""
    assert caplog.messages == []


def wait_for_lines() -> None:
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()
