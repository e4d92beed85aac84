"""The header of a GGUF file, read without loading the model.

No file is trusted. Every length is compared with the size of the file before it is used, what is kept and
what is passed over is limited, and figures that no model has are refused. Files are read, not mapped: one
that shrinks under a mapping would end the process. Only regular files are opened: a pipe or a device could
block for ever.
Source: the GGUF specification, versions 2 and 3; ggml's table of types.
"""

import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
MAX_KEYS = 65_536
MAX_KEY_BYTES = 65_535  # as the specification says
MAX_TENSORS = 100_000  # today's have up to some 20,000
MAX_PARTS = 4096  # files of one model
MAX_HEADER_BYTES = 256 << 20  # the largest have some 40 MB: a vocabulary, and the tokenizer as JSON
MAX_TEXTS = 4_000_000  # in all lists together; the largest vocabularies and their merges have 0.8 million
MAX_TEXT_BYTES = 1 << 20  # of a text that is kept; of a longer one only its length is
MAX_KEPT_BYTES = 32 << 20  # of all that is kept of a header
MAX_LISTS_BYTES = 512 << 20  # the same, where vocabularies are kept as well
ELEMENT_BYTES = 64  # about what Python takes for a value, besides its text
SHOWN = 80  # characters of a name from a file in an error
WINDOW_BYTES = 256 << 10  # read at a time
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
# Greatest values of an architecture's numbers. All are far beyond what there is: they only keep sums finite.
GREATEST = {
    "block_count": 10_000,
    "context_length": 1 << 31,
    "embedding_length": 1 << 24,
    "attention.head_count": 1 << 16,
    "attention.head_count_kv": 1 << 16,
    "attention.key_length": 1 << 20,
    "attention.value_length": 1 << 20,
    "attention.sliding_window": 1 << 31,
    "vocab_size": 1 << 26,
}
# ggml type → (elements of a block, bytes of a block).
BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
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
MIN_BYTES = 24  # a header without a key
ALIGNMENT = 32  # of tensors, where the header does not say
MAX_NAME = 256  # characters of a name that a header has
SHOWN_PARTS = 5
INCOMPLETE = "it ends within {!r}: it is incomplete, or still being written"
_RANK = 4  # LLAMA_POOLING_TYPE_RANK: it pools to a score


class InvalidGguf(ValueError):
    """The file is not GGUF, is incomplete, or has an impossible header."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """A long list or text, of which only the length is kept."""

    length: int


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """What a file says of its tensors. `end_bytes`: the size that the file has at least when it is whole."""

    parameters: int
    end_bytes: int


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
        return self.text("general.architecture")

    @property
    def name(self) -> str:
        """The model's own name; "" = it does not say."""
        return self.text("general.name")

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
        return self.number("pooling_type") > 0

    @property
    def is_reranker(self) -> bool:
        """Whether it gives a score for a pair of texts."""
        return self.number("pooling_type") == _RANK

    @property
    def kind(self) -> str:
        """`model`, `adapter`, `mmproj` or another word; older files do not say, but clip is a projector."""
        return "mmproj" if self.architecture == "clip" else self.text("general.type") or "model"

    def text(self, key: str) -> str:
        """Return a short text by its whole key; "" = it does not say."""
        value = self.values.get(key)
        return value[:MAX_NAME] if isinstance(value, str) else ""

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

    def check_numbers(self) -> None:
        """Refuse figures that no model has: they would be multiplied with each other.

        Raises:
            InvalidGguf: A figure is impossible.
        """
        for key, greatest in GREATEST.items():
            value = self.values.get(f"{self.architecture}.{key}")
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, int) and one > greatest:
                    raise InvalidGguf(f"{key} is {one}, which is impossible: at most {greatest}")


def _part_of(path: Path) -> re.Match[str] | None:
    """Match the name of a part; None = it is none, or its numbers cannot be those of a part."""
    found = PART.fullmatch(path.name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]) <= MAX_PARTS:
        return None
    return found


def gguf_parts(path: Path) -> list[Path]:
    """Return all files of a model: itself, or (`-00001-of-00003`) all parts in their order, there or not."""
    found = _part_of(path)
    if not found:
        return [path]
    return [
        path.with_name(f"{found['stem']}-{number:05}-of-{found['count']}{found['ending']}")
        for number in range(1, int(found["count"]) + 1)
    ]


def gguf_stem(path: Path) -> str:
    """Return a file's name without its ending, and without `-00001-of-00003`."""
    found = _part_of(path)
    return found["stem"] if found else path.stem


def is_regular(path: Path) -> bool:
    """Whether there is a regular file that we may ask for: no folder, pipe, device or loop of links."""
    return regular_size_bytes(path) is not None


