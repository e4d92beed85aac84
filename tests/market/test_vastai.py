"""vast.ai: every odd answer is a complete listing, a clear "gone", a refusal, or unknown; nothing else."""

import json
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError
from appliance.market.providers.vastai import VastAi
from appliance.market.types import (
    InstanceState,
    Launch,
    MarketRefused,
    MarketUnknown,
    Offer,
    OfferFilter,
    OfferGone,
)
from tests.fakes.raw_server import RawServer
from tests.market.stand_in import KEY, ScriptedMarket, answer, calls_to, vast_that_answers

OFFER = Offer("vast.ai", "123", "RTX 4090", 1, 24.0, 400_000)
LAUNCH = Launch("apl-x-1", environ={"TOKEN": "s3cret"}, ports=(8000,), command=("--model", "m"))
HTML = answer(200, b"<html>maintenance</html>", Content_Type="text/html")
PLAIN_429 = answer(429, b"Too Many Requests", Retry_After="1")
AUTH_404 = answer(404, {"success": False, "error": "auth_error", "msg": "Invalid user key"})


def row(number: int = 7, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "label": f"apl-x-{number}",
        "actual_status": "running",
        "machine_id": 44,
        "gpu_name": "RTX 4090",
        "num_gpus": 2,
        "dph_total": 0.4000001,
        "start_date": 1_800_000_000.5,
        "public_ipaddr": "203.0.113.7",
        "ports": {"8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "40111"}], "22/tcp": [], "x": 3},
        **more,
    }


def page(*rows: Any, token: str | None = None, total: int | None = None) -> bytes:
    total = len(rows) if total is None else total
    return answer(200, {"success": True, "instances": rows, "next_token": token, "total_instances": total})


async def test_listing_is_complete_over_all_pages() -> None:
    async with vast_that_answers(page(row(1), token="a", total=2), page(row(2), total=2)) as (vast, server):
        listed = await vast.list()
    assert [one.contract_id for one in listed] == ["1", "2"]
    assert b"after_token=a" in server.requests[1].split(b"\r\n")[0]
    assert listed[0].label == "apl-x-1"
    assert listed[0].supply_musd_per_h == 400_001  # rounded up: never below what is asked
    assert (listed[0].host, listed[0].ports) == ("203.0.113.7", {8000: 40111})
    assert listed[0].started_ms == 1_800_000_000_500


async def test_empty_listing_needs_the_market_to_say_so() -> None:
    async with vast_that_answers(page()) as (vast, _):
        assert await vast.list() == []


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([answer(200)], id="empty"),
        pytest.param([answer(200, b'""')], id="empty string"),
        pytest.param([HTML], id="HTML"),
        pytest.param([answer(200, {"success": False, "instances": []})], id="success false"),
        pytest.param([answer(200, {"instances": []})], id="no count and no token"),
        pytest.param([answer(200, {"instances": None, "next_token": None})], id="null"),
        pytest.param([answer(200, {"instances": {}, "next_token": None})], id="an object"),
        pytest.param(
            [answer(200, {"error": "x", "instances": [], "total_instances": 0})], id="an error inside"
        ),
        pytest.param([page(row(), total=2)], id="fewer than counted"),
        pytest.param([page(row(), row(), total=2)], id="one twice"),
        pytest.param([page(row(1), token="a", total=2), answer(500, b"oops")], id="page 2 fails"),
        pytest.param([page(row(1), token="a", total=2), page(row(2), total=3)], id="the count changes"),
        pytest.param(
            [page(row(1), token="a", total=9), page(row(2), token="a", total=9)], id="tokens circle"
        ),
        pytest.param([page({**row(), "id": "7"})], id="an id as text"),
        pytest.param([page({**row(), "label": 3})], id="a label as number"),
        pytest.param([page({**row(), "actual_status": 3})], id="a status as number"),
        pytest.param([page({"id": 7})], id="a row without label"),
        pytest.param([page(row(), "x")], id="a row that is text"),
        pytest.param([answer(410, {"success": False, "error": "deprecated_endpoint"})], id="410"),
        pytest.param([PLAIN_429], id="plain 429"),
        pytest.param([answer(302, b"", Location="http://192.0.2.1/")], id="redirect"),
        pytest.param([answer(404, b"no such page")], id="404 page"),
        pytest.param([answer(503, b"")], id="503"),
        pytest.param([answer(200, {"instances": []}, Content_Encoding="br")], id="packed"),
        pytest.param([b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\nConnection: close\r\n\r\n{"], id="cut"),
        pytest.param([b"SSH-2.0-x\r\n"], id="no HTTP"),
    ],
)
async def test_unsound_listing_is_unknown(answers: list[bytes]) -> None:
    clock = FakeClock()

    async with RawServer(_closing(answers)) as server:
        vast = _patient(server.address, clock)
        with pytest.raises(MarketUnknown):
            await vast.list()
        await vast.close()


def _closing(answers: list[bytes]) -> Any:
    market = ScriptedMarket(*answers)
    if answers[-1].startswith((b"SSH", b"HTTP/1.1 200 OK\r\nContent-Length: 90")):

        async def script(peer: Any) -> None:
            await peer.request()
            peer.say(answers[-1])

        return script
    return market.script


def _patient(url: str, clock: FakeClock) -> VastAi:
    return VastAi(KEY, url, clock=clock, timeout_s=5, calls=calls_to(url, clock))


@pytest.mark.parametrize("wrong_key", [AUTH_404, answer(401, {"error": "x"}), answer(403, b"forbidden")])
async def test_wrong_key_is_a_refusal_whatever_its_status(wrong_key: bytes) -> None:
    async with vast_that_answers(wrong_key) as (vast, _):
        for call in (vast.list(), vast.get("7"), vast.destroy("7"), vast.create(OFFER, LAUNCH)):
            with pytest.raises(MarketRefused, match="VASTAI_API_KEY"):
                await call


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (answer(200, {"instances": None}), "none"),
        (answer(404, {"success": False, "error": "no_such_instance"}), "none"),
        (answer(200, {"instances": row()}), "there"),
        (answer(200, {"instances": row(8)}), "unknown"),
        (answer(200, {}), "unknown"),
        (answer(200, {"instances": []}), "unknown"),
        (answer(200, {"instances": 0}), "unknown"),
        (answer(200, {"success": False, "instances": None}), "unknown"),
        (answer(404, {"error": "not_found"}), "unknown"),
        (answer(404, b"404 page not found"), "unknown"),
        (answer(410, {"error": "no_such_instance"}), "unknown"),
        (answer(200), "unknown"),
        (HTML, "unknown"),
        (PLAIN_429, "unknown"),
    ],
)
async def test_only_a_clear_answer_means_gone(shown: bytes, expected: str) -> None:
    async with vast_that_answers(shown) as (vast, _):
        try:
            found = await vast.get("7")
            assert expected == ("none" if found is None else "there")
        except MarketUnknown:
            assert expected == "unknown"


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (None, InstanceState.STARTING),
        ("created", InstanceState.STARTING),
        ("loading", InstanceState.STARTING),
        ("rebooting", InstanceState.STARTING),
        ("running", InstanceState.RUNNING),
        ("stopped", InstanceState.STOPPED),
        ("frozen", InstanceState.STOPPED),
        ("exited", InstanceState.FAILED),
        ("unknown", InstanceState.FAILED),
        ("offline", InstanceState.FAILED),
        ("a word of next year", InstanceState.STARTING),
    ],
)
async def test_status_words_become_states(status: str | None, state: InstanceState) -> None:
    async with vast_that_answers(answer(200, {"instances": row(actual_status=status)})) as (vast, _):
        found = await vast.get("7")
        assert found is not None
        assert found.state is state
        assert (found.started_ms is not None) == (state is InstanceState.RUNNING)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (answer(410, {"success": False, "error": "no_such_ask"}), OfferGone),
        (answer(404, {"success": False, "error": "no_such_ask"}), OfferGone),
        (answer(200, {"success": False, "error": "no_such_ask"}), OfferGone),
        (answer(400, {"success": False, "error": "insufficient_credit"}), MarketRefused),
        (PLAIN_429, MarketRefused),
        (answer(500, {"success": False, "error": "no_such_ask"}), MarketUnknown),
        (answer(500, b""), MarketUnknown),
        (answer(504, b"<html>"), MarketUnknown),
        (answer(408, {"error": "timeout"}), MarketUnknown),
        (answer(404, b"<html>"), MarketUnknown),
        (answer(200, {"success": True}), MarketUnknown),
        (answer(200, {"success": False}), MarketUnknown),
        (answer(200, {"success": True, "new_contract": "7"}), MarketUnknown),
        (answer(200, {"success": True, "new_contract": True}), MarketUnknown),
        (answer(200), MarketUnknown),
        (answer(307, b"", Location="/elsewhere"), MarketUnknown),
    ],
)
async def test_create_says_what_is_certain_and_is_sent_once(
    reply: bytes, error: type[ApplianceError]
) -> None:
    async with vast_that_answers(reply) as (vast, server):
        with pytest.raises(error) as caught:
            await vast.create(OFFER, LAUNCH)
        assert type(caught.value) is error
        assert len(server.requests) == 1


