"""The status objects of server and models: every field, with and without a value."""

from pathlib import Path

import pytest

from appliance.models.status.objects import (
    as_file,
    as_model,
    as_status,
    at,
    before_manager,
    gigabytes,
    megabytes,
    summary_of,
)
from appliance.models.status.views import ModelView, QueueView, RunnerView
from tests.front.static_manager import StaticManager, off, ready

AT_S = 1_800_000_000.0
OFF = ModelView("a", "off", Path("/a.gguf"), 4096, 2, updated_at_s=AT_S)


def test_model_that_is_off_has_nulls() -> None:
    assert as_model(OFF) == {
        "alias": "a",
        "status": "off",
        "port": None,
        "started_at": None,
        "last_used_at": None,
        "load_progress": None,
        "error_message": None,
        "vram_used_mb": None,
        "updated_at": at(AT_S),
        "expected_in_s": None,
        "queue_length": 0,
        "attempts": 0,
        "pinned": False,
        "expires_at": None,
    }


def test_loaded_model_has_every_value() -> None:
    runners = tuple(
        RunnerView("a", port, 7, "ready", AT_S, 2, 0, expires_at_s=expires_at_s)
        for port, expires_at_s in ((8085, AT_S + 60), (8086, AT_S + 90), (8087, None))
    )
    view = ModelView(
        "a",
        "ready",
        Path("/a.gguf"),
        4096,
        2,
        port=8085,
        started_at_s=AT_S,
        last_used_at_s=AT_S + 1,
        load_progress=100,
        error_message="no luck before",
        attempts=2,
        expected_in_s=1.26,
        is_pinned=True,
        memory_bytes=3 << 19,
        runners=runners,
    )
    found = as_model(view, QueueView("a", 4, 9, 5, 0, 0))
    assert found == {
        "alias": "a",
        "status": "ready",
        "port": 8085,
        "started_at": at(AT_S),
        "last_used_at": at(AT_S + 1),
        "load_progress": 100,
        "error_message": "no luck before",
        "vram_used_mb": 1.5,
        "updated_at": None,
        "expected_in_s": 1.3,
        "queue_length": 4,
        "attempts": 2,
        "pinned": True,
        "expires_at": at(AT_S + 90),  # the last of its llama-servers
    }


def test_status_before_the_table_is_read() -> None:
    started_at = at(AT_S)
    assert before_manager(AT_S) == {
        "server": {"status": "initializing", "started_at": started_at, "updated_at": started_at},
        "models": {},
        "summary": {"total": 0, "by_status": {}},
    }


def test_status_has_server_models_and_summary_the_file_no_summary() -> None:
    manager = StaticManager(off("a"), ready("b"), off("c"))
    status = as_status(manager)
    assert list(status) == ["server", "models", "summary"]
    assert list(status["models"]) == ["a", "b", "c"]
    assert status["summary"] == {"total": 3, "by_status": {"off": 2, "ready": 1}}
    assert as_file(manager) == {"server": status["server"], "models": status["models"]}


def test_summary_counts_each_status() -> None:
    models = {alias: {"status": word} for alias, word in (("a", "ready"), ("b", "off"), ("c", "ready"))}
    assert summary_of(models) == {"total": 3, "by_status": {"ready": 2, "off": 1}}


@pytest.mark.parametrize(
    ("size_bytes", "mb", "gb"), [(0, 0.0, 0.0), (1 << 20, 1.0, 0.0), (3 << 29, 1536.0, 1.5), (1, 0.0, 0.0)]
)
def test_megabytes_and_gigabytes(size_bytes: int, mb: float, gb: float) -> None:
    assert (megabytes(size_bytes), gigabytes(size_bytes)) == (mb, gb)


@pytest.mark.parametrize(("at_s", "text"), [(None, None), (0.0, None), (AT_S, "2027-01-15T08:00:00Z")])
def test_times_are_rfc_3339(at_s: float | None, text: str | None) -> None:
    found = at(at_s)
    assert found is None if text is None else found is not None and found.startswith(text[:19])
