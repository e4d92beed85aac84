"""`/ws`, `/polling`, `/stats` against a whole appliance: who may connect, which events come, chats, clients that are gone or slow."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, WSServerHandshakeError

from appliance.accounts.audit_log import SYSTEM
from appliance.accounts.issued_keys import KeyRequest
from appliance.app import close_feeds
from appliance.storage.events import KEEP_COUNT
from tests.accounts.parts import PASSWORD
from tests.fakes.counting_engine import CountingEngine
from tests.journeys.paying import PayingUser, begin_paying, rows_of, user_of
from tests.journeys.python_clients import RunPython, python  # noqa: F401 - a fixture
from tests.journeys.running import Running, Start, start, until  # noqa: F401 - a fixture

OPERATOR = "operator-key-of-tests"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def running(start: Start, tmp_path: Path) -> Running:  # noqa: F811
    return await begin_paying(start, tmp_path, OPERATOR_API_KEYS=OPERATOR)


@pytest.fixture
async def web() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


class Client:
    """One socket."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.socket = socket

    async def ask(self, **message: Any) -> dict[str, Any]:
        await self.socket.send_str(json.dumps(message))
        return await self.next()

    async def next(self, within_s: float = 10) -> dict[str, Any]:
        message = await self.socket.receive(within_s)
        assert message.type is WSMsgType.TEXT, message
        return dict(json.loads(message.data))

    async def end(self, within_s: float = 10) -> int:
        """Wait for the end; return its code."""
        while True:
            message = await self.socket.receive(within_s)
            if message.type is WSMsgType.CLOSE:
                return int(message.data)
            if message.type in {WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR}:
                return int(self.socket.close_code or 0)


async def connect(web: ClientSession, running: Running, key: str = "", **more: str) -> Client:
    headers = {**({"x-api-key": key} if key else {}), **more}
    return Client(await web.ws_connect(running.base_url + "/ws", headers=headers))


async def append(running: Running, user_id: str | None, topic: str, **data: Any) -> int:
    accounts = running.appliance.accounts
    assert accounts is not None
    log = accounts.events.log
    seq = await accounts.database.run(lambda one: log.append(one, user_id, topic, data))
    await log.announce()
    return seq


async def key_of(running: Running, user: PayingUser, *scopes: str) -> tuple[str, str]:
    """Make another key; return it and its id."""
    accounts = running.appliance.accounts
    assert accounts is not None
    facts = await accounts.identity.directory.user(user.id)
    assert facts is not None
    request = KeyRequest(name="k", scopes=frozenset(scopes))
    key, stored = await accounts.identity.keys.create(facts, request, author=SYSTEM)
    return key.text, stored.id


# ---- the official client


@pytest.mark.parametrize("kind", ["newest", "older"])
async def test_the_official_client_gets_events_and_chats(
    running: Running,
    python: RunPython,  # noqa: F811
    kind: str,
) -> None:
    user = await user_of(running, 1_000_000)
    accounts = running.appliance.accounts
    assert accounts is not None
    stored = await accounts.identity.directory.user(user.id)
    assert stored is not None
    _, tokens = await accounts.identity.users.login(stored.email, PASSWORD, peer="10.0.0.1", user_agent="t")
    found = await python(
        "events",
        kind,
        running.base_url,
        key=user.key,
        token=tokens.access_token,
        operator=OPERATOR,
        user_id=user.id,
    )
    assert found["header"]["type"] == "subscribed"
    assert found["header"]["topics"] == ["billing", "instances", "offers", "usage"]
    assert found["pong"] == {"type": "pong"}
    event = found["event"]
    assert (event["type"], event["topic"], event["data"]["kind"]) == ("event", "billing", "grant")
    assert event["data"]["credits"]["credits_total"] == 4
    assert (found["chat_end"]["type"], found["chat_end"]["id"]) == ("done", "c1")
    assert found["chat"]
    assert found["session"]["data"]["kind"] == "login"
    assert found["chosen"] == "appliance.events"
    assert found["message"]["type"] == "authenticated"
    assert (found["replayed"]["seq"], found["replayed"]["topic"]) == (1, "billing")
    rows = await rows_of(running, user)
    assert len(rows) == 1
    assert rows[0].charged_musd > 0


