"""The caller's fault at real llama-servers: told at once in the engine's words, and never held against a server.

Each row of appliance/engines/upstream/error_texts.py that llama-server 0.7.0 can say is provoked here.
"""

import asyncio
from typing import Any

import pytest

from appliance.engines.upstream.error_texts import ERROR_TEXTS, find_error_text
from tests.journeys.llama_servers import HELLO, Llama
from tests.journeys.model_tables import Managed
from tests.journeys.running import Running
from tests.journeys.test_backends import ask
from tests.journeys.test_real_llama import behind, content
from tests.tools.tiny_models import REPLY

CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
MANY_WORDS = "hello " * 2000
RAISES = (
    "{%- for m in messages -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('Conversation roles must alternate') -}}{%- endif -%}"
    "{{- m['content'] -}}{%- endfor -%}"
)


def after(*calls: Any, **more: Any) -> dict[str, Any]:
    """A history in which the assistant made `calls`."""
    answer = {"role": "assistant", "content": None, "tool_calls": list(calls)}
    return {"messages": [*HELLO, answer, {"role": "tool", "tool_call_id": "c", "content": "x"}], **more}


def call(**function: Any) -> dict[str, Any]:
    return {**CALL, "function": {**CALL["function"], **function}}


def without(value: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key != name}


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


# (request, the engine's sentence begins, param)
UNREADABLE: dict[str, tuple[dict[str, Any], str, str | None]] = {
    # B1
    "cut arguments": (
        after(call(arguments='{"a": "trunc')),
        "Failed to parse tool call arguments as JSON",
        "messages",
    ),
    "empty arguments": (after(call(arguments="")), "Failed to parse tool call arguments as JSON", "messages"),
    # B2
    "tool of a type alone": ({"tools": [{"type": "function"}]}, "Failed to parse tools: ", "tools"),
    "flat tool": ({"tools": [{"type": "function", "name": "f"}]}, "Failed to parse tools: ", "tools"),
    "custom tool": (
        {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
        "Failed to parse tools: ",
        "tools",
    ),
    "name is a number": (
        {"tools": [{"type": "function", "function": {"name": 5}}]},
        "Failed to parse tools: ",
        "tools",
    ),
    "call without type": (after(without(CALL, "type")), "Failed to parse messages: ", "messages"),
    "call of another type": (after({**CALL, "type": "custom"}), "Failed to parse messages: ", "messages"),
    "call without function": (after(without(CALL, "function")), "Failed to parse messages: ", "messages"),
    "id is a number": (after({**CALL, "id": 5}), "Failed to parse messages: ", "messages"),
    "text is a number": (user({"type": "text", "text": 5}), "Failed to parse messages: ", "messages"),
    "reasoning format": ({"reasoning_format": "zzz"}, "Unknown reasoning format: zzz", "reasoning_format"),
    "two grammars": (
        {"grammar": 'root ::= "a"', "json_schema": {"type": "object"}},
        "Cannot use both json_schema and grammar",
        "grammar",
    ),
    # B5
    "image": (user(IMAGE), "image input is not supported", "messages"),
    "audio": (user(AUDIO), "audio input is not supported", "messages"),
    # its own 400
    "grammar": ({"grammar": "root ::= ("}, "Failed to initialize samplers: failed to parse grammar", None),
    "grammar with tools": (
        {"grammar": 'root ::= "a"', "tools": [FUNCTION]},
        "Cannot use custom grammar",
        None,
    ),
    "schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "zzz"}}}},
        "Unable to generate parser for this template",
        None,
    ),
    "more choices than slots": (
        {"n": 3},
        "Field 'n': Value must be between 1 <= value <= 2, but got 3",
        None,
    ),
    "tool choice": ({"tools": [FUNCTION], "tool_choice": "zzz"}, "Invalid tool_choice: zzz", None),
    "two prefills": (
        {"messages": [*HELLO, *({"role": "assistant", "content": text} for text in "ab")]},
        "Cannot have 2 or more assistant messages",
        None,
    ),
    "lora": ({"lora": "x"}, "Field 'lora': ", None),
    "part of an unknown type": (user({"type": "zzz"}), "unsupported content[].type", None),
}


async def states(running: Running) -> list[tuple[str, str, tuple[tuple[str, int], ...]]]:
    return [(state.standing, state.breaker, state.errors) for state in running.appliance.router.states()]


