"""What an engine's error response means."""

import pytest

from appliance.base import jsons
from appliance.base.errors import Forbidden, Invalid
from appliance.engines.outcome import BreakerEffect, Outcome
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.engines.upstream.error_texts import ERROR_TEXTS, find_error_text
from appliance.engines.upstream.refusal import (
    caller_error,
    context_error,
    find_caller_fault,
    interpret_error,
    parse_context_error,
    parse_retry_after,
    read_sentence,
    redirect_failure,
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
        (
            "input (10002 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
            (10002, 512),
        ),
        ("input is too large to process. increase the physical batch size", (0, 0)),
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
        (500, '{"error":{"message":"tools param requires --jinja flag"}}', "unsupported", False, "invalid"),
        (500, '{"error":{"message":"Context size has been exceeded."}}', "full", False, None),
        (500, '{"error":{"message":"Compute error."}}', "status_500", False, None),
        (500, '{"detail":"Compute error."}', "status_500", False, None),
        (500, "oops", "status_500", True, None),
        (500, "{}", "status_500", True, None),
        (500, '{"error":{"message":"Loading model"}}', "loading", True, None),
        (502, '{"error":{"message":"Compute error."}}', "status_502", True, None),
        (504, '{"error":{"message":"Compute error."}}', "status_504", True, None),
        (503, '{"error":{"message":"Loading model"}}', "loading", True, None),
        (503, "busy", "status_503", True, None),
        (302, "", "status_302", True, "upstream"),
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
            '{"error":{"message":"tools param requires --jinja flag"}}',
            "not_supported",
            "tools param requires --jinja flag",
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
    numbers = {"n_prompt_tokens": prompt, "n_ctx": context}
    assert error.details == {
        "prompt_tokens": prompt,
        "context_tokens": context,
        "error_fields": {name: number for name, number in numbers.items() if number},
    }


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


# ---- the table of sentences

JINJA = (
    "\n------------\nWhile executing CallExpression at line 47, column 32 in source:\n...== 0) %}"
    "{{- raise_exception('After the optional system message, con...\n   ^\n"
    "Error: Jinja Exception: After the optional system message, conversation roles must alternate."
)
MINJA = (
    "Conversation roles must alternate user/assistant/user/assistant/... at row 19, column 27:\n"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n"
    '{{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}'
)
CALLERS_FAULTS = [
    ("Failed to parse tool call arguments as JSON: [json.exception.parse_error.101] parse error", "messages"),
    ("Failed to parse messages: Missing tool call type: {}", "messages"),
    ('Failed to parse tools: Missing tool function: {"type":"function"}; tools = []', "tools"),
    ("Unknown reasoning format: zzz", "reasoning_format"),
    ("Cannot use both json_schema and grammar", "grammar"),
    ("the current context does not support logits computation. skipping", "model"),
    (
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "messages",
    ),
    ("audio input is not supported", "messages"),
    (JINJA, "messages"),
    ("Unable to generate parser for this template. Automatic parser generation failed: " + JINJA, "messages"),
    (MINJA, "messages"),
    ("Failed to load image or audio file", "messages"),
    ("Failed to download image", "messages"),
    ("Invalid base64 value", "messages"),
    ("Failed to tokenize prompt", "messages"),
    ("Assistant response prefill is incompatible with enable_thinking.", "messages"),
    ("Cannot have 2 or more assistant messages at the end of the list.", "messages"),
    ("unsupported content[].type", "messages"),
    ("Unsupported param: echo", None),
    ("Invalid tool_choice: zzz", None),
    ('response_format type must be one of "text" or "json_object", but got: zzz', None),
    ('"json_schema": JSON schema conversion failed:\nUnrecognized schema', None),
    ("Failed to parse grammar", None),
    ("Failed to initialize samplers: failed to parse grammar", None),
    ("Unterminated string starting at: line 1 column 113 (char 112)", "messages"),
    ("Expecting ',' delimiter: line 1 column 54 (char 53)", "messages"),
    ("Conversation roles must alternate user/assistant/user/assistant/...", "messages"),
    ("At most 0 image(s) may be provided in one prompt.", "messages"),
    ("tiny is not a multimodal model", "model"),
    ("The model does not support Chat Completions API", "model"),
    ("cannot identify image file <_io.BytesIO object at 0x7f>", "messages"),
    ("Internal server error: cannot identify image file <_io.BytesIO object at 0x7f>", "messages"),
    ("Internal server error: Failed to compile json grammar", None),
    ("This model does not appear to be an embedding model by default.", "model"),
]


@pytest.mark.parametrize(("sentence", "param"), CALLERS_FAULTS)
def test_a_500_for_the_callers_fault_is_a_400(sentence: str, param: str | None) -> None:
    body = jsons.dumps({"error": {"code": 500, "message": sentence, "type": "server_error"}}).decode()
    meant = interpret_error(500, {}, body, "The backend x")
    assert isinstance(meant, Invalid)
    assert (meant.message, meant.param, meant.details) == (sentence.strip(), param, {})
    assert (meant.code == "not_supported") is (find_error_text(sentence).code is not None)  # type: ignore[union-attr]
    assert isinstance(find_caller_fault(500, body), Invalid)
    assert find_caller_fault(502, body) is None


def test_every_row_of_the_table_has_a_sentence_here() -> None:
    elsewhere = [
        "tools param requires --jinja flag",
        "input is too large to process. increase",
        "Context size has been exceeded.",
    ]
    sentences = [sentence for sentence, _ in CALLERS_FAULTS] + elsewhere
    assert {find_error_text(sentence) for sentence in sentences} == set(ERROR_TEXTS)


@pytest.mark.parametrize(
    "sentence",
    [
        "Compute error.",
        "Invalid input batch.",
        "The model produced output that does not match the expected format",
        "the user wrote: Failed to parse tools: x",
        "Failed to decode batch",
        "CUDA error: out of memory",
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "While executing FilterExpression at line 1: Unknown filter",
    ],
)
def test_a_sentence_of_the_servers_own_trouble_is_in_no_row(sentence: str) -> None:
    assert find_error_text(sentence) is None


def test_too_large_an_input_is_told_with_the_numbers() -> None:
    sentence = "input (10002 tokens) is too large to process. increase the physical batch size (current batch size: 512)"
    meant = interpret_error(500, {}, jsons.dumps({"error": {"message": sentence}}).decode(), "The backend x")
    assert isinstance(meant, AttemptFailed)
    assert (meant.outcome, meant.context) == (Outcome.CONTEXT, (10002, 512))
    assert meant.error is not None
    assert (meant.error.message, meant.error.code, meant.error.param) == (
        sentence,
        "context_length_exceeded",
        "input",
    )
    assert meant.error.details["error_fields"] == {"n_prompt_tokens": 10002, "n_ctx": 512}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"error":{"message":"no"}}', "no"),
        ('{"error":"no"}', "no"),
        ('{"message":"no","error":{"code":7}}', "no"),
        ('{"object":"error","message":"no"}', "no"),
        ('{"code":500,"reason":"X","message":"boom"}', "boom"),
        ('{"reason":"X"}', "X"),
        ('{"detail":"no"}', "no"),
        ('{"detail":[{"loc":["body","top_k"],"msg":"not a number"}]}', "body.top_k: not a number"),
        ('{"detail":[{"msg":"a"},{"msg":"b"}]}', "a; b"),
        ('{"errors":["a",{"message":"b"}]}', "a; b"),
        ('{"error":{"message":null}}', ""),
        ("{}", ""),
        ("[]", ""),
        ("oops", ""),
        ("", ""),
        ('{"error":' * 9 + '"deep"' + "}" * 9, ""),
    ],
)
def test_the_sentence_of_an_error_body_is_found(text: str, sentence: str) -> None:
    assert read_sentence(text) == sentence


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"detail":"no such field"}', "no such field"),
        ('{"detail":[{"loc":["body","n"],"msg":"too large"}]}', "body.n: too large"),
        ('{"errors":[{"message":"first"},{"message":"second"}]}', "first; second"),
        ('{"message":"the words","error":{"code":"x"}}', "the words"),
        ('{"error":"words"}', "words"),
        ('{"error":{"message":"words","code":"x","param":"n"}}', "words"),
        ("words of a proxy", "words of a proxy"),
        ("", "The backend x refused the request with status 422."),
        ('{"error":{"code":5}}', "The backend x refused the request with status 422."),
    ],
)
def test_the_words_of_a_refusal_are_passed_on(body: str, message: str) -> None:
    error = interpret_error(422, {}, body, "The backend x")
    assert isinstance(error, Invalid)
    assert error.message == message


