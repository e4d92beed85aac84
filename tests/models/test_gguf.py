"""The header of a model's file: of real files, and of files that are no models, are cut off, or contain false figures."""

import os
import random
import resource
import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.models.table import gguf
from appliance.models.table.catalogue import Model
from appliance.models.table.details import gather_details
from appliance.models.table.entries import Params, System
from appliance.models.table.estimate import estimate_memory
from appliance.models.table.gguf import (
    BLOCKS,
    GREATEST,
    InvalidGguf,
    ParameterCount,
    read_header,
    read_tensors,
)
from appliance.models.table.gguf_files import check_whole


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def made(*pairs: bytes, version: int = 3, keys: int | None = None, tensors: int = 0) -> bytes:
    pairs = pairs or (text("general.architecture") + struct.pack("<I", 8) + text("llama"),)
    return (
        b"GGUF"
        + struct.pack("<IQQ", version, tensors, len(pairs) if keys is None else keys)
        + b"".join(pairs)
    )


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def written(folder: Path, data: bytes) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(data)
    return path


def test_header_of_a_real_file(tiny_models: Path) -> None:
    header = read_header(tiny_models / "tiny-chat.gguf")
    assert (header.architecture, header.version, header.context_tokens) == ("llama", 3, 8192)
    assert header.layers >= 1
    assert header.vocabulary > 100
    assert header.size_bytes == (tiny_models / "tiny-chat.gguf").stat().st_size
    assert not header.is_embedding
    assert "tokenizer.chat_template" in header.values
    assert read_header(tiny_models / "tiny-embed.gguf").is_embedding


