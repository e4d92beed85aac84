"""A small value that fits a JSON schema. Pure.

`pattern`, `not` and conditions are not looked at; references are followed within the schema alone.
"""

import math
from typing import Any

MAX_DEPTH = 24
MAX_VALUES = 10_000  # in one example: references can multiply a small schema
_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "demo@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_LARGEST = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems"})
_SMALLEST = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems"})


def make_example(schema: Any) -> Any:
    """Return a small value that is valid for a JSON schema; {} where it is none.

    A schema without a type is an object at the top.
    """
    if isinstance(schema, dict) and not schema.keys() & {"type", "$ref", "allOf", "anyOf", "oneOf"}:
        schema = {"type": "object", **schema} if not schema.keys() & {"const", "enum"} else schema
    return _Example(schema).make(schema, frozenset(), 0)


class _Example:
    """Makes examples of the parts of one schema.

    Args:
        root: The whole schema, in which references are looked up.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = MAX_VALUES

    def make(self, schema: Any, open_refs: frozenset[str], depth: int) -> Any:
        """Return a value for a part of the schema.

        1. not a schema, too deep or much → {}
        2. `const`, `enum`                → the value, or the first one
        3. an object, an array            → every property, as many items as needed
        4. a number, a boolean, null      → the smallest number, true, null
        5. otherwise                      → a text

        Args:
            open_refs: References that led to this part; they are followed again only where they must.
        """
        self._left -= 1
        if not isinstance(schema, dict) or depth > MAX_DEPTH or self._left < 0:  # 1
            return {}
        schema, open_refs = self._flatten(schema, open_refs, depth)
        if "const" in schema:  # 2
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][0]
        kind = _type_of(schema)
        if kind == "object":  # 3
            return self._object(schema, open_refs, depth)
        if kind == "array":
            return self._array(schema, open_refs, depth)
        if kind in {"integer", "number"}:  # 4
            return _number(schema, is_integer=kind == "integer")
        if kind in {"boolean", "null"}:
            return True if kind == "boolean" else None
        return _text(schema)  # 5

    def _flatten(
        self, schema: dict[str, Any], open_refs: frozenset[str], depth: int
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Return a schema with `$ref`, `allOf` and one alternative merged in, and the references open."""
        for _ in range(MAX_DEPTH - depth):
            parts: list[Any] = []
            rest = dict(schema)
            if isinstance(ref := rest.pop("$ref", None), str):
                parts.append({} if ref in open_refs else self._look_up(ref))
                open_refs |= {ref}
            every = rest.pop("allOf", None)
            parts += every if isinstance(every, list) else []
            for name in ("anyOf", "oneOf"):
                if isinstance(choices := rest.pop(name, None), list) and choices:
                    parts.append(next((one for one in choices if not _leads_to(one, open_refs)), choices[0]))
            if not parts:
                return rest, open_refs
            schema = rest
            for part in parts:
                schema = _merge(part, schema) if isinstance(part, dict) else schema
        return schema, open_refs

    def _look_up(self, ref: str) -> Any:
        """Return the target of a reference within the schema; {} = there is none."""
        target = self._root
        if not ref.startswith("#"):
            return {}
        for step in ref[1:].strip("/").split("/") if ref != "#" else []:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isdecimal() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, dict):
                target = target.get(step)
        return target

    def _object(self, schema: dict[str, Any], open_refs: frozenset[str], depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        required = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        more = schema.get("additionalProperties")
        names = [
            name for name in properties if name in required or not _leads_to(properties[name], open_refs)
        ]
        wanted = {name: properties[name] for name in names}
        wanted |= {
            name: more if isinstance(more, dict) else {"type": "string"}
            for name in required
            if name not in properties
        }
        return {name: self.make(part, open_refs, depth + 1) for name, part in wanted.items()}

    def _array(self, schema: dict[str, Any], open_refs: frozenset[str], depth: int) -> list[Any]:
        first = schema.get("prefixItems")
        parts: list[Any] = list(first) if isinstance(first, list) else []
        items = schema.get("items") if isinstance(schema.get("items"), dict) else {"type": "string"}
        least, most = schema.get("minItems"), schema.get("maxItems")
        wanted = 0 if parts or most == 0 or _leads_to(items, open_refs) else 1
        count = min(max(wanted, least if isinstance(least, int) else 0), MAX_VALUES)
        parts += [items] * (count - len(parts))
        return [self.make(part, open_refs, depth + 1) for part in parts]


def _leads_to(schema: Any, open_refs: frozenset[str]) -> bool:
    return isinstance(schema, dict) and schema.get("$ref") in open_refs


def _merge(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that both mean together."""
    merged = {**part, **schema}
    for name in part.keys() & schema.keys():
        ours, theirs = schema[name], part[name]
        if name == "properties" and isinstance(ours, dict) and isinstance(theirs, dict):
            both = {key: {"allOf": [theirs[key], ours[key]]} for key in theirs.keys() & ours.keys()}
            merged[name] = {**theirs, **ours, **both}
        elif name == "required" and isinstance(ours, list) and isinstance(theirs, list):
            merged[name] = [*theirs, *(one for one in ours if one not in theirs)]
        elif name == "enum" and isinstance(ours, list) and isinstance(theirs, list):
            merged[name] = [one for one in theirs if one in ours] or ours
        elif name in {"allOf", "anyOf", "oneOf", "$ref"}:
            merged[name] = ours
            merged["allOf"] = [*(merged.get("allOf") or []), {name: theirs}]
        elif name in _LARGEST and isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
            merged[name] = max(ours, theirs)
        elif name in _SMALLEST and isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
            merged[name] = min(ours, theirs)
    return merged


def _type_of(schema: dict[str, Any]) -> Any:
    kind = schema.get("type")
    if kind is None:
        is_object = schema.keys() & {"properties", "required", "additionalProperties"}
        kind = "object" if is_object else "array" if schema.keys() & {"items", "prefixItems"} else "string"
    return kind[0] if isinstance(kind, list) and kind else kind


def _number(schema: dict[str, Any], *, is_integer: bool) -> int | float:
    """Return the smallest number in the bounds, 1 where there is no lower one."""
    low, above = _limit(schema, "minimum"), _limit(schema, "exclusiveMinimum")
    high, below = _limit(schema, "maximum"), _limit(schema, "exclusiveMaximum")
    least_step = 1 if is_integer or below is None or above is None else (below - above) / 2
    if above is not None:
        low = max(above + least_step, low) if low is not None else above + least_step
    if below is not None:
        step = 1 if is_integer or low is None else (below - low) / 2
        high = min(below - step, high) if high is not None else below - step
    value: int | float = low if low is not None else 1
    if high is not None and value > high:
        value = high
    multiple = _limit(schema, "multipleOf")
    if multiple is not None and multiple > 0 and value % multiple:
        up = math.ceil(value / multiple) * multiple
        value = up if high is None or up <= high else math.floor(value / multiple) * multiple
    return math.ceil(value) if is_integer else value


def _limit(schema: dict[str, Any], name: str) -> int | float | None:
    value = schema.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(schema: dict[str, Any]) -> str:
    """Return a text of the wanted format, or of the wanted length."""
    kind, least, most = schema.get("format"), schema.get("minLength"), schema.get("maxLength")
    if isinstance(kind, str) and kind in _FORMATS:
        return _FORMATS[kind]
    text = "demo".ljust(min(least, MAX_VALUES) if isinstance(least, int) else 0, "o")
    return text[:most] if isinstance(most, int) else text
