"""KV events: messages of every form that engines have sent, names of blocks, and what is not understood."""

import hashlib
import struct
from typing import Any

import msgpack
import pytest

from appliance.engines.kv.events import Cleared, Removed, Stored, read_message, standard_hash

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


def test_a_block_is_named_by_its_tokens() -> None:
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
def test_stored_blocks_are_read_in_every_form(event: Any) -> None:
    batch = read_message(message(event, sequence=9))
    assert (batch.sequence, batch.events, batch.invalid, +batch.left_out) == (
        9,
        [Stored(((7, HASH_A), (8, HASH_B)))],
        0,
        {},
    )
    assert batch.seen == {"BlockStored": 1}


@pytest.mark.parametrize(
    ("hashes", "named"), [([-5, 2**64 - 1], (-5, 2**64 - 1)), ([b"\x01\xff", 3], ("0x01ff", 3)), ([], ())]
)
def test_removed_blocks_are_named_as_when_stored(hashes: list[Any], named: tuple[Any, ...]) -> None:
    for event in (
        ["BlockRemoved", hashes],
        ["BlockRemoved", hashes, "GPU", 0],
        {"type": "BlockRemoved", "block_hashes": hashes, "medium": None},
    ):
        assert read_message(message(event)).events == [Removed(named)]


@pytest.mark.parametrize(
    "batch",
    [
        [1.5, [["AllBlocksCleared"]]],
        [1.5, [{"type": "AllBlocksCleared"}], 3, "later"],
        {"ts": 1.5, "events": [["AllBlocksCleared"]]},
    ],
)
def test_a_batch_may_be_a_map_or_longer(batch: Any) -> None:
    assert read_message(message(batch=batch)).events == [Cleared()]


@pytest.mark.parametrize(
    ("event", "reason"),
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
def test_blocks_that_tokens_do_not_find_are_left_out(event: Any, reason: str) -> None:
    batch = read_message(message(event))
    assert (batch.events, +batch.left_out, batch.invalid) == ([], {reason: 1}, 0)


def test_only_blocks_without_extra_keys_are_taken() -> None:
    batch = read_message(
        message(as_map(block_hashes=[7, 8], token_ids=A + B, extra_keys=[["image", 0], None]))
    )
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
def test_unknown_things_are_counted_and_the_rest_is_taken(event: Any) -> None:
    batch = read_message(message(event, ["AllBlocksCleared"]))
    assert (batch.invalid, batch.events) == (1, [Cleared()])


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
def test_a_malformed_message_does_no_harm(parts: list[bytes], sequence: int | None) -> None:
    batch = read_message(parts)
    assert (batch.invalid, batch.events, batch.sequence) == (1, [], sequence)
