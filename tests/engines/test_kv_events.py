"""KV events: messages of every form that engines have sent, blocks named as system E names them, and what is not understood."""

import hashlib
import struct
from typing import Any

import msgpack
import pytest

from appliance.engines.kv.blocks import LAPSED_S, BlockChanges, Blocks
from appliance.engines.kv.events import Cleared, Removed, Stored, read, standard_hash

A, B = [1, 2, 3, 4], [5, 6, 7, 8]
HASH_A, HASH_B = standard_hash(A), standard_hash(B)


def message(*events: Any, sequence: int = 0, batch: Any = None) -> list[bytes]:
    return [
        b"kv-events",
        sequence.to_bytes(8, "big"),
        msgpack.packb([1.5, list(events), 0] if batch is None else batch),
    ]


def as_map(**fields: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": [7],
        "parent_block_hash": None,
        "token_ids": A,
        "block_size": 4,
        "lora_id": None,
        **fields,
    }


def test_a_blocks_name_is_system_es() -> None:
    """Eight bytes of SHA-256 over big-endian tokens without the top bit, worked out by hand."""
    digest = hashlib.sha256(struct.pack(">IIII", 1, 2, 3, 4)).digest()
    assert standard_hash(A) == struct.unpack(">Q", digest[:8])[0] & 0x7FFF_FFFF_FFFF_FFFF
    names = [standard_hash([number]) for number in range(200)]
    assert max(names) < 1 << 63
    assert len(set(names)) == 200


@pytest.mark.parametrize(
    "event",
    [
        ["BlockStored", [7, 8], None, A + B, 4, None],
        ["BlockStored", [7, 8], 3, A + B, 4, None, "GPU"],
        [
            "BlockStored",
            [7, 8],
            3,
            A + B,
            4,
            None,
            "GPU",
            None,
            None,
            0,
            "full_attention",
            None,
            "LOCAL",
            "more",
            "of",
            "later",
        ],
        as_map(block_hashes=[7, 8], token_ids=A + B),
        as_map(block_hashes=[7, 8], token_ids=A + B, medium="GPU", lora_name=None, group_idx=0, later={}),
        as_map(block_hashes=[7, 8], token_ids=A + B, extra_keys=[None, None]),
    ],
    ids=["first vLLM", "with medium, SGLang", "fields of later", "a map", "today's vLLM", "no extra keys"],
)
def test_stored_blocks_are_understood_in_every_form(event: Any) -> None:
    batch = read(message(event, sequence=9))
    assert (batch.sequence, batch.events, batch.odd, +batch.left_out) == (
        9,
        [Stored(((7, HASH_A), (8, HASH_B)))],
        0,
        {},
    )
    assert batch.seen == {"BlockStored": 1}


@pytest.mark.parametrize(
    ("hashes", "named"), [([-5, 2**64 - 1], (-5, 2**64 - 1)), ([b"\x01\xff", 3], ("0x01ff", 3)), ([], ())]
)
def test_removed_blocks_are_named_as_they_were_stored(hashes: list[Any], named: tuple[Any, ...]) -> None:
    for event in (
        ["BlockRemoved", hashes],
        ["BlockRemoved", hashes, "GPU", 0],
        {"type": "BlockRemoved", "block_hashes": hashes, "medium": None},
    ):
        assert read(message(event)).events == [Removed(named)]


@pytest.mark.parametrize(
    "batch",
    [
        [1.5, [["AllBlocksCleared"]]],
        [1.5, [{"type": "AllBlocksCleared"}], 3, "later"],
        {"ts": 1.5, "events": [["AllBlocksCleared"]]},
    ],
)
def test_a_batch_may_be_a_map_or_longer(batch: Any) -> None:
    assert read(message(batch=batch)).events == [Cleared()]


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (as_map(lora_id=1), "adapter"),
        (as_map(lora_name="style"), "adapter"),
        (as_map(extra_keys=[["salt"]]), "extra_keys"),
        (as_map(medium="CPU_PINNED"), "other_memory"),
        (as_map(medium="STORAGE"), "other_memory"),
        (as_map(locality="REMOTE"), "other_memory"),
        (as_map(group_idx=1), "other_group"),
        (["BlockRemoved", [7], "CPU"], "other_memory"),
        ({"type": "BlockRemoved", "block_hashes": [7], "group_idx": 2}, "other_group"),
    ],
)
def test_blocks_that_tokens_alone_do_not_find_are_left_out(event: Any, why: str) -> None:
    batch = read(message(event))
    assert (batch.events, +batch.left_out, batch.odd) == ([], {why: 1}, 0)


def test_of_blocks_with_and_without_extra_keys_the_plain_ones_are_told() -> None:
    batch = read(message(as_map(block_hashes=[7, 8], token_ids=A + B, extra_keys=[["image", 0], None])))
    assert (batch.events, +batch.left_out) == ([Stored(((8, HASH_B),))], {"extra_keys": 1})


@pytest.mark.parametrize(
    "event",
    [
        ["BlockMoved", [7]],
        [],
        "text",
        5,
        None,
        {},
        {"type": 3},
        [["BlockStored"]],
        ["BlockStored"],
        ["BlockRemoved"],
        ["BlockRemoved", 7],
        as_map(block_hashes=["text"]),
        as_map(block_hashes=[1.5]),
        as_map(token_ids=A + B),
        as_map(token_ids=[]),
        as_map(token_ids=[1, 2, 3, -4]),
        as_map(token_ids=[1, 2, 3, 2**32]),
        as_map(token_ids=[[1, 2]] * 4),
        as_map(token_ids="text"),
        as_map(block_size=0),
        as_map(block_size="4"),
        as_map(block_size=None),
    ],
)
def test_what_is_not_understood_is_counted_and_the_rest_taken(event: Any) -> None:
    batch = read(message(event, ["AllBlocksCleared"]))
    assert (batch.odd, batch.events) == (1, [Cleared()])


