"""The header of a GGUF file: what a model says of itself, read without loading it. Source: the GGUF specification, versions 2 and 3.

Nothing in a file is believed: every length is held against the file's own before anything is read by it.
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
MOST_KEYS = 65_536
MOST_TENSORS = 1_000_000
MOST_DIMENSIONS = 8  # of a tensor; today's have up to four
LEAST_BITS = 1  # that a parameter takes: the tightest quantizations have some 1.6
MOST_KEPT = 1024  # elements of an array that are kept; of longer ones (vocabularies) only how many there are
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
# general.file_type → the name by which people know it (llama.cpp's LLAMA_FTYPE).
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
    """The file is no GGUF file, is cut off, or says things of itself that cannot be."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """A long array, of which only the length is kept."""

    length: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says of itself. `values`: by key; arrays are lists, long ones a Count."""

    version: int
    tensors: int
    values: dict[str, Any]
    size_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture") or "")

    @property
    def name(self) -> str:
        return str(self.values.get("general.name") or "")

    @property
    def quantization(self) -> str:
        """Q4_K_M and the like; "" = it does not say."""
        found = self.values.get("general.file_type")
        return FILE_TYPES.get(found, f"type {found}") if isinstance(found, int) else ""

    @property
    def context_tokens(self) -> int:
        """The context that it was trained with; 0 = it does not say."""
        return self.number("context_length")

    @property
    def layers(self) -> int:
        return self.number("block_count")

    @property
    def vocabulary(self) -> int:
        tokens = self.values.get("tokenizer.ggml.tokens")
        return (
            tokens.length
            if isinstance(tokens, ParameterCount)
            else len(tokens)
            if isinstance(tokens, list)
            else self.number("vocab_size")
        )

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
        """`model`, `adapter`, `mmproj`, or another word; older files do not say, but one of the architecture clip is a projector."""
        return "mmproj" if self.architecture == "clip" else str(self.values.get("general.type") or "model")

    def number(self, key: str) -> int:
        """Give a whole number of the architecture's keys; 0 = it does not say."""
        value = self.values.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    def per_layer(self, key: str) -> list[int]:
        """Give a number for each layer: some models have one for all, some a list; [] = it does not say."""
        value = self.values.get(f"{self.architecture}.{key}")
        if isinstance(value, list) and all(isinstance(one, int) for one in value):
            return [max(0, one) for one in value]
        one = self.number(key)
        return [one] * self.layers if one else []


def gguf_parts(path: Path) -> list[Path]:
    """Give all files of a model: itself, or where its name says `-00001-of-00003`, all parts in their order, there or not."""
    found = PART.fullmatch(path.name)
    if not found:
        return [path]
    return [
        path.with_name(f"{found['stem']}-{number:05}-of-{found['count']}{found['ending']}")
        for number in range(1, int(found["count"]) + 1)
    ]


def gguf_stem(path: Path) -> str:
    """Give a file's name without its ending, and without `-00001-of-00003`."""
    found = PART.fullmatch(path.name)
    return found["stem"] if found else path.stem


def gguf_size_bytes(path: Path) -> int:
    """Give the bytes of a model's files together; those that are not there count nothing."""
    return sum(part.stat().st_size for part in gguf_parts(path) if part.is_file())


def read_header(path: Path, *, most_kept: int = MOST_KEPT, is_brief: bool = False) -> GgufHeader:
    """Read the header of a model file.

    Takes   most_kept: elements up to which an array is kept; of longer ones only how many there are;
            is_brief: leave out its vocabulary and what comes after it, which is most of the work
    Raises  BadGguf: with what is wrong · OSError
    """
    with _reading(path, most_kept) as reader:
        return reader.header(is_brief)


def count_parameters(path: Path) -> int:
    """Count the numbers in a file's tensors, by the shapes that it tells; a later part of a file in parts will do.

    Raises  BadGguf: with what is wrong · OSError
    """
    with _reading(path, MOST_KEPT) as reader:
        return reader.parameters()


@contextmanager
def _reading(path: Path, most_kept: int) -> Iterator["_Reader"]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 24:
            raise InvalidGguf(f"it has {size} bytes, which is too short for a model")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Reader(data, size, most_kept)


class _Reader:
    """Goes through the bytes once, from the front."""

    def __init__(self, data: mmap.mmap, size: int, most_kept: int) -> None:
        self._data = data
        self._size = size
        self._most_kept = most_kept
        self._at = 0

    def header(self, is_brief: bool) -> GgufHeader:
        version, tensors, values = self._values(is_brief)
        if not values.get("general.architecture"):
            raise InvalidGguf("it does not say its architecture")
        return GgufHeader(version, tensors, values, self._size)

    def parameters(self) -> int:
        _, tensors, _ = self._values(False)
        total = 0
        for _ in range(tensors):
            self._string()
            dimensions = self._scalar("<I")
            if dimensions > MOST_DIMENSIONS:
                raise InvalidGguf(f"a tensor has {dimensions} dimensions, which cannot be")
            total += math.prod(self._scalar("<Q") for _ in range(dimensions))
            self._skip(12, "its tensors")  # its type, and where its numbers begin
        if total * LEAST_BITS > self._size * 8:
            raise InvalidGguf(f"its tensors would have {total} numbers, for which it is too short")
        return total

    def _values(self, is_brief: bool) -> tuple[int, int, dict[str, Any]]:
        """Give (version, how many tensors, values by key)."""
        if self._data[:4] != MAGIC:
            raise InvalidGguf(f"it begins with {self._data[:4]!r}, not with {MAGIC!r}: it is no GGUF file")
        self._at = 4
        version = self._scalar("<I")
        if version not in {2, 3}:
            raise InvalidGguf(
                f"it is of GGUF version {version}; 2 and 3 are known"
                if version < 1 << 16
                else "its bytes are in big-endian order"
            )
        tensors, keys = self._scalar("<Q"), self._scalar("<Q")
        if keys > MOST_KEYS or tensors > MOST_TENSORS:
            raise InvalidGguf(f"it says that it has {tensors} tensors and {keys} keys, which cannot be")
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
        raise InvalidGguf(f"the value of {key!r} is of the unknown type {kind}")

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
            raise InvalidGguf(f"the array {key!r} holds values of the unknown type {kind}")
        if length * 8 > self._size:
            raise InvalidGguf(f"the array {key!r} is longer than the file")
        if length <= self._most_kept:
            return [self._string() for _ in range(length)]
        data, at, read = self._data, self._at, struct.Struct("<Q").unpack_from
        try:
            for _ in range(length):
                at += 8 + read(data, at)[0]
        except struct.error:
            raise InvalidGguf(f"it ends in the middle of {key!r}") from None
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
        """Go on by `length` bytes; give where they began."""
        start = self._at
        if start + length > self._size:
            raise InvalidGguf(f"it ends in the middle of {what!r}: it was cut off, or is still being written")
        self._at = start + length
        return start
