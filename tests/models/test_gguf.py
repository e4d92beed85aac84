"""The header of a model's file: of real files, and of files that are no models, are cut off, or contain false figures."""

import struct
from pathlib import Path

import pytest

from appliance.models.table.gguf import InvalidGguf, ParameterCount, read_header


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
