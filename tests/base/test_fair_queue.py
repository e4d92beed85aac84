"""The fair queue: turns among flows, priorities with ageing, the limit."""

import pytest

from appliance.base.fair_queue import FairQueue, FairQueueFull


def queue_of(*rows: tuple[str, int, float]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue(100, ageing_s=10)
    for number, (flow, priority, since_s) in enumerate(rows):
        queue.push(f"{flow}{number}", flow=flow, priority=priority, now_s=since_s)
    return queue


def order(queue: FairQueue[str], now_s: float) -> list[str]:
    return [queue.pop(now_s) for _ in range(len(queue))]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([("a", 1, 0), ("a", 1, 0), ("a", 1, 0), ("b", 1, 0)], ["a0", "b3", "a1", "a2"]),
        ([("a", 2, 0), ("b", 1, 0), ("c", 0, 0)], ["c2", "b1", "a0"]),
        ([("a", 0, 19.0), ("b", 2, -10.0)], ["b1", "a0"]),
        ([("a", 1, 15.0), ("b", 2, 4.0)], ["b1", "a0"]),
    ],
)
def test_next_item_by_flow_priority_and_age(rows: list[tuple[str, int, float]], wanted: list[str]) -> None:
    assert order(queue_of(*rows), 20.0) == wanted


def test_low_priority_is_served_under_a_flood_of_high() -> None:
    queue: FairQueue[str] = FairQueue(1000, ageing_s=10)
    queue.push("low", flow="l", priority=2, now_s=0)
    served: list[str] = []
    for second in range(100):
        for _ in range(2):
            queue.push(f"{second}", flow="h", priority=0, now_s=second)
        served.append(queue.pop(second))
    before = served[: served.index("low")]
    assert max(map(int, before)) <= 20  # two levels of ten seconds: no later item was served before it


def test_removed_items_are_skipped_and_the_limit_holds() -> None:
    queue: FairQueue[str] = FairQueue(2)
    first, second = (queue.push(name, flow="f", now_s=0) for name in "ab")
    with pytest.raises(FairQueueFull):
        queue.push("c", flow="g", now_s=0)
    assert queue.position(second, 0) == 1
    assert queue.remove(first)
    assert not queue.remove(first)
    assert queue.position(second, 0) == 0
    assert queue.pop(0) == "b"
    assert not queue.remove(second)
    assert len(queue) == 0
    with pytest.raises(IndexError, match="the queue is empty"):
        queue.peek(0)


def test_one_flow_delays_the_first_of_another_by_one_turn() -> None:
    queue = queue_of(*[("busy", 1, 0)] * 50, ("quiet", 1, 0))
    assert order(queue, 0)[:3] == ["busy0", "quiet50", "busy1"]


def test_position_estimates_the_order_of_service() -> None:
    queue: FairQueue[str] = FairQueue(100, ageing_s=10)
    tickets = {
        name: queue.push(name, flow=name[0], priority=1, now_s=0) for name in ("a1", "a2", "a3", "b1", "b2")
    }
    high = queue.push("h", flow="h", priority=0, now_s=0)
    positions = {name: queue.position(ticket, 0) for name, ticket in tickets.items()}
    assert queue.position(high, 0) == 0
    assert positions == {"a1": 2, "a2": 4, "a3": 5, "b1": 2, "b2": 4}
    assert queue.peek(0) == queue.pop(0) == "h"
    assert queue.position(high, 0) == 0
