"""Why a model cannot answer, as the HTTP doors say it."""

import json

import pytest

from appliance.base.errors import ApplianceError
from appliance.front.pipeline.errors import error_body, error_headers, status_of
from appliance.models.manager.errors import InsufficientMemory, ModelFailed, QueueFull, QueueTimeout


def said(error: ApplianceError) -> tuple[int, dict[str, object], dict[str, str]]:
    return status_of(error), json.loads(error_body(error, "openai"))["error"], dict(error_headers(error))


def test_row_insufficient_vram_is_503_with_the_figures() -> None:
    status, error, headers = said(
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
    got, body, sent = said(error)
    assert (got, body["code"], body["type"], sent) == (status, code, kind, headers)
    assert {key: body[key] for key in fields} == fields


def test_failed_model_says_its_reason_and_the_reset() -> None:
    error = ModelFailed("org/b", reason="unknown argument: --x.\n", attempts=3)
    assert not error.retryable
    assert error.message == (
        "Model 'org/b' could not be loaded (3 attempts): unknown argument: --x. "
        "Fix the cause, then POST /v1/models/org/b/reset to try again."
    )


def test_ollamas_dialect_says_it_in_its_one_field() -> None:
    error = InsufficientMemory("big", required_mb=2, available_mb=1)
    assert json.loads(error_body(error, "ollama")) == {"error": error.message}
