"""Values that many messages hold: timestamps, enums, texts, structs."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from google.protobuf import struct_pb2, timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

EnumValue = TypeVar("EnumValue", bound=int)
MAX_EXACT_INTEGER = 2**53  # a double holds every integer below it


def to_timestamp(at_s: float | None) -> timestamp_pb2.Timestamp | None:
    """Return seconds since 1970 as a Timestamp; None stays None."""
    if at_s is None:
        return None
    whole = int(at_s // 1)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=int((at_s - whole) * 1e9))


def to_enum(enum: type[EnumValue], prefix: str, word: str) -> EnumValue:
    """Return the value PREFIX_WORD of a protobuf enum; 0 for a word that the enum does not have."""
    values = cast(EnumTypeWrapper, enum).DESCRIPTOR.values_by_name
    found = values.get(f"{prefix}_{word.upper()}")
    return cast(EnumValue, found.number if found is not None else 0)


def to_sendable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 and so protobuf cannot carry."""
    return text.encode("utf-8", "replace").decode()


def pick_fields(message: type[Message], values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return those of `names` that have a value; converted to text where the message's field is a string."""
    fields = message.DESCRIPTOR.fields_by_name
    return {
        name: str(value)
        if fields[name].type == FieldDescriptor.TYPE_STRING and not isinstance(value, (list, tuple))
        else value
        for name in names
        if (value := values.get(name)) is not None
    }


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Return a Struct as a plain object. Its numbers are all doubles; whole ones become integers again."""
    return {name: _from_value(value) for name, value in struct.fields.items()}


def _from_value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_from_value(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < MAX_EXACT_INTEGER else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
    return None
