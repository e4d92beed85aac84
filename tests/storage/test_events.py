"""Events: numbers without gaps and doubles, written with what they tell, read from any number, pruned by age and count."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.storage.database import Database, Transaction
from appliance.storage.events import KEEP_COUNT, MAX_DATA_BYTES, EventLog, EventSpan


class Noted:
    """Takes what would be noted among the changes."""

    def __init__(self) -> None:
        self.ids: list[tuple[str, str]] = []
        self.announced = 0

    async def note(self, transaction: Transaction, kind: str, ids: Iterable[str]) -> None:
        self.ids += [(kind, one) for one in ids]

    async def announce(self) -> None:
        self.announced += 1


def log_on(database: Database, clock: FakeClock | None = None) -> EventLog:
    return EventLog(database, Noted(), clock=clock or FakeClock(at_s=1_800_000_000))


async def write(
    database: Database, log: EventLog, user_id: str | None, number: int, topic: str = "billing"
) -> int:
    return await database.run(lambda one: log.append(one, user_id, topic, {"n": number}))


async def test_each_receiver_has_own_numbers_in_order(database: Database) -> None:
    log = log_on(database)
    assert [await write(database, log, "u1", n) for n in range(3)] == [1, 2, 3]
    assert await write(database, log, None, 9, "system") == 1
    assert [event.data["n"] for event in await log.read("u1", after=0)] == [0, 1, 2]
    assert [event.seq for event in await log.read("u1", after=2)] == [3]
    assert [event.topic for event in await log.read(None, after=0)] == ["system"]
    assert await log.span("u1") == EventSpan(1, 3)
    assert await log.span("unknown") == EventSpan(1, 0)


async def test_writers_at_once_leave_no_gap_and_no_double(database: Database) -> None:
    log = log_on(database)
    seqs = await asyncio.gather(*(write(database, log, "u1", n) for n in range(40)))
    assert sorted(seqs) == list(range(1, 41))
    assert [event.seq for event in await log.read("u1", after=0)] == list(range(1, 41))


async def test_a_reader_never_sees_a_number_before_a_lower_one(database: Database) -> None:
    log = log_on(database)
    is_done = False

    async def reader() -> None:
        last = 0
        while not is_done:
            for event in await log.read("u1", after=last):
                assert event.seq == last + 1
                last = event.seq

    reading = asyncio.create_task(reader())
    await asyncio.gather(*(write(database, log, "u1", n) for n in range(40)))
    is_done = True
    await reading


async def test_what_is_rolled_back_was_not_told(database: Database) -> None:
    log = log_on(database)
    await write(database, log, "u1", 1)

    async def broken(transaction: Transaction) -> None:
        await log.append(transaction, "u1", "billing", {"n": 2})
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError):
        await database.run(broken)
    assert await write(database, log, "u1", 3) == 2
    assert [event.data["n"] for event in await log.read("u1", after=0)] == [1, 3]


async def test_only_the_wanted_topics_are_read(database: Database) -> None:
    log = log_on(database)
    for number, topic in enumerate(("billing", "usage", "sessions", "usage")):
        await write(database, log, "u1", number, topic)
    assert [event.seq for event in await log.read("u1", after=0, topics={"usage"})] == [2, 4]
    assert [event.seq for event in await log.read("u1", after=0, limit=3)] == [1, 2, 3]
    assert await log.read("u1", after=0, topics=()) == []


async def test_old_events_and_too_many_are_deleted(database: Database) -> None:
    clock = FakeClock(at_s=1_800_000_000)
    log = log_on(database, clock)

    async def fill(transaction: Transaction) -> None:
        for number in range(KEEP_COUNT + 5):
            await log.append(transaction, "many", "usage", {"n": number})

    await write(database, log, "old", 1)
    clock.advance(7 * 86_400 + 1)
    await write(database, log, "old", 2)
    await database.run(fill)
    await log.prune()
    assert await log.span("old") == EventSpan(2, 2)
    assert await log.span("many") == EventSpan(6, KEEP_COUNT + 5)
    clock.advance(8 * 86_400)
    await log.prune()
    assert await log.span("many") == EventSpan(KEEP_COUNT + 6, KEEP_COUNT + 5)
    assert await write(database, log, "many", 0) == KEEP_COUNT + 6  # numbers never begin anew


async def test_an_unknown_topic_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="'gossip' is no topic"):
        await write(database, log_on(database), "u1", 1, "gossip")


async def test_data_too_large_are_cut_to_their_names(database: Database) -> None:
    log = log_on(database)
    data: dict[str, Any] = {"text": "x" * (MAX_DATA_BYTES + 1), "b": 1}
    await database.run(lambda one: log.append(one, "u1", "billing", data))
    (event,) = await log.read("u1", after=0)
    assert event.data == {"is_cut": True, "fields": ["text", "b"]}


async def test_a_level_changes_once_for_all_replicas(database: Database) -> None:
    log = log_on(database)
    answers = await asyncio.gather(
        *(database.run(lambda one: log.change_level(one, "u1", 2)) for _ in range(12))
    )
    assert sorted(answers, key=str) == [0] + [None] * 11
    assert await database.run(lambda one: log.change_level(one, "u1", 0)) == 2
