"""What may be shown of an address and of libraries' messages, and the one message that is known by its text."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from dlcourse.errors import address, explained, one_line, shown


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://ada:s3cret@db.example:5432/runs", "postgresql://ada:***@db.example:5432/runs"),
        ("postgresql://ada:s3/c@r#et@db.example/runs", "postgresql://ada:***@db.example/runs"),
        ("http://:s3cret@127.0.0.1:5000", "http://:***@127.0.0.1:5000"),
        ("postgresql://db.example/runs?user=ada&password=s3cret", "postgresql://db.example/runs?user=ada&password=***"),
        ("http://ada@127.0.0.1:5000/x", "http://ada@127.0.0.1:5000/x"),
        ("sqlite:////home/ada/my course/mlruns/mlflow.db", "sqlite:////home/ada/my course/mlruns/mlflow.db"),
        ("/home/ada/mlruns", "/home/ada/mlruns"),
    ],
)
def test_a_uri_is_shown_without_its_password(uri: str, expected: str) -> None:
    assert shown(uri) == expected


def test_a_servers_address_has_no_name_and_password() -> None:
    assert address("http://ada:s3cret@127.0.0.1:5000/") == "http://127.0.0.1:5000"
    assert address("https://db.example/runs") == "https://db.example/runs"


@pytest.mark.parametrize("said", ["p@ss word%", "p%40ss%20word%25", "p%40ss+word%25", "p%40ss word%25"])
def test_messages_of_others_lose_it_in_any_spelling(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada:p%40ss%20word%25@db.example/runs")
    assert (
        one_line(f"cannot connect:\n dsn 'user=ada password={said}'") == "cannot connect: dsn 'user=ada password=***'"
    )


def test_other_addresses_in_a_message_lose_theirs_too() -> None:
    assert one_line("http://ada:s3cret@127.0.0.1:1/a is gone") == "http://ada:***@127.0.0.1:1/a is gone"


def test_pytorchs_error_of_cross_entropy_without_a_sigmoid_is_explained() -> None:
    with pytest.raises(RuntimeError) as raised:
        binary_cross_entropy(torch.tensor([2.0]), torch.tensor([1.0]))
    assert "a sigmoid is missing" in str(explained(raised.value))
    assert explained(RuntimeError("something else")) is None
