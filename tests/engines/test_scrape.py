"""One scrape for all clients at a time, what can go wrong with an engine's page, and a large page."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from appliance.base.clock import FakeClock, SystemClock
from appliance.base.errors import Internal, UpstreamFailed
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits, Unreachable
from appliance.engines.metrics import scrape
from appliance.engines.metrics.scrape import CurrentScraper, Scraper, ScrapeTarget, SlotsReader
from bench.normalise import large_page
from tests.fakes.engine_pages import LLAMA_2026, SGLANG_2026, VLLM_2026, page
from tests.fakes.page_client import PageClient
from tests.fakes.raw_server import Peer, RawServer
from tests.journeys.running import until

VLLM = page(VLLM_2026).encode()
KEY = (("Authorization", "Bearer secret-key"),)


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


async def test_scrapes_at_the_same_time_share_one_request(wire: ConnectionPool, tasks: Tasks) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await go.wait()
            peer.say(answer(VLLM))

    async with RawServer(script) as server:
        scraper = Scraper(ScrapeTarget(server.address, "vllm"), wire=wire, tasks=tasks, clock=SystemClock())
        waiting = [asyncio.ensure_future(scraper.scrape()) for _ in range(20)]
        assert await until(lambda: len(server.requests) == 1)
        waiting[0].cancel()  # one that is cancelled does not cancel the others
        go.set()
        done = await asyncio.gather(*waiting[1:])
        assert len({id(one) for one in done}) == 1
        assert len(server.requests) == 1
        assert done[0].normalised.missing == ()
        assert await scraper.scrape() is not done[0]
        assert len(server.requests) == 2


async def test_age_and_status_are_on_the_page(wire: ConnectionPool, tasks: Tasks) -> None:
    clock = FakeClock()
    async with RawServer(saying(answer(VLLM))) as server:
        scraped = await Scraper(ScrapeTarget(server.address), wire=wire, tasks=tasks, clock=clock).scrape()
    clock.advance(1.5)
    out = await scraped.render(clock.monotonic_s(), openmetrics=False)
    assert out.startswith(VLLM)
    assert b"\nengine_scrape_up 1\n" in out
    assert b"\nengine_scrape_age_seconds 1.500\n" in out


async def test_an_engine_down_or_with_an_error_is_an_upstream_failure(
    wire: ConnectionPool, tasks: Tasks
) -> None:
    async with RawServer(
        saying(
            answer(b"Bearer abc is wrong", status="401 Unauthorized"), answer(b"", status="304 Not Modified")
        )
    ) as server:
        scraper = Scraper(ScrapeTarget(server.address), wire=wire, tasks=tasks, clock=SystemClock())
        with pytest.raises(UpstreamFailed, match=rf"metrics at {server.address}/metrics: HTTP 401"):
            await scraper.scrape()
        with pytest.raises(UpstreamFailed, match="HTTP 304"):
            await scraper.scrape()
    with pytest.raises(UpstreamFailed, match="Cannot read the engine's metrics at"):
        await scraper.scrape()


async def test_a_silent_engine_is_given_up_in_time(wire: ConnectionPool, tasks: Tasks) -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nvllm:a 1\n")
        await peer.gone()

    async with RawServer(silent) as server:
        scraper = Scraper(
            ScrapeTarget(server.address), wire=wire, tasks=tasks, clock=SystemClock(), timeout_s=0.3
        )
        began = time.monotonic()
        with pytest.raises(UpstreamFailed, match=r"did not arrive within 0\.3 s|Cannot read"):
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
async def test_an_invalid_page_is_refused_with_its_line(
    wire: ConnectionPool, tasks: Tasks, body: bytes, why: str
) -> None:
    async with RawServer(saying(answer(body))) as server:
        with pytest.raises(Internal) as caught:
            await Scraper(ScrapeTarget(server.address), wire=wire, tasks=tasks, clock=SystemClock()).scrape()
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
            ScrapeTarget(f"{server.address}/base", headers=KEY),
            wire=wire,
            tasks=tasks,
            clock=SystemClock(),
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
            ScrapeTarget(server.address, headers=KEY),
            wire=wire,
            tasks=tasks,
            clock=SystemClock(),
        ).scrape()
        assert b"secret-key" in server.requests[0]
        assert b"secret-key" not in other.requests[0]


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://169.254.169.254/latest/meta-data", "redirect to '169.254.169.254'"),
        ("http://localhost.example/", "only redirects on the engine's own host"),
        ("file:///etc/passwd", "only redirects on the engine's own host"),
        ("/metrics", "more than 5 redirects"),
    ],
)
async def test_redirects_to_other_hosts_or_in_circles_are_refused(
    wire: ConnectionPool, tasks: Tasks, location: str, why: str
) -> None:
    async with RawServer(saying(moved(location))) as server:
        with pytest.raises(UpstreamFailed, match=why):
            await Scraper(ScrapeTarget(server.address), wire=wire, tasks=tasks, clock=SystemClock()).scrape()
        assert len(server.requests) == (6 if "more" in why else 1)


async def test_llama_servers_cache_and_adapters_come_from_elsewhere(
    wire: ConnectionPool, tasks: Tasks
) -> None:
    slots = b'[{"id":0,"n_ctx":8192,"is_processing":true,"n_prompt_tokens":2048},{"id":1,"n_ctx":8192,"is_processing":false}]'
    async with RawServer(saying(answer(page(LLAMA_2026).encode()), answer(b"{}"), answer(slots))) as server:
        scraper = Scraper(
            ScrapeTarget(server.address),
            wire=wire,
            tasks=tasks,
            clock=SystemClock(),
            adapters=lambda: (("sql",), 4),
        )
        out = await (await scraper.scrape()).render(0, openmetrics=False)
        assert paths(server) == ["/metrics", "/props", "/slots"]
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
        answer(b"no JSON"),
        answer(b"[]"),
        b"HTTP/1.1 nonsense\r\n\r\n",
    ],
)
async def test_without_slots_only_the_cache_usage_is_absent(
    wire: ConnectionPool, tasks: Tasks, slots: bytes
) -> None:
    async with RawServer(saying(answer(page(LLAMA_2026).encode()), slots)) as server:
        scraped = await Scraper(
            ScrapeTarget(server.address), wire=wire, tasks=tasks, clock=SystemClock()
        ).scrape()
    assert not scraped.normalised.has("engine_kv_cache_usage_ratio")
    assert scraped.normalised.missing == ()


SLOTS = [{"id": 0, "n_ctx": 8192, "is_processing": True, "n_prompt_tokens": 2048}]


async def test_slots_are_read_only_after_work_and_while_awake() -> None:
    """The query would wake a llama-server that sleeps, and keep one awake that is about to."""
    client = PageClient({"/props": (200, {"is_sleeping": False}), "/slots": (200, SLOTS)})
    slots = SlotsReader()
    assert [await slots.read(client, page) for page in (b"1", b"1", b"2")] == [0.25] * 3
    assert client.queried == ["/props", "/slots"] * 2
    client.pages["/props"] = (200, {"is_sleeping": True})
    assert [await slots.read(client, page) for page in (b"2", b"3", b"3")] == [0.25, 0.0, 0.0]
    assert client.queried == ["/props", "/slots"] * 2 + ["/props"]


async def test_slots_that_could_not_be_read_are_read_again() -> None:
    client = PageClient({"/props": (404, b""), "/slots": Unreachable("gone", phase="connect")})
    slots = SlotsReader()
    assert await slots.read(client, b"1") is None
    client.pages["/slots"] = (200, SLOTS)
    assert await slots.read(client, b"1") == 0.25


async def test_missing_metrics_are_logged_when_they_change(
    wire: ConnectionPool, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(scrape.log, "warning", lambda event, **_: logged.append(event))
    renamed = answer(page(SGLANG_2026, without="num_queue_reqs").encode())
    async with RawServer(saying(renamed, renamed, answer(page(SGLANG_2026).encode()))) as server:
        scraper = Scraper(ScrapeTarget(server.address, "sglang"), wire=wire, tasks=tasks, clock=SystemClock())
        seen = []
        for _ in range(3):
            seen.append((await scraper.scrape()).normalised.missing)
    assert seen == [("engine_requests_waiting",)] * 2 + [()]
    assert logged == ["metrics_not_mapped"]


async def test_a_page_of_five_megabytes_keeps_the_loop_free(wire: ConnectionPool, tasks: Tasks) -> None:
    body = large_page()
    longest = 0.0
    async with RawServer(saying(answer(body))) as server:
        scraper = Scraper(ScrapeTarget(server.address), wire=wire, tasks=tasks, clock=SystemClock())
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


async def test_without_an_engine_there_is_nothing_to_scrape(wire: ConnectionPool, tasks: Tasks) -> None:
    def make(target: ScrapeTarget) -> Scraper:
        made.append(target)
        return Scraper(target, wire=wire, tasks=tasks, clock=SystemClock())

    made: list[ScrapeTarget] = []
    present: list[ScrapeTarget] = []
    scraper = CurrentScraper(lambda: present[0] if present else None, make)
    with pytest.raises(UpstreamFailed, match="There is no engine to read metrics from") as raised:
        await scraper.scrape()
    assert raised.value.code == "no_engine"
    async with RawServer(saying(answer(VLLM))) as first, RawServer(saying(answer(VLLM))) as second:
        for server in (first, first, second):
            present[:] = [ScrapeTarget(server.address, "vllm")]
            assert (await scraper.scrape()).normalised.kind == "vllm"
        assert [target.url for target in made] == [first.address, second.address]


async def test_a_redirect_to_an_invalid_address_is_refused(wire: ConnectionPool, tasks: Tasks) -> None:
    async with RawServer(saying(moved("http://127.0.0.1:99999/metrics"))) as server:
        with pytest.raises(UpstreamFailed, match="redirect to an invalid address"):
            await Scraper(ScrapeTarget(server.address), wire=wire, tasks=tasks, clock=SystemClock()).scrape()


def test_a_target_does_not_show_its_key() -> None:
    assert "secret-key" not in repr(ScrapeTarget("http://engine", headers=KEY))