# ---- who may connect


async def test_the_originals_example_is_told_to_authenticate(running: Running, web: ClientSession) -> None:
    client = await connect(web, running)
    answer = await client.ask(type="subscribe")
    assert (answer["type"], answer["code"]) == ("error", "authentication_required")
    assert "Authenticate first" in answer["error"]
    assert await client.ask(type="ping") == {"type": "pong"}


async def test_who_says_nothing_is_cut_off(running: Running, web: ClientSession) -> None:
    handlers = running.appliance.event_handlers
    assert handlers is not None
    assert handlers._parts.times.auth_s == 5.0
    object.__setattr__(handlers._parts.times, "auth_s", 0.05)
    try:
        client = await connect(web, running)
        assert (await client.next())["code"] == "authentication_required"
        assert await client.end() == 1008
    finally:
        object.__setattr__(handlers._parts.times, "auth_s", 5.0)


@pytest.mark.parametrize(
    ("headers", "query", "status", "code"),
    [
        ({"x-api-key": "apk_unknown"}, "", 401, None),
        ({"authorization": "Bearer nothing"}, "", 401, None),
        ({"origin": "https://evil.example"}, "", 403, "origin_not_allowed"),
    ],
)
async def test_wrong_credentials_and_pages_are_refused(
    running: Running, web: ClientSession, headers: dict[str, str], query: str, status: int, code: str | None
) -> None:
    with pytest.raises(WSServerHandshakeError) as caught:
        await web.ws_connect(running.base_url + "/ws" + query, headers=headers)
    assert caught.value.status == status


async def test_pages_of_named_origins_and_our_own_may_connect(
    start: Start,  # noqa: F811
    tmp_path: Path,
    web: ClientSession,
) -> None:
    running = await begin_paying(start, tmp_path, CORS_ORIGINS="https://app.example")
    for origin in ("https://app.example", running.base_url):
        client = await connect(web, running, origin=origin)
        assert await client.ask(type="ping") == {"type": "pong"}


async def test_a_key_in_the_address_opens_nothing(running: Running, web: ClientSession) -> None:
    user = await user_of(running, 0)
    client = Client(await web.ws_connect(f"{running.base_url}/ws?token={user.key}"))
    assert (await client.ask(type="subscribe"))["code"] == "authentication_required"


async def test_a_plain_request_is_told_to_upgrade(running: Running) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.get(running.base_url + "/ws")
    assert (answer.status_code, answer.json()["code"]) == (426, "upgrade_required")


