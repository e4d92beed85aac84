"""io.net: every odd answer is a complete listing, a clear "gone", a refusal, or unknown; nothing else."""

import json
from dataclasses import replace
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError
from appliance.market.providers.ionet import IoNet
from appliance.market.types import (
    InstanceState,
    Launch,
    MarketRefused,
    MarketUnknown,
    Offer,
    OfferFilter,
    OfferGone,
)
from tests.fakes.raw_server import Peer, RawServer
from tests.market.stand_in import KEY, answer, calls_to, ionet_that_answers

OFFER = Offer("io.net", "203-1-1", "RTX 4090", 1, 24.0, 300_000, prepaid_hours=1)
LAUNCH = Launch("apl-x-1", environ={"TOKEN": "s3cret"}, ports=(8000,), command=("--model", "m"), hours=2)
PRICE = answer(200, {"data": {"total_cost_usdc": 0.6}})


def row(name: str = "dep-1", status: str = "running", **more: Any) -> dict[str, Any]:
    return {"id": name, "name": f"apl-x-{name}", "status": status, "hardware_name": "L40S", **more}


def page(*rows: Any, total: int | None = None) -> bytes:
    return answer(200, {"data": {"deployments": rows, "total": len(rows) if total is None else total}})


async def test_listing_is_complete_over_all_pages_without_ended_ones() -> None:
    ended = [row("dep-2", "completed"), row("dep-3", "failed", compute_minutes_remaining=0)]
    async with ionet_that_answers(page(row(), *ended, total=4), page(row("dep-4"), total=4)) as (
        ionet,
        server,
    ):
        listed = await ionet.list()
    assert [one.contract_id for one in listed] == ["dep-1", "dep-4"]
    assert b"page=2" in server.requests[1]


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([answer(200)], id="empty"),
        pytest.param([answer(200, b"<html>")], id="HTML"),
        pytest.param([answer(200, {"data": None})], id="null"),
        pytest.param([answer(200, {"data": {"deployments": []}})], id="no count"),
        pytest.param([answer(200, {"data": {"deployments": {}, "total": 0}})], id="an object"),
        pytest.param(
            [answer(200, {"detail": "failed", "data": {"deployments": [], "total": 0}})], id="error"
        ),
        pytest.param([page(row(), total=2), page(total=2)], id="fewer than counted"),
        pytest.param([page(row(), total=2), page(row(), total=2)], id="one twice"),
        pytest.param([page(row(), total=2), page(row("dep-2"), total=3)], id="the count changes"),
        pytest.param([page(row(), row("dep-2"), total=1)], id="more than counted"),
        pytest.param([page(row(), total=2), answer(500, b"")], id="page 2 fails"),
        pytest.param([page({**row(), "id": 5})], id="an id as number"),
        pytest.param([page({**row(), "id": "../deploy"})], id="an id that is a path"),
        pytest.param([page({**row(), "name": None})], id="no name"),
        pytest.param([page({**row(), "status": None})], id="no status"),
        pytest.param([page("x")], id="a row that is text"),
        pytest.param([answer(429, b"slow down")], id="429"),
        pytest.param([answer(404, {"detail": "Not Found"})], id="404"),
    ],
)
async def test_unsound_listing_is_unknown(answers: list[bytes]) -> None:
    async with ionet_that_answers(*answers) as (ionet, _):
        with pytest.raises(MarketUnknown):
            await ionet.list()


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (answer(404, {"detail": "Deployment dep-1 not found"}), "none"),
        (answer(404, {"detail": [{"msg": "deployment not found"}]}), "none"),
        (answer(404, {"message": "dep-1 was not found"}), "none"),
        (answer(404, {"detail": "Not Found"}), "unknown"),
        (answer(404, b"404 page not found: deployment"), "unknown"),
        (answer(410, {"detail": "Deployment dep-1 not found"}), "unknown"),
        (answer(200, {"data": None}), "unknown"),
        (answer(200, {"data": {"id": "dep-2", "status": "running"}}), "unknown"),
        (answer(200, {"data": {"id": "dep-1"}}), "unknown"),
        (answer(200, {"data": {"id": "dep-1", "status": "completed"}}), "there"),
        (answer(500, b""), "unknown"),
        (answer(200), "unknown"),
    ],
)
async def test_only_a_clear_answer_means_gone(shown: bytes, expected: str) -> None:
    async with ionet_that_answers(shown) as (ionet, _):
        try:
            found = await ionet.get("dep-1")
            assert expected == ("none" if found is None else "there")
        except MarketUnknown:
            assert expected == "unknown"


async def test_running_deployment_tells_what_was_paid_and_its_address() -> None:
    shown = {"data": row(amount_paid=1.25, total_gpus=2, started_at="2026-11-20T10:11:12.5Z")}
    shown["data"]["container_config"] = {"traffic_port": 9000}
    workers = {"data": {"workers": [{"public_url": "https://a1.example.net"}, "x"]}}
    async with ionet_that_answers(answer(200, shown), answer(200, workers)) as (ionet, _):
        found = await ionet.get("dep-1")
    assert found is not None
    assert (found.paid_musd, found.gpu_count) == (1_250_000, 2)
    assert (found.host, found.ports) == ("a1.example.net", {9000: 443})
    assert found.started_ms == 1_795_169_472_500
    assert found.state is InstanceState.RUNNING


