"""Passthrough over real sockets: what the client sent is what the server gets, and the other way round.

The servers are stand-ins with a mirror at every address that they do not know; some speak raw bytes.
"""

import asyncio
import gzip
import json
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from yarl import URL

from appliance.engines.outcome import Outcome
from appliance.engines.types import BackendStatus
from tests.fakes.mirror import QUICK, Mirror
from tests.journeys.running import Running, until


@pytest.fixture
async def mirrors():
    async with AsyncExitStack() as stack:

        async def begin(count: int = 1, kind: str = "llamacpp", **how: Any) -> list[Mirror]:
            return [await stack.enter_async_context(Mirror(kind, **how)) for _ in range(count)]

        yield begin


@pytest.fixture
async def session():
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


def named(servers: list[Mirror]) -> dict[str, str]:
    return {"BACKENDS": ",".join(f"e{number}={server.url}" for number, server in enumerate(servers)), **QUICK}


async def raw(running: Running, data: bytes, *, until_end: bool = True) -> bytes:
    """Send bytes as they are; give all that comes back until the end."""
    host, _, port = running.base_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    answer = await asyncio.wait_for(reader.read() if until_end else reader.readuntil(b"\r\n\r\n"), 10)
    writer.close()
    return answer


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT"])
async def test_any_method_passes_with_its_body(start, mirrors, session, method: str) -> None:
    running = await start(**named(await mirrors()))
    async with session.request(
        method, running.base_url + "/some/where", data=b"body" if method not in {"GET", "OPTIONS"} else None
    ) as response:
        value = await response.json()
    assert (response.status, value["method"], value["target"]) == (200, method, "/some/where")
    assert value["size"] == (4 if method not in {"GET", "OPTIONS"} else 0)


@pytest.mark.parametrize(
    "target",
    [
        "/a%2Fb",
        "//twice//",
        "/semi;colon=1",
        "/q?a=%20+b&&c=%2F;d",
        "/q?x=%C3%A9",
        "/~tilde/%7Etilde",
        "/a/../b",
        "/star*",
        "/v1/unknown?x",
    ],
)
async def test_path_and_query_pass_byte_for_byte(start, mirrors, target: str) -> None:
    servers = await mirrors()
    running = await start(**named(servers))
    answer = await raw(running, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200")
    assert servers[0].seen == [f"GET {target}"]


async def test_absolute_form_is_understood_and_no_path_is_refused(start, mirrors) -> None:
    servers = await mirrors()
    running = await start(**named(servers))
    assert b" 200 " in await raw(
        running, b"GET http://door/some/where?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert servers[0].seen == ["GET /some/where?x=1"]
    assert b" 4" in (await raw(running, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))[:13]


async def test_headers_change_by_the_rules_and_keys_stay_here(start, mirrors, session) -> None:
    servers = await mirrors(key="")
    running = await start(**named(servers), APPLIANCE_API_KEYS="client-key-1")
    async with session.post(
        running.base_url + "/completion",
        data=b"{}",
        headers={
            "Authorization": "Bearer client-key-1",
            "X-Own": "kept",
            "Connection": "X-Hop",
            "X-Hop": "1",
            "X-Forwarded-For": "192.0.2.9",
            "x-request-id": "mine-1",
            "Origin": "https://a.example",
        },
    ) as response:
        value = await response.json()
    seen = {name.lower(): value for name, value in value["headers"]}
    assert "client-key-1" not in json.dumps(value)
    assert (seen["x-own"], seen["x-request-id"], seen["x-forwarded-for"]) == (
        "kept",
        "mine-1",
        "192.0.2.9, 127.0.0.1",
    )
    assert seen["host"] == f"127.0.0.1:{servers[0].port}"
    assert seen["via"] == "1.1 inference-appliance"
    assert "x-hop" not in seen
    assert response.headers.getall("X-Two") == ["1", "2"]
    assert response.headers["Server"] == "inference-appliance"
    assert response.headers["x-request-id"] == "mine-1"
    assert "backend=e0" in response.headers["x-appliance-receipt"]
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_a_servers_key_goes_there_and_a_refused_one_is_named(start, mirrors, session, tmp_path) -> None:
    servers = await mirrors()
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"backends": [{"url": servers[0].url, "name": "e0", "api_key_env": "E0_KEY"}]})
    )
    running = await start(CONFIG_PATH=str(config), E0_KEY="server-key-9", **QUICK)
    async with session.post(running.base_url + "/completion", data=b"{}") as response:
        assert ["Authorization", "Bearer server-key-9"] in (await response.json())["headers"]
    servers[0].status = 401
    async with session.post(running.base_url + "/completion", data=b"{}") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (502, "upstream_key_refused")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/api/chat", "/v1/messages", "/v1/responses", "/completion"]
)
async def test_the_conversation_is_handed_on_at_every_address(
    start, mirrors, session, path: str, stream: bool
) -> None:
    servers = await mirrors()
    running = await start(**named(servers))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "input": "x", "max_tokens": 9}
    headers = {"X-Conversation-Id": "conversation 7"}
    async with session.post(
        running.base_url + path, json=body | {"stream": stream}, headers=headers
    ) as response:
        text = await response.text()
        assert response.status == 200, text
    if path == "/completion":
        assert ["X-Conversation-Id", "conversation 7"] in json.loads(text)["headers"]
    else:
        assert servers[0].headers[-1]["x-conversation-id"] == "conversation 7"
    async with session.post(running.v1 + "/chat/completions", json=body) as response:
        assert response.status == 200
    assert "x-conversation-id" not in servers[0].headers[-1]