async def test_a_bad_handshake_is_refused(running: Running) -> None:
    async with httpx.AsyncClient() as http:
        headers = {"upgrade": "websocket", "connection": "upgrade"}
        answer = await http.get(running.base_url + "/ws", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_handshake")


async def test_the_ninth_socket_of_a_user_is_refused(running: Running, web: ClientSession) -> None:
    user = await user_of(running, 0)
    clients = [await connect(web, running, user.key) for _ in range(8)]
    for client in clients:
        await client.ask(type="ping")
    with pytest.raises(WSServerHandshakeError) as caught:
        await connect(web, running, user.key)
    assert caught.value.status == 429
    late = await connect(web, running)
    assert (await late.ask(type="auth", token=user.key))["code"] == "too_many_sockets"
    assert await late.end() == 1008
    await clients[0].socket.close()
    handlers = running.appliance.event_handlers
    assert handlers is not None
    assert await until(lambda: handlers._open[user.id] == 7)
    again = await connect(web, running, user.key)
    assert await again.ask(type="ping") == {"type": "pong"}


async def test_a_revoked_key_ends_the_socket_within_2_s(running: Running, web: ClientSession) -> None:
    user = await user_of(running, 0)
    key, key_id = await key_of(running, user, "billing")
    client, other = await connect(web, running, key), await connect(web, running, user.key)
    await client.ask(type="subscribe")
    accounts = running.appliance.accounts
    assert accounts is not None
    await accounts.identity.keys.revoke(user.id, key_id, author=SYSTEM)
    began_s = time.monotonic()
    assert await client.end() == 1008
    assert time.monotonic() - began_s < 2
    assert await other.ask(type="ping") == {"type": "pong"}


async def test_a_key_hears_the_topics_of_its_scopes(running: Running, web: ClientSession) -> None:
    user = await user_of(running, 0)
    key, _ = await key_of(running, user, "market")
    client = await connect(web, running, key)
    assert (await client.ask(type="subscribe"))["topics"] == ["instances", "offers"]
    refused = await client.ask(type="subscribe", topics=["billing"])
    assert refused["code"] == "topic_not_allowed"
    assert (await client.ask(type="subscribe", topics=["weather"]))["code"] == "unknown_topic"
    await append(running, user.id, "billing", n=1)
    await append(running, user.id, "instances", n=2)
    assert (await client.next())["data"] == {"n": 2}


async def test_operators_hear_the_system_and_no_user(running: Running, web: ClientSession) -> None:
    user = await user_of(running, 0)
    client = await connect(web, running, OPERATOR)
    assert (await client.ask(type="subscribe", after=0))["topics"] == ["system"]
    await append(running, user.id, "billing", n=1)
    await append(running, None, "system", n=2)
    assert (await client.next())["data"] == {"n": 2}
    mine = await connect(web, running, user.key)
    assert (await mine.ask(type="subscribe", topics=["system"]))["code"] == "topic_not_allowed"


# ---- messages


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Invalid JSON"),
        ("[" * 20_000, "Invalid JSON"),
        ("{}", "Missing message type"),
        ('{"type": 5}', "Missing message type"),
        ('{"type": "dance"}', "Unknown message type"),
        ('{"type": "subscribe", "topics": "billing"}', "`topics` must be a list of names."),
        ('{"type": "subscribe", "after": -1}', "`after` must be a whole number from 0, not '-1'."),
        ('{"type": "subscribe", "after": 1e999}', "`after` must be a whole number from 0, not 'inf'."),
        ('{"type": "auth", "token": "x"}', "This connection has said already who it is."),
        (
            '{"type": "chat", "id": "", "body": {}}',
            "`id` must be 1 to 64 letters, digits, `.`, `_`, `:`, `-`.",
        ),
        ('{"type": "chat", "id": "a"}', "`body` must be an object, a request of /v1/chat/completions."),
        ('{"type": "cancel", "id": "a"}', "No chat 'a' is running."),
    ],
)
async def test_faulty_messages_are_answered(
    running: Running, web: ClientSession, raw: str, text: str
) -> None:
    user = await user_of(running, 0)
    client = await connect(web, running, user.key)
    await client.socket.send_str(raw)
    answer = await client.next()
    assert (answer["type"], answer["error"]) == ("error", text)
    assert await client.ask(type="ping") == {"type": "pong"}


async def test_a_token_that_is_none_is_refused(running: Running, web: ClientSession) -> None:
    client = await connect(web, running)
    assert (await client.ask(type="auth", token=""))["code"] == "invalid_token"
    answer = await client.ask(type="auth", token="apk_nothing")
    assert (answer["type"], answer["error"]) == ("error", "Unknown API key.")


async def test_a_message_too_large_ends_the_connection(running: Running, web: ClientSession) -> None:
    client = await connect(web, running)
    await client.socket.send_str("x" * (64 * 1024 + 1))
    assert await client.end() == 1009


