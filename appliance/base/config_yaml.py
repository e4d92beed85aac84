"""YAML as text that is not trusted, read by the core schema of YAML 1.2.

The module is loaded only where there is such a file.
"""

import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

MAX_YAML_BYTES = 1024 * 1024  # some seconds of work
MAX_MERGED = 200_000
_MERGE = "tag:yaml.org,2002:merge"
MAX_OPEN = 100  # levels of brackets and indents: the reader in C calls itself for each, and ends the process


def parse_yaml(data: bytes) -> Any:
    """Read one document.

    Raises:
        ValueError: It is too large, not UTF-8, or not YAML; the text says what is wrong and where.
    """
    if len(data) > MAX_YAML_BYTES:
        raise ValueError(f"The file is larger than {MAX_YAML_BYTES} bytes, which is too much YAML. Use JSON.")
    try:
        text = data.decode("utf-8-sig")
        _check_depth(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - it makes plain values only
    except UnicodeDecodeError:
        raise ValueError("The file is not UTF-8.") from None
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise ValueError(f"The file is not YAML: {exc.problem}{where}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        text = " ".join(str(exc).split())[:200]
        raise ValueError(f"The file is not YAML: {text or type(exc).__name__}.") from None


def _check_depth(text: str) -> None:
    """Refuse what is nested too deep for the reader.

    Raises:
        ValueError: It is.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_OPEN:
                raise ValueError(f"nested more than {MAX_OPEN} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # C: ten times as fast
    """Reads the core schema of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    _pairs_left = MAX_MERGED  # that `<<` may still copy

    def flatten_mapping(self, node: Any) -> None:
        """Put what `<<` names in front of a mapping's own pairs; the first of several wins over the next."""
        merges = [value for key, value in node.value if key.tag == _MERGE]
        if not merges:
            return
        own = node.value = [(key, value) for key, value in node.value if key.tag != _MERGE]
        merged: list[Any] = []
        for value in merges:
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in reversed(parts):
                if not isinstance(part, yaml.MappingNode):
                    said = "<< needs a mapping, or a list of mappings"
                    raise yaml.constructor.ConstructorError(None, None, said, value.start_mark)
                self.flatten_mapping(part)
                self._pairs_left -= len(part.value)
                if self._pairs_left < 0:
                    said = f"<< copies more than {MAX_MERGED} values"
                    raise yaml.constructor.ConstructorError(None, None, said, value.start_mark)
                merged += part.value
        node.value = merged + own

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse keys that are no text or there twice; those of `<<` may be replaced."""
        seen = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            key.tag = "tag:yaml.org,2002:str"  # a model called 010 or null keeps its name
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                said = f"the key {key.value[:80]!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            seen.add(key.value)
        made: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return made


_RESOLVED = {  # tag → (what is read as it, how that may begin)
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "merge": (r"<<", ["<"]),
}
for _tag, (_pattern, _first) in _RESOLVED.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _construct_int(loader: Any, node: Any) -> int:
    text = loader.construct_scalar(node)
    return int(text, 16) if text.lower().startswith("0x") else int(text)


def _construct_float(loader: Any, node: Any) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
