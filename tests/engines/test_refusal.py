"""What an engine's error response means."""

import pytest

from appliance.base.errors import Forbidden, Invalid
from appliance.engines.outcome import BreakerEffect
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.engines.upstream.refusal import (
    caller_error,
    context_error,
    interpret_error,
    parse_context_error,
    parse_retry_after,
)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (
            '{"error":{"code":400,"message":"request (9001 tokens) exceeds the available context size (4096 tokens), try increasing it","n_prompt_tokens":9001,'
            '"n_ctx":4096,"type":"exceed_context_size_error"}}',
            (9001, 4096),
        ),
        (
            "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens (2990 in the messages, 10 in the completion).",
            (3000, 2048),
        ),
        (
            "This model's maximum context length is 2048 tokens. However, your request has 2500 input tokens. Please reduce",
            (2500, 2048),
        ),
        (
            "This model's maximum context length is 1024 tokens. However, your prompt contains at least 1025 input tokens, which exceeds this limit even "
            "without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=1025)",
            (0, 1024),
        ),
        (
            "This model's maximum context length is 1024 tokens. However, your prompt contains 40050 characters (more than 13312 characters, which is the "
            "upper bound for 1024 input tokens). Please reduce the length of the input prompt. (parameter=input_text, value=40050)",
            (0, 1024),
        ),
        ("The input (5000 tokens) is longer than the model's context length (4096 tokens).", (5000, 4096)),
        (
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5000 tokens",
            (5000, 4096),
        ),
        (
            "This model's maximum context length is 1000 tokens. However, you requested 600 output tokens and your prompt contains 500 input tokens, for a "
            "total of 1100 tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
            (1100, 1000),
        ),
        (
            "This model's maximum context length is 1000 tokens. However, you requested 600 output tokens and your prompt contains at least 401 input "
            "tokens, for a total of at least 1001 tokens.",
            (0, 1000),
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 400. This model's maximum context length is 1000 tokens and your request has 700 input "
            "tokens (400 > 1000 - 700).",
            (1100, 1000),
        ),
        (
            "The decoder prompt (length 5951) is longer than the maximum model length of 4096. Make sure that `max_model_len` is no smaller than the "
            "number of text tokens.",
            (5951, 4096),
        ),
        (
            "The prompt (total length 25938) is too long to fit into the model (context length 4096). Make sure that",
            (25938, 4096),
        ),
        (
            "Input length (5000 tokens) exceeds the maximum allowed length (4090 tokens). Use a shorter input or enable --allow-auto-truncate.",
            (5000, 4090),
        ),
        ("The name exceeds the maximum allowed length (64 characters).", None),
        ("the request exceeds the available context size. try increasing it", (0, 0)),
        ("temperature must be positive", None),
    ],
)
def test_error_texts_for_too_long_a_prompt_are_read(text: str, numbers: tuple[int, int] | None) -> None:
    assert parse_context_error(text) == numbers


@pytest.mark.parametrize(
    ("status", "text", "outcome", "counts", "kind"),
    [
        (401, "no", "key_refused", False, "upstream"),
        (403, "no", "key_refused", False, "upstream"),
        (404, "no such model", "status_404", False, "no_such_model"),
        (429, "later", "full", False, None),
        (501, "not supported", "unsupported", False, "unsupported"),
        (500, '{"error":{"message":"image input is not supported - hint"}}', "unsupported", False, "invalid"),
        (500, "oops", "status_500", True, None),
        (503, '{"error":{"message":"Loading model"}}', "loading", True, None),
        (503, "busy", "status_503", True, None),
        (302, "", "status_302", True, None),
        (400, "maximum context length is 5 tokens", "context", False, "invalid"),
    ],
)
def test_what_an_error_response_means(
    status: int,
    text: str,
    outcome: str,
    counts: bool,
    kind: str | None,
) -> None:
    error = interpret_error(status, {}, text, "The backend x")
    assert isinstance(error, AttemptFailed)
    said = (
        error.label,
        error.outcome.breaker is BreakerEffect.FAILED,
        error.error and error.error.kind.value,
    )
    assert said == (outcome, counts, kind)