async def test_encodings_ranges_redirects_and_empty_bodies_pass(start, mirrors, session) -> None:
    running = await start(**named(await mirrors()))
    async with session.get(running.base_url + "/act/gzip") as response:
        assert (response.headers["Content-Encoding"], await response.read()) == (
            "gzip",
            b"\x1f\x8b not really",
        )
    async with session.get(running.base_url + "/act/range", headers={"Range": "bytes=2-3"}) as response:
        assert (response.status, response.headers["Content-Range"], await response.read()) == (
            206,
            "bytes 2-3/6",
            b"cd",
        )
    async with session.get(running.base_url + "/act/redirect", allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (307, "/elsewhere?x=1")
    async with session.get(running.base_url + "/act/empty") as response:
        assert (response.status, await response.read()) == (204, b"")
    async with session.head(running.base_url + "/some/where") as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 100


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_compressed_body_passes_as_it_is(start, mirrors, session, is_chunked: bool) -> None:
    running = await start(**named(await mirrors()))
    plain = b'{"model": "tiny", "query": "x"}' * 50
    packed = gzip.compress(plain)

    async def pieces() -> AsyncIterator[bytes]:
        yield packed[:10]
        yield packed[10:]

    async with session.post(
        running.base_url + "/some/where",
        data=pieces() if is_chunked else packed,
        headers={"Content-Encoding": "gzip"},
    ) as response:
        value = await response.json()
    assert (response.status, value["size"]) == (200, len(plain))  # the stand-in unpacks it
    assert ["Content-Encoding", "gzip"] in value["headers"]


async def test_an_upload_passes_as_it_comes_in_its_own_framing(start, mirrors, session) -> None:
    servers = await mirrors()
    running = await start(**named(servers))

    async def pieces():
        yield b"x" * 1000
        await asyncio.wait_for(
            servers[0].first.wait(), 5
        )  # the server has the first piece before the second is made
        yield b"y" * 3_000_000

    async with session.post(running.base_url + "/act/upload", data=pieces()) as response:
        assert await response.json() == {"size": 3_001_000, "framing": "chunked"}
    servers[0].first.clear()
    async with session.post(
        running.base_url + "/act/upload", data=pieces(), headers={"Content-Length": "3001000"}
    ) as response:
        assert await response.json() == {"size": 3_001_000, "framing": "length"}
    async with session.put(
        running.base_url + "/act/upload", data=b"x" * 10, headers={"Expect": "100-continue"}, expect100=True
    ) as response:
        assert await response.json() == {"size": 10, "framing": "length"}


async def test_uploads_are_bounded_whatever_they_announce(start, mirrors, session) -> None:
    servers = await mirrors()
    running = await start(**named(servers), MAX_BODY_BYTES="2000000")

    async def pieces():
        for _ in range(30):
            yield b"x" * 100_000

    async with session.post(running.base_url + "/act/upload", data=pieces()) as response:
        assert (response.status, "MAX_BODY_BYTES" in await response.text()) == (413, True)
    async with session.post(running.base_url + "/act/upload", data=b"x" * 2_000_001) as response:
        assert (response.status, "MAX_BODY_BYTES" in await response.text()) == (413, True)
    assert len(servers[0].seen) == 1  # the announced one was refused before a server saw it


async def test_an_upload_that_stops_is_ended(start, mirrors) -> None:
    running = await start(**named(await mirrors()), BODY_TIMEOUT_S="0.3")
    answer = await raw(
        running, b"POST /act/upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"BODY_TIMEOUT_S" in answer


async def test_an_event_arrives_before_the_next_is_made(start, mirrors, session) -> None:
    servers = await mirrors()
    running = await start(**named(servers))
    async with session.get(running.base_url + "/act/events") as response:
        assert await asyncio.wait_for(response.content.readuntil(b"\n\n"), 5) == b"data: one\n\n"
        servers[0].go.set()
        assert await response.content.read() == b"data: two\n\n"


async def test_a_client_that_does_not_read_slows_the_server_down(start, mirrors) -> None:
    servers = await mirrors()
    running = await start(**named(servers))
    host, _, port = running.base_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.sendall(b"GET /act/large HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: getattr(servers[0], "sent", 0) > 0)
        former = -1
        while former != servers[0].sent:  # until nothing moves any more
            former = servers[0].sent
            await asyncio.sleep(0.3)
        assert former < 40  # of 64 MiB: the rest waits in the server
    assert await until(servers[0].gone.is_set, seconds=10)


async def test_a_client_that_leaves_ends_the_work_at_once(start, mirrors, session) -> None:
    servers = await mirrors()
    running = await start(**named(servers))
    response = await session.get(running.base_url + "/act/events")
    await response.content.readuntil(b"\n\n")
    assert running.appliance.pipeline.in_flight == 1
    response.close()
    await asyncio.wait_for(servers[0].gone.wait(), 1)
    assert await until(lambda: running.appliance.pipeline.in_flight == 0)
    assert running.appliance.router.state("e0").in_flight == 0


async def test_a_client_that_leaves_in_the_middle_is_no_fault_of_ours(spawn, mirrors) -> None:
    """In a process of its own: its event loop tells of a reset in another order than this one's."""
    servers = await mirrors()
    process = await asyncio.to_thread(spawn, **named(servers))
    host, _, port = process.base_url.removeprefix("http://").partition(":")
    for _ in range(10):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.write(b"GET /act/drip HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await asyncio.wait_for(servers[0].gone.wait(), 5)
        servers[0].gone.clear()
    assert await until(lambda: process.text().count('"finish":"client_left"') == 10)
    assert '"level":"error"' not in process.text()


async def test_an_answer_that_breaks_off_is_no_whole_one(start, mirrors, session) -> None:
    running = await start(**named(await mirrors()))
    async with session.post(running.base_url + "/act/cut") as response:
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    assert await until(lambda: running.appliance.pipeline.in_flight == 0)
    assert running.appliance.receipts.latest(1)[0].finish_label == "cut_off"
    async with session.post(running.base_url + "/act/cut?type=text/event-stream") as response:
        text = (await response.read()).decode()
    assert text.startswith("data: one\n\ndata: {")
    assert json.loads(text.split("data: ")[2])["error"]["code"] == "upstream_cut_off"


@pytest.mark.parametrize(
    ("method", "path", "status", "answered", "asked"),
    [
        ("POST", "/completion", 503, 200, 2),  # work: another server
        ("POST", "/completion", 502, 200, 2),
        ("POST", "/completion", 429, 200, 2),
        ("POST", "/completion", 500, 500, 1),  # the server's own verdict
        ("POST", "/completion", 400, 400, 1),
        ("POST", "/completion", 404, 404, 1),  # the others are of the same kind
        ("GET", "/props2", 503, 200, 2),  # safe
        ("POST", "/lora-adapters2", 503, 503, 1),  # it may have been done
        ("PUT", "/thing", 502, 502, 1),
        ("DELETE", "/thing", 504, 504, 1),
    ],
)
async def test_who_else_is_asked(
    start,
    mirrors,
    session,
    method: str,
    path: str,
    status: int,
    answered: int,
    asked: int,
) -> None:
    servers = await mirrors(2)
    running = await start(**named(servers), LB_STRATEGY="round_robin")
    for server in servers:
        server.status = status
    first = running.appliance.router.pools[0].backends[0].name
    async with session.request(
        method, running.base_url + path, data=b"{}" if method != "GET" else None
    ) as response:
        assert response.status == status  # both: the last answer is given, as it came
        assert (await response.json())["error"].startswith("from ")
    assert sum(len(server.seen) for server in servers) == asked
    for server in servers:
        server.status, server.seen = 200, []
    await until(lambda: all(state.standing == "ready" for state in running.appliance.router.states()))
    servers[0].status = servers[1].status = status
    well = servers[1] if first == "e0" else servers[0]
    well.status = 200
    for _ in range(2):  # whoever is first, the other one is well
        async with session.request(
            method, running.base_url + path, data=b"{}" if method != "GET" else None
        ) as response:
            assert response.status in {answered, 200}


async def test_a_server_that_is_gone_is_passed_over_whatever_is_asked(start, mirrors, session) -> None:
    servers = await mirrors(2)
    running = await start(**named(servers) | {"METRICS_CACHE_TTL_SECONDS": "30"})
    await servers[0].stop()
    for _ in range(4):
        async with session.post(running.base_url + "/lora-adapters2", data=b"[]") as response:
            assert (await response.json())["port"] == servers[1].port
    await servers[1].stop()
    async with session.post(running.base_url + "/lora-adapters2", data=b"[]") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (503, "no_backend")


async def test_an_address_of_one_kind_of_engine_finds_it(start, mirrors, session) -> None:
    llama, vllm = (await mirrors(1, "llamacpp"))[0], (await mirrors(1, "vllm"))[0]
    vllm.status = 404
    running = await start(**named([vllm, llama]))
    for _ in range(4):
        async with session.post(running.base_url + "/infill", data=b"{}") as response:
            assert (response.status, (await response.json())["port"]) == (200, llama.port)


@pytest.mark.timeout(30)
async def test_an_unknown_address_is_told_while_other_kinds_are_full(start, mirrors, session) -> None:
    llama, vllm = (await mirrors(1, "llamacpp"))[0], (await mirrors(1, "vllm"))[0]
    vllm.status = 404
    running = await start(**named([vllm, llama]))
    (full,) = [one for one in running.appliance.router.backends() if one.name == "e1"]
    taken = [full.take("") for _ in range(64)]
    assert full.status(running.appliance.clock.monotonic_s()) is BackendStatus.FULL
    async with session.post(running.base_url + "/infill", data=b"{}") as response:
        assert response.status == 404
    for slot in taken:
        slot.release(Outcome.OK)


async def test_a_request_that_names_a_model_goes_to_a_server_of_it(start, mirrors, session) -> None:
    servers = [*await mirrors(1, models=("a",)), *await mirrors(1, models=("b",))]
    running = await start(**named(servers))
    for model, server in (("a", servers[0]), ("b", servers[1])) * 2:
        async with session.post(running.base_url + "/v1/rerank", json={"model": model}) as response:
            assert (await response.json())["port"] == server.port
        async with session.post(running.base_url + f"/completion?model={model}", data=b"x") as response:
            assert (await response.json())["port"] == server.port
    async with session.post(running.base_url + "/v1/rerank", json={"model": "c"}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("kind", ["llamacpp", "sglang"])
async def test_without_a_model_no_server_for_embeddings_is_asked(start, mirrors, session, kind: str) -> None:
    embedding, text = (
        *await mirrors(1, kind, models=("a-embed",)),
        *await mirrors(1, kind, models=("chat",)),
    )
    embedding.is_embedding = True
    running = await start(**named([embedding, text]))
    for path in ("/completion", "/tokenize", "/some/where") * 2:
        async with session.post(running.base_url + path, data=b"{}") as response:
            assert (await response.json())["port"] == text.port
    async with session.post(
        running.v1 + "/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}
    ) as response:
        assert (response.status, (await response.json())["model"]) == (200, "chat")
    async with session.post(running.base_url + "/tokenize", json={"model": "a-embed"}) as response:
        assert (await response.json())["port"] == embedding.port
    async with session.get(running.v1 + "/models") as response:
        assert [row["id"] for row in (await response.json())["data"]][:2] == ["chat", "a-embed"]


async def test_a_named_server_is_reached_when_full_or_drained(start, mirrors, session) -> None:
    servers = await mirrors(2, slots=1, token_s=0.5)
    running = await start(**named(servers), MAX_ALLOWED_REQUEST_QUEUE="1", QUEUE_TIMEOUT_S="0.2")
    busy = [
        asyncio.create_task(
            session.post(
                running.v1 + "/chat/completions",
                json={"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
            )
        )
        for _ in range(2)
    ]
    assert await until(lambda: all(server.running for server in servers))
    for number, server in enumerate(servers):
        async with session.get(
            URL(running.base_url + f"/backends/e{number}/slots?x=%2F", encoded=True)
        ) as response:
            assert (await response.json())["port"] == server.port
        assert server.seen[-1] == "GET /slots?x=%2F"
        async with session.get(
            running.base_url + "/slots", headers={"x-appliance-backend": f"e{number}"}
        ) as response:
            assert (await response.json())["port"] == server.port
        async with session.get(running.base_url + f"/backends/e{number}/metrics") as response:
            assert "llamacpp:requests_processing 1.0" in await response.text()
    for task in busy:
        (await task).close()
    async with session.get(running.base_url + "/backends/nobody/slots") as response:
        assert (response.status, (await response.json())["error"]["message"]) == (
            404,
            "There is no backend 'nobody' that can be reached directly. Known: e0, e1.",
        )


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/completion", "", 401),
        ("/completion", "client-key-1", 200),
        ("/completion", "operator-key", 200),
        ("/slots", "", 401),
        ("/slots", "client-key-1", 403),
        ("/slots", "operator-key", 200),
        ("/backends/e0/completion", "client-key-1", 403),
        ("/backends/e0/completion", "operator-key", 200),
        ("/backends/nobody/x", "client-key-1", 403),
    ],
)
async def test_who_may_send_what(
    start,
    mirrors,
    session,
    path: str,
    key: str,
    status: int,
) -> None:
    running = await start(
        **named(await mirrors()), APPLIANCE_API_KEYS="client-key-1", OPERATOR_API_KEYS="operator-key"
    )
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with session.post(running.base_url + path, data=b"{}", headers=headers) as response:
        assert response.status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "https://a.example"}, 200),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": "evil.example:14000"}, 403),
        ({"Host": "localhost:14000"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"X-Forwarded-For": "192.0.2.1"}, 403),
        ({"Via": "1.1 edge"}, 403),
    ],
)
async def test_a_page_or_a_proxy_on_this_machine_is_no_operator(
    start,
    mirrors,
    session,
    headers: dict[str, str],
    status: int,
) -> None:
    servers = await mirrors()
    running = await start(**named(servers), CORS_ORIGINS="https://a.example")
    async with session.post(
        running.base_url + "/slots/0?action=erase", data=b"{}", headers=headers
    ) as response:
        assert response.status == status
    assert len(servers[0].seen) == (status == 200)


