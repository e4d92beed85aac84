"""The HTTP server over real sockets: its limits, what it refuses, what it hands over to aiohttp."""

import asyncio
import json

import pytest

from tests.journeys.running import Running, Start, until

BODY = b'{"messages":[{"role":"user","content":"Hello"}]}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"


async def talk(running: Running, data: bytes, *, more: bytes = b"", pause_s: float = 0.05) -> bytes:
    """Send bytes (and more after a pause); read until the server closes or is silent for a while."""
    host, port = running.appliance.http_addresses[0]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(data)
    if more:
        await asyncio.sleep(pause_s)
        writer.write(more)
    out = b""
    try:
        while piece := await asyncio.wait_for(reader.read(65536), 0.4):
            out += piece
    except (TimeoutError, ConnectionResetError):
        pass
    writer.close()
    return out


def status(out: bytes) -> int:
    return int(out.split(b" ", 2)[1]) if out else 0


def value(out: bytes) -> dict:
    return json.loads(out.partition(b"\r\n\r\n")[2])


async def test_requests_in_a_row_and_all_at_once_share_a_connection(start: Start) -> None:
    running = await start()
    one = HEAD % len(BODY) + b"\r\n" + BODY
    other = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    assert (await talk(running, one * 3)).count(b"HTTP/1.1 200 OK") == 3
    mixed = await talk(running, one + other + one)
    assert mixed.count(b"HTTP/1.1 200 OK") == 3
    assert b'"object":"list"' in mixed


@pytest.mark.parametrize("size", [1, 7, 50])
async def test_a_request_may_come_in_pieces(start: Start, size: int) -> None:
    running = await start()
    host, port = running.appliance.http_addresses[0]
    reader, writer = await asyncio.open_connection(host, port)
    request = HEAD % len(BODY) + b"\r\n" + BODY
    for i in range(0, len(request), size):
        writer.write(request[i : i + size])
        await asyncio.sleep(0)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
        % (len(BODY), BODY),
        b"POST /v1/chat/completions?x=1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
        % (len(BODY), BODY),
        b"POST /v1/chat/completions HTTP/1.0\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n%b"
        % (len(BODY), BODY),
    ],
)
async def test_rare_forms_of_a_request_are_served_as_well(start: Start, head: bytes) -> None:
    out = await talk(await start(), head)
    assert b" 200 OK" in out
    assert b"You said: Hello" in out


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"GARBAGE\r\n\r\n", 400, b""),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            400,
            b"The request head cannot be read: ",
        ),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
            413,
            b"MAX_BODY_BYTES",
        ),
        (
            b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
            413,
            b'{"error":"The request',
        ),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000, 431, b"The request head is too large (MAX_HEADER_BYTES)."),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
            431,
            b"MAX_HEADER_BYTES",
        ),
        (
            b"GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n",
            405,
            b"/v1/chat/completions does not take GET; it takes OPTIONS, POST.",
        ),
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, b"There is nothing at /nothing."),
        (b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 400, b'"param":"input"'),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{", 400, b"invalid_json"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 400, b"missing_body"),
        (
            b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 42\r\n\r\n"
            + b'{"input":"x","previous_response_id":"r_1"}',
            404,
            b'"param":"previous_response_id"',
        ),
        (b"GET /v1/responses/r_1 HTTP/1.1\r\nHost: x\r\n\r\n", 404, b"not stored"),
        (b"GET /receipts/none HTTP/1.1\r\nHost: x\r\n\r\n", 404, b"last 1000"),
    ],
)
async def test_an_unacceptable_request_is_refused_with_a_message(
    start: Start, data: bytes, code: int, text: bytes
) -> None:
    out = await talk(await start(), data)
    assert status(out) == code
    assert text in out


async def test_a_refusal_reaches_a_client_that_is_still_sending(start: Start) -> None:
    running = await start(MAX_BODY_BYTES="2000")
    host, port = running.appliance.http_addresses[0]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(HEAD % 3_000_000 + b"\r\n")
    try:
        for _ in range(30):
            writer.write(b" " * 100_000)
            await writer.drain()
            await asyncio.sleep(0.01)
    except ConnectionError:
        pass
    assert status(await asyncio.wait_for(reader.read(), 5)) == 413
    writer.close()


async def test_a_large_chunked_body_is_refused_while_it_arrives(start: Start) -> None:
    running = await start(MAX_BODY_BYTES="2000")
    out = await talk(
        running,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"400\r\n"
        + b" " * 1024
        + b"\r\n",
        more=b"800\r\n" + b" " * 2048 + b"\r\n",
    )
    assert status(out) == 413


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"POST /v1/chat", 408, b"The request head did not arrive in time (HEADER_TIMEOUT_S)."),
        (b"", 0, b""),
        (HEAD % 100 + b"\r\nhalf", 408, b"The request body did not arrive in time (BODY_TIMEOUT_S)."),
    ],
)
async def test_slow_clients_are_closed_by_their_timeouts(
    start: Start, data: bytes, code: int, text: bytes
) -> None:
    running = await start(HEADER_TIMEOUT_S="0.3", BODY_TIMEOUT_S="0.3")
    host, port = running.appliance.http_addresses[0]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(data)
    out = await asyncio.wait_for(reader.read(), 10)  # ends when the server closes
    assert status(out) == code
    assert text in out
    writer.close()


