"""One scrape for all who ask at the same time; what can go wrong on the way to an engine's page and in it; a large page holds up nobody."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from appliance.base.clock import FakeClock, SystemClock
from appliance.base.errors import Internal, UpstreamFailed
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.engines.metrics import scrape
from appliance.engines.metrics.scrape import Scraper
from bench.normalise import large_page
from tests.fakes.engine_pages import LLAMA_2026, SGLANG_2026, VLLM_2026, page
from tests.fakes.raw_server import Peer, RawServer
from tests.journeys.running import until

VLLM = page(VLLM_2026).encode()


def answer(
    body: bytes, *, status: str = "200 OK", head: str = "Content-Type: text/plain; version=0.0.4"
) -> bytes:
    return f"HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def saying(*answers: bytes):
    """One answer after the other, the last one for ever."""
    left = list(answers)

    async def script(peer: Peer) -> None:
        while True:
            try:
                await peer.request()
            except asyncio.IncompleteReadError:
                return
            peer.say(left.pop(0) if len(left) > 1 else left[0])

    return script


@pytest.fixture
async def wire() -> AsyncIterator[ConnectionPool]:
    async with ConnectionPool(PoolLimits()) as wire:
        yield wire


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks() as tasks:
        yield tasks


def paths(server: RawServer) -> list[str]:
    return [request.split(b" ")[1].decode() for request in server.requests]


async def test_who_asks_at_the_same_time_shares_one_question_and_the_next_asks_anew(
    wire: ConnectionPool, tasks: Tasks
) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            peer.say(answer(VLLM))

    async with RawServer(script) as server:
        scraper = Scraper(server.address, wire=wire, tasks=tasks, clock=SystemClock(), kind="vllm")
        waiting = [asyncio.ensure_future(scraper.scrape()) for _ in range(20)]
        assert await until(lambda: len(server.requests) == 1)
        waiting[0].cancel()  # one who leaves takes nothing from the others
        go.set()
        done = await asyncio.gather(*waiting[1:])
        assert len({id(one) for one in done}) == 1
        assert len(server.requests) == 1
        assert done[0].normalised.missing == ()
        assert await scraper.scrape() is not done[0]
        assert len(server.requests) == 2


async def test_age_and_state_stand_on_the_page(wire: ConnectionPool, tasks: Tasks) -> None:
    clock = FakeClock()
    async with RawServer(saying(answer(VLLM))) as server:
        scraped = await Scraper(server.address, wire=wire, tasks=tasks, clock=clock).scrape()
    clock.advance(1.5)
    out = await scraped.render(clock.monotonic_s(), openmetrics=False)
    assert out.startswith(VLLM)
    assert b"\nengine_scrape_up 1\n" in out
    assert b"\nengine_scrape_age_seconds 1.500\n" in out


async def test_an_engine_that_is_not_there_or_answers_otherwise_is_an_upstream_failure(
    wire: ConnectionPool, tasks: Tasks
) -> None:
    async with RawServer(
        saying(
            answer(b"Bearer abc is wrong", status="401 Unauthorized"), answer(b"", status="304 Not Modified")
        )
    ) as server:
        scraper = Scraper(server.address, wire=wire, tasks=tasks, clock=SystemClock())
        with pytest.raises(
            UpstreamFailed, match=rf"metrics at {server.address}/metrics cannot be had: it answered 401"
        ):
            await scraper.scrape()
        with pytest.raises(UpstreamFailed, match="it answered 304"):
            await scraper.scrape()
    with pytest.raises(UpstreamFailed, match="cannot be had"):
        await scraper.scrape()


async def test_one_that_is_silent_is_given_up_in_time(wire: ConnectionPool, tasks: Tasks) -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nvllm:a 1\n")
        await peer.gone()

    async with RawServer(silent) as server:
        scraper = Scraper(server.address, wire=wire, tasks=tasks, clock=SystemClock(), timeout_s=0.3)
        began = time.monotonic()
        with pytest.raises(UpstreamFailed, match=r"did not come within 0\.3 s|cannot be had"):
            await scraper.scrape()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"# TYPE a gauge\na 1\n<html>\n", "line 3 is neither a sample nor a comment nor empty: <html>"),
        (b"a \xff\n", "line 1 is not UTF-8"),
        (b'a{b="1"c="2"} 1\n', 'line 1 has labels that are not valid: a{b="1"c="2"} 1'),
    ],
)
async def test_a_page_that_is_none_is_told_with_its_line(
    wire: ConnectionPool, tasks: Tasks, body: bytes, why: str
) -> None:
    async with RawServer(saying(answer(body))) as server:
        with pytest.raises(Internal) as caught:
            await Scraper(server.address, wire=wire, tasks=tasks, clock=SystemClock()).scrape()
    assert why in caught.value.message


def moved(location: str, status: str = "307 Temporary Redirect") -> bytes:
    return answer(b"", status=status, head=f"Location: {location}")


@pytest.mark.parametrize(
    "status",
    [
        "301 Moved Permanently",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ],
)
async def test_redirects_on_the_same_host_are_followed(
    wire: ConnectionPool, tasks: Tasks, status: str
) -> None:
    async with RawServer(
        saying(moved("/base/metrics/", status), moved("../x?a=1", status), answer(VLLM))
    ) as server:
        scraper = Scraper(
            f"{server.address}/base",
            wire=wire,
            tasks=tasks,
            clock=SystemClock(),
            headers={"Authorization": "Bearer secret-key"},
        )
        assert (await scraper.scrape()).normalised.kind == "vllm"
        assert paths(server) == ["/base/metrics", "/base/metrics/", "/base/x?a=1"]
        assert all(b"Bearer secret-key" in request for request in server.requests)


async def test_the_engines_key_does_not_go_to_another_port(wire: ConnectionPool, tasks: Tasks) -> None:
    async with (
        RawServer(saying(answer(VLLM))) as other,
        RawServer(saying(moved(f"{other.address}/m"))) as server,
    ):
        await Scraper(
            server.address,
            wire=wire,
            tasks=tasks,
            clock=SystemClock(),
            headers={"Authorization": "Bearer secret-key"},
        ).scrape()
        assert b"secret-key" in server.requests[0]
        assert b"secret-key" not in other.requests[0]


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://169.254.169.254/latest/meta-data", "lead elsewhere, to '169.254.169.254'"),
        ("http://localhost.example/", "lead elsewhere"),
        ("file:///etc/passwd", "lead elsewhere"),
        ("/metrics", "more than 5 redirects"),
    ],
)
async def test_redirects_elsewhere_and_round_in_circles_are_not_followed(
    wire: ConnectionPool, tasks: Tasks, location: str, why: str
) -> None:
    async with RawServer(saying(moved(location))) as server:
        with pytest.raises(UpstreamFailed, match=why):
            await Scraper(server.address, wire=wire, tasks=tasks, clock=SystemClock()).scrape()
        assert len(server.requests) == (6 if "circles" in why or "more" in why else 1)


async def test_llama_servers_cache_is_taken_from_its_slots_and_its_adapters_from_who_knows_them(
    wire: ConnectionPool, tasks: Tasks
) -> None:
    slots = b'[{"id":0,"n_ctx":8192,"is_processing":true,"n_prompt_tokens":2048},{"id":1,"n_ctx":8192,"is_processing":false}]'
    async with RawServer(saying(answer(page(LLAMA_2026).encode()), answer(slots))) as server:
        scraper = Scraper(
            server.address, wire=wire, tasks=tasks, clock=SystemClock(), adapters=lambda: (("sql",), 4)
        )
        out = await (await scraper.scrape()).render(0, openmetrics=False)
        assert paths(server) == ["/metrics", "/slots"]
    assert b"\nengine_kv_cache_usage_ratio 0.125\n" in out
    assert b"\nvllm:kv_cache_usage_perc 0.125\n" in out
    assert (
        b'\nvllm:lora_requests_info{max_lora="4",running_lora_adapters="sql",waiting_lora_adapters=""} '
        in out
    )


@pytest.mark.parametrize(
    "slots",
    [
        answer(b"{}", status="501 Not Implemented"),
        answer(b"rubbish"),
        answer(b"[]"),
        b"HTTP/1.1 nonsense\r\n\r\n",
    ],
)
async def test_slots_that_are_not_told_cost_nothing_but_their_number(
    wire: ConnectionPool, tasks: Tasks, slots: bytes
) -> None:
    async with RawServer(saying(answer(page(LLAMA_2026).encode()), slots)) as server:
        scraped = await Scraper(server.address, wire=wire, tasks=tasks, clock=SystemClock()).scrape()
    assert not scraped.normalised.has("engine_kv_cache_usage_ratio")
    assert scraped.normalised.missing == ()


async def test_what_is_missing_is_logged_when_that_changes(
    wire: ConnectionPool, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(scrape.log, "warning", lambda event, **_: told.append(event))
    renamed = answer(page(SGLANG_2026, without="num_queue_reqs").encode())
    async with RawServer(saying(renamed, renamed, answer(page(SGLANG_2026).encode()))) as server:
        scraper = Scraper(server.address, wire=wire, tasks=tasks, clock=SystemClock(), kind="sglang")
        seen = []
        for _ in range(3):
            seen.append((await scraper.scrape()).normalised.missing)
    assert seen == [("engine_requests_waiting",)] * 2 + [()]
    assert told == ["metrics_not_mapped"]


async def test_a_page_of_five_megabytes_keeps_the_loop_free(wire: ConnectionPool, tasks: Tasks) -> None:
    body = large_page()
    longest = 0.0
    async with RawServer(saying(answer(body))) as server:
        scraper = Scraper(server.address, wire=wire, tasks=tasks, clock=SystemClock())
        work = asyncio.ensure_future(scraper.scrape())
        rounds = 0
        while not work.done():
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            longest, rounds = max(longest, time.perf_counter() - began), rounds + 1
        out = await (await work).render(0, openmetrics=False)
    assert len(out) > len(body)
    assert rounds > 5  # others had their turn again and again
    assert longest < 2.0  # the bound of a crowded test machine; bench.normalise measures it