async def test_topics_can_be_left(running: Running, web: ClientSession) -> None:
    user = await user_of(running, 0)
    client = await connect(web, running, user.key)
    await client.ask(type="subscribe", topics=["billing", "usage"])
    assert (await client.ask(type="unsubscribe", topics=["usage"]))["topics"] == ["billing"]
    await append(running, user.id, "usage", n=1)
    await append(running, user.id, "billing", n=2)
    assert (await client.next())["data"] == {"n": 2}


# ---- chats


async def test_a_chat_without_credits_is_refused(running: Running, web: ClientSession) -> None:
    user = await user_of(running, 0)
    client = await connect(web, running, user.key)
    answer = await client.ask(type="chat", id="c", body=CHAT)
    assert (answer["type"], answer["id"], answer["code"]) == ("error", "c", "insufficient_credits")
    assert answer["status"] == 402


async def test_a_key_without_inference_cannot_chat(running: Running, web: ClientSession) -> None:
    user = await user_of(running, 1_000_000)
    key, _ = await key_of(running, user, "billing")
    client = await connect(web, running, key)
    answer = await client.ask(type="chat", id="c", body=CHAT)
    assert (answer["type"], answer["status"]) == ("error", 403)


@pytest.fixture
async def stalled(start: Start, tmp_path: Path) -> AsyncIterator[tuple[Running, CountingEngine]]:  # noqa: F811
    """An appliance whose engine stops after three tokens of each response, and waits until the caller leaves."""
    async with CountingEngine(tokens=6) as engine:
        engine.stall_at = 3
        yield await begin_paying(start, tmp_path, BACKENDS=f"e={engine.url}"), engine


async def chunks(client: Client, count: int) -> None:
    while count:
        count -= bool((await client.next())["type"] == "chunk")


async def test_a_cancelled_chat_is_charged_for_what_came(
    stalled: tuple[Running, CountingEngine], web: ClientSession
) -> None:
    running, engine = stalled
    user = await user_of(running, 10_000_000)
    client = await connect(web, running, user.key)
    await client.socket.send_str(json.dumps({"type": "chat", "id": "c", "body": CHAT}))
    await chunks(client, 3)
    answer = await client.ask(type="cancel", id="c")
    assert answer == {"id": "c", "type": "done", "finish": "cancelled"}
    await client.socket.close()
    (row,) = await rows_of(running, user)
    assert (row.tokens_out, engine.served[0].tokens) == (3, 3)
    assert row.charged_musd == row.tokens_in + 2 * row.tokens_out


async def test_a_client_that_leaves_ends_its_chats(
    stalled: tuple[Running, CountingEngine], web: ClientSession
) -> None:
    running, _ = stalled
    user = await user_of(running, 10_000_000)
    client = await connect(web, running, user.key)
    await client.socket.send_str(json.dumps({"type": "chat", "id": "c", "body": CHAT}))
    await chunks(client, 3)
    client.socket._response.connection.transport.abort()  # type: ignore[union-attr]
    (row,) = await rows_of(running, user)
    assert row.tokens_out == 3


async def test_chats_that_run_have_own_ids_and_are_bounded(
    stalled: tuple[Running, CountingEngine], web: ClientSession
) -> None:
    running, _ = stalled
    user = await user_of(running, 10_000_000)
    client = await connect(web, running, user.key)
    for number in range(8):
        await client.socket.send_str(json.dumps({"type": "chat", "id": f"c{number}", "body": CHAT}))
    await chunks(client, 24)
    assert (await client.ask(type="chat", id="c0", body=CHAT))["code"] == "chat_running"
    assert (await client.ask(type="chat", id="c9", body=CHAT))["code"] == "too_many_chats"
    await client.ask(type="cancel", id="c0")
    await client.socket.send_str(json.dumps({"type": "chat", "id": "c9", "body": CHAT}))
    await chunks(client, 3)
    await client.socket.close()
    assert len(await rows_of(running, user)) == 9


# ---- none lost, none twice (I17)