@pytest.fixture
async def pair(start, llama: Llama) -> Running:
    """Two servers of one model; one failure that counts would open a circuit."""
    return await start(**behind(await llama(), await llama(), BREAKER_FAILURES="1"))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_cannot_be_read_is_refused_at_once(pair: Running, stream: bool) -> None:
    for name, (body, sentence, param) in UNREADABLE.items():
        status, _, value = await ask(
            pair, {"model": "tiny", "messages": HELLO, "max_tokens": 4, "stream": stream, **body}
        )
        assert (status, value["error"]["message"].startswith(sentence)) == (400, True), (name, value)
        assert (value["error"]["type"], value["error"]["param"]) == ("invalid_request_error", param), name
        assert "attempts" not in value["error"]
        attempts = pair.appliance.receipts.latest(1)[0].attempts
        assert [attempt.label for attempt in attempts] == ["refused"], name
    assert await states(pair) == [("ready", "closed", ())] * 2


async def test_bad_requests_of_one_client_cost_the_others_nothing(pair: Running) -> None:
    bad = [body for body, _, _ in UNREADABLE.values()]

    async def one(number: int) -> tuple[int, Any]:
        more = bad[number % len(bad)] if number % 2 else {}
        status, _, value = await ask(pair, {"model": "tiny", "messages": HELLO, **more})
        return status, value

    answers = await asyncio.gather(*(one(number) for number in range(120)))
    good, refused = answers[::2], answers[1::2]
    assert [(status, content(value)) for status, value in good] == [(200, REPLY)] * 60
    assert {status for status, _ in refused} == {400}
    assert await states(pair) == [("ready", "closed", ())] * 2
    receipts = pair.appliance.receipts.latest(120)
    assert {len(receipt.attempts) for receipt in receipts} == {1}
    metrics = (await ask(pair, path="/metrics", method="GET"))[2]
    assert "appliance_retries_total{" not in metrics
    assert 'appliance_backend_errors_total{backend="a"' not in metrics


async def test_a_model_that_cannot_chat_says_so_at_once(start, llama: Llama) -> None:
    running = await start(
        **behind(await llama(embeddings=True), await llama(rerank=True), BREAKER_FAILURES="1")
    )
    for model in ("tiny-embed", "tiny-rerank"):
        for path, body in (
            ("/v1/chat/completions", {"messages": HELLO}),
            ("/v1/chat/completions", {"messages": HELLO, "stream": True}),
            ("/v1/completions", {"prompt": "hello"}),
            ("/api/chat", {"messages": HELLO}),
        ):
            status, _, value = await ask(running, {"model": model, **body}, path=path)
            error = value["error"] if path.startswith("/api") else value["error"]["message"]
            assert (status, error.startswith("the current context does not support logits")) == (400, True)
        assert len(running.appliance.receipts.latest(1)[0].attempts) == 1
    assert [state[1:] for state in await states(running)] == [("closed", ())] * 2


@pytest.mark.parametrize("text", [MANY_WORDS, ["short", MANY_WORDS, "short"]])
async def test_an_input_too_large_to_embed_is_refused_with_the_numbers(
    start, llama: Llama, text: Any
) -> None:
    running = await start(
        **behind(await llama(embeddings=True), await llama(embeddings=True), BREAKER_FAILURES="1")
    )
    status, _, value = await ask(running, {"model": "tiny-embed", "input": text}, path="/v1/embeddings")
    error = value["error"]
    assert (status, error["code"], error["type"]) == (400, "context_length_exceeded", "invalid_request_error")
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (10002, 512)
    assert error["message"].startswith("input (10002 tokens) is too large to process")
    assert [attempt.label for attempt in running.appliance.receipts.latest(1)[0].attempts] == ["context"]
    assert [state[1] for state in await states(running)] == ["closed"] * 2


async def test_too_long_a_prompt_is_refused_with_the_numbers(start, llama: Llama) -> None:
    running = await start(**behind(await llama(ctx=1024), await llama(ctx=1024)))
    long = [{"role": "user", "content": MANY_WORDS}]
    for stream in (False, True):
        status, _, value = await ask(running, {"model": "tiny", "messages": long, "stream": stream})
        error = value["error"]
        assert (status, error["code"], error["n_ctx"]) == (400, "context_length_exceeded", 1024)
        assert error["n_prompt_tokens"] > 10_000
        assert "the largest context here is 1024 tokens" in error["message"]
        assert len(running.appliance.receipts.latest(1)[0].attempts) == 1


async def test_a_template_that_refuses_the_messages_is_the_callers_fault(
    start, llama: Llama, tmp_path
) -> None:
    template = tmp_path / "raises.jinja"
    template.write_text(RAISES)
    running = await start(**behind(await llama(extra=("--chat-template-file", str(template)))))
    status, _, value = await ask(running, {"model": "tiny", "messages": [*HELLO, *HELLO]})
    assert (status, "Conversation roles must alternate" in value["error"]["message"]) == (400, True)