async def test_create_pays_ahead_what_was_shown() -> None:
    done = answer(200, {"status": "deployment requested", "deployment_id": "dep-9"})
    async with ionet_that_answers(PRICE, done) as (ionet, server):
        assert await ionet.create(OFFER, LAUNCH) == "dep-9"
    assert b"duration_hours=2" in server.requests[0]
    body = json.loads(server.requests[1].partition(b"\r\n\r\n")[2])
    assert (body["hardware_id"], body["location_ids"], body["duration_hours"]) == (203, [1], 2)
    assert body["container_config"]["secret_env_variables"] == {"TOKEN": "s3cret"}
    assert body["container_config"]["traffic_port"] == 8000
    assert body["resource_private_name"] == "apl-x-1"


async def test_dearer_than_shown_is_not_ordered() -> None:
    async with ionet_that_answers(answer(200, {"data": {"total_cost_usdc": 0.600001}})) as (ionet, server):
        with pytest.raises(OfferGone, match=r"0\.600001"):
            await ionet.create(OFFER, LAUNCH)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (answer(400, {"detail": "No available replicas for this hardware"}), OfferGone),
        (answer(410, {"detail": "no_such_ask"}), OfferGone),
        (answer(402, {"detail": "Insufficient balance"}), MarketRefused),
        (answer(422, {"detail": [{"msg": "image_url is required"}]}), MarketRefused),
        (answer(401, b""), MarketRefused),
        (answer(429, b"slow down"), MarketRefused),
        (answer(404, b"<html>"), MarketUnknown),
        (answer(500, {"detail": "oops"}), MarketUnknown),
        (answer(200, {"status": "ok"}), MarketUnknown),
        (answer(200, {"deployment_id": 7}), MarketUnknown),
        (answer(200, {"deployment_id": "a/b"}), MarketUnknown),
        (answer(200), MarketUnknown),
    ],
)
async def test_create_says_what_is_certain_and_is_sent_once(
    reply: bytes, error: type[ApplianceError]
) -> None:
    async with ionet_that_answers(PRICE, reply) as (ionet, server):
        with pytest.raises(error) as caught:
            await ionet.create(OFFER, LAUNCH)
        assert type(caught.value) is error
        assert sum(request.startswith(b"POST") for request in server.requests) == 1


@pytest.mark.parametrize(
    ("launch", "why"),
    [(replace(LAUNCH, ports=(1, 2)), "one port"), (replace(LAUNCH, onstart="echo"), "not both")],
)
async def test_orders_that_cannot_run_are_refused_unasked(launch: Launch, why: str) -> None:
    async with ionet_that_answers(PRICE) as (ionet, server):
        with pytest.raises(MarketRefused, match=why):
            await ionet.create(OFFER, launch)
        assert not server.requests


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ([answer(200, {"status": "destroyed", "deployment_id": "dep-1"})], None),
        ([answer(404, {"detail": "Deployment dep-1 not found"})], None),
        ([answer(400, {"detail": "it is completed"}), answer(200, {"data": row(status="completed")})], None),
        ([answer(400, {"detail": "not now"}), answer(200, {"data": row(status="stopped")})], MarketRefused),
        ([answer(500, b"")], MarketUnknown),
        ([answer(404, b"")], MarketUnknown),
    ],
)
async def test_destroy_is_done_or_says_why_not(
    replies: list[bytes], error: type[ApplianceError] | None
) -> None:
    async with ionet_that_answers(*replies) as (ionet, _):
        if error is None:
            await ionet.destroy("dep-1")
            return
        with pytest.raises(error):
            await ionet.destroy("dep-1")


async def test_one_price_that_fails_does_not_hide_other_offers() -> None:
    async def script(peer: Peer) -> None:
        while True:
            path = (await peer.request()).split(b" ")[1].decode()
            if path.startswith("/hardware/max"):
                ware = {
                    "hardware_id": 1,
                    "hardware_name": "H100 80GB",
                    "max_gpus_per_container": 8,
                    "available": 3,
                }
                peer.say(answer(200, {"data": {"hardware": [ware, {"hardware_id": "x"}]}}))
            elif path.startswith("/available"):
                places = [
                    {"id": n, "iso2": "FI", "name": "Finland", "available_replicas": 2 - n} for n in (0, 1, 2)
                ]
                peer.say(answer(200, {"data": places}))
            elif "location_ids=1" in path:
                peer.say(answer(200, {"data": {"total_cost_usdc": 2.5}}))
            else:
                peer.say(answer(404, b""))

    async with RawServer(script) as server:
        clock = FakeClock()
        ionet = IoNet(KEY, server.address, clock=clock, timeout_s=5, calls=calls_to(server.address, clock))
        (offer,) = await ionet.offers(OfferFilter(gpu_model="h100", min_vram_gb=80), limit=10)
        await ionet.close()
    assert (offer.id, offer.supply_musd_per_h, offer.vram_gb) == ("1-1-1", 2_500_000, 80.0)
    assert (offer.location, offer.prepaid_hours) == ("Finland, FI", 1)