NOW = "Mon, 30 Nov 2026 16:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "1e9"}, 86_400.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon", "date": NOW}, None),
        ({"retry-after": "Mon, 30 Nov 2026 16:01:00 GMT", "date": NOW}, 60.0),
        ({"retry-after": "Mon, 30 Nov 2026 15:59:00 GMT", "date": NOW}, 0.0),
        ({"retry-after": "Mon, 30 Nov 2026 16:01:00 GMT"}, None),
        ({"retry-after": "Mon, 30 Nov 2026 16:01:00 GMT", "date": "today"}, None),
        ({"retry-after": "Mon, 30 Nov 2026 16:01:00", "date": NOW}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert parse_retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("location", "where", "note"),
    [
        ("/v1/chat/", " to '/v1/chat/'", "'/v1/chat/'"),
        ("https://u:pw@h:1/login?key=secret#x", " to '/login' of another address", "'https://h:1/login'"),
        ("//h", " to '/' of another address", "'//h'"),
        ("", "", "''"),
        ("http://[x", "", "''"),
        ("/caf\u00e9\r\nx", " to '/caf'", "'/caf'"),
    ],
)
def test_a_redirect_says_where_to_and_shows_clients_no_host(location: str, where: str, note: str) -> None:
    failed = redirect_failure(307, {"location": location}, "The backend e0")
    assert failed.error is not None
    assert failed.error.message == (
        f"The backend e0 redirects{where} (status 307). Redirects are not followed: the operator has to set "
        "the address that answers."
    )
    assert failed.note == f"redirects to {note}, not followed"
    assert (failed.label, failed.outcome.breaker) == ("status_307", BreakerEffect.FAILED)


def test_a_long_location_is_cut() -> None:
    assert len(redirect_failure(302, {"location": "/" + "x" * 9000}, "e0").note) < 900


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_hosted_apis_words_for_a_long_prompt_get_the_code(status: int) -> None:
    sentence = "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens."
    error = caller_error(status, jsons.dumps_text({"error": {"message": sentence, "code": None}}), "The API")
    assert (error.message, error.code, error.param) == (sentence, "context_length_exceeded", "messages")
    assert error.details["status"] == status
    assert error.details["error_fields"] == {"n_prompt_tokens": 9000, "n_ctx": 8192}
