"""What holds for all rentals, before the database was there, and after."""

import pytest

from appliance.base.errors import Unavailable
from appliance.base.tasks import Tasks
from appliance.storage.database import Database
from tests.market.renting import Renting


async def test_before_renting_begins_its_state_is_unavailable(database: Database) -> None:
    async with Tasks() as tasks:
        renting = Renting(database, tasks)
        with pytest.raises(Unavailable, match="some seconds") as caught:
            await renting.service.state()
        assert caught.value.retry_after_s == 2.0
        await renting.service.open()
        assert not (await renting.service.state()).is_frozen
