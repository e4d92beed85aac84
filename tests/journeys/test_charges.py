"""Each attempt is charged once, never beyond what was held, for what the engine did, however the request ends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.accounts.allowance import Allowance
from appliance.engines.left_streams import LeftStreams
from tests.fakes.counting_engine import EMBEDDING_TOKENS, PROMPT_TOKENS, CountingEngine, token_text
from tests.fakes.hosted_api import KEY, Drip, Hang, HostedApi, Stall
from tests.journeys.paying import (
    DIALECTS,
    PRICE_ROW,
    Call,
    PayingUser,
    begin_paying,
    cost_of,
    leave_after,
    post,
    rows_of,
    user_of,
)
from tests.journeys.running import Running, Start, until

TOKENS = 6
QUERIES = {"fast": "", "aiohttp": "?q=1"}  # a query goes to aiohttp
EMBEDDINGS: list[Call] = [
    ("/v1/embeddings", {"input": ["one two"]}),
    ("/api/embed", {"input": ["one two"]}),
    ("/api/embeddings", {"prompt": "one two"}),
]


class Scene:
    """One user of an appliance in front of one or more engines."""

    def __init__(
        self,
        running: Running,
        user: PayingUser,
        asked: Sequence[Any],
        engines: Sequence[CountingEngine] = (),
    ) -> None:
        self.running, self.user, self.engines = running, user, engines
        self.asked = asked  # requests that came to the first engine
        self.http = httpx.AsyncClient(base_url=running.base_url, headers=user.headers, timeout=10)
        self._seen = 0

    @property
    def engine(self) -> CountingEngine:
        return self.engines[0]

    async def new_rows(self) -> list[Any]:
        """Return the attempts that were settled since the last time."""
        rows = await rows_of(self.running, self.user)
        new, self._seen = rows[self._seen :], len(rows)
        return new

    async def new_row(self) -> Any:
        rows = await self.new_rows()
        assert len(rows) == 1
        return rows[0]

    async def leave_before_anything(self, call: Call, *, query: str = "", stream: bool = True) -> None:
        """Leave when the engine has the request, and nothing of a response has come."""
        before = len(self.asked)
        request = asyncio.ensure_future(post(self.http, call, stream=stream, query=query))
        assert await until(lambda: len(self.asked) > before)
        await asyncio.sleep(0.02)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)


@pytest.fixture(autouse=True)
def no_charge_beyond_a_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    charge = Allowance.charge

    def checked(self: Allowance, held_musd: int, charged_musd: int) -> None:
        assert 0 <= charged_musd <= held_musd
        charge(self, held_musd, charged_musd)

    monkeypatch.setattr(Allowance, "charge", checked)


async def _scene(
    start: Start, folder: Path, engines: list[CountingEngine], *, price: Any = PRICE_ROW
) -> Scene:
    backends = ",".join(f"e{number}={engine.url}" for number, engine in enumerate(engines))
    given = {"BACKENDS": backends, "LB_STRATEGY": "round_robin", "BREAKER_FAILURES": "100"}
    running = await begin_paying(start, folder, price=price, **given)
    return Scene(running, await user_of(running, 1_000_000), engines[0].served, engines)


@pytest.fixture
async def one(start: Start, tmp_path: Path) -> AsyncIterator[Scene]:
    async with CountingEngine(tokens=TOKENS) as engine:
        scene = await _scene(start, tmp_path, [engine])
        async with scene.http:
            yield scene


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_who_leaves_at_any_token_pays_for_those_that_came(one: Scene, dialect: str) -> None:
    call = DIALECTS[dialect]
    for tokens, query in product(range(TOKENS + 1), QUERIES.values()):
        one.engine.stall_at = tokens
        if tokens == 0:
            await one.leave_before_anything(call, query=query)
        else:
            await leave_after(one.http, call, token_text(tokens), query=query)
        row = await one.new_row()
        if tokens == 0:
            assert (row.source, row.charged_musd) == ("none", 0)
        elif tokens < TOKENS:
            assert (row.source, row.tokens_out, one.engine.served[-1].tokens) == ("counted", tokens, tokens)
            assert row.charged_musd == cost_of(row) > 2 * tokens
        else:  # the engine may have been done
            assert row.charged_musd == cost_of(row) >= 2 * tokens
    assert len(one.engine.served) == len(QUERIES) * (TOKENS + 1)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_response_costs_what_the_engine_has_told(one: Scene, dialect: str) -> None:
    call = DIALECTS[dialect]
    for stream, query in product((False, True), QUERIES.values()):
        for usage in ("right", "zero", "none"):
            one.engine.usage = usage
            answer = await post(one.http, call, stream=stream, query=query)
            assert answer.status_code == 200, answer.text
            assert token_text(TOKENS).strip() in answer.text
            row, served = await one.new_row(), one.engine.served[-1]
            assert row.charged_musd == cost_of(row)
            if usage == "none":
                assert (row.source, served.usage) == ("counted", None)
                assert TOKENS - 1 <= row.tokens_out <= TOKENS + 2, (stream, row)
            else:
                assert (row.source, served.usage) == ("engine", (row.tokens_in, row.tokens_out))
                assert row.tokens_in == (PROMPT_TOKENS if usage == "right" else 0)


@pytest.mark.parametrize("path", QUERIES)
async def test_who_leaves_before_a_whole_response_pays_nothing(one: Scene, path: str) -> None:
    one.engine.stall_at = 2
    for call in DIALECTS.values():
        await one.leave_before_anything(call, query=QUERIES[path], stream=False)
        row = await one.new_row()
        assert (row.source, row.charged_musd) == ("none", 0)


@pytest.mark.parametrize("path", QUERIES)
async def test_a_response_that_breaks_off_costs_what_came(one: Scene, path: str) -> None:
    for call in DIALECTS.values():
        for tokens in (1, 4):
            one.engine.cut_at = tokens
            answer = await post(one.http, call, stream=True, query=QUERIES[path])
            assert answer.status_code == 200
            row = await one.new_row()
            assert (row.source, row.tokens_out, row.charged_musd) == ("counted", tokens, cost_of(row))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", ["refuse", "status_503", "status_500", "invalid_response", "cut"])
async def test_only_the_backend_that_answered_is_paid(
    start: Start, tmp_path: Path, fault: str, stream: bool
) -> None:
    async with CountingEngine(tokens=TOKENS) as first, CountingEngine(tokens=TOKENS) as second:
        scene = await _scene(start, tmp_path, [first, second])
        failed = 0
        async with scene.http:
            for call in DIALECTS.values():
                first.cut_at = 0 if fault == "cut" else None
                first.faults = [fault] * 2 if fault != "cut" else []  # a lost connection is tried once more
                for _ in range(2):  # one of them meets the first server
                    answer = await post(scene.http, call, stream=stream)
                    assert answer.status_code == 200, answer.text
                rows = await scene.new_rows()
                paid = [row.charged_musd for row in rows if row.source == "engine"]
                assert paid == [PROMPT_TOKENS + 2 * TOKENS] * 2
                free = [row for row in rows if row.source != "engine"]
                assert {(row.backend, row.source, row.charged_musd) for row in free} <= {("e0", "none", 0)}
                failed += len(free)
        assert failed >= len(DIALECTS) - 1 or (fault == "cut" and not stream)


@pytest.mark.parametrize("path", QUERIES)
async def test_embeddings_are_paid_by_their_own_price(one: Scene, path: str) -> None:
    for call in EMBEDDINGS:
        one.engine.stall_at = None
        for usage in ("right", "zero", "none"):
            one.engine.usage = usage
            answer = await post(one.http, call, query=QUERIES[path])
            assert answer.status_code == 200, answer.text
            row = await one.new_row()
            assert (row.kind, row.charged_musd, row.tokens_out) == ("embedding", cost_of(row), 0)
            if usage != "none":
                assert row.tokens_in == (EMBEDDING_TOKENS if usage == "right" else 0)
            else:
                assert (row.source, row.tokens_in > 0) == ("counted", True)
        one.engine.stall_at = 0
        await one.leave_before_anything(call, query=QUERIES[path], stream=False)
        assert (await one.new_row()).charged_musd == 0


RERANK = ("/v1/rerank", {"model": "tiny", "query": "q", "documents": ["d"]})


async def test_work_at_engines_addresses_has_one_price(start: Start, tmp_path: Path) -> None:
    async with CountingEngine("llamacpp", tokens=TOKENS) as engine:
        scene = await _scene(
            start, tmp_path, [engine], price={"model": "*", "in": "1", "per_request": "0.0005"}
        )
        async with scene.http:
            answer = await post(scene.http, RERANK)
            assert (answer.status_code, (await scene.new_row()).charged_musd) == (200, 500)
            engine.stall_at = 1
            async with scene.http.stream("POST", RERANK[0], json=RERANK[1]) as left:
                await anext(left.aiter_bytes())  # its answer has begun
            assert (await scene.new_row()).charged_musd == 500
            engine.stall_at = 0
            await scene.leave_before_anything(RERANK, stream=False)
            assert [row.charged_musd for row in await scene.new_rows()] in ([], [0])


async def test_work_without_a_price_per_request_is_refused(one: Scene) -> None:
    answer = await post(one.http, RERANK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "price_unknown")
    assert (await one.new_rows(), one.engine.served) == ([], [])


@pytest.fixture
async def far(start: Start, hosted: HostedApi, tmp_path: Path) -> AsyncIterator[Scene]:
    """A user of an appliance in front of a hosted API."""
    running = await begin_paying(start, tmp_path, NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url)
    user = await user_of(running, 1_000_000)
    scene = Scene(running, user, hosted.records)
    async with scene.http:
        yield scene


async def test_a_hosted_api_is_asked_for_its_usage(far: Scene) -> None:
    for call in DIALECTS.values():
        for stream in (False, True):
            answer = await post(far.http, call, stream=stream)
            assert (answer.status_code, '"choices":[],' in answer.text) == (200, False)
            row = await far.new_row()
            assert (row.source, row.tokens_in, row.tokens_out, row.charged_musd) == ("engine", 11, 7, 25)


async def test_a_hosted_api_is_paid_for_the_prompt_of_who_leaves(far: Scene, hosted: HostedApi) -> None:
    for call in DIALECTS.values():
        for stream in (False, True):
            hosted.script(Hang())
            await far.leave_before_anything(call, stream=stream)
            row = await far.new_row()
            assert (row.source, row.tokens_out, row.charged_musd) == ("counted", 0, row.tokens_in)
            assert row.tokens_in > 0


async def test_who_leaves_a_hosted_stream_pays_what_the_api_counted(far: Scene, hosted: HostedApi) -> None:
    words = ["Hell", "ere!", " lin", "e tw"]
    for call in DIALECTS.values():
        for word in words:
            hosted.script(Drip(0.01))
            await leave_after(far.http, call, word)
            left = far.running.appliance.router.dispatcher.left_streams
            assert await until(lambda left=left: left.running == 0)
            row = await far.new_row()
            assert (row.source, row.tokens_in, row.tokens_out, row.charged_musd) == ("engine", 11, 7, 25)
            assert hosted.records[-1].left_after_s is None


async def test_a_left_stream_that_never_ends_is_cut_and_counted(far: Scene, hosted: HostedApi) -> None:
    dispatcher = far.running.appliance.router.dispatcher
    dispatcher.left_streams = LeftStreams(longest_s=0.05)
    hosted.script(Stall(after_events=3))
    await leave_after(far.http, DIALECTS["chat"], "Hell")
    assert await until(lambda: hosted.records[-1].left_after_s is not None)
    assert (await far.new_row()).source == "counted"


async def test_left_streams_beyond_the_most_are_closed_and_counted(far: Scene, hosted: HostedApi) -> None:
    far.running.appliance.router.dispatcher.left_streams = LeftStreams(most=0)
    hosted.script(Stall(after_events=3))
    await leave_after(far.http, DIALECTS["chat"], "Hell")
    assert await until(lambda: hosted.records[-1].left_after_s is not None)
    assert (await far.new_row()).source == "counted"


async def test_a_stop_ends_left_streams_and_charges_them(far: Scene, hosted: HostedApi) -> None:
    left = far.running.appliance.router.dispatcher.left_streams
    hosted.script(Stall(after_events=3))
    await leave_after(far.http, DIALECTS["chat"], "Hell")
    assert await until(lambda: left.running == 1)
    await left.close()
    row = await far.new_row()
    assert (row.source, left.running) == ("counted", 0)
    hosted.script(Stall(after_events=3))
    await leave_after(far.http, DIALECTS["chat"], "Hell")
    assert await until(lambda: hosted.records[-1].left_after_s is not None)
    assert (await far.new_row()).source == "counted"


async def test_cancel_closes_a_hosted_stream_that_its_client_left(
    start: Start, hosted: HostedApi, tmp_path: Path
) -> None:
    more = {"NOVITA_API_KEY": KEY, "NOVITA_OPENAI_ENDPOINTS": hosted.base_url}
    running = await begin_paying(start, tmp_path, UPSTREAM_ON_CLIENT_LEFT="cancel", **more)
    scene = Scene(running, await user_of(running, 1_000_000), hosted.records)
    async with scene.http:
        hosted.script(Stall(after_events=3))
        await leave_after(scene.http, DIALECTS["chat"], "Hell")
        assert await until(lambda: hosted.records[-1].left_after_s is not None)
        assert (await scene.new_row()).source == "counted"
