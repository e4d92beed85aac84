"""Offers of all markets together: filters that apply, prices that hold, markets that fail."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import NotFound, Unavailable
from appliance.base.tasks import Tasks
from appliance.market.offers import OfferSearch, fits, is_at, with_price
from appliance.market.types import MarketRefused, MarketUnknown, Offer, OfferFilter

VAST = Offer(
    "vast.ai", "5", "RTX 4090", 2, 24.6, 400_000, location="Quebec, CA", is_verified=True, reliability=0.99
)
IONET = Offer("io.net", "203-1-1", "H100 80GB", 1, 80.0, 2_000_000, location="Finland, FI", prepaid_hours=1)


class ScriptedOffers:
    """A market that answers what the test says; the contract's other calls are not made here."""

    def __init__(self, name: str, alias: str, prefix: str, answer: Any) -> None:
        self.name, self.aliases, self.id_prefix = name, (alias,), prefix
        self.answer = answer
        self.calls = 0
        self.gate: asyncio.Event | None = None

    async def offers(self, wanted: OfferFilter, *, limit: int) -> list[Offer]:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return list(self.answer)


class Scene:
    def __init__(self, tasks: Tasks) -> None:
        self.clock = FakeClock()
        self.percent = 0
        self.vast = ScriptedOffers("vast.ai", "vastai", "vast-", [VAST])
        self.ionet = ScriptedOffers("io.net", "ionet", "ionet-", [IONET])
        providers: Any = {"vast.ai": self.vast, "io.net": self.ionet}
        self.search = OfferSearch(
            providers, markup_percent=lambda: self.percent, clock=self.clock, tasks=tasks
        )

    async def ids(self, wanted: OfferFilter | None = None, **more: Any) -> list[str]:
        found = await self.search.search(wanted or OfferFilter(), **more)
        return [self.search.public_id(offer) for offer in found.offers]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with Tasks() as tasks:
        yield Scene(tasks)


async def test_offers_of_all_markets_are_sorted_by_price_then_id(scene: Scene) -> None:
    scene.vast.answer = [VAST, replace(VAST, id="40"), replace(VAST, id="6", supply_musd_per_h=3_000_000)]
    assert await scene.ids() == ["vast-40", "vast-5", "ionet-203-1-1", "vast-6"]
    assert await scene.ids(provider="ionet") == ["ionet-203-1-1"]
    assert await scene.ids(limit=1) == ["vast-40"]


@pytest.mark.parametrize(
    ("wanted", "is_fitting"),
    [
        (OfferFilter(), True),
        (OfferFilter(min_vram_gb=24), True),
        (OfferFilter(min_vram_gb=25.8), True),
        (OfferFilter(min_vram_gb=48), False),
        (OfferFilter(max_price_musd_per_h=440_000), True),
        (OfferFilter(max_price_musd_per_h=439_999), False),
        (OfferFilter(gpu_model="rtx_4090"), True),
        (OfferFilter(gpu_model="RTX-40"), True),
        (OfferFilter(gpu_model="h100"), False),
        (OfferFilter(location="ca"), True),
        (OfferFilter(location="queb"), True),
        (OfferFilter(location="qu"), False),
        (OfferFilter(min_gpus=2), True),
        (OfferFilter(min_gpus=3), False),
        (OfferFilter(min_reliability=0.99), True),
        (OfferFilter(min_reliability=0.995), False),
        (OfferFilter(is_verified_only=True), True),
    ],
)
def test_every_filter_applies(wanted: OfferFilter, is_fitting: bool) -> None:
    assert fits(with_price(VAST, 10), wanted) is is_fitting


def test_what_a_market_does_not_tell_fits_no_filter() -> None:
    assert not fits(IONET, OfferFilter(min_reliability=0.1))
    assert not fits(IONET, OfferFilter(is_verified_only=True))
    assert not fits(replace(VAST, is_available=False), OfferFilter())
    assert not is_at("", "FI")


@pytest.mark.parametrize(
    ("supply", "percent", "price"), [(400_000, 0, 400_000), (3, 10, 4), (1_000_001, 25, 1_250_002)]
)
def test_markup_is_added_and_rounded_up(supply: int, percent: int, price: int) -> None:
    assert with_price(replace(VAST, supply_musd_per_h=supply), percent).price_musd_per_h == price


async def test_one_market_that_fails_does_not_hide_the_other(scene: Scene) -> None:
    scene.ionet.answer = MarketUnknown("io.net is down.")
    found = await scene.search.search(OfferFilter())
    assert [offer.id for offer in found.offers] == ["5"]
    assert [failure.view() for failure in found.failures] == [
        {"provider": "io.net", "message": "io.net is down."}
    ]
    assert not found.is_failed


