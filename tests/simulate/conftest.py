"""A twin whose clock moves only when the test says so."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from appliance.base.clock import FakeClock
from appliance.simulate.twin import Twin, running_twin
from tests.simulate.calls import Calls


@pytest.fixture
async def twin() -> AsyncIterator[Twin]:
    async with running_twin(clock=FakeClock()) as running:
        yield running


@pytest.fixture
async def call(twin: Twin) -> AsyncIterator[Calls]:
    async with aiohttp.ClientSession() as session:
        yield Calls(twin, session)
