"""One run for all who ask at the same time."""

import asyncio

import pytest

from appliance.base.errors import Internal, UpstreamFailed
from appliance.base.single_flight import SingleFlight
from appliance.base.tasks import Tasks


async def test_concurrent_callers_share_a_run_later_ones_start_anew() -> None:
    go, runs = asyncio.Event(), 0

    async def work() -> int:
        nonlocal runs
        runs += 1
        await go.wait()
        return runs

    async with Tasks() as tasks:
        shared = SingleFlight(work, tasks, name="work")
        asking = [asyncio.ensure_future(shared.get()) for _ in range(5)]
        await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*asking[1:]) == [1, 1, 1, 1]
        assert await shared.get() == 2


@pytest.mark.parametrize(
    ("raised", "seen"), [(UpstreamFailed("gone"), UpstreamFailed), (ZeroDivisionError("ours"), Internal)]
)
async def test_failure_is_raised_to_all_and_next_call_runs_anew(
    raised: Exception, seen: type[Exception]
) -> None:
    deaths, fails = [], True

    async def work() -> int:
        if fails:
            raise raised
        return 5

    async with Tasks(on_death=lambda *about: deaths.append(about)) as tasks:
        shared = SingleFlight(work, tasks, name="work")
        results = await asyncio.gather(shared.get(), shared.get(), return_exceptions=True)
        assert [type(one) for one in results] == [seen, seen]
        fails = False
        assert await shared.get() == 5
    assert deaths == []