@pytest.mark.parametrize("status", [400, 409, 422])
def test_the_clients_own_fault_is_passed_on(status: int) -> None:
    error = interpret_error(
        status,
        {},
        '{"error":{"message":"temperature must be positive","param":"temperature"}}',
        "The backend x",
    )
    assert isinstance(error, Invalid)
    assert (error.message, error.param, error.details["status"]) == (
        "temperature must be positive",
        "temperature",
        status,
    )


@pytest.mark.parametrize(
    ("status", "text", "code", "message"),
    [
        (401, "no", "upstream_key_refused", "The backend x refuses the appliance's key. Set its `api_key`."),
        (404, '{"error":"no model m"}', None, "no model m"),
        (501, "{}", None, "The backend x refused the request with status 501."),
        (
            500,
            '{"error":{"message":"audio input is not supported"}}',
            "not_supported",
            "audio input is not supported",
        ),
    ],
)
def test_the_error_when_no_other_server_can_answer(
    status: int, text: str, code: str | None, message: str
) -> None:
    error = interpret_error(status, {}, text, "The backend x")
    assert isinstance(error, AttemptFailed)
    assert error.error is not None
    assert error.error.message == message
    assert code is None or error.error.code == code


@pytest.mark.parametrize(
    ("status", "header", "retry_after_s"),
    [
        (429, "7", 7.0),
        (503, "7", 7.0),
        (502, "7", None),
        (429, "-1", 0.0),
        (429, "soon", None),
        (503, None, None),
    ],
)
def test_a_servers_own_retry_time_is_read(
    status: int, header: str | None, retry_after_s: float | None
) -> None:
    headers = {} if header is None else {"retry-after": header}
    error = interpret_error(status, headers, "", "The backend x")
    assert isinstance(error, AttemptFailed)
    assert error.retry_after_s == retry_after_s
    assert status == 502 or parse_retry_after(headers) == retry_after_s


@pytest.mark.parametrize(
    ("prompt", "context", "model", "text"),
    [
        (
            30,
            20,
            "m",
            "The request needs 30 tokens; the largest context here is 20 tokens for the model 'm'.",
        ),
        (30, 0, "", "The request needs 30 tokens, more than the context here."),
        (0, 20, "m", "The prompt is longer than the largest context here, 20 tokens for the model 'm'."),
        (0, 0, "", "The prompt is longer than the context here."),
    ],
)
def test_the_error_for_too_long_a_prompt_has_the_numbers(
    prompt: int, context: int, model: str, text: str
) -> None:
    error = context_error(prompt, context, model=model)
    assert error.message == f"{text} Send a shorter prompt, or ask for fewer tokens."
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert error.details == {"prompt_tokens": prompt, "context_tokens": context}


@pytest.mark.parametrize(
    ("status", "text", "kind", "message", "param", "code"),
    [
        (400, '{"error":{"message":"no","param":"n","code":"bad"}}', Invalid, "no", "n", "bad"),
        (403, '{"error":{"message":"no"}}', Forbidden, "no", None, "forbidden"),
        (422, '{"message":"no","code":7}', Invalid, "no", None, "invalid"),
        (400, '{"error":"no"}', Invalid, "no", None, "invalid"),
        (400, "no JSON", Invalid, "no JSON", None, "invalid"),
        (400, "", Invalid, "The backend x refused the request with status 400.", None, "invalid"),
    ],
)
def test_the_clients_own_fault_keeps_the_engines_message(
    status: int, text: str, kind: type[Exception], message: str, param: str | None, code: str
) -> None:
    error = caller_error(status, text, "The backend x")
    assert isinstance(error, kind)
    assert (error.message, error.param, error.details["status"]) == (message, param, status)
    if code in {"bad"}:
        assert error.code == code
