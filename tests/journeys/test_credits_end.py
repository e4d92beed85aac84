"""Many streams on one wallet never spend more than it has; where it ends they end cleanly, for every client."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from tests.fakes.counting_engine import PROMPT_TOKENS, CountingEngine
from tests.journeys.paying import (
    DIALECTS,
    HELLO,
    PayingUser,
    begin_paying,
    cost_of,
    post,
    rows_of,
    settled,
    user_of,
)
from tests.journeys.running import Running, Start
from tests.storage_servers import PostgresServer, postgres_name, postgres_server

__all__ = ["postgres_server"]
STREAMS = int(os.environ.get("PAYING_STREAMS", "200"))
TOKENS = 60
COST = PROMPT_TOKENS + 2 * TOKENS
PAID_FOR = 37
SMALL = {"HOLD_SLICE_TOKENS": "16", "WALLET_LEASE_MAX_USD": "0.001"}


async def replicas(
    start: Start, folder: Path, engine: CountingEngine, count: int, **more: str
) -> list[Running]:
    """Start appliances that share a database."""
    given = {"BACKENDS": f"e={engine.url}", "MAX_ALLOWED_REQUEST_QUEUE": "1000", **SMALL, **more}
    found = []
    for number in range(count):
        state = folder / f"state-{number}"
        found.append(await begin_paying(start, folder, STATE_DIR=str(state), **given))
    return found


async def stream_all(running: list[Running], user: PayingUser, count: int, **body: Any) -> Counter[str]:
    """Send streams to all replicas at once; count how they ended."""
    limits = httpx.Limits(max_connections=count)

    async def one(http: httpx.AsyncClient) -> str:
        answer = await post(http, DIALECTS["chat"], stream=True, **body)
        if answer.status_code == 402:
            assert answer.json()["error"]["code"] == "insufficient_credits"
            return "refused"
        assert answer.status_code == 200, answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
        if '"finish_reason":"stop"' in answer.text.replace(" ", ""):
            return "complete"
        assert '"stop_reason":"credits_exhausted"' in answer.text
        return "cut"

    clients = [
        httpx.AsyncClient(base_url=each.base_url, headers=user.headers, limits=limits, timeout=60)
        for each in running
    ]
    try:
        ends = await asyncio.gather(*(one(clients[number % len(clients)]) for number in range(count)))
    finally:
        for client in clients:
            await client.aclose()
    return Counter(ends)


async def check_spent(running: list[Running], user: PayingUser, most_musd: int) -> int:
    """See that a wallet is charged what its attempts cost, and not beyond `most_musd`; return how much."""
    for each in running:
        await settled(each)
    rows = await rows_of(running[0], user)
    accounts = running[0].appliance.accounts
    assert accounts is not None
    wallet = await accounts.money.store.wallets.find(user.wallet_id)
    assert wallet.used_musd == sum(row.charged_musd for row in rows) <= most_musd
    assert all(row.charged_musd <= cost_of(row) for row in rows)
    return wallet.used_musd


@pytest.fixture(params=["sqlite", "postgres_3"])
def server(request: pytest.FixtureRequest) -> PostgresServer | None:
    """None = SQLite."""
    if request.param == "sqlite":
        return None
    return request.getfixturevalue("postgres_server")  # type: ignore[no-any-return]


@pytest.fixture
async def many(
    server: PostgresServer | None, start: Start, tmp_path: Path
) -> AsyncIterator[tuple[list[Running], CountingEngine]]:
    """One replica on SQLite; three on PostgreSQL."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(CountingEngine(tokens=TOKENS))
        if server is None:
            yield await replicas(start, tmp_path, engine, 1), engine
        else:
            name = await stack.enter_async_context(postgres_name(server))
            yield await replicas(start, tmp_path, engine, 3, **server.environ(name)), engine


async def test_streams_with_money_for_few_spend_all_of_it_and_no_more(many: Any) -> None:
    running, _ = many
    body = {"max_tokens": 5000} if len(running) > 1 else {}
    total = PAID_FOR * COST
    user = await user_of(running[0], total)
    ends = await stream_all(running, user, STREAMS, **body)
    assert sum(ends.values()) == STREAMS
    assert ends["complete"] <= PAID_FOR
    used = await check_spent(running, user, total)
    assert used > total - total // 4
    assert await stream_all(running, user, 3 * len(running)) != Counter(complete=3 * len(running))
    await check_spent(running, user, total)


async def test_streams_with_enough_money_are_neither_refused_nor_cut(many: Any) -> None:
    running, engine = many
    user = await user_of(running[0], 1_000_000)
    assert await stream_all(running, user, STREAMS) == Counter(complete=STREAMS)
    assert await check_spent(running, user, 1_000_000) == STREAMS * COST
    assert len(engine.served) == STREAMS


# ---- how a stream ends, for the official clients


@pytest.fixture
async def poor(start: Start, tmp_path: Path) -> AsyncIterator[tuple[Running, PayingUser]]:
    """A user whose money ends within a response."""
    async with CountingEngine(tokens=400) as engine:
        running = await begin_paying(
            start, tmp_path, BACKENDS=f"e={engine.url}", HOLD_SLICE_TOKENS="8", WALLET_LEASE_MAX_USD="0.0001"
        )
        yield running, await user_of(running, 300)


async def _check_end(poor: tuple[Running, PayingUser]) -> None:
    running, user = poor
    (row,) = await rows_of(running, user)
    assert (row.source, row.charged_musd, row.cost_musd) == ("counted", cost_of(row), cost_of(row))
    assert 200 < row.charged_musd <= 300
    receipt = running.appliance.receipts.latest(1)[0]
    assert receipt.stop_reason == "credits_exhausted"