async def test_an_order_that_was_never_sent_is_refused() -> None:
    async with RawServer(ScriptedMarket(answer(200)).script) as server:
        pass
    vast = _patient(server.address, FakeClock())
    with pytest.raises(MarketRefused, match="Nothing was created") as caught:
        await vast.create(OFFER, LAUNCH)
    assert caught.value.code == "market_unreachable"
    with pytest.raises(MarketUnknown):
        await vast.list()
    await vast.close()


async def test_an_order_does_not_wait_for_a_market_that_asked_for_a_pause() -> None:
    async with vast_that_answers(answer(429, b"slow down", Retry_After="60")) as (vast, server):
        for _ in range(2):
            with pytest.raises(MarketRefused) as caught:
                await vast.create(OFFER, LAUNCH)
            assert caught.value.code == "market_rate_limited"
        assert len(server.requests) == 1


async def test_create_orders_what_the_launch_says(caplog: pytest.LogCaptureFixture) -> None:
    done = answer(200, {"success": True, "new_contract": 991, "instance_api_key": "instance-secret"})
    async with vast_that_answers(done) as (vast, server):
        assert await vast.create(OFFER, LAUNCH) == "991"
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /api/v0/asks/123/ ")
    assert f"Bearer {KEY}".encode() in head
    assert json.loads(body) == {
        "client_id": "me",
        "image": LAUNCH.image,
        "disk": 20.0,
        "label": "apl-x-1",
        "env": {"TOKEN": "s3cret", "-p 8000:8000": "1"},
        "runtype": "args",
        "args": ["--model", "m"],
        "target_state": "running",
        "cancel_unavail": True,
    }
    assert not any(word in caplog.text for word in (KEY, "s3cret", "instance-secret"))
    assert not any(word in repr(LAUNCH) for word in ("s3cret",))