async def test_reconnecting_clients_lose_no_event_and_get_none_twice(
    running: Running, web: ClientSession
) -> None:
    user = await user_of(running, 0)
    total, got, last = 300, [], 0

    async def write() -> None:
        for first in range(0, total, 10):
            await asyncio.gather(*(append(running, user.id, "billing", n=first + k) for k in range(10)))

    writing = asyncio.create_task(write())
    turn = 0
    while last < total:
        client = await connect(web, running, user.key)
        await client.socket.send_str(json.dumps({"type": "subscribe", "after": last}))
        turn += 1
        for _ in range(7 * turn):  # leaves in the middle of what comes
            message = await client.next()
            if message["type"] == "event":
                got.append((message["seq"], message["data"]["n"]))
                last = message["seq"]
            if last == total:
                break
        if turn % 2:
            client.socket._response.connection.transport.abort()  # type: ignore[union-attr]
        else:
            await client.socket.close()
    await writing
    assert [seq for seq, _ in got] == list(range(1, total + 1))
    assert sorted(n for _, n in got) == list(range(total))
    assert turn > 3


async def test_a_client_that_missed_too_much_gets_a_gap_and_the_state(
    running: Running, web: ClientSession
) -> None:
    user = await user_of(running, 5_000_000)
    accounts = running.appliance.accounts
    assert accounts is not None
    log = accounts.events.log

    async def fill(transaction: Any) -> None:
        for number in range(KEEP_COUNT + 4):
            await log.append(transaction, user.id, "billing", {"n": number})

    await accounts.database.run(fill)
    await log.prune()
    client = await connect(web, running, user.key)
    answer = await client.ask(type="subscribe", topics=["billing", "usage"], after=2)
    assert (answer["type"], answer["seq"]) == ("subscribed", 2)
    newest = (await log.span(user.id)).newest
    assert await client.next() == {"type": "gap", "from": 3, "to": newest - KEEP_COUNT}
    snapshot = await client.next()
    assert (snapshot["type"], snapshot["topic"], snapshot["data"]["credits_total"]) == (
        "snapshot",
        "billing",
        5,
    )
    assert (await client.next())["topic"] == "usage"
    assert (await client.next())["seq"] == newest - KEEP_COUNT + 1
    strange = await connect(web, running, user.key)
    await strange.ask(type="subscribe", topics=["billing"], after=newest + 7)
    assert await strange.next() == {"type": "gap", "from": newest + 1, "to": newest + 7}
    assert (await strange.next())["type"] == "snapshot"
    seq = await append(running, user.id, "billing", n="new")
    assert (await strange.next())["seq"] == seq


async def test_a_client_that_does_not_read_is_bounded_and_cut_off(running: Running) -> None:
    user = await user_of(running, 0)
    handlers, accounts = running.appliance.event_handlers, running.appliance.accounts
    assert handlers is not None
    assert accounts is not None
    object.__setattr__(handlers._parts.times, "send_s", 0.3)
    log = accounts.events.log
    host, port = running.appliance.http_addresses[0]
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, port))
        slow.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\nX-API-Key: {user.key}\r\n\r\n".encode()
        )
        assert b"101" in await asyncio.to_thread(slow.recv, 20)
        text = b'{"type":"subscribe","after":0}'
        slow.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
        assert await until(lambda: handlers._open.get(user.id) == 1)

        async def fill(transaction: Any) -> None:
            for _ in range(KEEP_COUNT):
                await log.append(transaction, user.id, "billing", {"text": "x" * 16_000})

        await accounts.database.run(fill)
        await log.announce()
        connections = running.appliance.server.connections  # type: ignore[union-attr]
        most = 0
        for _ in range(500):
            unsent = [one._transport.get_write_buffer_size() for one in connections._all]  # type: ignore[attr-defined]
            most = max([most, *unsent])
            if user.id not in handlers._open:
                break
            await asyncio.sleep(0.01)
        assert user.id not in handlers._open, "it was not cut off"
        assert 0 < most < 1_000_000, most
    object.__setattr__(handlers._parts.times, "send_s", 30.0)


