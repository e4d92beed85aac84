"""What an engine says of its cache of prompts (KV events): messages read, blocks named as a router names them.

Engines differ, and so do their releases: an event is an array or a map, its hashes are numbers or bytes, and newer releases add fields.
What is known is taken, what is not understood is counted (`Batch.odd`), and nothing here raises. Blocks that a router could not find by a
prompt's tokens alone are left out and counted as well (`Batch.left_out`): those of adapters, of images, of other memory than the engine's.
Source: system E (names and hashes of blocks); vLLM's and SGLang's kv_events (messages).
"""

import hashlib
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgpack

PARTS = 3  # topic, sequence, payload
OWN_MEMORY = frozenset(
    {"", "gpu", "npu", "xpu", "hpu", "tpu"}
)  # other tiers are CPU_PINNED, STORAGE, DISK, EXTERNAL …
_TOP_BIT = 1 << 63
TAGS = STORED, REMOVED, CLEARED = "BlockStored", "BlockRemoved", "AllBlocksCleared"
# The order of the fields where an event is an array; releases add at the end.
_FIELDS = {
    STORED: (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
        "group_idx",
        "kv_cache_spec_kind",
        "kv_cache_spec_sliding_window",
        "locality",
    ),
    REMOVED: ("block_hashes", "medium", "group_idx", "locality"),
    CLEARED: (),
}

EngineHash = int | str  # as the engine names a block: a number, or `0x…` of its bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that the engine has now: how it names each, and how routers do (standard hash)."""

    blocks: tuple[tuple[EngineHash, int], ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that it has no longer."""

    hashes: tuple[EngineHash, ...]


@dataclass(frozen=True, slots=True)
class Cleared:
    """It has none left."""


Event = Stored | Removed | Cleared


@dataclass(slots=True)
class Batch:
    """One message. sequence: counts up from 0 in each life of the engine, None = it cannot be read; odd: things that were not
    understood; left_out: blocks by why they are not told; seen: events by their tag."""

    sequence: int | None = None
    events: list[Event] = field(default_factory=list)
    odd: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)


def standard_hash(token_ids: list[int]) -> int:
    """Name a block as every router can that knows its tokens.

    Raises  struct.error: a token is no number from 0 to 2^32 - 1
    Source  system E: the first 8 bytes of SHA-256 over the tokens as big-endian u32, the top bit cleared
    """
    packed = struct.pack(f">{len(token_ids)}I", *token_ids)
    return int.from_bytes(hashlib.sha256(packed).digest()[:8], "big") & ~_TOP_BIT


def read(parts: list[bytes]) -> Batch:
    """Read one message of a publisher.

    Takes   parts: (topic, sequence as 8 bytes big-endian, msgpack of [time, events, rank …] or of a map with `events`)
    """
    batch = Batch()
    if len(parts) != PARTS or len(parts[1]) != 8:
        batch.odd += 1
        return batch
    batch.sequence = int.from_bytes(parts[1], "big")
    events = _events_of(parts[2])
    if events is None:
        batch.odd += 1
    for event in events or ():
        _take(event, batch)
    return batch


def _events_of(payload: bytes) -> list[Any] | None:
    """Unpack a payload; None = it holds no list of events."""
    try:
        value = msgpack.unpackb(payload, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        return None
    events = (
        value.get("events")
        if isinstance(value, dict)
        else value[1]
        if isinstance(value, list) and len(value) > 1
        else None
    )
    return events if isinstance(events, list) else None


def _take(event: Any, batch: Batch) -> None:
    """Add one event to the batch, or count why not."""
    tag, fields = _opened(event)
    if tag not in _FIELDS:
        batch.odd += 1
        return
    batch.seen[tag] += 1
    if tag == CLEARED:
        batch.events.append(Cleared())
        return
    hashes = _hashes(fields.get("block_hashes"))
    if hashes is None:
        batch.odd += 1
    elif why := _elsewhere(fields):
        batch.left_out[why] += len(hashes)
    elif tag == REMOVED:
        batch.events.append(Removed(hashes))
    else:
        _take_stored(hashes, fields, batch)


def _opened(event: Any) -> tuple[str, dict[str, Any]]:
    """Give an event's tag and its fields by name."""
    if isinstance(event, dict):
        return str(event.get("type", "")), event
    if not isinstance(event, list) or not event or not isinstance(event[0], str):
        return "", {}
    return event[0], dict(zip(_FIELDS.get(event[0], ()), event[1:], strict=False))


def _hashes(value: Any) -> tuple[EngineHash, ...] | None:
    if not isinstance(value, list):
        return None
    named = [
        one if isinstance(one, int) else "0x" + one.hex() if isinstance(one, bytes) else None for one in value
    ]
    return None if None in named else tuple(named)  # type: ignore[arg-type]


def _elsewhere(fields: dict[str, Any]) -> str:
    """Say why a router must not hear of these blocks; "" = it may.

    Of a model with several groups of layers each has its own blocks under the same hashes: the first group's stand for all.
    """
    if (
        str(fields.get("medium") or "").lower() not in OWN_MEMORY
        or str(fields.get("locality") or "").upper() == "REMOTE"
    ):
        return "other_memory"
    return "other_group" if fields.get("group_idx") else ""


def _take_stored(hashes: tuple[EngineHash, ...], fields: dict[str, Any], batch: Batch) -> None:
    """Split the tokens into blocks. An adapter's blocks hold other values for the same tokens, and so do those with extra keys."""
    tokens, size, extra = fields.get("token_ids"), fields.get("block_size"), fields.get("extra_keys")
    if (
        not isinstance(tokens, list)
        or not isinstance(size, int)
        or size < 1
        or not 0 <= len(hashes) * size - len(tokens) < size
    ):
        batch.odd += 1
        return
    if fields.get("lora_id") is not None or fields.get("lora_name"):
        batch.left_out["adapter"] += len(hashes)
        return
    extras = extra if isinstance(extra, list) else []
    plain = [index for index in range(len(hashes)) if index >= len(extras) or not extras[index]]
    try:
        blocks = tuple(
            (hashes[index], standard_hash(tokens[index * size : (index + 1) * size])) for index in plain
        )
    except struct.error:
        batch.odd += 1
        return
    batch.left_out["extra_keys"] += len(hashes) - len(blocks)
    if blocks:
        batch.events.append(Stored(blocks))
