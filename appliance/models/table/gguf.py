"""The header of a GGUF file, read without loading the model.

No file is trusted. Every length is compared with the size of the file before it is used, what is kept and
what is passed over is limited, and figures that no model has are refused. Files are read, not mapped: one
that shrinks under a mapping would end the process. Only regular files are opened: a pipe or a device could
block for ever.
Source: the GGUF specification, versions 2 and 3; ggml's table of types.
"""

import math
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.models.table.gguf_tables import ARRAY, BLOCKS, FILE_TYPES, FORMATS, GREATEST, STRING

MAGIC = b"GGUF"
MAX_KEYS = 65_536
MAX_KEY_BYTES = 65_535  # as the specification says
MAX_TENSORS = 100_000  # today's have up to some 20,000
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
MIN_BYTES = 24  # a header without a key
ALIGNMENT = 32  # of tensors, where the header does not say
MAX_NAME = 256  # characters of a name that a header has
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
        if kind == STRING:
            return self._text(key)
        if kind in FORMATS:
            self._keep(0)
            return self._scalar(FORMATS[kind])
        if kind == ARRAY:
            return self._array(key)
        raise InvalidGguf(f"the value {key[:SHOWN]!r} has the unknown type {kind}")

    def _array(self, key: str) -> Any:
        kind, length = self._scalar("<I"), self._scalar("<Q")
        if kind in FORMATS:
            form = FORMATS[kind]
            size = struct.calcsize(form) * length
            if length > self._most_kept:
                self._pass(size, key)
                return ParameterCount(length)
            self._keep(ELEMENT_BYTES * length)
            return [one for (one,) in struct.iter_unpack(form, self._take(size, key))]
        if kind != STRING:
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