async def test_a_slow_second_head_is_closed_by_its_timeout(start: Start) -> None:
    running = await start(HEADER_TIMEOUT_S="0.3")
    host, port = running.appliance.http_addresses[0]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.write(b"GET /heal")
    assert await asyncio.wait_for(reader.read(), 10) is not None
    writer.close()


async def test_idle_connections_are_closed_and_too_many_refused(start: Start) -> None:
    running = await start(KEEPALIVE_TIMEOUT_S="0.3", MAX_CONNECTIONS="3")
    host, port = running.appliance.http_addresses[0]
    held = [await asyncio.open_connection(host, port) for _ in range(3)]
    await until(lambda: len(running.appliance.server.connections) == 3)
    out = await talk(running, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status(out) == 503
    assert b"Retry-After" in out
    assert b"Too many connections (MAX_CONNECTIONS)." in out
    for _, writer in held:
        writer.write(HEAD % len(BODY) + b"\r\n" + BODY)
    for reader, writer in held:
        # answered, then closed when idle
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_client_that_does_not_read_is_disconnected(start: Start) -> None:
    running = await start(WRITE_TIMEOUT_S="0.5")
    host, port = running.appliance.http_addresses[0]
    reader, writer = await asyncio.open_connection(host, port, limit=1024)
    writer.transport.pause_reading()
    body = b'{"stream":true,"messages":[{"role":"user","content":"demo: long 100000"}]}'
    writer.write(HEAD % len(body) + b"\r\n" + body)
    assert await until(lambda: running.appliance.pipeline.in_flight == 1)
    assert await until(lambda: running.appliance.pipeline.in_flight == 0, seconds=10)
    assert running.appliance.receipts.latest(1)[0].finish_label == "client_left"
    writer.close()


async def test_cors_headers_are_sent_to_named_origins_only(start: Start) -> None:
    running = await start(CORS_ORIGINS="https://app.example")
    ask = HEAD % len(BODY) + b"Origin: %b\r\n\r\n" + BODY
    assert b"Access-Control-Allow-Origin: https://app.example\r\n" in await talk(
        running, ask % b"https://app.example"
    )
    assert b"Access-Control-Allow-Origin" not in await talk(running, ask % b"https://evil.example")
    preflight = b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example\r\nAccess-Control-Request-Headers: x-a\r\n\r\n"
    out = await talk(running, preflight)
    assert status(out) == 204
    assert b"Access-Control-Allow-Methods: OPTIONS, POST" in out


async def test_valid_ids_are_returned_and_others_replaced(start: Start) -> None:
    running = await start()
    ask = HEAD % len(BODY) + b"x-request-id: %b\r\n\r\n" + BODY
    assert b"x-request-id: my-id.1\r\n" in await talk(running, ask % b"my-id.1")
    assert b"x-request-id: req_" in await talk(running, ask % (b"x" * 200))
    receipt = await talk(running, b"GET /receipts/my-id.1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert value(receipt)["backend"] == "demo"


async def test_operator_addresses_need_an_operator_key(start: Start) -> None:
    running = await start(APPLIANCE_API_KEYS="client-key-1", OPERATOR_API_KEYS="operator-key-1")
    ask = b"GET /receipts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n\r\n"
    assert [
        status(await talk(running, ask % key)) for key in (b"operator-key-1", b"client-key-1", b"nobody", b"")
    ] == [200, 403, 401, 401]
    assert status(await talk(running, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")) == 200
    assert status(await talk(running, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")) == 401


async def test_metrics_count_what_happened(start: Start) -> None:
    running = await start(GPU_MODE="simulated")
    await talk(running, HEAD % len(BODY) + b"\r\n" + BODY)
    text = (await talk(running, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).decode()
    for line in (
        'appliance_requests_total{route="/v1/chat/completions",status="200"} 1.0',
        'simulated="true"',
        "appliance_build_info{",
        'appliance_tokens_total{backend="demo",kind="completion",model="',
        "appliance_request_duration_seconds_bucket",
    ):
        assert line in text


async def test_metrics_show_open_circuits_and_the_pool(start: Start, hosted) -> None:
    running = await start(
        NOVITA_API_KEY=hosted.key,
        NOVITA_OPENAI_ENDPOINTS=f"http://127.0.0.1:9/v1;{hosted.base_url}",
        BREAKER_FAILURES="1",
    )
    await talk(running, HEAD % len(BODY) + b"\r\n" + BODY)
    text = (await talk(running, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).decode()
    for line in (
        'appliance_upstream_breaker_open{backend="hosted",endpoint="http://127.0.0.1:9/v1"} 1.0',
        f'appliance_upstream_breaker_open{{backend="hosted",endpoint="{hosted.base_url}"}} 0.0',
        'appliance_upstream_connections{state="idle"} 1.0',
        'outcome="connect"',
        "appliance_upstream_first_byte_seconds_count",
    ):
        assert line in text


async def test_while_draining_only_health_is_served(start: Start) -> None:
    running = await start()
    running.appliance.lifecycle.drain()
    out = await talk(running, HEAD % len(BODY) + b"\r\n" + BODY)
    assert status(out) == 503
    assert b"Retry-After" in out
    assert status(await talk(running, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")) == 503
    running.appliance.lifecycle.resume()
    assert status(await talk(running, HEAD % len(BODY) + b"\r\n" + BODY)) == 200
