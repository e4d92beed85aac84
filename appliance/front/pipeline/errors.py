"""Errors as HTTP: the status of every Kind, and the body in each dialect."""

from math import ceil
from typing import Any

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Kind

HTTP_STATUS = {
    Kind.INVALID: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.PAYMENT_REQUIRED: 402,
    Kind.NOT_FOUND: 404,
    Kind.NO_SUCH_MODEL: 404,
    Kind.CONFLICT: 409,
    Kind.TOO_LARGE: 413,
    Kind.EXHAUSTED: 429,
    Kind.UNSUPPORTED: 501,
    Kind.TIMEOUT: 504,
    Kind.UNAVAILABLE: 503,
    Kind.UPSTREAM: 502,
    Kind.INTERNAL: 500,
}

OPENAI_TYPE = {
    Kind.INVALID: "invalid_request_error",
    Kind.UNAUTHENTICATED: "authentication_error",
    Kind.FORBIDDEN: "permission_error",
    Kind.PAYMENT_REQUIRED: "insufficient_quota",
    Kind.NOT_FOUND: "invalid_request_error",
    Kind.NO_SUCH_MODEL: "invalid_request_error",
    Kind.CONFLICT: "invalid_request_error",
    Kind.TOO_LARGE: "invalid_request_error",
    Kind.EXHAUSTED: "rate_limit_error",
    Kind.UNSUPPORTED: "not_supported_error",
    Kind.TIMEOUT: "timeout_error",
    Kind.UNAVAILABLE: "service_unavailable_error",
    Kind.UPSTREAM: "upstream_error",
    Kind.INTERNAL: "server_error",
}

# By HTTP status; any other 4xx is invalid_request_error, any other 5xx api_error.
ANTHROPIC_TYPE = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def status_of(error: ApplianceError) -> int:
    """Return the HTTP status: `details["status"]`, which may be the upstream's own, else that of the kind."""
    status = error.details.get("status")
    return status if isinstance(status, int) and 400 <= status < 600 else HTTP_STATUS[error.kind]


def openai_error(error: ApplianceError) -> dict[str, Any]:
    """Render OpenAI's error object, `{message, type, param, code}`, with the failed `attempts`, if any.

    Of the error's details, `error_type` replaces the type, and `error_fields` are added to the four fields.
    """
    details = error.details
    body: dict[str, Any] = {
        "message": error.message,
        "type": details.get("error_type") or OPENAI_TYPE[error.kind],
        "param": error.param,
        "code": error.code,
        **details.get("error_fields", {}),
    }
    if "attempts" in error.details:
        body["attempts"] = error.details["attempts"]
    return body


def ollama_error(error: ApplianceError) -> dict[str, Any]:
    """Render Ollama's error object, `{error: text}`, and the failed `attempts` where there are some."""
    body: dict[str, Any] = {"error": error.message}
    if "attempts" in error.details:
        body["attempts"] = error.details["attempts"]
    return body


def anthropic_error(error: ApplianceError, request_id: str) -> dict[str, Any]:
    """Render Anthropic's error object, `{type, error: {type, message}, request_id}`.

    The failed `attempts` are added where there are some. Of a prompt that is too long the message begins as
    Anthropic's does: clients look for these words, and shorten the conversation.
    """
    status = status_of(error)
    body: dict[str, Any] = {
        "type": ANTHROPIC_TYPE.get(status, "invalid_request_error" if status < 500 else "api_error"),
        "message": error.message,
    }
    if error.code == "context_length_exceeded":
        prompt, context = error.details.get("prompt_tokens"), error.details.get("context_tokens")
        numbers = f": {prompt} tokens > {context} maximum" if prompt and context else ""
        body["message"] = f"prompt is too long{numbers}. {error.message}"
    if "attempts" in error.details:
        body["attempts"] = error.details["attempts"]
    return {"type": "error", "error": body, "request_id": request_id or None}


# Details that other dialects use, or that change what is shown.
NOT_SHOWN = {"status", "error_type", "error_fields", "short"}


def market_error(error: ApplianceError, request_id: str) -> dict[str, Any]:
    """Render the error object of accounts and money, `{error: text, code, request_id, details?}`.

    Of the error's details, `short` replaces the text, `error_fields` are added to these fields, and the
    others are `details`, with the field at fault as `field`.
    """
    details = {name: value for name, value in error.details.items() if name not in NOT_SHOWN}
    if error.param is not None:
        details["field"] = error.param
    short = error.details.get("short")
    if short:
        details["text"] = error.message
    body: dict[str, Any] = {
        "error": short or error.message,
        "code": error.code or error.kind.value,
        "request_id": request_id,
        **error.details.get("error_fields", {}),
    }
    return {**body, "details": details} if details else body


def error_body(error: ApplianceError, dialect: str, request_id: str = "") -> bytes:
    """Render an error as a JSON body of a dialect: openai, ollama, anthropic, market, detail.

    Args:
        dialect: `detail` is `{detail: text}`.
        request_id: For dialects that show it (anthropic, market); "" = unknown.
    """
    if dialect == "anthropic":
        return jsons.dumps(anthropic_error(error, request_id))
    if dialect == "market":
        return jsons.dumps(market_error(error, request_id))
    if dialect == "ollama":
        return jsons.dumps(ollama_error(error))
    if dialect == "detail":
        return jsons.dumps({"detail": error.message})
    return jsons.dumps({"error": openai_error(error)})


def error_event(error: ApplianceError, dialect: str, request_id: str = "") -> bytes:
    """Render a failure inside a stream as the last piece of the dialect's stream.

    1. ollama    → a line of NDJSON
    2. anthropic → an SSE event `error`
    3. openai    → an SSE event, with no [DONE] after it: the response is not complete
    """
    if dialect == "ollama":  # 1
        return jsons.dumps(ollama_error(error)) + b"\n"
    if dialect == "anthropic":  # 2
        return b"event: error\ndata: " + jsons.dumps(anthropic_error(error, request_id)) + b"\n\n"
    return b"data: " + jsons.dumps({"error": openai_error(error)}) + b"\n\n"  # 3


def error_headers(error: ApplianceError) -> list[tuple[str, str]]:
    """Return the headers that an error needs: Retry-After in whole seconds, WWW-Authenticate with 401."""
    headers = []
    if error.retry_after_s is not None:
        headers.append(("Retry-After", str(max(1, ceil(error.retry_after_s)))))
    if error.kind is Kind.UNAUTHENTICATED:
        headers.append(("WWW-Authenticate", "Bearer"))
    return headers