@pytest.mark.parametrize(
    ("reply", "is_done"),
    [
        (answer(200, {"success": True}), True),
        (answer(404, {"success": False, "error": "no_such_instance"}), True),
        (answer(404, b"no page"), False),
        (answer(200, {"success": False}), False),
        (answer(200), False),
        (answer(500, b""), False),
    ],
)
async def test_destroy_is_done_or_unknown(reply: bytes, is_done: bool) -> None:
    async with vast_that_answers(reply) as (vast, _):
        if is_done:
            await vast.destroy("7")
            return
        with pytest.raises(MarketUnknown):
            await vast.destroy("7")


async def test_reads_repeat_what_is_busy_and_then_succeed() -> None:
    async with vast_that_answers(PLAIN_429, answer(502, b""), page(row())) as (vast, server):
        assert len(await vast.list()) == 1
        assert len(server.requests) == 3


async def test_used_up_search_quota_is_not_asked_again_today() -> None:
    quota = answer(429, {"success": False, "error": "search_quota_exceeded"})
    async with vast_that_answers(quota) as (vast, server):
        for _ in range(3):
            with pytest.raises(MarketUnknown) as caught:
                await vast.offers(OfferFilter(), limit=10)
            assert caught.value.code == "search_quota_exceeded"
        assert caught.value.retry_after_s is not None
        assert 0 < caught.value.retry_after_s <= 86_400
        assert len(server.requests) == 1
        vast._clock.advance(caught.value.retry_after_s + 1)  # type: ignore[attr-defined]
        with pytest.raises(MarketUnknown):
            await vast.offers(OfferFilter(), limit=10)
        assert len(server.requests) == 2


