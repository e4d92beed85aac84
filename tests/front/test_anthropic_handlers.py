"""The handlers of Anthropic's dialect, on the real router with a scripted backend."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, Exhausted, Invalid, UpstreamFailed
from appliance.engines.stream import GeneratedStream
from appliance.engines.types import EngineReply, EngineRequest, ModelCard, NativeOptions, Operation
from appliance.engines.upstream.spelling import spell_options
from appliance.front.anthropic.handlers import AnthropicHandlers
from appliance.front.anthropic.stream import PING
from appliance.front.pipeline.errors import status_of
from appliance.front.pipeline.response import Response
from tests.fakes.backend import ScriptedBackend, router_of
from tests.front.requests import json_of, make_request

HELLO: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"name": "weather", "input_schema": {"type": "object"}}
WHOLE = jsons.dumps(
    {
        "choices": [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
)
CHUNK = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class Backend(ScriptedBackend):
    """Replies with `reply`, or raises it, after `delay_s`; counts `tokens`, None = it cannot."""

    reply: EngineReply | ApplianceError
    delay_s = 0.0
    tokens: int | None = None
    kind_asked = "vllm"
    native: NativeOptions | None = None
    counted: dict[str, Any]

    def cards(self) -> list[ModelCard]:
        return [ModelCard("public", 0, "vllm", "maker/model", ("m",))]

    async def answer(self, request: EngineRequest) -> EngineReply:
        await asyncio.sleep(self.delay_s)
        self.native = request.native
        if request.native is not None:
            spell_options(request.native, self.kind_asked)
        if isinstance(self.reply, ApplianceError):
            raise self.reply
        return self.reply

    async def count_tokens(self, model: str, body: dict[str, Any]) -> int | None:
        self.counted = body
        return self.tokens


class Api:
    def __init__(self, reply: Any = None, *, delay_s: float = 0.0, heartbeat_s: float = 0.0) -> None:
        clock = FakeClock()
        self.backend = Backend(clock)
        self.backend.reply, self.backend.delay_s = reply or EngineReply(body=WHOLE), delay_s
        router = router_of(self.backend, clock=clock)
        self.handlers = AnthropicHandlers(router, heartbeat_s=lambda: heartbeat_s)

    async def create(self, **more: Any) -> Response:
        return await self.handlers.create(make_request("/v1/messages", HELLO | more))

    async def count(self, **more: Any) -> Response:
        return await self.handlers.count_tokens(make_request("/v1/messages/count_tokens", HELLO | more))

    async def fail(self, **more: Any) -> ApplianceError:
        with pytest.raises(ApplianceError) as caught:
            await self.create(**more)
        return caught.value

    async def stream(self, **more: Any) -> str:
        """Return what a client gets of a stream, the error at its end included."""
        response = await self.create(stream=True, **more)
        assert response.pieces is not None
        text = b""
        try:
            async for piece in response.pieces:
                text += piece
        except ApplianceError as error:
            text += response.render_failure(error)
        finally:
            await response.pieces.aclose()
        return text.decode()


def events(*pieces: bytes | ApplianceError) -> EngineReply:
    async def generate() -> AsyncGenerator[bytes, None]:
        for piece in pieces:
            if isinstance(piece, ApplianceError):
                raise piece
            yield piece

    return EngineReply(events=GeneratedStream(generate()))


async def test_a_message_has_the_public_model_and_the_request_id() -> None:
    api = Api()
    response = await api.create()
    assert json_of(response)["model"] == "public"
    assert response.headers == [("request-id", "req_1")]
    [request] = api.backend.asked
    assert (request.operation, request.raw, request.stream) == (Operation.CHAT, None, False)
    assert request.body == HELLO


async def test_without_a_model_the_default_answers() -> None:
    api = Api()
    assert json_of(await api.create(model=None))["model"] == "public"
    assert api.backend.asked[0].body["model"] == "public"


async def test_a_stream_asks_for_its_usage() -> None:
    api = Api(events(CHUNK, LAST))
    text = await api.stream()
    assert text.startswith("event: message_start\n")
    assert text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
    body = api.backend.asked[0].body
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


async def test_a_failure_before_the_first_event_is_a_status() -> None:
    error = await Api(events(UpstreamFailed("gone"))).fail(stream=True)
    assert (status_of(error), error.message) == (502, "gone")


async def test_a_failure_after_it_is_the_last_event() -> None:
    text = await Api(events(CHUNK, UpstreamFailed("gone"))).stream()
    assert '"text":"hello"' in text
    assert text.endswith(
        'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"gone"},"request_id":"req_1"}\n\n'
    )


async def test_a_late_stream_begins_with_pings() -> None:
    text = await Api(events(CHUNK, LAST), delay_s=0.1, heartbeat_s=0.01).stream()
    assert text.startswith(PING.decode())
    assert text.endswith('data: {"type":"message_stop"}\n\n')


async def test_a_failure_of_a_late_stream_is_its_last_event() -> None:
    text = await Api(Exhausted("full"), delay_s=0.1, heartbeat_s=0.01).stream()
    assert text.startswith(PING.decode())
    assert text.endswith('"error":{"type":"rate_limit_error","message":"full"},"request_id":"req_1"}\n\n')


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_engines_error_keeps_its_status_and_words(is_stream: bool) -> None:
    body = jsons.dumps({"error": {"message": "no such thing"}})
    error = await Api(EngineReply(422, body)).fail(stream=is_stream)
    assert (status_of(error), error.message) == (422, "no such thing")


async def test_a_reply_that_is_no_json_is_refused() -> None:
    error = await Api(EngineReply(body=b"<html>")).fail()
    assert isinstance(error, UpstreamFailed)


@pytest.mark.parametrize(
    ("body", "said"), [(b"", "no body"), (b"{", "not valid JSON"), (b"[]", "JSON object")]
)
async def test_a_body_that_is_no_object_is_refused(body: bytes, said: str) -> None:
    handlers = Api().handlers
    for handler in (handlers.create, handlers.count_tokens):
        with pytest.raises(Invalid, match=said):
            await handler(make_request("/v1/messages", body))


async def test_what_is_left_out_is_named_in_a_header() -> None:
    tools = [TOOL, *({"type": f"search_{number}"} for number in range(30)), {"type": "ü\r\nx: y" * 30}]
    headers = dict((await Api().create(tools=tools, container="c")).headers)
    names = headers["x-appliance-ignored"].split(", ")
    assert names[:2] == ["tools.search_0", "tools.search_1"]
    assert len(names) == 20
    headers = dict((await Api().create(tools=[TOOL, tools[-1]])).headers)
    assert headers["x-appliance-ignored"].startswith("tools.???x:?y?")
    assert len(headers["x-appliance-ignored"]) == 64


async def test_a_stream_names_what_is_left_out_before_it_begins() -> None:
    for reply, how in ((events(CHUNK, LAST), {}), (Exhausted("full"), {"delay_s": 0.1, "heartbeat_s": 0.01})):
        response = await Api(reply, **how).create(stream=True, container="c")
        assert ("x-appliance-ignored", "container") in response.headers
        assert response.pieces is not None
        await response.pieces.aclose()


@pytest.mark.parametrize(("kind", "named"), [("vllm", None), ("openai", "thinking")])
async def test_thinking_is_named_where_the_engine_cannot_be_told(kind: str, named: str | None) -> None:
    for is_stream in (False, True):
        api = Api(events(CHUNK, LAST) if is_stream else None)
        api.backend.kind_asked = kind
        response = await api.create(stream=is_stream, thinking={"type": "disabled"})
        assert dict(response.headers).get("x-appliance-ignored") == named
        assert api.backend.native is not None
        assert api.backend.native.think is False
        if response.pieces is not None:
            await response.pieces.aclose()


async def test_thinking_counts_in_the_prompt_of_a_template() -> None:
    api = Api()
    api.backend.tokens = 7
    await api.count(thinking={"type": "enabled"})
    assert api.backend.counted["chat_template_kwargs"] == {"enable_thinking": True, "thinking": True}
    await api.count()
    assert "chat_template_kwargs" not in api.backend.counted


async def test_tokens_are_counted_by_the_engine() -> None:
    api = Api()
    api.backend.tokens = 7
    response = await api.count(max_tokens=None)
    assert (json_of(response), response.headers) == ({"input_tokens": 7}, [("request-id", "req_1")])
    assert api.backend.asked == []


async def test_tokens_that_no_engine_counts_are_an_estimate() -> None:
    response = await Api().count(max_tokens=None)
    assert json_of(response) == {"input_tokens": 5}
    assert response.headers == [("request-id", "req_1"), ("x-appliance-estimate", "1")]
