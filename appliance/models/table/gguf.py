"""The header of a GGUF file, read without loading the model.

No file is trusted: every length is compared with the size of the file before it is used.
Source: the GGUF specification, versions 2 and 3.
"""

import math
import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
MAX_KEYS = 65_536
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 8  # of a tensor; today's have up to four
MIN_BITS = 1  # that a parameter takes: the tightest quantizations have some 1.6
MAX_KEPT = 1024  # elements of an array that are kept; of longer ones (vocabularies) only how many there are
_FORMATS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
# general.file_type → its usual name (llama.cpp's LLAMA_FTYPE).
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
}


PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.gguf)", re.IGNORECASE)
_RANK = 4  # LLAMA_POOLING_TYPE_RANK: it pools to a score


class InvalidGguf(ValueError):
    """The file is not GGUF, is incomplete, or has an impossible header."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """A long array, of which only the length is kept."""

    length: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a file. `values`: by key; arrays are lists, long ones a `ParameterCount`."""

    version: int
    tensors: int
    values: dict[str, Any]
    size_bytes: int

    @property
    def architecture(self) -> str:
        """`llama` and the like; "" = it does not say."""
        return str(self.values.get("general.architecture") or "")

    @property
    def name(self) -> str:
        """The model's own name; "" = it does not say."""
        return str(self.values.get("general.name") or "")

    @property
    def quantization(self) -> str:
        """Q4_K_M and the like; "" = it does not say."""
        found = self.values.get("general.file_type")
        return FILE_TYPES.get(found, f"type {found}") if isinstance(found, int) else ""

    @property
    def context_tokens(self) -> int:
        """The context of its training; 0 = it does not say."""
        return self.number("context_length")

    @property
    def layers(self) -> int:
        """How many layers; 0 = it does not say."""
        return self.number("block_count")

    @property
    def vocabulary(self) -> int:
        """How many tokens; 0 = it does not say."""
        tokens = self.values.get("tokenizer.ggml.tokens")
        if isinstance(tokens, ParameterCount):
            return tokens.length
        return len(tokens) if isinstance(tokens, list) else self.number("vocab_size")

    @property
    def is_embedding(self) -> bool:
        """Whether it is a model for embeddings or scores: it pools, and generates nothing."""
        return self.values.get(f"{self.architecture}.pooling_type") not in {None, 0}

    @property
    def is_reranker(self) -> bool:
        """Whether it gives a score for a pair of texts."""
        return self.values.get(f"{self.architecture}.pooling_type") == _RANK

    @property
    def kind(self) -> str:
        """`model`, `adapter`, `mmproj` or another word; older files do not say, but clip is a projector."""
        return "mmproj" if self.architecture == "clip" else str(self.values.get("general.type") or "model")

    def number(self, key: str) -> int:
        """Return a whole number of the architecture's keys; 0 = it does not say."""
        value = self.values.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    def per_layer(self, key: str) -> list[int]:
        """Return a number for each layer, whether there is one for all or a list; [] = it does not say."""
        value = self.values.get(f"{self.architecture}.{key}")
        if isinstance(value, list) and all(isinstance(one, int) for one in value):
            return [max(0, one) for one in value]
        one = self.number(key)
        return [one] * self.layers if one else []


def gguf_parts(path: Path) -> list[Path]:
    """Return all files of a model: itself, or (`-00001-of-00003`) all parts in their order, there or not."""
    found = PART.fullmatch(path.name)
    if not found:
        return [path]
    return [
        path.with_name(f"{found['stem']}-{number:05}-of-{found['count']}{found['ending']}")
        for number in range(1, int(found["count"]) + 1)
    ]


def gguf_stem(path: Path) -> str:
    """Return a file's name without its ending, and without `-00001-of-00003`."""
    found = PART.fullmatch(path.name)
    return found["stem"] if found else path.stem


def gguf_size_bytes(path: Path) -> int:
    """Return the size of a model's files together; missing ones count nothing."""
    return sum(part.stat().st_size for part in gguf_parts(path) if part.is_file())


def read_header(path: Path, *, max_kept: int = MAX_KEPT, is_brief: bool = False) -> GgufHeader:
    """Read the header of a model file.

    Args:
        path: Of a model in parts, the first.
        max_kept: Elements up to which an array is kept; of longer ones only their number.
        is_brief: Leave out the vocabulary and what comes after it, which is most of the work.

    Raises:
        InvalidGguf: What is wrong with the file.
        OSError: It cannot be read.
    """
    with _reading(path, max_kept) as reader:
        return reader.header(is_brief)