async def test_without_servers_or_with_the_switch_off_there_is_nothing(start, mirrors, session) -> None:
    running = await start()
    async with session.get(running.base_url + "/props") as response:
        assert (response.status, (await response.json())["error"]["message"]) == (
            404,
            "There is nothing at /props.",
        )
    running = await start(**named(await mirrors()), PASSTHROUGH="off")
    async with session.get(running.base_url + "/props") as response:
        assert response.status == 404
    async with session.put(running.base_url + "/healthz") as response:
        assert response.status == 405


async def test_our_own_addresses_are_never_passed_on(start, mirrors, session) -> None:
    servers = await mirrors()
    running = await start(**named(servers))
    for method, path in (
        ("POST", "/healthz"),
        ("POST", "/metrics"),
        ("DELETE", "/receipts"),
        ("POST", "/api/v1/loadbalancer/strategy"),
        ("GET", "/v1/chat/completions"),
        ("DELETE", "/v1/models/tiny"),
        ("PUT", "/v1/responses"),
    ):
        async with session.request(method, running.base_url + path) as response:
            assert response.status == 405
    assert servers[0].seen == []


async def test_a_browsers_question_is_answered_here(start, mirrors, session) -> None:
    running = await start(**named(await mirrors()), CORS_ORIGINS="https://a.example")
    async with session.options(
        running.base_url + "/tokenize",
        headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"},
    ) as response:
        assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (
            204,
            "https://a.example",
        )


