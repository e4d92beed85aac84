"""A third market by the same contract: one module, here against a stand-in, joined with the others in a search."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from appliance.base.clock import FakeClock
from appliance.base.tasks import Tasks
from appliance.market.offers import OfferSearch
from appliance.market.providers.contract import Provider
from appliance.market.types import InstanceState, Launch, MarketRefused, MarketUnknown, OfferFilter, OfferGone
from tests.market.pod_market import PodMarket

LAUNCH = Launch("apl-x-1", ports=(8000,), command=("serve",))


class PodServer:
    """A stand-in that keeps pods in memory, and answers one thing instead where it is told."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.instead: tuple[int, bytes] | None = None

    async def answer(self, request: web.Request) -> web.Response:
        if self.instead is not None:
            status, body = self.instead
            return web.Response(status=status, body=body, content_type="application/json")
        if request.headers.get("Authorization") != "Bearer k":
            return web.json_response({"error": "unauthorized"}, status=401)
        parts = request.path.strip("/").split("/")
        if parts == ["gpus"]:
            rows = [
                {"id": "L40S", "price": 0.8, "memoryInGb": 48, "country": "SE"},
                {"id": "L4", "price": "free"},
            ]
            return web.json_response(rows)
        if parts == ["me"]:
            return web.json_response({"balance": 7.5})
        if parts == ["pods"] and request.method == "POST":
            body = await request.json()
            if body["gpuTypeId"] != "L40S":
                return web.json_response({"error": "no_capacity"}, status=409)
            name = f"pod{len(self.pods)}"
            self.pods[name] = {"id": name, "name": body["name"], "desiredStatus": "CREATED", "costPerHr": 0.8}
            return web.json_response({"id": name}, status=201)
        if parts == ["pods"]:
            return web.json_response({"pods": list(self.pods.values()), "total": len(self.pods)})
        pod = self.pods.get(parts[1])
        if pod is None:
            return web.json_response({"error": "no_such_pod"}, status=404)
        if request.method == "DELETE":
            del self.pods[parts[1]]
            return web.json_response({"deleted": True})
        return web.Response(text="one\ntwo\n") if parts[2:] == ["logs"] else web.json_response(pod)


@pytest.fixture
def server() -> PodServer:
    return PodServer()


@pytest.fixture
async def market(server: PodServer) -> AsyncIterator[Provider]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    pods = PodMarket("k", f"http://{host}:{port}", clock=FakeClock(), timeout_s=5)
    yield pods
    await pods.close()
    await runner.cleanup()


async def test_a_third_market_rents_looks_and_ends(server: PodServer, market: Provider) -> None:
    async with Tasks() as tasks:
        search = OfferSearch({market.name: market}, markup_percent=lambda: 25, clock=FakeClock(), tasks=tasks)
        (offer,) = (await search.search(OfferFilter(min_vram_gb=48))).offers
        assert (search.public_id(offer), offer.price_musd_per_h) == ("pods-L40S", 1_000_000)
        assert (await search.shown("pods", "pods-L40S")) == offer
    name = await market.create(offer, LAUNCH)
    (listed,) = await market.list()
    assert (listed.contract_id, listed.label, listed.state) == (name, "apl-x-1", InstanceState.STARTING)
    server.pods[name]["desiredStatus"] = "RUNNING"
    shown = await market.get(name)
    assert shown is not None
    assert (shown.state, shown.supply_musd_per_h) == (InstanceState.RUNNING, 800_000)
    assert await market.logs(name, max_bytes=5) == "two\n"
    assert await market.credit_musd() == 7_500_000
    await market.destroy(name)
    await market.destroy(name)
    assert await market.get(name) is None
    assert await market.list() == []


async def test_a_third_market_has_the_same_three_answers(server: PodServer, market: Provider) -> None:
    (offer,) = await market.offers(OfferFilter(), limit=5)
    with pytest.raises(OfferGone):
        await market.create(type(offer)("pods.example", "H100", "H100", 1, 80, 1), LAUNCH)
    for body in (b"", b"<html>", b'{"pods": [], "total": 1}', b'{"pods": [{"id": 3}], "total": 1}', b"[]"):
        server.instead = (200, body)
        with pytest.raises(MarketUnknown):
            await market.list()
        with pytest.raises(MarketUnknown):
            await market.create(offer, LAUNCH)
        with pytest.raises(MarketUnknown):
            await market.get("pod0")
    server.instead = (404, b'{"error": "not found"}')
    with pytest.raises(MarketUnknown):
        await market.get("pod0")
    server.instead = (401, b'{"error": "unauthorized"}')
    with pytest.raises(MarketRefused):
        await market.list()