def test_each_type_of_value_is_read(tmp_path: Path) -> None:
    def scalar(key: str, kind: int, form: str, value: float) -> bytes:
        return text(key) + struct.pack("<I", kind) + struct.pack(form, value)

    header = read_header(
        written(
            tmp_path,
            made(
                ARCHITECTURE,
                scalar("u8", 0, "<B", 200),
                scalar("i8", 1, "<b", -5),
                scalar("u16", 2, "<H", 60_000),
                scalar("i16", 3, "<h", -300),
                scalar("u32", 4, "<I", 4_000_000_000),
                scalar("i32", 5, "<i", -70_000),
                scalar("f32", 6, "<f", 0.5),
                scalar("yes", 7, "<?", True),
                scalar("u64", 10, "<Q", 1 << 60),
                scalar("i64", 11, "<q", -(1 << 60)),
                scalar("f64", 12, "<d", 0.25),
                text("list") + struct.pack("<IIQ3I", 9, 4, 3, 7, 8, 9),
                text("texts") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("é"),
                text("long") + struct.pack("<IIQ", 9, 0, 5000) + bytes(5000),
                text("words") + struct.pack("<IIQ", 9, 8, 2000) + text("w") * 2000,
            ),
        )
    )
    values = {key: value for key, value in header.values.items() if key != "general.architecture"}
    assert values == {
        "u8": 200,
        "i8": -5,
        "u16": 60_000,
        "i16": -300,
        "u32": 4_000_000_000,
        "i32": -70_000,
        "f32": 0.5,
        "yes": True,
        "u64": 1 << 60,
        "i64": -(1 << 60),
        "f64": 0.25,
        "list": [7, 8, 9],
        "texts": ["a", "é"],
        "long": ParameterCount(5000),
        "words": ParameterCount(2000),
    }


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it has only"),
        (b"GGUF", "it has only"),
        (b"PK\x03\x04" + bytes(40), "it begins with"),
        (made(version=1), "version 1"),
        (made(version=99), "version 99"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 1) + bytes(20), "big-endian"),
        (made(keys=1 << 40), "impossible"),
        (made(keys=2), "incomplete, or still being written"),
        (made(ARCHITECTURE, text("k") + struct.pack("<I", 77)), "unknown type 77"),
        (
            made(ARCHITECTURE, text("k") + struct.pack("<IIQ", 9, 4, 1 << 50)),
            "incomplete, or still being written",
        ),
        (made(ARCHITECTURE, text("k") + struct.pack("<IIQ", 9, 8, 1 << 50)), "longer than the file"),
        (made(ARCHITECTURE, text("k") + struct.pack("<IIQ", 9, 99, 3)), "values of the unknown type 99"),
        (
            made(ARCHITECTURE, text("k") + struct.pack("<IIQQ", 9, 8, 1025, 1 << 40) + bytes(8 * 1030)),
            "ends within 'k'",
        ),
        (made(ARCHITECTURE, struct.pack("<Q", 1 << 62) + b"k"), "incomplete, or still being written"),
        (made(ARCHITECTURE, text("k") + struct.pack("<IIQ", 9, 9, 1)), "unknown type 9"),
        (made(text("general.name") + struct.pack("<I", 8) + text("x")), "no general.architecture"),
    ],
)
def test_invalid_file_is_refused_with_the_reason(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(InvalidGguf, match=said):
        read_header(written(tmp_path, data))


def test_a_real_file_cut_anywhere_in_its_header_is_refused(tiny_models: Path, tmp_path: Path) -> None:
    whole = (tiny_models / "tiny-embed.gguf").read_bytes()
    for size in (30, 100, 500, 1500):
        with pytest.raises(InvalidGguf):
            read_header(written(tmp_path, whole[:size]))


# ---- hostile files


def number(key: str, value: int, kind: int = 10, form: str = "<Q") -> bytes:
    return text(key) + struct.pack("<I", kind) + struct.pack(form, value)


@pytest.mark.parametrize("key", GREATEST)
def test_a_figure_that_no_model_has_is_refused(tmp_path: Path, key: str) -> None:
    for value in (GREATEST[key] + 1, 2**64 - 1):
        with pytest.raises(InvalidGguf, match=f"{key} is {value}, which is impossible"):
            read_header(written(tmp_path, made(ARCHITECTURE, number(f"llama.{key}", value))))
    read_header(written(tmp_path, made(ARCHITECTURE, number(f"llama.{key}", GREATEST[key]))))


def test_a_figure_in_a_list_of_layers_is_checked_too(tmp_path: Path) -> None:
    heads = text("llama.attention.head_count_kv") + struct.pack("<IIQ2Q", 9, 10, 2, 8, 1 << 60)
    with pytest.raises(InvalidGguf, match="head_count_kv is 1152921504606846976"):
        read_header(written(tmp_path, made(ARCHITECTURE, heads)))


def test_values_of_a_wrong_type_say_nothing(tmp_path: Path) -> None:
    header = read_header(
        written(
            tmp_path,
            made(
                ARCHITECTURE,
                text("llama.pooling_type") + struct.pack("<IIQI", 9, 4, 1, 4),
                text("llama.block_count") + struct.pack("<I", 8) + text("many"),
                text("llama.context_length") + struct.pack("<If", 6, float("nan")),
                text("general.type") + struct.pack("<II", 4, 7),
                text("general.name") + struct.pack("<IIQ", 9, 4, 0),
                text("general.size_label") + struct.pack("<I", 8) + text("9" * 5000 + "B"),
            ),
        )
    )
    assert (header.is_embedding, header.layers, header.context_tokens) == (False, 0, 0)
    assert (header.kind, header.name) == ("model", "")
    assert gather_details("m", header, Params(), size_bytes=1, modified_s=0.0).parameters == 0


def test_a_header_that_is_larger_than_any_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = text("w") + struct.pack("<IIQ", 9, 8, 2000) + text("w") * 2000
    kept = text("k") + struct.pack("<IIQ", 9, 8, 500) + text("w" * 50) * 500
    path = written(tmp_path, made(ARCHITECTURE, words, kept))
    read_header(path)
    for limit, value, said in (
        ("MAX_HEADER_BYTES", 1 << 14, "its header has more than 0 MiB"),
        ("MAX_TEXTS", 2400, "more than 2400 texts"),
        ("MAX_KEPT_BYTES", 30_000, "more values than any model's"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(gguf, limit, value)
            with pytest.raises(InvalidGguf, match=said):
                read_header(path)
    with pytest.raises(InvalidGguf, match="a key has 70000 bytes"):
        read_header(written(tmp_path, made(text("k" * 70_000))))


def test_of_a_long_text_only_the_length_is_kept(tmp_path: Path) -> None:
    size = gguf.MAX_TEXT_BYTES + 1
    pair = text("tokenizer.huggingface.json") + struct.pack("<I", 8) + text("x" * size)
    values = read_header(written(tmp_path, made(ARCHITECTURE, pair, number("after", 7)))).values
    assert (values["tokenizer.huggingface.json"], values["after"]) == (ParameterCount(size), 7)


def test_a_vocabulary_longer_than_a_window_is_passed_over(tmp_path: Path) -> None:
    words = b"".join(text("w" * (n % 700)) for n in range(5000))
    pair = text("words") + struct.pack("<IIQ", 9, 8, 5000) + words
    assert len(words) > 4 * gguf.WINDOW_BYTES
    path = written(tmp_path, made(ARCHITECTURE, pair, number("after", 7)))
    assert read_header(path).values["after"] == 7
    assert len(read_header(path, max_kept=1 << 40).values["words"]) == 5000


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mapped into memory, it would end the process with SIGBUS."""
    path = written(tmp_path, (tiny_models / "tiny-chat.gguf").read_bytes())
    monkeypatch.setattr(gguf, "WINDOW_BYTES", 256)
    real, reads = os.pread, 0

    def shrinking(file: int, length: int, start: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 3:
            os.truncate(path, 0)
        return real(file, length, start)

    monkeypatch.setattr(gguf.os, "pread", shrinking)
    with pytest.raises(InvalidGguf, match="incomplete, or still being written"):
        read_header(path)


def test_a_file_without_all_its_tensors_is_incomplete(tiny_models: Path, tmp_path: Path) -> None:
    for name in ("tiny-chat", "tiny-embed", "tiny-lora", "tiny-rerank"):
        data = (tiny_models / f"{name}.gguf").read_bytes()
        path = written(tmp_path, data)
        check_whole(path)
        end = read_tensors(path).end_bytes
        assert len(data) - 32 < end <= len(data)
        os.truncate(path, end - 1)
        read_header(path)
        with pytest.raises(InvalidGguf, match=f"it has {end - 1} of {end} bytes"):
            check_whole(path)


def test_blocks_are_those_of_the_format() -> None:
    import gguf as reference

    for number_of_type, block in BLOCKS.items():
        assert reference.GGML_QUANT_SIZES[reference.GGMLQuantizationType(number_of_type)] == block


ODD_NUMBERS = (0, 1, 2, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Return a header with some of its bytes, lengths or figures changed, cut off or repeated."""
    damage = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(4, min(len(damage), 4000))
        kind = dice.randrange(5)
        if kind == 0:
            damage[at] = dice.randrange(256)
        elif kind == 1:
            damage[at : at + 8] = struct.pack("<Q", dice.choice(ODD_NUMBERS))
        elif kind == 2:
            damage[at : at + 4] = struct.pack("<I", dice.choice(ODD_NUMBERS) % 2**32)
        elif kind == 3:
            del damage[at : at + dice.randrange(1, 64)]
        else:
            damage[at:at] = damage[at : at + dice.randrange(1, 64)]
    return bytes(damage[: dice.choice((len(damage), len(damage), dice.randrange(24, len(damage))))])


@pytest.mark.parametrize("name", ["tiny-chat", "tiny-embed", "tiny-lora"])
def test_damaged_headers_take_little_time_and_memory(tiny_models: Path, tmp_path: Path, name: str) -> None:
    """Whatever is read is used as well: for details, for the estimate."""
    dice = random.Random(20_261_130)
    whole = (tiny_models / f"{name}.gguf").read_bytes()[:200_000]
    model = Model("m", tmp_path / "m.gguf", Params(), "folder")
    refused = slowest_s = 0.0
    tracemalloc.start()
    try:
        for _ in range(400):
            path = written(tmp_path, damaged(whole, dice))
            before_s = time.process_time()
            try:
                header = read_header(path)
                gather_details("m", header, Params(), size_bytes=1, modified_s=0.0)
                estimate_memory(model, System(), header)
                read_tensors(path)
            except InvalidGguf:
                refused += 1
            slowest_s = max(slowest_s, time.process_time() - before_s)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert refused > 50
    assert slowest_s < 2.0


def test_a_hostile_file_of_many_gigabytes_is_read_soon(tmp_path: Path) -> None:
    """A sparse file claims what it likes about its size."""
    size = 1 << 42
    cases = {
        "texts": text("k") + struct.pack("<IIQ", 9, 8, gguf.MAX_TEXTS),
        "text": text("k") + struct.pack("<IQ", 8, size // 2),
        "numbers": text("k") + struct.pack("<IIQ", 9, 10, size // 16),
    }
    for pair in cases.values():
        path = written(tmp_path, made(ARCHITECTURE, pair, keys=60_000, tensors=gguf.MAX_TENSORS))
        os.truncate(path, size)
        before_s, before_kb = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for read in (read_header, read_tensors):
            with suppress(InvalidGguf):  # most of it is zeros, which are keys without a name
                read(path)
        assert time.process_time() - before_s < 5.0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200 << 10
