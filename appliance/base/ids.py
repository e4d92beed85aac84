"""Ids of rows: UUIDs of version 7, which sort by the time at which they were made."""

import os
import re
import uuid

from appliance.base.clock import Clock

_FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_id(text: str) -> bool:
    """Whether a text that a caller sent can be the id of a row; others need not be looked up."""
    return _FORM.fullmatch(text) is not None


def new_id(clock: Clock) -> str:
    """Make an id.

    Source:
        RFC 9562, section 5.7: 48 bits of milliseconds, version, 12 and 62 random bits.
    """
    milliseconds = int(clock.now_s() * 1000) & 0xFFFF_FFFF_FFFF
    chance = int.from_bytes(os.urandom(10))
    value = milliseconds << 80 | 0x7 << 76 | (chance >> 68) << 64 | 0b10 << 62 | chance & (1 << 62) - 1
    return str(uuid.UUID(int=value))
