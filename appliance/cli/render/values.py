"""Single values as text: times, sizes, enums, optional fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

Pairs = list[tuple[str, str]]


def as_object(message: Message) -> dict[str, Any]:
    """Return a message as a plain object, its fields named as in the .proto file.

    Only absent optional ones are left out.
    """
    from google.protobuf import json_format

    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def enum_word(message: Message, field: str) -> str:
    """Return an enum field's value as a word: APPLIANCE_STATE_SERVING → serving.

    A value of a newer appliance is `unknown`.
    """
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert enum is not None
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    found = enum.values_by_number.get(getattr(message, field))
    return found.name.removeprefix(prefix).lower() if found is not None else "unknown"


def timestamp(stamp: Timestamp) -> str:
    """Return a Timestamp as `2026-11-20 10:11:12Z`."""
    return f"{stamp.ToDatetime():%Y-%m-%d %H:%M:%S}Z"


def duration(seconds: float) -> str:
    """Return seconds in the largest fitting units: 3d 4h, 5m 6s, 7.8s."""
    whole = int(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {whole % 60}s" if minutes else f"{seconds:.1f}s"


def size(size_bytes: int) -> str:
    """Return bytes in the largest fitting unit: 5.6 GiB, 512 MiB, 0 B."""
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= one:
            return f"{size_bytes / one:.1f} {unit}" if unit == "GiB" else f"{size_bytes / one:.0f} {unit}"
    return f"{size_bytes} B"


def optional(message: Message, field: str, form: str | Callable[[Any], str] = "{}") -> str:
    """Return an optional field as text by a format or a function; "" where it is absent."""
    if not message.HasField(field):
        return ""
    value = getattr(message, field)
    return form.format(value) if isinstance(form, str) else form(value)


def plural(count: int, noun: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def with_note(word: str, note: str) -> str:
    """Return `word (note)`, or the word alone."""
    return f"{word} ({note})" if note else word
