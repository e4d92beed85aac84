"""The ring of the latest log lines."""

import asyncio

import pytest

from appliance.base.log_buffer import LogBuffer


def filled(*sources: str) -> LogBuffer:
    lines = LogBuffer(max_lines=3, max_characters=5)
    for number, source in enumerate(sources):
        lines.add(float(number), source, f"{number}")
    return lines


@pytest.mark.parametrize(
    ("count", "source", "wanted"),
    [
        (10, "", ["1", "2", "3"]),
        (2, "", ["2", "3"]),
        (0, "", []),
        (-1, "", []),
        (10, "worker", ["2"]),
        (10, "nothing", []),
    ],
)
def test_tail_returns_the_latest_lines_of_a_source(count: int, source: str, wanted: list[str]) -> None:
    lines = filled("appliance", "appliance", "worker.stdout", "appliance")
    assert [line.text for line in lines.tail(count, source=source)] == wanted


def test_long_lines_are_cut() -> None:
    lines = filled()
    lines.add(0.0, "appliance", "123456")
    assert lines.tail(1)[0].text == "12345…"


async def test_follower_gets_new_lines_of_its_source() -> None:
    lines = filled("appliance", "worker.stdout")
    follower = lines.follow(after=0, source="worker")
    first = await anext(follower)
    waiting = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    lines.add(9.0, "appliance", "no")
    lines.add(9.0, "worker.stderr", "yes")
    second = await waiting
    assert [(line.number, line.source) for line in (first, second)] == [
        (2, "worker.stdout"),
        (4, "worker.stderr"),
    ]


async def test_slow_follower_loses_the_oldest_lines() -> None:
    lines = filled()
    follower = lines.follow(after=0)
    for number in range(10):
        lines.add(0.0, "appliance", f"{number}")
    assert [(await anext(follower)).text for _ in range(3)] == ["7", "8", "9"]


async def test_follower_without_a_number_gets_only_later_lines() -> None:
    lines = filled("appliance")
    waiting = asyncio.ensure_future(anext(lines.follow()))
    await asyncio.sleep(0)
    lines.add(1.0, "appliance", "new")
    assert (await waiting).text == "new"
