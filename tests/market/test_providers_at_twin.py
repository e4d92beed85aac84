"""Both markets' clients at their stand-ins, which simulate: search, rent, look, logs, destroy, and faults."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from appliance.base.clock import FakeClock
from appliance.market.providers.contract import Provider
from appliance.market.providers.table import PROVIDERS, build_providers
from appliance.market.settings import MarketSettings
from appliance.market.types import InstanceState, Launch, MarketUnknown, OfferFilter, OfferGone
from appliance.simulate.twin import Twin, running_twin
from tests.simulate.calls import Calls

LAUNCH = Launch("apl-test-1", environ={"A": "b"}, ports=(8000,), command=("--model", "m"))
MARKETS = ("vast.ai", "io.net")


@pytest.fixture
async def twin() -> AsyncIterator[Twin]:
    async with running_twin(clock=FakeClock()) as running:
        yield running


@pytest.fixture
async def calls(twin: Twin) -> AsyncIterator[Calls]:
    async with aiohttp.ClientSession() as session:
        yield Calls(twin, session)


@pytest.fixture
async def markets(twin: Twin) -> AsyncIterator[dict[str, Provider]]:
    clock = _SkippingClock()
    settings = MarketSettings(
        vastai_api_key="simulated",
        vastai_api_url=f"http://127.0.0.1:{twin.ports['vast']}",
        ionet_api_key="simulated",
        ionet_api_url=f"http://127.0.0.1:{twin.ports['ionet']}/enterprise/v1/io-cloud/caas",
        gpu_api_timeout=3,
    )
    providers = build_providers(settings, clock)
    yield providers
    for provider in providers.values():
        await provider.close()


class _SkippingClock(FakeClock):
    """Each look at it is a minute later, so that no interval has to be waited for."""

    def monotonic_s(self) -> float:
        self.advance(60)
        return super().monotonic_s()


def test_markets_without_a_key_are_left_out() -> None:
    assert build_providers(MarketSettings(), FakeClock()) == {}
    assert [row.name for row in PROVIDERS] == list(MARKETS)


@pytest.mark.parametrize("name", MARKETS)
async def test_an_instance_lives_and_ends(name: str, twin: Twin, markets: dict[str, Provider]) -> None:
    market = markets[name]
    assert await market.list() == []
    offers = await market.offers(OfferFilter(gpu_model="h100"), limit=20)
    assert offers
    assert all("H100" in offer.gpu_name for offer in offers)
    assert [one.supply_musd_per_h for one in offers] == sorted(one.supply_musd_per_h for one in offers)
    number = await market.create(offers[0], LAUNCH)
    (listed,) = await market.list()
    assert (listed.contract_id, listed.label) == (number, LAUNCH.label)
    assert listed.state is InstanceState.STARTING
    await twin.advance(600)
    shown = await market.get(number)
    assert shown is not None
    assert shown.state is InstanceState.RUNNING
    assert shown.host == "127.0.0.1"
    assert list(shown.ports) == [8000]
    assert await market.logs(number, max_bytes=10_000)
    await market.destroy(number)
    await market.destroy(number)
    ended = await market.get(number)
    assert ended is None or ended.state is InstanceState.ENDED
    assert await market.list() == []


@pytest.mark.parametrize("name", MARKETS)
async def test_taken_offers_are_gone(name: str, calls: Calls, markets: dict[str, Provider]) -> None:
    market = markets[name]
    (offer,) = await market.offers(OfferFilter(), limit=1)
    await calls.fault(service=name.replace(".ai", "").replace(".", ""), kind="no_such_ask")
    with pytest.raises(OfferGone):
        await market.create(offer, LAUNCH)
    assert await market.list() == []


@pytest.mark.parametrize("name", MARKETS)
@pytest.mark.parametrize("kind", ["create_500_done", "create_timed_out"])
async def test_an_instance_of_an_unclear_create_is_found_by_its_label(
    name: str, kind: str, calls: Calls, markets: dict[str, Provider]
) -> None:
    market = markets[name]
    (offer,) = await market.offers(OfferFilter(), limit=1)
    await calls.fault(service=name.replace(".ai", "").replace(".", ""), kind=kind)
    with pytest.raises(MarketUnknown):
        await market.create(offer, LAUNCH)
    assert [one.label for one in await market.list()] == [LAUNCH.label]


@pytest.mark.parametrize("name", MARKETS)
@pytest.mark.parametrize(
    "kind", ["empty_body", "html_page", "wrong_types", "reset", "huge_body", "rate_limited_text"]
)
async def test_a_listing_with_faults_is_unknown(
    name: str, kind: str, calls: Calls, markets: dict[str, Provider], monkeypatch: pytest.MonkeyPatch
) -> None:
    market = markets[name]
    (offer,) = await market.offers(OfferFilter(), limit=1)
    await market.create(offer, LAUNCH)
    service = name.replace(".ai", "").replace(".", "")
    await calls.fault(service=service, route="list", kind=kind, times=6)
    monkeypatch.setattr("appliance.market.providers.calls.FIRST_PAUSE_S", 0.0)
    listed = await asyncio.gather(market.list(), return_exceptions=True)
    assert isinstance(listed[0], MarketUnknown)
    await calls(service, "DELETE", "/_fault")
    assert len(await market.list()) == 1
