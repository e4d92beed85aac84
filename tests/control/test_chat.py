"""Chat over gRPC: deltas, receipt, cancellation and errors, on the router that HTTP uses."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.base import jsons
from appliance.base.errors import Exhausted, Invalid, UpstreamFailed
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits, Timeouts
from appliance.control.convert.chat import to_deltas, to_engine_request
from appliance.control.v1 import control_pb2 as pb
from appliance.engines.backends.hosted import HostedBackend
from appliance.engines.receipts import Receipt
from appliance.engines.settings import EngineSettings
from tests.control.fake_appliance import (
    FakeAppliance,
    OpenControl,
    completion,
    event,
    opened,
    refused,
    rest_of,
)
from tests.control.test_servicer import details_of

HELLO = [pb.ChatMessage(role="user", content="hello")]


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[OpenControl]:
    async with opened(tmp_path) as control:
        yield control


async def test_a_whole_reply_is_sent_with_a_receipt(control: OpenControl) -> None:
    call = control.stub.Chat(pb.ChatRequest(model="house", messages=HELLO))
    reply, receipt = await rest_of(call)
    assert (reply.reply.text, reply.reply.reasoning, reply.reply.finish_reason) == ("hello", "hm", "stop")
    assert jsons.loads(reply.reply.openai_json)["usage"]["total_tokens"] == 5
    reported = receipt.receipt
    assert (reported.model, reported.public_model, reported.served_model, reported.backend) == (
        "house",
        "house/model",
        "upstream/model",
        "scripted",
    )
    assert (
        reported.finish,
        reported.status,
        reported.prompt_tokens,
        reported.completion_tokens,
        reported.reason,
    ) == (
        "done",
        200,
        3,
        2,
        "alias",
    )
    assert reported.attempts[0].status == 200
    assert dict(await call.initial_metadata())["x-request-id"] == reported.id
    kept = await control.stub.GetReceipt(pb.GetReceiptRequest(id=reported.id))
    assert kept.receipt == reported


async def test_a_stream_is_sent_as_deltas_then_a_receipt(control: OpenControl) -> None:
    control.fake.backend.script = [
        event({"role": "assistant"}) + event({"content": "hel"}),
        b": heartbeat\n\n",
        event({"content": "lo", "reasoning_content": "so"}),
        event({}, finish="stop"),
        b"data: [DONE]\n\n",
    ]
    messages = await rest_of(control.stub.Chat(pb.ChatRequest(messages=HELLO, stream=True)))
    assert [m.WhichOneof("part") for m in messages] == ["delta"] * 4 + ["receipt"]
    assert "".join(m.delta.text for m in messages) == "hello"
    assert (messages[2].delta.reasoning, messages[3].delta.finish_reason) == ("so", "stop")
    assert jsons.loads(messages[0].delta.openai_json)["object"] == "chat.completion.chunk"
    assert messages[-1].receipt.streamed
    assert control.fake.backend.closed.is_set()
    assert control.fake.backend.asked[0].stream


@pytest.mark.parametrize("stream", [True, False])
async def test_the_text_is_sent_once_in_the_form_asked_for(control: OpenControl, stream: bool) -> None:
    for form, has_text, has_json in (
        (pb.REPLY_FORM_UNSPECIFIED, True, True),
        (pb.REPLY_FORM_FIELDS, True, False),
        (pb.REPLY_FORM_JSON, False, True),
    ):
        request = pb.ChatRequest(messages=HELLO, stream=stream, form=form)
        *parts, _ = await rest_of(control.stub.Chat(request))
        values = [part.delta if stream else part.reply for part in parts]
        assert ("".join(value.text for value in values) == "hello") is has_text
        assert all(bool(value.openai_json) is has_json for value in values)
        assert any(value.finish_reason for value in values)


async def test_a_whole_reply_is_streamed_where_a_stream_was_asked_for(control: OpenControl) -> None:
    messages = await rest_of(control.stub.Chat(pb.ChatRequest(messages=HELLO, stream=True)))
    assert "".join(m.delta.text for m in messages) == "hello"


async def test_a_cancelled_call_ends_the_upstream_and_settles(control: OpenControl) -> None:
    control.fake.backend.script = [event({"content": "a"}), "hang"]
    call = control.stub.Chat(pb.ChatRequest(messages=HELLO, stream=True))
    assert (await call.read()).delta.text == "a"
    await control.fake.backend.begun.wait()
    call.cancel()
    await control.fake.backend.cancelled.wait()
    await control.fake.backend.closed.wait()
    await control.fake.settled.wait()
    assert (control.fake.finished[0].finish_label, control.fake.finished[0].status) == ("client_left", 499)


async def test_a_cancelled_call_ends_the_wait_for_a_reply(control: OpenControl) -> None:
    control.fake.backend.script = "hang"
    call = control.stub.Chat(pb.ChatRequest(messages=HELLO))
    await control.fake.backend.begun.wait()
    call.cancel()
    await control.fake.backend.cancelled.wait()
    await control.fake.settled.wait()
    assert control.fake.finished[0].finish_label == "client_left"


async def test_a_slow_caller_that_leaves_ends_the_upstream(control: OpenControl) -> None:
    """The handler then waits in its own write, not in the engines: they must be closed from there too."""
    control.fake.backend.script = [event({"content": "x" * 60_000}) for _ in range(2000)]
    call = control.stub.Chat(pb.ChatRequest(messages=HELLO, stream=True))
    await call.read()
    sent = -1
    while sent != control.fake.backend.sent:  # until flow control holds it
        sent = control.fake.backend.sent
        await asyncio.sleep(0.1)
    assert sent < 2000
    call.cancel()
    await control.fake.backend.closed.wait()
    await control.fake.settled.wait()
    assert control.fake.finished[0].finish_label == "client_left"


async def test_a_deadline_ends_the_upstream_call(control: OpenControl) -> None:
    control.fake.backend.script = "hang"
    error = await refused(control.stub.Chat(pb.ChatRequest(messages=HELLO), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await control.fake.backend.cancelled.wait()


async def test_a_cancelled_call_closes_the_hosted_connection(tmp_path: Path) -> None:
    """With the real backend and its connection pool: what the hosted API sees is the end of its connection."""
    is_gone = asyncio.Event()

    async def api(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
            + event({"content": "a"})
        )
        while await reader.read(65_536):
            pass
        is_gone.set()
        writer.close()

    async with await asyncio.start_server(api, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        fake = FakeAppliance()
        settings = EngineSettings.from_env(
            {"NOVITA_API_KEY": "sk_not_a_real_key", "NOVITA_OPENAI_ENDPOINTS": f"http://127.0.0.1:{port}/v1"}
        )
        wire = ConnectionPool(PoolLimits(Timeouts(connect_s=5, first_byte_s=5, idle_s=60), max_connections=4))
        fake.backend = HostedBackend(settings, wire=wire, clock=fake.clock, metrics=Metrics())  # type: ignore[assignment]
        async with opened(tmp_path, fake) as control:
            call = control.stub.Chat(pb.ChatRequest(messages=HELLO, stream=True))
            assert (await call.read()).delta.text == "a"
            call.cancel()
            await is_gone.wait()
            await fake.settled.wait()
        await wire.close()
    assert fake.finished[0].finish_label == "client_left"
    assert fake.finished[0].attempts[0].label == "ok"


async def test_an_engine_failure_keeps_its_text_and_receipt(control: OpenControl) -> None:
    control.fake.backend.script = Exhausted("The queue is full.", retry_after_s=1.5)
    call = control.stub.Chat(pb.ChatRequest(messages=HELLO))
    error = await refused(call)
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "The queue is full.")
    details = details_of(error)
    assert details["RetryInfo"].retry_delay.ToMilliseconds() == 1500
    request_id = details["ErrorInfo"].metadata["request_id"]
    receipt = (await control.stub.GetReceipt(pb.GetReceiptRequest(id=request_id))).receipt
    assert (receipt.finish, receipt.status, receipt.error) == (
        "error",
        429,
        "exhausted: The queue is full.",
    )
    assert dict(error.trailing_metadata())["x-request-id"] == request_id


async def test_a_stream_that_breaks_off_ends_with_an_error(control: OpenControl) -> None:
    control.fake.backend.script = [
        event({"content": "a"}),
        UpstreamFailed("It broke off.", details={"attempts": [{"url": "u"}]}),
    ]
    call = control.stub.Chat(pb.ChatRequest(messages=HELLO, stream=True))
    assert (await call.read()).delta.text == "a"
    error = await refused(call.read())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert details_of(error)["ErrorInfo"].metadata["attempts"] == '[{"url":"u"}]'
    assert control.fake.finished[0].finish_label == "cut_off"


async def test_a_bug_is_internal_and_shows_no_details(control: OpenControl) -> None:
    control.fake.backend.script = ZeroDivisionError
    error = await refused(control.stub.Chat(pb.ChatRequest(messages=HELLO)))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details().startswith("Internal error.")
    assert "ZeroDivision" not in error.details()
    assert details_of(error)["ErrorInfo"].metadata["request_id"]
    assert control.fake.finished[0].status == 500


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, grpc.StatusCode.INVALID_ARGUMENT),
        (403, grpc.StatusCode.PERMISSION_DENIED),
        (404, grpc.StatusCode.NOT_FOUND),
        (413, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (422, grpc.StatusCode.INVALID_ARGUMENT),
        (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (500, grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_an_upstream_status_becomes_a_code_with_its_text(
    control: OpenControl, status: int, code: grpc.StatusCode
) -> None:
    control.fake.backend.reply_status = status
    control.fake.backend.script = jsons.dumps(
        {"error": {"message": "too hot", "param": "temperature", "code": "hot"}}
    )
    error = await refused(control.stub.Chat(pb.ChatRequest(messages=HELLO)))
    assert (error.code(), error.details()) == (code, "too hot")
    assert details_of(error)["BadRequest"].field_violations[0].field == "temperature"
    assert control.fake.finished[0].status == status


async def test_an_unknown_model_is_not_found(control: OpenControl) -> None:
    error = await refused(control.stub.Chat(pb.ChatRequest(model="no-such", messages=HELLO)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert details_of(error)["ErrorInfo"].reason == "MODEL_NOT_FOUND"


async def test_draining_refuses_new_chats_and_finishes_running_ones(control: OpenControl) -> None:
    control.fake.backend.script = [event({"content": "a"}), "hang"]
    running = control.stub.Chat(pb.ChatRequest(messages=HELLO, stream=True))
    await running.read()
    await control.stub.Drain(pb.DrainRequest())
    error = await refused(control.stub.Chat(pb.ChatRequest(messages=HELLO)))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert details_of(error)["ErrorInfo"].reason == "DRAINING"
    assert not running.done()
    running.cancel()


# ---- the request


def read(request: pb.ChatRequest) -> Any:
    return to_engine_request(request, Receipt("r"))


def test_fields_and_options_become_openais_body() -> None:
    request = pb.ChatRequest(model="m", messages=HELLO)
    request.options.update(
        {
            "temperature": 0.5,
            "max_tokens": 10,
            "stop": ["a", None],
            "response_format": {"type": "json_object"},
            "logprobs": True,
        }
    )
    got = read(request)
    assert got.body == {
        "temperature": 0.5,
        "max_tokens": 10,
        "stop": ["a", None],
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "messages": [{"role": "user", "content": "hello"}],
        "model": "m",
    }
    assert isinstance(got.body["max_tokens"], int)
    assert (got.raw, got.model, got.stream) == (None, "m", False)


def test_a_whole_body_is_sent_as_the_callers_bytes() -> None:
    raw = b'{"model": "m",  "messages": [{"role": "user", "content": "hi"}], "x_new": 1, "stream": true}'
    got = read(pb.ChatRequest(openai_json=raw))
    assert (got.raw, got.model, got.stream, got.body["x_new"]) == (raw, "m", True, 1)


def test_a_stream_beside_a_whole_body_changes_the_body() -> None:
    got = read(pb.ChatRequest(openai_json=b'{"messages": [{"role": "user", "content": "hi"}]}', stream=True))
    assert (got.raw, got.stream, got.body["stream"]) == (None, True, True)


def test_options_may_contain_messages_with_parts() -> None:
    request = pb.ChatRequest()
    request.options.update({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]})
    assert read(request).body["messages"][0]["content"][0]["text"] == "hi"


def both(**options: Any) -> pb.ChatRequest:
    request = pb.ChatRequest(messages=HELLO)
    request.options.update(options)
    return request


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (pb.ChatRequest(), "messages"),
        (pb.ChatRequest(messages=[pb.ChatMessage(content="no role")]), "messages.0.role"),
        (pb.ChatRequest(openai_json=b"{}"), "messages"),
        (pb.ChatRequest(openai_json=b"[1]"), "openai_json"),
        (pb.ChatRequest(openai_json=b"{"), "openai_json"),
        (pb.ChatRequest(openai_json=b'{"messages": [1]}'), "messages.0"),
        (pb.ChatRequest(openai_json=b'{"messages": [{"role": "user", "content": 1}]}'), "messages.0.content"),
        (pb.ChatRequest(openai_json=b'{"messages": [{"role": "user"}], "model": 1}'), "model"),
        (pb.ChatRequest(openai_json=b'{"messages": [{"role": "user"}], "stream": "yes"}'), "stream"),
        (
            pb.ChatRequest(openai_json=b'{"messages": [{"role": "user"}], "stream_options": 1}'),
            "stream_options",
        ),
        (pb.ChatRequest(openai_json=b'{"messages": [{"role": "user"}]}', model="m"), "openai_json"),
        (both(messages=[{"role": "user", "content": "twice"}]), "messages"),
    ],
)
def test_an_invalid_request_names_the_field(request_: pb.ChatRequest, param: str) -> None:
    with pytest.raises(Invalid) as caught:
        read(request_)
    assert caught.value.param == param


async def test_an_invalid_request_is_an_invalid_argument(control: OpenControl) -> None:
    error = await refused(control.stub.Chat(pb.ChatRequest()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)["BadRequest"].field_violations[0].field == "messages"
    assert control.fake.backend.asked == []


def test_an_error_event_is_a_failure() -> None:
    with pytest.raises(UpstreamFailed, match="went wrong"):
        to_deltas(b'data: {"error": {"message": "went wrong"}}\n\n')


def test_deltas_keep_choices_apart_and_survive_odd_events() -> None:
    deltas = to_deltas(
        event({"content": "a"}, index=1)
        + b'data: {"choices": [], "usage": {}}\n\n'
        + b"event: x\ndata: {}\n\n"
    )
    assert [(d.index, d.text) for d in deltas] == [(1, "a"), (0, ""), (0, "")]


async def test_a_lone_surrogate_in_a_reply_is_replaced(control: OpenControl) -> None:
    control.fake.backend.script = completion("x").replace(b'"content":"x"', b'"content":"\\ud800"')
    reply, _ = await rest_of(control.stub.Chat(pb.ChatRequest(messages=HELLO)))
    assert reply.reply.text == "?"