async def test_all_markets_that_fail_are_not_an_empty_list(scene: Scene) -> None:
    scene.ionet.answer, scene.vast.answer = MarketRefused("no key"), RuntimeError("a bug")
    found = await scene.search.search(OfferFilter())
    assert found.is_failed
    assert len(found.failures) == 2
    with pytest.raises(MarketUnknown):
        await scene.search.find(OfferFilter(), limit=10)


async def test_no_market_with_a_key_is_said() -> None:
    async with Tasks() as tasks:
        empty = OfferSearch({}, markup_percent=lambda: 0, clock=FakeClock(), tasks=tasks)
        with pytest.raises(Unavailable, match="VASTAI_API_KEY"):
            await empty.search(OfferFilter())


async def test_found_offers_are_kept_for_half_a_minute_per_filter(scene: Scene) -> None:
    await scene.ids()
    scene.clock.advance(29)
    found = await scene.search.search(OfferFilter())
    assert (scene.vast.calls, found.age_s) == (1, 29)
    await scene.ids(OfferFilter(min_gpus=2))
    assert scene.vast.calls == 2
    scene.clock.advance(1)
    assert (await scene.search.search(OfferFilter())).age_s == 0
    assert scene.vast.calls == 3


async def test_old_offers_serve_for_five_minutes_while_a_market_fails(scene: Scene) -> None:
    await scene.ids(provider="vast.ai")
    scene.vast.answer = MarketUnknown("down")
    scene.clock.advance(300)
    found = await scene.search.search(OfferFilter(), provider="vast.ai")
    assert (len(found.offers), found.age_s, len(found.failures)) == (1, 300, 1)
    scene.clock.advance(3)
    assert (await scene.search.search(OfferFilter(), provider="vast.ai")).is_failed


async def test_old_offers_serve_while_the_search_quota_is_used_up(scene: Scene) -> None:
    await scene.ids(provider="vast.ai")
    scene.vast.answer = MarketUnknown("used up", code="search_quota_exceeded")
    scene.clock.advance(20_000)
    found = await scene.search.search(OfferFilter(), provider="vast.ai")
    assert (len(found.offers), found.age_s) == (1, 20_000)


async def test_a_failure_answers_for_a_moment(scene: Scene) -> None:
    scene.vast.answer = MarketUnknown("down")
    for _ in range(3):
        await scene.search.search(OfferFilter(), provider="vast.ai")
    assert scene.vast.calls == 1
    scene.clock.advance(2)
    await scene.search.search(OfferFilter(), provider="vast.ai")
    assert scene.vast.calls == 2


async def test_callers_at_the_same_time_share_one_search(scene: Scene) -> None:
    scene.vast.gate = asyncio.Event()
    callers = [asyncio.create_task(scene.ids(provider="vast.ai")) for _ in range(5)]
    while not scene.vast.calls:
        await asyncio.sleep(0)
    callers[0].cancel()
    scene.vast.gate.set()
    assert await asyncio.gather(*callers[1:]) == [["vast-5"]] * 4
    assert scene.vast.calls == 1


async def test_a_market_that_hangs_ends_the_search_after_its_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.market.offers.SEARCH_S", 0.01)
    scene.vast.gate = asyncio.Event()
    found = await scene.search.search(OfferFilter())
    assert [offer.provider for offer in found.offers] == ["io.net"]
    assert "did not answer within" in found.failures[0].message


async def test_create_gets_the_price_that_was_shown(scene: Scene) -> None:
    scene.percent = 10
    await scene.ids()
    scene.percent = 50
    assert (await scene.search.shown("vastai", "vast-5")).price_musd_per_h == 440_000
    scene.clock.advance(300)
    await scene.ids()  # shown dearer to another caller: the cheaper price still holds
    assert (await scene.search.shown("vast.ai", "5")).price_musd_per_h == 440_000
    scene.clock.advance(301)
    assert (await scene.search.shown("vast.ai", "5")).price_musd_per_h == 600_000


async def test_an_offer_that_was_not_shown_is_looked_for(scene: Scene) -> None:
    assert (await scene.search.shown("io.net", "ionet-203-1-1")).gpu_name == "H100 80GB"
    with pytest.raises(NotFound, match="GET /gpu/instances"):
        await scene.search.shown("vast.ai", "vast-999")
    with pytest.raises(NotFound, match=r"there are: vast\.ai, io\.net"):
        await scene.search.shown("runpod", "1")


async def test_offers_are_shown_in_the_documented_form(scene: Scene) -> None:
    found = await scene.search.search(OfferFilter(), provider="io.net")
    assert scene.search.view(found.offers[0]) == {
        "id": "ionet-203-1-1",
        "provider": "io.net",
        "gpu_name": "H100 80GB",
        "gpu_count": 1,
        "vram_gb": 80.0,
        "cpu_cores": 0.0,
        "ram_gb": 0.0,
        "storage_gb": 0.0,
        "price_per_hour": 2.0,
        "location": "Finland, FI",
        "available": True,
        "specifications": {"verified": False, "prepaid_hours": 1},
    }
