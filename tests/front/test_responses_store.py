"""Responses that are kept: per caller, bounded in time, count and memory."""

from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import NotFound
from appliance.front.openai.responses_store import ITEM_BYTES, RESPONSE_BYTES, ResponseStore

ME, OTHER = "me", "other"
KEEP_S = 100.0


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text, **more}


def answer(number: int, previous: str | None = None, text: str = "yes") -> dict[str, Any]:
    """Return a response with one message."""
    item = {"type": "message", "id": f"msg_{number}", "role": "assistant", "content": [], "text": text}
    return {"id": f"resp_{number}", "previous_response_id": previous, "output": [item]}


class Kept:
    """A store with its clock."""

    def __init__(self, **more: Any) -> None:
        self.clock = FakeClock()
        self.store = ResponseStore(clock=self.clock, **{"keep_s": KEEP_S} | more)

    def add(self, number: int, previous: str | None = None, *, owner: str = ME, text: str = "yes") -> None:
        self.store.keep(owner, answer(number, previous, text), [user(f"question {number}")])

    def refuse(self, method: str, *arguments: Any) -> NotFound:
        with pytest.raises(NotFound) as caught:
            getattr(self.store, method)(*arguments)
        return caught.value


def test_a_response_is_found_until_it_is_deleted() -> None:
    kept = Kept()
    kept.add(1)
    assert kept.store.find(ME, "resp_1") == answer(1)
    kept.store.delete(ME, "resp_1")
    refused = kept.refuse("find", ME, "resp_1")
    assert "There is no response 'resp_1': it was deleted or not stored" in refused.message
    assert (refused.param, refused.code) == ("id", "not_found")
    assert kept.store.bytes_total == 0
    assert (
        "no item 'msg_1'" in kept.refuse("resolve", ME, [{"type": "item_reference", "id": "msg_1"}]).message
    )


@pytest.mark.parametrize("method", ["find", "delete", "input_items", "conversation"])
def test_another_callers_response_does_not_exist(method: str) -> None:
    kept = Kept()
    kept.add(1, owner=OTHER)
    assert "is another caller's" in kept.refuse(method, ME, "resp_1").message
    assert kept.store.find(OTHER, "resp_1")


def test_another_callers_item_does_not_exist() -> None:
    kept = Kept()
    kept.add(1, owner=OTHER)
    refused = kept.refuse("resolve", ME, [user("a"), {"type": "item_reference", "id": "msg_1"}])
    assert refused.param == "input.1.id"
    assert "There is no item 'msg_1'" in refused.message


def test_a_response_expires_after_its_last_use() -> None:
    kept = Kept()
    kept.add(1)
    kept.clock.elapsed_s += KEEP_S - 1
    kept.add(2, "resp_1")
    kept.store.conversation(ME, "resp_2")  # a use of both
    kept.clock.elapsed_s += KEEP_S - 1
    assert kept.store.find(ME, "resp_1")
    kept.clock.elapsed_s += 1
    refused = kept.refuse("conversation", ME, "resp_2")
    assert "RESPONSES_KEEP_S=100 seconds" in refused.message
    assert (refused.param, refused.code) == ("previous_response_id", "previous_response_not_found")
    assert (len(kept.store), kept.store.bytes_total) == (0, 0)


def test_a_conversation_has_every_turn_in_order() -> None:
    kept = Kept()
    for number in (1, 2, 3):
        kept.add(number, f"resp_{number - 1}" if number > 1 else None)
    items = kept.store.conversation(ME, "resp_3")
    assert [item["content"] or item["id"] for item in items] == [
        part
        for number in (1, 2, 3)
        for part in ([{"type": "input_text", "text": f"question {number}"}], f"msg_{number}")
    ]
    assert kept.store.input_items(ME, "resp_3") == items[:-1]
    assert all(item["id"] for item in items)


def test_a_conversation_without_its_beginning_is_refused() -> None:
    kept = Kept()
    kept.add(1)
    kept.add(2, "resp_1")
    kept.store.delete(ME, "resp_1")
    assert "There is no response 'resp_1'" in kept.refuse("conversation", ME, "resp_2").message
    assert len(kept.store.input_items(ME, "resp_2")) == 1


def test_a_foreign_beginning_is_not_read() -> None:
    kept = Kept()
    kept.add(1, owner=OTHER)
    kept.add(2, "resp_1")
    assert "There is no response 'resp_1'" in kept.refuse("conversation", ME, "resp_2").message


def test_references_become_the_items() -> None:
    kept = Kept()
    kept.store.keep(ME, answer(1), [user("a", id="msg_in")])
    items = [{"type": "item_reference", "id": "msg_in"}, {"type": "item_reference", "id": "msg_1"}, user("b")]
    found = kept.store.resolve(ME, items)
    assert [one.get("id") for one in found] == ["msg_in", "msg_1", None]
    assert found[1] == answer(1)["output"][0]
    plain = [user("b")]
    assert kept.store.resolve(ME, plain) is plain


def test_the_least_recently_used_go_first() -> None:
    kept = Kept(max_responses=2)
    kept.add(1)
    kept.add(2)
    kept.store.conversation(ME, "resp_1")
    kept.add(3)
    kept.refuse("find", ME, "resp_2")
    assert kept.store.find(ME, "resp_1")
    assert kept.store.find(ME, "resp_3")


def test_memory_is_accounted_and_bounded() -> None:
    kept = Kept(max_bytes=20_000)
    for number in range(50):
        kept.add(number, text="x" * (100 * number))
        assert kept.store.bytes_total <= 20_000
    found = sum(one.size_bytes for one in kept.store._kept.values())
    assert kept.store.bytes_total == found > RESPONSE_BYTES + 2 * ITEM_BYTES
    assert len(kept.store._by_item) == sum(len(one.item_ids) for one in kept.store._kept.values())
    before = len(kept.store)
    kept.add(99, text="x" * 20_001)  # larger than all of it: not kept, and nothing goes for it
    assert len(kept.store) == before
    kept.refuse("find", ME, "resp_99")


def test_nothing_is_kept_where_it_is_off() -> None:
    kept = Kept(keep_s=0)
    kept.add(1)
    assert not kept.store.is_on
    assert "responses are not kept here (RESPONSES_KEEP_S=0)" in kept.refuse("find", ME, "resp_1").message