async def test_an_openai_chat_ends_for_its_length(poor: Any) -> None:
    async with openai.AsyncOpenAI(base_url=poor[0].v1, api_key=poor[1].key, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    last = [chunk for chunk in chunks if chunk.choices][-1]
    assert last.choices[0].finish_reason == "length"
    assert last.model_extra["appliance"] == {"stop_reason": "credits_exhausted"}
    assert {chunk.id for chunk in chunks} == {"c1"}
    assert chunks[-1].usage.completion_tokens > 30
    await _check_end(poor)


async def test_an_openai_completion_ends_for_its_length(poor: Any) -> None:
    async with openai.AsyncOpenAI(base_url=poor[0].v1, api_key=poor[1].key, max_retries=0) as client:
        stream = await client.completions.create(model="tiny", prompt="hello", stream=True)
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].model_extra["appliance"] == {"stop_reason": "credits_exhausted"}
    await _check_end(poor)


async def test_a_response_ends_incomplete(poor: Any) -> None:
    async with (
        openai.AsyncOpenAI(base_url=poor[0].v1, api_key=poor[1].key, max_retries=0) as client,
        client.responses.stream(model="tiny", input="hello") as stream,
    ):
        kinds = [event.type async for event in stream]
        response = (await stream.get_final_response()) if kinds[-1] == "response.completed" else None
    assert (kinds[-1], response) == ("response.incomplete", None)
    await _check_end(poor)


async def test_an_incomplete_response_says_why(poor: Any) -> None:
    async with openai.AsyncOpenAI(base_url=poor[0].v1, api_key=poor[1].key, max_retries=0) as client:
        stream = await client.responses.create(model="tiny", input="hello", stream=True)
        events = [event async for event in stream]
    response = events[-1].response
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output_text.startswith("0001 0002 ")


async def test_an_anthropic_message_ends_for_its_length(poor: Any) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=poor[0].base_url, api_key=poor[1].key, max_retries=0) as client,
        client.messages.stream(model="tiny", messages=HELLO, max_tokens=5000) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()
    assert message.stop_reason == "max_tokens"
    assert text.startswith("0001 0002 ")
    assert message.usage.output_tokens > 30
    await _check_end(poor)


@pytest.mark.parametrize("call", ["chat", "generate"])
async def test_an_ollama_response_ends_for_its_length(poor: Any, call: str) -> None:
    client = ollama.AsyncClient(host=poor[0].base_url, headers=poor[1].headers)
    given: dict[str, Any] = {"messages": HELLO} if call == "chat" else {"prompt": "hello"}
    parts = [part async for part in await getattr(client, call)(model="tiny", stream=True, **given)]
    assert (parts[-1].done, parts[-1].done_reason) == (True, "length")
    assert not any(part.done for part in parts[:-1])
    await _check_end(poor)


async def test_who_has_too_little_is_told_so_by_every_client(poor: Any) -> None:
    running, _ = poor
    user = await user_of(running, 3)
    async with openai.AsyncOpenAI(base_url=running.v1, api_key=user.key, max_retries=0) as client:
        for send in (
            lambda: client.chat.completions.create(model="tiny", messages=HELLO),
            lambda: client.completions.create(model="tiny", prompt="hello"),
            lambda: client.responses.create(model="tiny", input="hello"),
            lambda: client.embeddings.create(model="tiny", input="hello there, this is long"),
        ):
            with pytest.raises(openai.APIStatusError) as caught:
                await send()
            assert (caught.value.status_code, caught.value.code) == (402, "insufficient_credits")
            assert caught.value.type == "insufficient_quota"
    async with anthropic.AsyncAnthropic(base_url=running.base_url, api_key=user.key, max_retries=0) as told:
        with pytest.raises(anthropic.APIStatusError) as said:
            await told.messages.create(model="tiny", messages=HELLO, max_tokens=50)
    assert said.value.status_code == 402
    assert said.value.body["error"]["type"] == "billing_error"  # type: ignore[index]
    with pytest.raises(ollama.ResponseError) as heard:
        await ollama.AsyncClient(host=running.base_url, headers=user.headers).chat("tiny", HELLO)
    assert heard.value.status_code == 402
    assert await rows_of(running, user) == []


# ---- whole responses


@pytest.mark.parametrize("kind", ["openai", "llamacpp"])  # as a whole, and gathered from a stream
async def test_whole_responses_at_once_cost_no_more_than_there_is(
    start: Start, tmp_path: Path, kind: str
) -> None:
    total = 5000  # dollars / 1,000,000: each of the long responses would cost twice as much
    async with CountingEngine(kind, tokens=5000) as engine:
        running = await begin_paying(start, tmp_path, BACKENDS=f"e={engine.url}", **SMALL)
        user = await user_of(running, total)
        bodies: list[dict[str, Any]] = [{}, {"n_predict": 5000}, {"max_tokens": -1}, {"max_tokens": 1500}]
        async with httpx.AsyncClient(base_url=running.base_url, headers=user.headers, timeout=20) as http:
            calls = [DIALECTS[name] for name in ("chat", "responses", "ollama_chat")]
            answers = await asyncio.gather(
                *(
                    post(http, call, stream=False, **body)
                    for call in calls
                    for body in bodies
                    for _ in range(3)
                )
            )
        assert {answer.status_code for answer in answers} == {200, 402}
        rows = await rows_of(running, user)
        assert sum(row.cost_musd for row in rows) <= total
        assert all(row.charged_musd == row.cost_musd and row.tokens_out <= 1500 for row in rows)
        assert 0 < len(rows) == sum(answer.status_code == 200 for answer in answers)
        accounts = running.appliance.accounts
        assert accounts is not None
        assert accounts.money.settler.loss_musd == 0