def regular_size_bytes(path: Path) -> int | None:
    """Return a file's size; None = it is missing, out of reach, or no regular file."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: the name cannot be that of a file
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def missing_parts(path: Path) -> str:
    """Name the parts of a model that are missing, the first few; "" = all are there."""
    missing = [part.name for part in gguf_parts(path) if not is_regular(part)]
    more = f" and {len(missing) - SHOWN_PARTS} more" if len(missing) > SHOWN_PARTS else ""
    return ", ".join(missing[:SHOWN_PARTS]) + more


def gguf_size_bytes(path: Path) -> int:
    """Return the size of a model's files together; missing ones count nothing."""
    return sum(regular_size_bytes(part) or 0 for part in gguf_parts(path))


def check_split(path: Path, header: GgufHeader) -> None:
    """Refuse a part of a model whose name is not that of the part that its header says it is.

    Raises:
        InvalidGguf: llama-server would not find the other parts.
    """
    count, number = header.values.get("split.count"), header.values.get("split.no")
    if not isinstance(count, int) or count <= 1:
        return
    found, shown = _part_of(path), number + 1 if isinstance(number, int) else 0
    if found is None or (int(found["count"]), int(found["number"])) != (count, shown):
        raise InvalidGguf(
            f"it says that it is part {shown} of {count}, but it is not named so: name the parts "
            "NAME-00001-of-00002.gguf, and the model by its first part"
        )


def check_whole(path: Path) -> None:
    """Check that the parts of a model have all the bytes that their headers promise.

    Raises:
        InvalidGguf: One is incomplete, or its header is damaged.
        OSError: One cannot be read.
    """
    for part in gguf_parts(path):
        size, end = regular_size_bytes(part), read_tensors(part).end_bytes
        if size is not None and end > size:
            name = "it" if part == path else part.name
            raise InvalidGguf(
                f"{name} has {size} of {end} bytes: {name} is incomplete, or still being written"
            )


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


def read_tensors(path: Path) -> TensorSummary:
    """Read what a file says of its tensors. It may be a later part of a model in parts.

    Raises:
        InvalidGguf: What is wrong with the file.
        OSError: It cannot be read.
    """
    with _reading(path, 0) as reader:
        return reader.tensors()


@contextmanager
def _reading(path: Path, max_kept: int) -> Iterator["_Reader"]:
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: that alone may act upon a device
        raise InvalidGguf("it is no regular file")
    # Without O_NONBLOCK, a pipe that took the file's place in this moment would block for ever.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidGguf("it is no regular file")
        if found.st_size < MIN_BYTES:
            raise InvalidGguf(f"it has only {found.st_size} bytes")
        yield _Reader(number, found.st_size, max_kept)
    finally:
        os.close(number)


