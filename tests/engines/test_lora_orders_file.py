"""The file of orders in the background: written for the owner alone, read back whole, and no reason not to start."""

from pathlib import Path

import pytest

from appliance.engines.lora import orders_file as lora_orders_file
from appliance.engines.lora.orders_file import StoredOrder
from appliance.engines.lora.plan import Adapter

ORDERS = [
    StoredOrder(
        Adapter("org/style", "/a/b", "tiny", "hf://o/s", "v", is_pinned=True),
        True,
        3,
        {"revision": "x"},
        ("hf_token",),
        "failed",
        12.5,
        "why",
    ),
    StoredOrder(Adapter("other", "/a/c", "tiny")),
]


class Log:
    """Keeps what is said, not the words about it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, event: str, **about: object) -> None:
        self.said.append(event)

    error = warning


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log = Log()
    monkeypatch.setattr(lora_orders_file, "log", log)
    return log.said


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / lora_orders_file.FILE
    lora_orders_file.write(path, ORDERS)
    assert lora_orders_file.read(path) == ORDERS
    assert path.stat().st_mode & 0o777 == 0o600
    lora_orders_file.write(path, [])
    assert lora_orders_file.read(path) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"orders": 1}',
        '{"orders": [{}]}',
        '{"orders": [1]}',
        '{"orders": [{"name": 1, "path": "", '
        '"base_model": "", "source": "", "backend": "", "phase": "", "error": ""}]}',
    ],
)
def test_a_file_that_cannot_be_read_is_told_of(tmp_path: Path, text: str, told: list[str]) -> None:
    path = tmp_path / lora_orders_file.FILE
    path.write_text(text)
    assert lora_orders_file.read(path) == []
    assert path.read_text() == text
    assert told == ["adapter_orders_unreadable"]


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "file").write_text("")
    lora_orders_file.write(tmp_path / "file" / "below", ORDERS)
    assert told == ["adapter_orders_not_written"]
    assert lora_orders_file.read(tmp_path / "none") == []
