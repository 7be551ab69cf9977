"""Downloads: whole or not at all, and given up when nothing comes."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlcourse.data import downloads as fetching
from dlcourse.data.downloads import UnavailableError, download
from tests.processes import serving

CONTENT = bytes(range(256)) * 1000
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_file_is_there_whole_with_its_checksum(tmp_path: Path) -> None:
    with serving({"/file": CONTENT}) as (address, asked):
        download(f"{address}/file", tmp_path / "new" / "file", MD5)
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert asked == ["/file"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize(("path", "why"), [("/file", "checksum"), ("/none", "404")])
def test_what_is_not_the_file_leaves_what_was_there(tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "file").write_text("before")
    with serving({"/file": CONTENT}) as (address, _), pytest.raises(UnavailableError, match=why):
        download(f"{address}{path}", tmp_path / "file", "md5:another")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "before")]


@pytest.mark.parametrize("wait", [True, False], ids=["stalls", "is cut off"])
def test_half_a_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.3)
    over = threading.Event()

    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
            if wait:
                over.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        with pytest.raises(UnavailableError) as refusal:
            download(f"http://127.0.0.1:{server.getsockname()[1]}/file", tmp_path / "file", MD5)
        over.set()
        thread.join()
    assert ("timed out" if wait else "500 bytes before the end") in refusal.value.reason
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(UnavailableError, match="timed out"),
    ):
        download(f"http://127.0.0.1:{silent.getsockname()[1]}/file", tmp_path / "file", MD5)


def test_a_name_that_takes_for_ever_to_look_up_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which no time-out of a socket would end."""
    over = threading.Event()
    monkeypatch.setattr(fetching, "PATIENCE", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(30) and [])
    with pytest.raises(UnavailableError, match="timed out"):
        download("http://127.0.0.1:9/file", tmp_path / "file", MD5)
    over.set()


def test_a_slow_server_is_waited_for_as_long_as_something_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 1.0)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(CONTENT), len(CONTENT) // 20):
            time.sleep(0.07)
            yield CONTENT[start : start + len(CONTENT) // 20]

    with serving({"/file": pieces()}) as (address, _):
        download(f"{address}/file", tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_place_that_cannot_be_written_to_is_no_fault_of_the_network(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    with serving({"/file": CONTENT}) as (address, _), pytest.raises(OSError, match="taken"):
        download(f"{address}/file", tmp_path / "taken" / "file", MD5)
