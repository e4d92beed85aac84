"""The last hour: samples of what happened between two looks, marks of what became of models."""

from dataclasses import dataclass, replace

from appliance.base.clock import FakeClock
from appliance.front.ui.history import MAX_MARKS, MAX_SAMPLES, History, LoadTotals


@dataclass
class Model:
    alias: str
    status: str
    error_message: str = ""


async def test_a_sample_is_what_happened_per_second() -> None:
    totals, clock = LoadTotals(), FakeClock()
    history = History(lambda: totals, clock=clock)
    await history.sample()
    assert history.as_dict()["samples"] == [], "there is nothing to compare with yet"
    totals = LoadTotals(20, 5, 1000, {"a": 15, "b": 5}, running=3, queued=2)
    clock.advance(10)
    await history.sample()
    totals = replace(totals, by_backend={"a": 15, "b": 25})
    clock.advance(10)
    await history.sample()
    first, second = history.as_dict()["samples"]
    assert (first["requests"], first["errors"], first["tokens"]) == (2, 0.5, 100)
    assert (first["running"], first["queued"], first["backends"]) == (3, 2, {"a": 1.5, "b": 0.5})
    assert (second["requests"], second["backends"]) == (0, {"b": 2})


async def test_an_hour_is_kept_and_no_more() -> None:
    clock = FakeClock()
    history = History(LoadTotals, clock=clock)
    for _ in range(MAX_SAMPLES + 10):
        clock.advance(10)
        await history.sample()
    assert len(history.as_dict()["samples"]) == MAX_SAMPLES


async def test_counters_that_begin_anew_are_no_negative_rate() -> None:
    clock, totals = FakeClock(), LoadTotals(100, 1, 1, {"a": 100})
    history = History(lambda: totals, clock=clock)
    await history.sample()
    totals = LoadTotals(1, 0, 0, {"a": 1})
    clock.advance(10)
    await history.sample()
    (sample,) = history.as_dict()["samples"]
    assert (sample["requests"], sample["backends"]) == (0, {})


def test_each_change_of_a_model_is_a_mark() -> None:
    history = History(LoadTotals, clock=FakeClock())
    for statuses in (
        {"a": "off", "b": "off"},
        {"a": "loading", "b": "off"},
        {"a": "loading", "b": "off"},
        {"a": "ready"},
        {},
    ):
        history.note_models([Model(alias, status) for alias, status in statuses.items()])
    marks = [(one["model"], one["status"]) for one in history.as_dict()["marks"]]
    assert marks[:2] == [("a", "loading"), ("a", "ready")]
    assert sorted(marks[2:]) == [("a", "off"), ("b", "off")]


def test_marks_are_bounded() -> None:
    history = History(LoadTotals, clock=FakeClock())
    for at in range(MAX_MARKS + 5):
        history.note_models([Model("a", f"status-{at}")])
    assert len(history.as_dict()["marks"]) == MAX_MARKS