async def test_draining_ends_it_too(start, mirrors, session) -> None:
    running = await start(**named(await mirrors()))
    running.appliance.lifecycle.drain()
    async with session.get(running.base_url + "/props") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (503, "draining")


# ---- connections that switch protocols


async def test_a_websocket_speaks_through_both_ways(start, mirrors, session) -> None:
    servers = await mirrors()
    running = await start(**named(servers))
    async with session.ws_connect(
        running.base_url + "/act/ws?x=1", protocols=("realtime",), headers={"Authorization": "Bearer mine"}
    ) as ws:
        assert ws.protocol == "realtime"
        await ws.send_str("hello")
        assert await ws.receive_str(timeout=5) == "echo hello"
        await ws.send_bytes(b"\x00\x01\x02" * 100_000)
        assert await ws.receive_bytes(timeout=5) == b"\x02\x01\x00" * 100_000
        assert running.appliance.router.state("e0").in_flight == 1
        await ws.send_str("close")
        message = await ws.receive(timeout=5)
        assert (message.type, ws.close_code) == (WSMsgType.CLOSE, 4001)
    assert servers[0].seen == ["GET /act/ws?x=1", "key None"]
    assert await until(lambda: running.appliance.pipeline.in_flight == 0)
    assert running.appliance.router.state("e0").in_flight == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Origin": "https://evil.example"}, 403), ({"Host": "evil.example"}, 403), ({"Origin": "own"}, 101)],
)
async def test_a_page_of_another_site_opens_no_websocket(
    start, mirrors, session, headers: dict[str, str], status: int
) -> None:
    servers = await mirrors()
    running = await start(**named(servers))
    if headers.get("Origin") == "own":
        headers = {"Origin": running.base_url}
    try:
        async with session.ws_connect(running.base_url + "/act/ws", headers=headers):
            found = 101
    except aiohttp.WSServerHandshakeError as refusal:
        found = refusal.status
    assert (found, bool(servers[0].seen)) == (status, status == 101)