@pytest.mark.parametrize(
    ("parts", "sequence"),
    [
        ([], None),
        ([b"x"], None),
        ([b"t", b"123", msgpack.packb([1, []])], None),
        ([b"t", bytes(8), b"\xc1"], 0),
        ([b"t", bytes(8), b""], 0),
        ([b"t", bytes(8), msgpack.packb("text")], 0),
        ([b"t", bytes(8), msgpack.packb([1, "text"])], 0),
        ([b"t", bytes(8), b"\x91" * 5000], 0),
        ([b"t", bytes(8), b"\xa2\xff\xfe"], 0),
        ([b"t", bytes(8), msgpack.packb([1, []]) * 2], 0),
        ([b"t", bytes(8), b"\xdd\xff\xff\xff\xff"], 0),
    ],
    ids=[
        "nothing",
        "one part",
        "sequence",
        "no msgpack",
        "empty",
        "text",
        "no list",
        "deep",
        "no UTF-8",
        "too long",
        "says it is huge",
    ],
)
def test_a_message_that_is_none_does_no_harm(parts: list[bytes], sequence: int | None) -> None:
    batch = read(parts)
    assert (batch.odd, batch.events, batch.sequence) == (1, [], sequence)


# ---- what the index must hear of


def stored(*blocks: tuple[int, int]) -> Stored:
    return Stored(blocks)


def told(blocks: Blocks) -> tuple[set[Any], set[Any], set[Any]]:
    changes = blocks.take(1000)
    return set(changes.there), set(changes.gone), set(changes.gone_standard)


def test_changes_are_told_once_and_what_came_and_went_is_not_written() -> None:
    blocks = Blocks(most=10)
    blocks.apply(stored((1, 100), (2, 200)))
    blocks.apply(Removed((2, 99)))
    assert told(blocks) == ({(1, 100)}, {2}, {200})
    assert not blocks.has_changes
    blocks.apply(stored((1, 100)))  # again
    assert not blocks.has_changes


def test_a_standard_hash_goes_with_the_last_block_that_has_it() -> None:
    blocks = Blocks(most=10)
    blocks.apply(stored((1, 100), (2, 100)))
    told(blocks)
    blocks.apply(Removed((1,)))
    assert told(blocks) == (set(), {1}, set())
    assert blocks.has_standard(100)
    blocks.apply(Removed((2,)))
    assert told(blocks) == (set(), {2}, {100})
    assert not blocks.has_standard(100)


def test_one_that_is_back_before_it_was_told_stays() -> None:
    blocks = Blocks(most=10)
    blocks.apply(stored((1, 100)))
    told(blocks)
    blocks.apply(Removed((1,)))
    blocks.apply(stored((2, 100)))
    assert told(blocks) == ({(2, 100)}, {1}, set())


def test_a_hash_that_now_means_other_tokens_moves() -> None:
    blocks = Blocks(most=10)
    blocks.apply(stored((1, 100)))
    told(blocks)
    blocks.apply(stored((1, 200)))
    assert told(blocks) == ({(1, 200)}, set(), {100})


def test_all_go_at_once() -> None:
    blocks = Blocks(most=10)
    blocks.apply(stored((1, 100), (2, 200)))
    told(blocks)
    assert blocks.apply(Cleared()) == 0
    assert told(blocks) == (set(), {1, 2}, {100, 200})
    assert len(blocks) == 0


def test_blocks_without_room_are_left_out_until_there_is_some() -> None:
    blocks = Blocks(most=2)
    assert blocks.apply(stored((1, 100), (2, 200), (3, 300), (4, 400))) == 2
    assert (1 in blocks, 3 in blocks, len(blocks)) == (True, False, 2)
    blocks.apply(Removed((3, 1)))
    assert blocks.apply(stored((3, 300))) == 0


def test_all_of_it_is_given_in_pieces_and_later_changes_once_more() -> None:
    blocks = Blocks(most=10)
    blocks.apply(stored((1, 100), (2, 200), (3, 300)))
    pieces = blocks.all(2)
    assert not blocks.has_changes
    assert next(pieces) == BlockChanges(((1, 100), (2, 200)))
    blocks.apply(Removed((3, 1)))
    assert next(pieces) == BlockChanges((), (3,))
    assert list(pieces) == []
    assert told(blocks) == (set(), {1, 3}, {100, 300})


def test_what_is_in_doubt_lapses_after_a_day_unless_it_is_heard_of_again() -> None:
    blocks = Blocks(most=10)
    blocks.apply(stored((1, 100), (2, 200)))
    assert blocks.lapse(5.0) == 0
    blocks.doubt(10.0)
    blocks.apply(stored((2, 200), (3, 300)))
    told(blocks)
    assert blocks.lapse(10.0 + LAPSED_S - 1) == 0
    assert blocks.lapse(10.0 + LAPSED_S) == 1
    assert told(blocks) == (set(), {1}, {100})
    assert blocks.lapse(10.0 + 9 * LAPSED_S) == 0


def test_after_a_clearance_nothing_is_in_doubt() -> None:
    blocks = Blocks(most=10)
    blocks.apply(stored((1, 100)))
    blocks.doubt(0.0)
    blocks.clear()
    blocks.apply(stored((1, 100)))
    assert blocks.lapse(2 * LAPSED_S) == 0
    assert 1 in blocks
