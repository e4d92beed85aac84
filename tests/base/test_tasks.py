"""Background tasks: a death is logged and escalated, closing waits for the end."""

import asyncio

from appliance.base.tasks import Tasks


async def test_death_is_passed_to_the_owner() -> None:
    deaths = list[tuple[str, str]]()

    async def fail() -> None:
        raise RuntimeError("broken")

    async with Tasks(lambda name, error: deaths.append((name, str(error)))) as tasks:
        await asyncio.wait([tasks.start(fail(), name="pump")])
        await asyncio.sleep(0)
    assert deaths == [("pump", "broken")]


async def test_cancelled_and_finished_tasks_are_no_deaths() -> None:
    deaths = list[str]()
    tasks = Tasks(lambda name, _: deaths.append(name))
    tasks.start(asyncio.sleep(60), name="long")
    await tasks.start(asyncio.sleep(0), name="short")
    await tasks.close()
    assert deaths == []


async def test_close_waits_until_each_task_has_ended() -> None:
    ended = list[str]()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append("cleaned up")

    async with Tasks() as tasks:
        tasks.start(work(), name="work")
        await asyncio.sleep(0)
    assert ended == ["cleaned up"]


async def test_failed_round_does_not_end_the_rounds() -> None:
    rounds = list[int]()
    done = asyncio.Event()

    async def action() -> None:
        rounds.append(len(rounds))
        if len(rounds) == 1:
            raise RuntimeError("first round")
        done.set()

    async with Tasks() as tasks:
        tasks.every(0, action, name="rounds")
        await asyncio.wait_for(done.wait(), 5)
    assert rounds[:2] == [0, 1]