async def test_a_websockets_client_that_vanishes_ends_it_at_the_server(start, mirrors, session) -> None:
    servers = await mirrors()
    running = await start(**named(servers))
    ws = await session.ws_connect(running.base_url + "/act/ws")
    await ws.send_str("a")
    await ws.receive_str(timeout=5)
    assert ws._response.connection is not None
    ws._response.connection.transport.abort()
    await asyncio.wait_for(servers[0].gone.wait(), 2)
    assert await until(lambda: running.appliance.pipeline.in_flight == 0)


async def test_bytes_of_any_protocol_pass_and_half_an_end_is_no_end(start, mirrors) -> None:
    """A raw server: it says 101, reads to the client's end, and only then answers."""
    servers = await mirrors()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"Upgrade: strange" not in head:
            page = b'{"object": "list", "data": [{"id": "odd"}]}'
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n%b"
                % (len(page), page)
            )
        else:
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: strange\r\n\r\nhello\n"
            )
            data = await reader.read()
            writer.write(b"%d bytes, the end" % len(data))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        running = await start(**named(servers) | {"BACKENDS": f"odd=http://127.0.0.1:{port}"})
        host, _, door = running.base_url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(door))
        writer.write(b"GET /odd HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: strange\r\n\r\nearly")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"Upgrade: strange" in head
        assert await asyncio.wait_for(reader.readline(), 5) == b"hello\n"
        writer.write(b"x" * 1_000_000)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b"1000005 bytes, the end"
        writer.close()


UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"


@pytest.mark.parametrize(
    ("line", "variables", "status"),
    [
        (b"GET /some/where", {}, b"HTTP/1.1 200"),  # the server does not switch: its answer is given
        (b"GET /backends/nobody/x", {}, b"HTTP/1.1 404"),
        (b"GET /slots", {"APPLIANCE_API_KEYS": "client-key-1"}, b"HTTP/1.1 401"),
        (b"GET /slots", {"PASSTHROUGH": "off"}, b"HTTP/1.1 404"),
        (b"GET /healthz", {}, b"HTTP/1.1 200"),  # ours: it does not switch
    ],
)
async def test_a_switch_that_is_not_granted_is_answered_in_http(
    start,
    mirrors,
    line: bytes,
    variables: dict[str, str],
    status: bytes,
) -> None:
    running = await start(**named(await mirrors()), **variables)
    answer = await raw(running, line + b" HTTP/1.1\r\nHost: x\r\n" + UPGRADE, until_end=False)
    assert answer.startswith(status)
    assert await until(lambda: running.appliance.pipeline.in_flight == 0)


async def test_a_kept_connection_switches_after_requests_of_any_kind(start, mirrors) -> None:
    """As nginx does, which keeps connections to the appliance and uses them for WebSocket, too."""
    running = await start(**named(await mirrors()))
    host, _, port = running.base_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    async def answer_to(head: bytes) -> bytes:
        writer.write(head)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        if size := re.search(rb"(?i)content-length: (\d+)", answer):
            await reader.readexactly(int(size[1]))
        return answer

    for line, more in ((b"GET /healthz", b"\r\n"), (b"GET /some/where", b"\r\n"), (b"GET /healthz", UPGRADE)):
        assert b" 200 " in await answer_to(line + b" HTTP/1.1\r\nHost: x\r\n" + more)
    switched = await answer_to(b"GET /act/ws HTTP/1.1\r\nHost: x\r\n" + UPGRADE)
    assert switched.startswith(b"HTTP/1.1 101 ")
    writer.write(b"\x81\x85\0\0\0\0hello")  # a frame of text, its mask zero
    assert await asyncio.wait_for(reader.readexactly(12), 5) == b"\x81\x0aecho hello"
    writer.close()
    assert await until(lambda: running.appliance.pipeline.in_flight == 0)


