"""The blocks of an engine, and what the index gets of them: no clock and no network."""

from typing import Any

from appliance.engines.kv.blocks import UNCERTAIN_S, BlockChanges, Blocks
from appliance.engines.kv.events import Cleared, Removed, Stored


def stored(*blocks: tuple[int, int]) -> Stored:
    return Stored(blocks)


def taken(blocks: Blocks) -> tuple[set[Any], set[Any], set[Any]]:
    changes = blocks.take_changes(1000)
    return set(changes.stored), set(changes.removed), set(changes.removed_standard)


def test_changes_are_taken_once_and_transient_blocks_not_at_all() -> None:
    blocks = Blocks(max_blocks=10)
    blocks.apply(stored((1, 100), (2, 200)))
    blocks.apply(Removed((2, 99)))
    assert taken(blocks) == ({(1, 100)}, {2}, {200})
    assert not blocks.has_changes
    blocks.apply(stored((1, 100)))  # again
    assert not blocks.has_changes


def test_a_standard_hash_is_removed_with_its_last_block() -> None:
    blocks = Blocks(max_blocks=10)
    blocks.apply(stored((1, 100), (2, 100)))
    taken(blocks)
    blocks.apply(Removed((1,)))
    assert taken(blocks) == (set(), {1}, set())
    assert blocks.has_standard(100)
    blocks.apply(Removed((2,)))
    assert taken(blocks) == (set(), {2}, {100})
    assert not blocks.has_standard(100)


def test_a_hash_that_is_stored_again_in_time_stays() -> None:
    blocks = Blocks(max_blocks=10)
    blocks.apply(stored((1, 100)))
    taken(blocks)
    blocks.apply(Removed((1,)))
    blocks.apply(stored((2, 100)))
    assert taken(blocks) == ({(2, 100)}, {1}, set())


def test_a_hash_that_now_means_other_tokens_is_replaced() -> None:
    blocks = Blocks(max_blocks=10)
    blocks.apply(stored((1, 100)))
    taken(blocks)
    blocks.apply(stored((1, 200)))
    assert taken(blocks) == ({(1, 200)}, set(), {100})


def test_all_blocks_are_cleared_at_once() -> None:
    blocks = Blocks(max_blocks=10)
    blocks.apply(stored((1, 100), (2, 200)))
    taken(blocks)
    assert blocks.apply(Cleared()) == 0
    assert taken(blocks) == (set(), {1, 2}, {100, 200})
    assert len(blocks) == 0


def test_blocks_beyond_the_limit_are_left_out() -> None:
    blocks = Blocks(max_blocks=2)
    assert blocks.apply(stored((1, 100), (2, 200), (3, 300), (4, 400))) == 2
    assert (1 in blocks, 3 in blocks, len(blocks)) == (True, False, 2)
    blocks.apply(Removed((3, 1)))
    assert blocks.apply(stored((3, 300))) == 0


def test_everything_is_taken_in_pieces_and_later_changes_again() -> None:
    blocks = Blocks(max_blocks=10)
    blocks.apply(stored((1, 100), (2, 200), (3, 300)))
    pieces = blocks.take_all(2)
    assert not blocks.has_changes
    assert next(pieces) == BlockChanges(((1, 100), (2, 200)))
    blocks.apply(Removed((3, 1)))
    assert next(pieces) == BlockChanges((), (3,))
    assert list(pieces) == []
    assert taken(blocks) == (set(), {1, 3}, {100, 300})


def test_uncertain_blocks_expire_unless_stored_again() -> None:
    blocks = Blocks(max_blocks=10)
    blocks.apply(stored((1, 100), (2, 200)))
    assert blocks.expire_uncertain(5.0) == 0
    blocks.mark_uncertain(10.0)
    blocks.apply(stored((2, 200), (3, 300)))
    taken(blocks)
    assert blocks.expire_uncertain(10.0 + UNCERTAIN_S - 1) == 0
    assert blocks.expire_uncertain(10.0 + UNCERTAIN_S) == 1
    assert taken(blocks) == (set(), {1}, {100})
    assert blocks.expire_uncertain(10.0 + 9 * UNCERTAIN_S) == 0


def test_after_a_clearance_nothing_is_uncertain() -> None:
    blocks = Blocks(max_blocks=10)
    blocks.apply(stored((1, 100)))
    blocks.mark_uncertain(0.0)
    blocks.clear()
    blocks.apply(stored((1, 100)))
    assert blocks.expire_uncertain(2 * UNCERTAIN_S) == 0
    assert 1 in blocks