async def test_without_a_template_engine_tools_are_refused_in_its_words(start, llama: Llama) -> None:
    servers = [await llama(extra=("--no-jinja",)) for _ in range(3)]
    running = await start(**behind(*servers, BREAKER_FAILURES="1"))
    status, _, value = await ask(running, {"model": "tiny", "messages": HELLO, "tools": [FUNCTION]})
    assert (status, value["error"]["code"]) == (400, "not_supported")
    assert value["error"]["message"] == "tools param requires --jinja flag"
    attempts = running.appliance.receipts.latest(1)[0].attempts
    assert [attempt.label for attempt in attempts] == ["unsupported"] * 2  # the second said the same
    assert [state[1] for state in await states(running)] == ["closed"] * 3


async def test_requests_that_fill_a_shared_cache_count_as_a_full_server(start, llama: Llama) -> None:
    server = await llama(slots=4, ctx=128, extra=("--kv-unified",))
    running = await start(**behind(server, BREAKER_FAILURES="1"))
    long = {"model": "tiny", "messages": HELLO, "max_tokens": 400, "ignore_eos": True}
    answers = await asyncio.gather(*(ask(running, long) for _ in range(4)))
    assert {status for status, _, _ in answers} <= {200, 429}
    assert [state[1] for state in await states(running)] == ["closed"]


async def test_a_model_of_ours_is_asked_once(managed: Managed) -> None:
    appliance = await managed("a", "embed")
    for model, (body, sentence, _) in [("a", row) for row in UNREADABLE.values()] + [
        ("embed", ({}, "the current context does not support logits", None))
    ]:
        if "n" in body:  # its slots are its own matter
            continue
        status, _, value = await ask(
            appliance.running, {"model": model, "messages": HELLO, "max_tokens": 4, **body}
        )
        assert (status, value["error"]["message"].startswith(sentence)) == (400, True), value
        assert len(appliance.running.appliance.receipts.latest(1)[0].attempts) == 1
    status, _, value = await ask(
        appliance.running, {"model": "embed", "input": MANY_WORDS}, path="/v1/embeddings"
    )
    assert (status, value["error"]["code"]) == (400, "context_length_exceeded")
    status, _, value = await ask(appliance.running, {"model": "a", "input": "hello"}, path="/v1/embeddings")
    assert (status, value["error"]["message"][:33]) == (501, "This server does not support embe")
    assert len(appliance.running.appliance.receipts.latest(1)[0].attempts) == 1
    assert (await ask(appliance.running, {"model": "a", "messages": HELLO}))[0] == 200


def test_every_row_of_this_llama_server_is_provoked_here() -> None:
    elsewhere = [
        "the current context does not support logits computation",
        "input (10002 tokens) is too large to process",
        "tools param requires --jinja",
        "Context size has been exceeded.",
    ]
    provoked = {find_error_text(sentence) for _, sentence, _ in UNREADABLE.values()}
    provoked |= {find_error_text(sentence) for sentence in elsewhere}
    of_it = {row for row in ERROR_TEXTS if row.engine == "llamacpp" and "b11669" in row.generation}
    assert {row.pattern for row in of_it - provoked} == {
        # as 400 by this build, for every template that it can analyse
        next(row.pattern for row in ERROR_TEXTS if "jinja exception" in row.pattern),
        # needs a model that sees or hears
        next(row.pattern for row in ERROR_TEXTS if "base64" in row.pattern),
    }


async def test_ollamas_truncate_cuts_or_refuses(start, llama: Llama) -> None:
    running = await start(
        **behind(await llama(embeddings=True), await llama(embeddings=True), BREAKER_FAILURES="1")
    )

    async def embed(**more: Any) -> tuple[int, Any]:
        status, _, value = await ask(running, {"model": "tiny-embed", **more}, path="/api/embed")
        return status, value

    status, value = await embed(input=["short", MANY_WORDS, "short"])
    first, cut, last = value["embeddings"]
    assert (status, first == last, first != cut) == (200, True, True)
    assert 450 <= value["prompt_eval_count"] - 2 * 7 <= 512
    assert (await embed(input=MANY_WORDS, truncate=True))[1]["embeddings"] == [cut]
    for text in (MANY_WORDS, ["short", MANY_WORDS]):
        status, value = await embed(input=text, truncate=False)
        assert (status, value) == (400, {"error": "the input length exceeds the context length"})
    status, _, value = await ask(
        running, {"model": "tiny-embed", "prompt": MANY_WORDS}, path="/api/embeddings"
    )
    assert (status, len(value["embedding"])) == (200, 64)
    assert [state[1] for state in await states(running)] == ["closed"] * 2