SWITCH = b"GET /act/ws HTTP/1.1\r\nHost: x\r\n" + UPGRADE


@pytest.mark.parametrize("before", [b"GET /healthz", b"GET /some/where", b"POST /some/where"])
@pytest.mark.parametrize(
    "cuts",
    [[2], [4], [20], [SWITCH.index(b"Upgrade: web") + 4], [len(SWITCH) - 1], [1, 5, 30, len(SWITCH) - 3]],
    ids=["in the method", "behind it", "in the path", "in the field", "in the end", "in five"],
)
async def test_a_kept_connection_switches_by_a_head_in_parts(
    start, mirrors, before: bytes, cuts: list[int]
) -> None:
    running = await start(**named(await mirrors()))
    host, _, port = running.base_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b"GET x" if before.startswith(b"POST") else b""
    for _ in range(2):
        writer.write(before + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        if body:  # a body is no head, whatever it begins with
            await asyncio.sleep(0.02)
            writer.write(body)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert b" 200 " in answer
        size = re.search(rb"(?i)content-length: (\d+)", answer)
        assert size is not None
        await reader.readexactly(int(size[1]))
    for begin, end in pairwise([0, *cuts, len(SWITCH)]):
        writer.write(SWITCH[begin:end])
        await asyncio.sleep(0.02)
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 101 ")
    writer.write(b"\x81\x85\0\0\0\0hello")
    assert await asyncio.wait_for(reader.readexactly(12), 5) == b"\x81\x0aecho hello"
    writer.close()
    assert await until(lambda: running.appliance.pipeline.in_flight == 0)


async def test_other_heads_in_parts_are_answered_on_a_kept_connection(start, mirrors) -> None:
    running = await start(**named(await mirrors()))
    host, _, port = running.base_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"GET /some/where HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 5000 + b"\r\n\r\n"
    for cut in (len(head), 3, 24, 5000, len(head) - 2):
        writer.write(head[:cut])
        await asyncio.sleep(0.02)
        writer.write(head[cut:])
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert b" 200 " in answer
        size = re.search(rb"(?i)content-length: (\d+)", answer)
        assert size is not None
        await reader.readexactly(int(size[1]))
    writer.write(head.replace(b"a" * 5000, b"a" * 40_000)[:-2])  # larger than MAX_HEADER_BYTES, and no end
    assert b" 431 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


async def test_a_further_head_that_does_not_go_on_ends_the_connection(start, mirrors) -> None:
    running = await start(**named(await mirrors()), HEADER_TIMEOUT_S="0.3")
    host, _, port = running.base_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    size = re.search(rb"(?i)content-length: (\d+)", answer)
    assert size is not None
    await reader.readexactly(int(size[1]))
    writer.write(b"GET /some")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_server_that_is_gone_or_silent_refuses_the_switch(start, mirrors) -> None:
    servers = await mirrors(2)
    running = await start(**named(servers) | {"METRICS_CACHE_TTL_SECONDS": "30"})
    await servers[0].stop()
    for _ in range(2):
        assert b" 200 " in await raw(
            running, b"GET /some/where HTTP/1.1\r\nHost: x\r\n" + UPGRADE, until_end=False
        )
    await servers[1].stop()
    assert (await raw(running, b"GET /some/where HTTP/1.1\r\nHost: x\r\n" + UPGRADE)).startswith(
        b"HTTP/1.1 503"
    )
