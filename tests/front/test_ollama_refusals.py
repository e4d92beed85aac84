"""The refusals of Ollama's dialect, with their texts."""

from collections.abc import Callable
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, Invalid, UpstreamFailed
from appliance.engines.settings import EngineSettings
from appliance.front.ollama.handlers import OllamaHandlers
from appliance.front.ollama.messages import to_openai_messages
from appliance.front.ollama.reply import ReplyFormat, from_openai_reply, parse_vectors
from appliance.front.ollama.translated_request import (
    to_openai_chat,
    to_openai_generate,
    to_openai_options,
)
from appliance.front.pipeline.durations import parse_keep_alive_s
from tests.fakes.backend import router_of
from tests.front.requests import make_request
from tests.front.test_ollama_handlers import Scripted

USER = [{"role": "user", "content": "hi"}]
PNG = "iVBORw0KGgo="


def messages(**fields: Any) -> list[dict[str, Any]]:
    return to_openai_messages([{"role": "assistant", **fields}])


def tool_message(**fields: Any) -> list[dict[str, Any]]:
    return to_openai_messages([{"role": "tool", "content": "1", **fields}])


def chat(**fields: Any) -> Any:
    return to_openai_chat({"messages": USER, **fields})


def generate(**fields: Any) -> Any:
    return to_openai_generate({"prompt": "hi", **fields})


@pytest.mark.parametrize(
    ("refuse", "param", "text"),
    [
        (lambda: parse_keep_alive_s([1]), "keep_alive", "must be seconds as a number, or a duration"),
        (
            lambda: to_openai_options({"seed": "x"}),
            "options.seed",
            'option "seed" must be of type integer',
        ),
        (lambda: chat(format="xml"), "format", '`format` must be "json" or a JSON schema object.'),
        (
            lambda: chat(think=3),
            "think",
            "`think` must be true, false, or one of low, medium, high, max, not",
        ),
        (lambda: chat(think="x"), "think", 'invalid think value: "x"'),
        (lambda: chat(top_logprobs=21), "top_logprobs", "top_logprobs must be between 0 and 20"),
        (lambda: chat(tools=[{}]), "tools.0.function.name", "must be an object with `function.name`"),
        (lambda: generate(raw=True, system="x"), "raw", "raw mode does not support template"),
        (lambda: generate(template="x"), "template", "`template` is not supported: the engine applies"),
        (lambda: generate(suffix="x", images=[PNG]), "images", "cannot be used with `suffix`"),
        (lambda: generate(context=[1]), "context", "`context` was not made by this server."),
        (lambda: messages(images="x"), "messages.0.images", "must be an array of base64 strings"),
        (lambda: messages(images=["?"]), "messages.0.images.0", "must be an image in base64"),
        (lambda: messages(tool_calls=3), "messages.0.tool_calls", "must be an array, not an integer"),
        (
            lambda: messages(tool_calls=[{}]),
            "messages.0.tool_calls.0.function.name",
            ".function.name` must be a string.",
        ),
        (
            lambda: messages(tool_calls=[{"function": {"name": "f", "arguments": 3}}]),
            "messages.0.tool_calls.0.function.arguments",
            "must be an object, not an integer",
        ),
        (
            lambda: tool_message(tool_name=3),
            "messages.0.tool_name",
            "`messages.0.tool_name` must be a string, not an integer.",
        ),
    ],
)
def test_a_refusal_names_the_field(refuse: Callable[[], Any], param: str, text: str) -> None:
    with pytest.raises(Invalid) as refused:
        refuse()
    assert refused.value.param == param
    assert text in refused.value.message


def vectors(*embeddings: Any) -> Any:
    return parse_vectors({"data": [{"embedding": one} for one in embeddings]}, 1)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (
            lambda: from_openai_reply({"choices": []}, ReplyFormat("m", True), at_s=0, elapsed_s=0),
            "The engine's response has no `choices`.",
        ),
        (lambda: vectors([1.0], [2.0]), "The engine returned 2 embeddings for 1 texts."),
        (lambda: parse_vectors({}, 1), "The engine returned no embeddings for 1 texts."),
        (lambda: vectors(["x"]), "The engine's embeddings are invalid:"),
    ],
)
def test_an_invalid_reply_of_an_engine_is_an_upstream_failure(parse: Callable[[], Any], text: str) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        parse()
    assert text in failed.value.message


@pytest.mark.parametrize(
    ("handler", "body", "text"),
    [
        ("chat", b"", "missing request body"),
        ("embed", {"input": 3}, "invalid input type"),
        ("embed", {"input": ["a", 3]}, "invalid input type"),
        ("show", {}, "model is required"),
        ("show", {"model": "nobody"}, "model 'nobody' not found"),
        ("delete", {"model": "x"}, "models cannot be created, copied or uploaded here"),
    ],
)
async def test_handlers_refuse_in_ollamas_words(handler: str, body: Any, text: str) -> None:
    clock = FakeClock()
    router = router_of(Scripted(clock), clock=clock, settings=EngineSettings(model_strict=True))
    handlers = OllamaHandlers(router, clock=clock)
    with pytest.raises(ApplianceError) as refused:
        await getattr(handlers, handler)(make_request(body=body))
    assert text in refused.value.message