def count_parameters(path: Path) -> int:
    """Count the parameters in a file's tensors, by their shapes. It may be a later part of a model in parts.

    Raises:
        InvalidGguf: What is wrong with the file.
        OSError: It cannot be read.
    """
    with _reading(path, MAX_KEPT) as reader:
        return reader.parameters()


@contextmanager
def _reading(path: Path, max_kept: int) -> Iterator["_Reader"]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 24:
            raise InvalidGguf(f"it has only {size} bytes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Reader(data, size, max_kept)


class _Reader:
    """Reads the bytes once, from the front."""

    def __init__(self, data: mmap.mmap, size: int, max_kept: int) -> None:
        self._data = data
        self._size = size
        self._most_kept = max_kept
        self._at = 0

    def header(self, is_brief: bool) -> GgufHeader:
        """Read the header."""
        version, tensors, values = self._values(is_brief)
        if not values.get("general.architecture"):
            raise InvalidGguf("it has no general.architecture")
        return GgufHeader(version, tensors, values, self._size)

    def parameters(self) -> int:
        """Count the parameters of all tensors."""
        _, tensors, _ = self._values(False)
        total = 0
        for _ in range(tensors):
            self._string()
            dimensions = self._scalar("<I")
            if dimensions > MAX_DIMENSIONS:
                raise InvalidGguf(f"a tensor has {dimensions} dimensions, more than {MAX_DIMENSIONS}")
            total += math.prod(self._scalar("<Q") for _ in range(dimensions))
            self._skip(12, "its tensors")  # its type, and where its numbers begin
        if total * MIN_BITS > self._size * 8:
            raise InvalidGguf(f"its tensors would have {total} parameters, more than the file can hold")
        return total

    def _values(self, is_brief: bool) -> tuple[int, int, dict[str, Any]]:
        """Return (version, number of tensors, values by key)."""
        if self._data[:4] != MAGIC:
            raise InvalidGguf(f"it begins with {self._data[:4]!r}, not with {MAGIC!r}")
        self._at = 4
        version = self._scalar("<I")
        if version not in {2, 3}:
            raise InvalidGguf(
                f"GGUF version {version} is not supported; 2 and 3 are"
                if version < 1 << 16
                else "it is in big-endian order, which is not supported"
            )
        tensors, keys = self._scalar("<Q"), self._scalar("<Q")
        if keys > MAX_KEYS or tensors > MAX_TENSORS:
            raise InvalidGguf(f"it claims {tensors} tensors and {keys} keys, which is impossible")
        values: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            if is_brief and key.startswith("tokenizer.") and "general.architecture" in values:
                break
            values[key] = self._value(self._scalar("<I"), key)
        return version, tensors, values

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _FORMATS:
            return self._scalar(_FORMATS[kind])
        if kind == _ARRAY:
            return self._array(key)
        raise InvalidGguf(f"the value {key!r} has the unknown type {kind}")

    def _array(self, key: str) -> Any:
        kind, length = self._scalar("<I"), self._scalar("<Q")
        if kind in _FORMATS:
            form = _FORMATS[kind]
            start = self._skip(struct.calcsize(form) * length, key)
            return (
                [one for (one,) in struct.iter_unpack(form, self._data[start : self._at])]
                if length <= self._most_kept
                else ParameterCount(length)
            )
        if kind != _STRING:
            raise InvalidGguf(f"the array {key!r} has values of the unknown type {kind}")
        if length * 8 > self._size:
            raise InvalidGguf(f"the array {key!r} is longer than the file")
        if length <= self._most_kept:
            return [self._string() for _ in range(length)]
        data, at, read = self._data, self._at, struct.Struct("<Q").unpack_from
        try:
            for _ in range(length):
                at += 8 + read(data, at)[0]
        except struct.error:
            raise InvalidGguf(f"it ends within {key!r}") from None
        self._at = at
        self._skip(0, key)
        return ParameterCount(length)

    def _string(self) -> str:
        length = self._scalar("<Q")
        start = self._skip(length, "a text")
        return self._data[start : self._at].decode("utf-8", "replace")

    def _scalar(self, form: str) -> Any:
        start = self._skip(struct.calcsize(form), "its header")
        return struct.unpack_from(form, self._data, start)[0]

    def _skip(self, length: int, what: str) -> int:
        """Skip `length` bytes; return where they begin."""
        start = self._at
        if start + length > self._size:
            raise InvalidGguf(f"it ends within {what!r}: it is incomplete, or still being written")
        self._at = start + length
        return start