class _Reader:
    """Reads a file from the front, a window at a time."""

    def __init__(self, number: int, size: int, max_kept: int) -> None:
        self._number = number
        self._size = size
        self._most_kept = max_kept
        self._may_keep_bytes = MAX_KEPT_BYTES if max_kept <= MAX_KEPT else MAX_LISTS_BYTES
        self._texts_left = MAX_TEXTS
        self._at = 0
        self._window = b""
        self._window_at = 0

    def header(self, is_brief: bool) -> GgufHeader:
        """Read the header."""
        version, tensors, values = self._values(is_brief)
        if not values.get("general.architecture"):
            raise InvalidGguf("it has no general.architecture")
        header = GgufHeader(version, tensors, values, self._size)
        header.check_numbers()
        return header

    def tensors(self) -> TensorSummary:
        """Read the shapes of all tensors, and where they lie."""
        _, tensors, values = self._values(False)
        total, end = 0, 0
        for _ in range(tensors):
            self._pass(self._scalar("<Q"), "the name of a tensor")
            dimensions = self._scalar("<I")
            if dimensions > MAX_DIMENSIONS:
                raise InvalidGguf(f"a tensor has {dimensions} dimensions, more than {MAX_DIMENSIONS}")
            elements = math.prod(self._scalar("<Q") for _ in range(dimensions))
            block, block_bytes = BLOCKS.get(self._scalar("<I"), (1, 0))
            end = max(end, self._scalar("<Q") + elements // block * block_bytes)
            total += elements
        if total * MIN_BITS > self._size * 8:
            raise InvalidGguf(f"its tensors would have {total} parameters, more than the file can hold")
        aligned = values.get("general.alignment")
        step = aligned if isinstance(aligned, int) and 0 < aligned <= 1 << 20 else ALIGNMENT
        return TensorSummary(total, -(-self._at // step) * step + end if end else self._at)

    def _values(self, is_brief: bool) -> tuple[int, int, dict[str, Any]]:
        """Return (version, number of tensors, values by key)."""
        if (magic := self._take(4, "its header")) != MAGIC:
            raise InvalidGguf(f"it begins with {magic!r}, not with {MAGIC!r}")
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
            key = self._key()
            if is_brief and key.startswith("tokenizer.") and "general.architecture" in values:
                break
            values[key] = self._value(self._scalar("<I"), key)
        return version, tensors, values

    def _key(self) -> str:
        length = self._scalar("<Q")
        if self._at + length > self._size:
            raise InvalidGguf(INCOMPLETE.format("a key"))
        if length > MAX_KEY_BYTES:
            raise InvalidGguf(f"a key has {length} bytes, which is impossible: at most {MAX_KEY_BYTES}")
        self._keep(length)
        return self._take(length, "a key").decode("utf-8", "replace")

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text(key)
        if kind in _FORMATS:
            self._keep(0)
            return self._scalar(_FORMATS[kind])
        if kind == _ARRAY:
            return self._array(key)
        raise InvalidGguf(f"the value {key[:SHOWN]!r} has the unknown type {kind}")

    def _array(self, key: str) -> Any:
        kind, length = self._scalar("<I"), self._scalar("<Q")
        if kind in _FORMATS:
            form = _FORMATS[kind]
            size = struct.calcsize(form) * length
            if length > self._most_kept:
                self._pass(size, key)
                return ParameterCount(length)
            self._keep(ELEMENT_BYTES * length)
            return [one for (one,) in struct.iter_unpack(form, self._take(size, key))]
        if kind != _STRING:
            raise InvalidGguf(f"the array {key[:SHOWN]!r} has values of the unknown type {kind}")
        if length * 8 > self._size:
            raise InvalidGguf(f"the array {key[:SHOWN]!r} is longer than the file")
        self._texts_left -= length
        if self._texts_left < 0:
            raise InvalidGguf(f"its lists have more than {MAX_TEXTS} texts, which is impossible")
        if length <= self._most_kept:
            return [self._text(key) for _ in range(length)]
        self._pass_texts(length, key)
        return ParameterCount(length)

    def _pass_texts(self, count: int, key: str) -> None:
        """Pass over texts. A vocabulary has hundreds of thousands, so they are not taken one by one."""
        read = struct.Struct("<Q").unpack_from
        while count:
            self._fill(self._at, 8, key)
            window, at, end = self._window, self._at - self._window_at, len(self._window) - 8
            while count and at <= end:
                at += 8 + read(window, at)[0]
                count -= 1
            self._pass(at + self._window_at - self._at, key)

    def _text(self, key: str) -> Any:
        length = self._scalar("<Q")
        if length > MAX_TEXT_BYTES:
            self._pass(length, key)
            return ParameterCount(length)
        self._keep(length)
        return self._take(length, key).decode("utf-8", "replace")

    def _keep(self, length: int) -> None:
        """Count what is kept."""
        self._may_keep_bytes -= ELEMENT_BYTES + length
        if self._may_keep_bytes < 0:
            raise InvalidGguf("its header has more values than any model's")

    def _scalar(self, form: str) -> Any:
        start = self._pass(struct.calcsize(form), "its header")
        self._fill(start, struct.calcsize(form), "its header")
        return struct.unpack_from(form, self._window, start - self._window_at)[0]

    def _take(self, length: int, what: str) -> bytes:
        """Return the next bytes."""
        start = self._pass(length, what)
        self._fill(start, length, what)
        return self._window[start - self._window_at : start - self._window_at + length]

    def _pass(self, length: int, what: str) -> int:
        """Pass over bytes; return where they begin."""
        start = self._at
        if start + length > self._size:
            raise InvalidGguf(INCOMPLETE.format(what[:SHOWN]))
        if start + length > MAX_HEADER_BYTES:
            raise InvalidGguf(f"its header has more than {MAX_HEADER_BYTES >> 20} MiB, which is impossible")
        self._at = start + length
        return start

    def _fill(self, start: int, length: int, what: str) -> None:
        """Make the window contain these bytes."""
        if self._window_at <= start and start + length <= self._window_at + len(self._window):
            return
        pieces, has = [], 0
        while has < length and (
            piece := os.pread(self._number, max(WINDOW_BYTES, length) - has, start + has)
        ):
            pieces.append(piece)
            has += len(piece)
        if has < length:  # it has become shorter since it was opened
            raise InvalidGguf(INCOMPLETE.format(what[:SHOWN]))
        self._window, self._window_at = b"".join(pieces), start
