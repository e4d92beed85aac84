"""Why a model cannot serve a request: the message, and what the HTTP front makes of it."""

import json

import pytest

from appliance.base.errors import ApplianceError
from appliance.front.pipeline.errors import error_body, error_headers, status_of
from appliance.models.manager.errors import (
    AllPinned,
    InsufficientMemory,
    ModelFailed,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
)


def http_response(error: ApplianceError) -> tuple[int, dict[str, object], dict[str, str]]:
    return status_of(error), json.loads(error_body(error, "openai"))["error"], dict(error_headers(error))


def test_row_insufficient_vram_is_503_with_the_figures() -> None:
    status, error, headers = http_response(
        InsufficientMemory(
            "big", required_mb=8191.6, available_mb=4096.2, loaded_models=["a", "b"], retry_after_s=12
        )
    )
    message = error.pop("message")
    assert (status, headers) == (503, {"Retry-After": "12"})
    assert error == {
        "type": "insufficient_vram_error",
        "code": "vram_exhausted",
        "param": None,
        "model": "big",
        "required_mb": 8192,
        "available_mb": 4096,
        "loaded_models": ["a", "b"],
    }
    assert "8192 MB" in str(message)
    assert "a, b" in str(message)


@pytest.mark.parametrize(
    ("error", "status", "code", "kind", "headers", "fields"),
    [
        (
            QueueFull("a", limit=100, retry_after_s=7.2),
            503,
            "queue_full",
            "service_unavailable_error",
            {"Retry-After": "8"},
            {"model": "a", "queue_limit": 100},
        ),
        (
            QueueTimeout("a", waited_s=300.0004),
            504,
            "queue_timeout",
            "timeout_error",
            {},
            {"model": "a", "waited_s": 300.0},
        ),
        (
            ModelFailed("a", reason="unknown argument: --x.\n", attempts=1),
            503,
            "model_failed",
            "service_unavailable_error",
            {},
            {"model": "a", "attempts": 1},
        ),
    ],
)
def test_rows_queue_full_timeout_and_failed(
    error: ApplianceError,
    status: int,
    code: str,
    kind: str,
    headers: dict[str, str],
    fields: dict[str, object],
) -> None:
    got, body, sent = http_response(error)
    assert (got, body["code"], body["type"], sent) == (status, code, kind, headers)
    assert {key: body[key] for key in fields} == fields


@pytest.mark.parametrize(
    ("error", "is_retryable", "message"),
    [
        pytest.param(
            InsufficientMemory("a", required_mb=700.4, available_mb=650, loaded_models=["b", "c"]),
            True,
            "Not enough memory to load model 'a': 700 MB needed, 650 MB available beside b, c. "
            "Retry later, unload a model, or lower its context (n_ctx).",
            id="memory-beside-others",
        ),
        pytest.param(
            InsufficientMemory("a", required_mb=2, available_mb=1),
            True,
            "Not enough memory to load model 'a': 2 MB needed, 1 MB available. "
            "Retry later, unload a model, or lower its context (n_ctx).",
            id="memory-alone",
        ),
        pytest.param(
            QueueFull("a", limit=100, retry_after_s=7.2),
            True,
            "The queue of model 'a' is full (max_queue_size_per_model = 100). Retry in 7 s.",
            id="queue-full",
        ),
        pytest.param(
            QueueTimeout("a", waited_s=300, reason="b is in use"),
            True,
            "No slot of model 'a' became free within 300.0 s (queue_timeout_sec). Last state: b is in use.",
            id="timeout-with-reason",
        ),
        pytest.param(
            QueueTimeout("a", waited_s=0.05),
            True,
            "No slot of model 'a' became free within 0.1 s (queue_timeout_sec).",
            id="timeout",
        ),
        pytest.param(
            ModelFailed("org/b", reason="unknown argument: --x.\n", attempts=3),
            False,
            "Model 'org/b' could not be loaded (3 attempts): unknown argument: --x. "
            "Fix the cause, then POST /v1/models/org/b/reset to try again.",
            id="failed",
        ),
        pytest.param(
            ModelFailed("b", reason="no luck", attempts=1),
            False,
            "Model 'b' could not be loaded (1 attempt): no luck. "
            "Fix the cause, then POST /v1/models/b/reset to try again.",
            id="failed-once",
        ),
        pytest.param(
            AllPinned("c", limit=2, pinned=["a", "b"]),
            False,
            "Model 'c' cannot be loaded: pinned models use the whole limit (max_concurrent_models = 2): a, b. "
            "Unpin one, or raise the limit.",
            id="all-pinned",
        ),
        pytest.param(ShuttingDown(), True, "The server is shutting down.", id="shutting-down"),
    ],
)
def test_message(error: ApplianceError, is_retryable: bool, message: str) -> None:
    assert (error.message, error.retryable) == (message, is_retryable)


def test_ollama_errors_have_one_field() -> None:
    error = InsufficientMemory("big", required_mb=2, available_mb=1)
    assert json.loads(error_body(error, "ollama")) == {"error": error.message}