def offer_row(number: int = 5, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "gpu_name": "H100 SXM",
        "num_gpus": 1,
        "gpu_ram": 81559,
        "dph_total": 1.9,
        "machine_id": 4,
        "rentable": True,
        "rented": False,
        "geolocation": "Sweden, SE",
        "verification": "verified",
        "reliability": 0.99,
        **more,
    }


async def test_one_unreadable_offer_does_not_hide_the_others() -> None:
    rows = [
        offer_row(1),
        {"id": 2},
        "x",
        offer_row(3, dph_total="NaN"),
        offer_row(4, dph_total=-1),
        offer_row(5),
    ]
    async with vast_that_answers(answer(200, {"offers": rows})) as (vast, server):
        offers = await vast.offers(OfferFilter(gpu_model="h100_sxm", min_vram_gb=80), limit=10)
    assert [offer.id for offer in offers] == ["1", "5"]
    assert offers[0].vram_gb == 81.6
    body = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
    assert body["gpu_name"] == {"in": ["H100 SXM"]}


@pytest.mark.parametrize("body", [{}, {"offers": None}, {"offers": {}}, {"offers": ["x"]}, []])
async def test_unreadable_search_is_unknown(body: Any) -> None:
    async with vast_that_answers(answer(200, body)) as (vast, _):
        with pytest.raises(MarketUnknown):
            await vast.offers(OfferFilter(), limit=10)


async def test_logs_wait_until_the_file_is_there_without_the_key() -> None:
    async def script(peer: Any) -> None:
        while True:
            head = await peer.request()
            path = head.split(b" ")[1]
            if path.startswith(b"/api"):
                peer.say(answer(200, {"success": True, "result_url": f"{server.address}/logs/1"}))
            else:
                seen.append(head)
                peer.say(answer(404) if len(seen) < 3 else answer(200, b"one\ntwo\nthree\n"))

    seen: list[bytes] = []
    async with RawServer(script) as server:
        vast = _patient(server.address, FakeClock())
        assert await vast.logs("7", max_bytes=9) == "three\n"
        await vast.close()
    assert len(seen) == 3
    assert not any(KEY.encode() in head for head in seen)


@pytest.mark.parametrize(
    "url", ["http://192.0.2.9/x", "https://127.0.0.1/x", "https://169.254.169.254/x", "file:///etc/passwd", 7]
)
async def test_logs_elsewhere_are_read_from_public_https_only(url: Any) -> None:
    async with vast_that_answers(answer(200, {"success": True, "result_url": url})) as (vast, server):
        with pytest.raises(MarketUnknown):
            await vast.logs("7", max_bytes=100)
        assert len(server.requests) == 1


async def test_huge_answers_are_not_read_whole() -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        await peer.pour(b" " * 100_000_000)

    async with RawServer(script) as server:
        vast = _patient(server.address, FakeClock())
        with pytest.raises(MarketUnknown, match="longer than"):
            await vast.create(OFFER, LAUNCH)
        await vast.close()
        assert server.peers[0].sent_bytes < 60_000_000


async def test_balance_is_read_in_micro_dollars() -> None:
    async with vast_that_answers(answer(200, {"credit": 12.5}), answer(200, {"credit": "x"})) as (vast, _):
        assert await vast.credit_musd() == 12_500_000
        assert await vast.credit_musd() is None
