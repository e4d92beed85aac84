"""The messages of an engine about its KV cache (KV events), and the names of blocks that routers use.

Engines differ, and so do their releases: an event is an array or a map, its hashes are numbers or bytes, and
newer releases add fields. Known parts are used, the others are counted (`EventBatch.invalid`) and never raise
an exception. Blocks that a router cannot find by a prompt's tokens alone are left out and counted as well
(`EventBatch.left_out`): those of adapters, of images, and of other memory than the engine's.

Source:
    vLLM's and SGLang's kv_events (messages); for names and hashes of blocks, see docs/compatibility.md.
"""

import hashlib
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgpack

MESSAGE_PARTS = 3  # topic, sequence, payload
SEQUENCE_BYTES = 8
# Other tiers are CPU_PINNED, STORAGE, DISK, EXTERNAL …
OWN_MEMORY = frozenset({"", "gpu", "npu", "xpu", "hpu", "tpu"})
_TOP_BIT = 1 << 63
TAGS = STORED, REMOVED, CLEARED = "BlockStored", "BlockRemoved", "AllBlocksCleared"
# The order of the fields in an event that is an array; releases add at the end.
_STORED_FIELDS = (
    *("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"),
    *("extra_keys", "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window", "locality"),
)
_FIELDS = {
    STORED: _STORED_FIELDS,
    REMOVED: ("block_hashes", "medium", "group_idx", "locality"),
    CLEARED: (),
}

EngineHash = int | str  # as the engine names a block: a number, or `0x…` of its bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that the engine has now, as (its own hash, the standard hash)."""

    blocks: tuple[tuple[EngineHash, int], ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that the engine has no longer."""

    hashes: tuple[EngineHash, ...]


@dataclass(frozen=True, slots=True)
class Cleared:
    """The engine has no blocks any more."""


Event = Stored | Removed | Cleared


@dataclass(slots=True)
class EventBatch:
    """One message.

    Attributes:
        sequence: Counts up from 0 in each life of the engine; None = unreadable.
        invalid: Number of things that were not understood.
        left_out: Blocks that the index does not get, by reason.
        seen: Events by their tag.
    """

    sequence: int | None = None
    events: list[Event] = field(default_factory=list)
    invalid: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)


def standard_hash(token_ids: list[int]) -> int:
    """Return the name of a block, as every router computes it from the tokens.

    Raises:
        struct.error: A token is no number from 0 to 2^32 - 1.

    Source:
        The first 8 bytes of SHA-256 over the tokens as big-endian u32, without the top bit; see
        docs/compatibility.md.
    """
    packed = struct.pack(f">{len(token_ids)}I", *token_ids)
    return int.from_bytes(hashlib.sha256(packed).digest()[:8], "big") & ~_TOP_BIT


def read_message(parts: list[bytes]) -> EventBatch:
    """Read one message of a publisher.

    Args:
        parts: Topic; sequence as 8 bytes big-endian; msgpack of `[time, events, rank …]` or of a map with
            `events`.
    """
    batch = EventBatch()
    if len(parts) != MESSAGE_PARTS or len(parts[1]) != SEQUENCE_BYTES:
        batch.invalid += 1
        return batch
    batch.sequence = int.from_bytes(parts[1], "big")
    events = _unpack_events(parts[2])
    if events is None:
        batch.invalid += 1
    for event in events or ():
        _read_event(event, batch)
    return batch


def _unpack_events(payload: bytes) -> list[Any] | None:
    """Return the events of a payload; None = it holds no list of events."""
    try:
        value = msgpack.unpackb(payload, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        return None
    events = None
    if isinstance(value, dict):
        events = value.get("events")
    elif isinstance(value, list) and len(value) > 1:
        events = value[1]
    return events if isinstance(events, list) else None


def _read_event(event: Any, batch: EventBatch) -> None:
    """Add one event to the batch, or count why not.

    1. unknown tag                                   → invalid
    2. all blocks cleared                            → Cleared
    3. hashes of another type                        → invalid
    4. blocks that are of no use to a router         → left out
    5. blocks removed                                → Removed
    6. blocks stored                                 → Stored, without those that tokens alone do not find
    """
    tag, fields = _open_event(event)
    if tag not in _FIELDS:  # 1
        batch.invalid += 1
        return
    batch.seen[tag] += 1
    if tag == CLEARED:  # 2
        batch.events.append(Cleared())
        return
    hashes = _read_hashes(fields.get("block_hashes"))
    if hashes is None:  # 3
        batch.invalid += 1
    elif reason := _find_other_place(fields):  # 4
        batch.left_out[reason] += len(hashes)
    elif tag == REMOVED:  # 5
        batch.events.append(Removed(hashes))
    else:  # 6
        _read_stored(hashes, fields, batch)


def _open_event(event: Any) -> tuple[str, dict[str, Any]]:
    """Return an event's tag and its fields by name."""
    if isinstance(event, dict):
        return str(event.get("type", "")), event
    if not isinstance(event, list) or not event or not isinstance(event[0], str):
        return "", {}
    return event[0], dict(zip(_FIELDS.get(event[0], ()), event[1:], strict=False))


def _read_hashes(value: Any) -> tuple[EngineHash, ...] | None:
    if not isinstance(value, list):
        return None
    hashes: list[EngineHash] = []
    for one in value:
        if isinstance(one, int):
            hashes.append(one)
        elif isinstance(one, bytes):
            hashes.append("0x" + one.hex())
        else:
            return None
    return tuple(hashes)


def _find_other_place(fields: dict[str, Any]) -> str:
    """Return why these blocks are of no use to a router; "" = they are.

    In a model with several groups of layers each group has its own blocks under the same hashes: the first
    group's represent all.
    """
    is_own_memory = str(fields.get("medium") or "").lower() in OWN_MEMORY
    if not is_own_memory or str(fields.get("locality") or "").upper() == "REMOTE":
        return "other_memory"
    return "other_group" if fields.get("group_idx") else ""


def _read_stored(hashes: tuple[EngineHash, ...], fields: dict[str, Any], batch: EventBatch) -> None:
    """Split the tokens into blocks.

    1. tokens that do not fit the hashes                                  → invalid
    2. blocks of an adapter: other values for the same tokens             → left out
    3. blocks with extra keys, such as of an image: other values as well  → left out
    4. the others                                                         → Stored
    """
    tokens, size = fields.get("token_ids"), fields.get("block_size")
    if not isinstance(tokens, list) or not isinstance(size, int) or size < 1:  # 1
        batch.invalid += 1
        return
    if not 0 <= len(hashes) * size - len(tokens) < size:
        batch.invalid += 1
        return
    if fields.get("lora_id") is not None or fields.get("lora_name"):  # 2
        batch.left_out["adapter"] += len(hashes)
        return
    extra = fields.get("extra_keys")
    extras = extra if isinstance(extra, list) else []
    plain = [index for index in range(len(hashes)) if index >= len(extras) or not extras[index]]  # 3
    try:
        blocks = tuple(
            (hashes[index], standard_hash(tokens[index * size : (index + 1) * size])) for index in plain
        )
    except struct.error:
        batch.invalid += 1
        return
    batch.left_out["extra_keys"] += len(hashes) - len(blocks)
    if blocks:  # 4
        batch.events.append(Stored(blocks))