async def test_sockets_and_polls_end_when_the_appliance_stops(running: Running, web: ClientSession) -> None:
    user = await user_of(running, 0)
    client = await connect(web, running, user.key)
    await client.ask(type="ping")
    async with httpx.AsyncClient(headers={"x-api-key": user.key}, timeout=20) as http:
        seq = (await http.get(running.base_url + "/polling")).json()["next"]
        waiting = asyncio.create_task(http.get(f"{running.base_url}/polling?after={seq}&wait=60"))
        handlers, accounts = running.appliance.event_handlers, running.appliance.accounts
        assert accounts is not None
        assert handlers is not None
        assert await until(lambda: len(accounts.events._waiting.get(user.id, ())) == 2)
        await close_feeds(running.appliance)
        assert await client.end() == 1001
        assert (await waiting).json() == {"events": [], "next": seq}


# ---- without a socket


async def test_polling_waits_for_the_next_events(running: Running) -> None:
    user = await user_of(running, 1_000_000)
    async with httpx.AsyncClient(
        headers={"x-api-key": user.key}, base_url=running.base_url, timeout=20
    ) as http:
        begin = (await http.get("/polling")).json()
        assert begin == {"events": [], "next": begin["next"]}
        waiting = asyncio.create_task(http.get(f"/polling?after={begin['next']}"))
        accounts = running.appliance.accounts
        assert accounts is not None
        assert await until(lambda: user.id in accounts.events._waiting)
        seq = await append(running, user.id, "usage", n=1)
        answer = (await waiting).json()
        assert answer["next"] == seq == begin["next"] + 1
        assert answer["events"][0]["data"] == {"n": 1}
        assert set(answer["events"][0]) == {"seq", "topic", "at", "data"}
        nothing = await http.get(f"/polling?after={seq}&wait=0")
        assert nothing.json() == {"events": [], "next": seq}
        some = await http.get("/polling?after=0&topics=billing&wait=0")
        assert {one["topic"] for one in some.json()["events"]} == {"billing"}
        assert (await http.get("/polling?after=99999&wait=0")).json()["gap"]["to"] == 99999


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?after=x", 400, "invalid_value"),
        ("?wait=61&after=1", 400, "invalid_value"),
        ("?topic=usage", 400, "unknown_parameter"),
        ("?topics=weather&after=0", 400, "unknown_topic"),
        ("?topics=system&after=0", 400, "topic_not_allowed"),
    ],
)
async def test_faulty_polls_are_refused(running: Running, query: str, status: int, code: str) -> None:
    user = await user_of(running, 0)
    async with httpx.AsyncClient(headers={"x-api-key": user.key}, base_url=running.base_url) as http:
        answer = await http.get("/polling" + query)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_polls_and_figures_need_a_credential(running: Running) -> None:
    async with httpx.AsyncClient(base_url=running.base_url) as http:
        assert (await http.get("/polling?after=0")).status_code == 401
        assert (await http.get("/stats")).status_code == 401
        moved = await http.get("/monitor")
        assert (moved.status_code, moved.headers["location"]) == (302, "ui/")
        static = await http.get("/polling?after=0", headers={"x-api-key": OPERATOR})
        assert (static.status_code, static.json()["code"]) == (403, "account_required")


async def test_the_figures_are_those_of_the_metrics(running: Running) -> None:
    user = await user_of(running, 0)
    async with httpx.AsyncClient(headers={"x-api-key": user.key}, base_url=running.base_url) as http:
        found = (await http.get("/stats")).json()
    assert {"uptime_seconds", "requests_total", "request_success_rate", "db_queries_total"} <= set(found)
    assert found["uptime_seconds"] > 0
    assert "request_duration_milliseconds_p95" in found
