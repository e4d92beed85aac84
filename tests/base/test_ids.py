"""Ids of rows."""

import uuid

from appliance.base.clock import FakeClock
from appliance.base.ids import is_id, new_id


def test_ids_are_uuids_of_version_7_and_sort_by_time() -> None:
    clock = FakeClock(1_800_000_000.123)
    ids = []
    for _ in range(50):
        ids.append(new_id(clock))
        clock.advance(0.0021)
    assert ids == sorted(ids)
    assert len({new_id(clock) for _ in range(1000)}) == 1000
    one = uuid.UUID(ids[0])
    assert (one.version, one.variant) == (7, uuid.RFC_4122)
    assert one.int >> 80 == 1_800_000_000_123


def test_texts_that_are_no_ids() -> None:
    assert is_id(new_id(FakeClock()))
    for text in ("", "1", "x" * 36, new_id(FakeClock()) + "\n", new_id(FakeClock()).upper(), "\0"):
        assert not is_id(text)
