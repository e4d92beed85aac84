"""What model files say about models: facts from headers, and the library that reads each file once."""

import asyncio
import hashlib
import json
import os
import shutil
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import NoSuchModel, Unavailable
from appliance.base.tasks import Tasks
from appliance.models.table import digests, library
from appliance.models.table.catalogue import Model
from appliance.models.table.details import (
    capabilities_of,
    gather_details,
    label_of,
    number_of,
    parameters_of,
    template_of,
)
from appliance.models.table.entries import Params
from appliance.models.table.file_state import FileState
from appliance.models.table.gguf import GgufHeader, InvalidGguf, ParameterCount, read_header, read_tensors
from appliance.models.table.gguf_files import gguf_parts
from appliance.models.table.library import ModelLibrary
from tests.models.test_gguf import ARCHITECTURE, made, text
from tests.tools.tiny_models import TEMPLATE


def header(**values: Any) -> GgufHeader:
    return GgufHeader(
        3,
        0,
        {"general.architecture": "llama", **{key.replace("__", "."): value for key, value in values.items()}},
        1000,
    )


# ---- facts


@pytest.mark.parametrize(
    ("count", "label"),
    [
        (7_615_616_512, "7.6B"),
        (134_515_008, "135M"),
        (1_235_000, "1.2M"),
        (1_000_000_000, "1B"),
        (70_553_706_496, "70.6B"),
        (99_970_000, "100M"),
        (671_000_000_000, "671B"),
        (1_000_000_000_000, "1T"),
        (8192, "8.2K"),
        (999, "999"),
    ],
)
def test_parameters_are_written_for_people(count: int, label: str) -> None:
    assert label_of(count) == label


@pytest.mark.parametrize(
    ("label", "count"),
    [
        ("7B", 7 * 10**9),
        ("7.6B", 7_600_000_000),
        ("8x7B", 56 * 10**9),
        ("135M", 135 * 10**6),
        ("1.2m", 1_200_000),
        ("large", 0),
        ("", 0),
        ("12", 0),
    ],
)
def test_a_size_label_is_read(label: str, count: int) -> None:
    assert number_of(label) == count


def test_parameters_come_from_key_tensors_or_label() -> None:
    said = header(general__parameter_count=5, general__size_label="7B")
    assert parameters_of(said, 9) == 5
    labelled = header(general__size_label="7B")
    assert (parameters_of(labelled, 9), parameters_of(labelled, 0)) == (9, 7 * 10**9)
    assert parameters_of(header(), 0) == 0
    assert gather_details("m", header(), Params(), size_bytes=1, modified_s=0).parameter_label == ""


@pytest.mark.parametrize(
    ("values", "params", "words"),
    [
        ({}, {}, ("completion",)),
        ({"tokenizer__chat_template": "{% if tools %}x{% endif %}"}, {}, ("completion", "tools")),
        ({"tokenizer__chat_template": "{{ pitools }} toolsmith"}, {}, ("completion",)),
        ({"tokenizer__chat_template": "{{ '<think>' }}"}, {}, ("completion", "thinking")),
        ({"tokenizer__chat_template": "{% if enable_thinking %}"}, {}, ("completion", "thinking")),
        (
            {
                "tokenizer__ggml__fim_pre_token_id": 1,
                "tokenizer__ggml__fim_suf_token_id": 2,
                "tokenizer__ggml__fim_mid_token_id": 3,
            },
            {},
            ("completion", "insert"),
        ),
        (
            {
                "tokenizer__ggml__prefix_token_id": 1,
                "tokenizer__ggml__suffix_token_id": 2,
                "tokenizer__ggml__middle_token_id": 3,
            },
            {},
            ("completion", "insert"),
        ),
        ({"tokenizer__ggml__fim_pre_token_id": 1}, {}, ("completion",)),
        ({"tokenizer__chat_template": "tools"}, {"chat_template": "plain"}, ("completion",)),
        ({"llama__pooling_type": 1}, {}, ("embedding",)),
        ({"llama__pooling_type": 0}, {}, ("completion",)),
        ({}, {"embedding": True}, ("embedding",)),
        ({"general__architecture": "clip"}, {}, ("vision",)),
        ({"general__type": "mmproj"}, {}, ("vision",)),
    ],
)
def test_capabilities_follow_from_header_and_table(
    values: dict[str, Any], params: dict[str, Any], words: tuple[str, ...]
) -> None:
    found, wanted = header(**values), Params(**params)
    assert capabilities_of(found, wanted, template_of(found, wanted)) == words


def test_lists_are_not_among_the_facts() -> None:
    found = gather_details(
        "m",
        header(a__list=[1, 2], a__long=ParameterCount(5000), a__number=3, general__license="mit"),
        Params(),
        size_bytes=1,
        modified_s=0,
        counted=7,
    )
    assert found.info == {
        "general.architecture": "llama",
        "a.list": None,
        "a.long": None,
        "a.number": 3,
        "general.license": "mit",
        "general.parameter_count": 7,
    }
    assert (found.license, found.families, found.digest) == ("mit", ("llama",), "")


# ---- parameters by tensors


def test_parameters_of_real_files_are_counted(tiny_models: Path) -> None:
    import gguf

    for name in ("tiny-chat", "tiny-embed", "tiny-lora"):
        path = tiny_models / f"{name}.gguf"
        assert read_tensors(path).parameters == sum(
            int(tensor.n_elements) for tensor in gguf.GGUFReader(path).tensors
        ), name


def tensors(*shapes: tuple[int, ...], dimensions: int | None = None) -> bytes:
    """A header without keys, and its tensors, one byte a parameter."""
    data = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), 0)
    for shape in shapes:
        data += (
            struct.pack("<Q", 1) + b"t" + struct.pack("<I", len(shape) if dimensions is None else dimensions)
        )
        data += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, 0)
    return data


def test_shapes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tensors((2, 3), (4,), ()) + bytes(11))
    assert read_tensors(path).parameters == 11
    for data, said in (
        (tensors((1 << 40, 1 << 20)), "more than the file can hold"),
        (tensors((2,), dimensions=99), "99 dimensions"),
        (tensors((2, 3))[:-4], "incomplete, or still being written"),
        (b"GG", "it has only 2 bytes"),
    ):
        path.write_bytes(data)
        with pytest.raises(InvalidGguf, match=said):
            read_tensors(path)


# ---- the library


class Shelf:
    """A folder with models, a library of it, and counts of what it reads."""

    def __init__(self, folder: Path, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.tasks = folder, tasks
        self.models: dict[str, Model] = {}
        self.kept = folder / "state" / "digests.json"
        self.headers: list[str] = []
        self.digested: list[str] = []
        monkeypatch.setattr(library, "read_header", self._read_header)
        monkeypatch.setattr(digests, "_digest", self._digest)
        self.held = threading.Event()
        self.held.set()

    def put(self, alias: str, source: Path, name: str = "", **params: Any) -> Path:
        path = self.folder / (name or f"{alias}.gguf")
        shutil.copy(source, path)
        self.models[alias] = Model(alias, path, Params(**params), "table")
        return path

    def library(self, **more: Any) -> ModelLibrary:
        return ModelLibrary(
            lambda: self.models,
            tasks=self.tasks,
            **{"digests_path": self.kept, "digest_wait_s": 60.0, **more},
        )

    def _read_header(self, path: Path, **more: Any) -> GgufHeader:
        assert threading.current_thread() is not threading.main_thread()
        self.headers.append(path.name)
        return read_header(path, **more)

    def _digest(self, files: Any, stop: threading.Event) -> str:
        assert threading.current_thread() is not threading.main_thread()
        self.digested.append(files[0].path.name)
        while not self.held.wait(0.01) and not stop.is_set():
            pass
        return _REALLY(files, stop)


_REALLY = digests._digest


@pytest.fixture
async def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shelf]:
    async with Tasks() as tasks:
        made = Shelf(tmp_path, tasks, monkeypatch)
        yield made
        made.held.set()


async def test_details_of_real_files(shelf: Shelf, tiny_models: Path) -> None:
    path = shelf.put("chat", tiny_models / "tiny-chat.gguf")
    shelf.put("embed", tiny_models / "tiny-embed.gguf")
    models = shelf.library()
    chat = await models.details("chat")
    assert (
        chat.architecture,
        chat.quantization,
        chat.context_tokens,
        chat.embedding_length,
        chat.format,
    ) == ("llama", "F16", 8192, 384, "gguf")
    assert (chat.parameter_label, chat.template, chat.capabilities) == (
        "1.7M",
        TEMPLATE,
        ("completion", "tools"),
    )
    assert (chat.size_bytes, chat.modified_s) == (path.stat().st_size, pytest.approx(path.stat().st_mtime))
    assert chat.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (await models.details("embed")).capabilities == ("embedding",)


async def test_each_file_is_read_once_until_it_changes(shelf: Shelf, tiny_models: Path) -> None:
    path = shelf.put("m", tiny_models / "tiny-chat.gguf")
    models = shelf.library()
    first = await models.details("m")
    assert await models.details("m") == first
    assert await models.every(["m"]) == {"m": first}
    assert (shelf.headers, shelf.digested) == (["m.gguf"], ["m.gguf"])
    shutil.copy(tiny_models / "tiny-embed.gguf", path)
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    second = await models.details("m")
    assert (second.architecture, second.digest) == ("bert", hashlib.sha256(path.read_bytes()).hexdigest())
    assert (shelf.headers, shelf.digested) == (["m.gguf"] * 2, ["m.gguf"] * 2)


async def test_a_digest_outlives_a_restart(shelf: Shelf, tiny_models: Path) -> None:
    shelf.put("m", tiny_models / "tiny-chat.gguf")
    first = await shelf.library().details("m")
    assert await shelf.library().details("m") == first
    assert shelf.digested == ["m.gguf"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"x": 5, "y": {"stamp": 1}}'])
async def test_damaged_store_of_digests_is_replaced(shelf: Shelf, tiny_models: Path, damage: bytes) -> None:
    path = shelf.put("m", tiny_models / "tiny-chat.gguf")
    shelf.kept.parent.mkdir()
    shelf.kept.write_bytes(damage)
    digest = (await shelf.library().details("m")).digest
    assert (
        [row["sha256"] for row in json.loads(shelf.kept.read_bytes()).values()]
        == [digest]
        == [hashlib.sha256(path.read_bytes()).hexdigest()]
    )


async def test_removed_files_leave_the_store(shelf: Shelf, tiny_models: Path) -> None:
    models = shelf.library()
    gone = shelf.put("gone", tiny_models / "tiny-embed.gguf")
    assert (await models.details("gone")).digest
    gone.unlink()
    del shelf.models["gone"]
    shelf.put("m", tiny_models / "tiny-chat.gguf")
    assert (await models.details("m")).digest
    assert list(json.loads(shelf.kept.read_bytes())) == [str(shelf.models["m"].path)]
    # No folder can be created below a file.
    blocked = shelf.library(digests_path=shelf.models["m"].path / "digests.json")
    assert (await blocked.details("m")).digest


async def test_details_do_not_wait_long_for_a_digest(shelf: Shelf, tiny_models: Path) -> None:
    shelf.put("a", tiny_models / "tiny-chat.gguf")
    shelf.put("b", tiny_models / "tiny-embed.gguf")
    models = shelf.library(digest_wait_s=0.0)
    shelf.held.clear()
    found = await models.every(["a", "b", "unknown"])
    assert {alias: (one.digest, one.architecture) for alias, one in found.items()} == {
        "a": ("", "llama"),
        "b": ("", "bert"),
    }
    assert (await models.details("a")).digest == ""
    shelf.held.set()
    async with asyncio.timeout(20):
        while not all(one.digest for one in (await models.every(["a", "b"])).values()):
            await asyncio.sleep(0.01)
    assert sorted(shelf.digested) == ["a.gguf", "b.gguf"]


async def test_close_during_a_digest_stops_its_thread(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def endless(files: Any, stop: threading.Event) -> str:
        stop.wait(30)
        said = _REALLY(files, stop)
        if said == "":
            ended.set()
        return said

    monkeypatch.setattr(digests, "_digest", endless)
    async with Tasks() as tasks:
        model = Model("m", tiny_models / "tiny-chat.gguf", Params(), "table")
        assert (
            await ModelLibrary(lambda: {"m": model}, tasks=tasks, digest_wait_s=0.05).details("m")
        ).digest == ""
    assert await asyncio.to_thread(ended.wait, 10)


async def test_a_file_that_changes_while_it_is_read_has_no_digest(shelf: Shelf, tiny_models: Path) -> None:
    path = shelf.put("m", tiny_models / "tiny-chat.gguf")
    state = FileState.read(path)
    os.utime(path, ns=(1, 1))
    assert _REALLY([state], threading.Event()) == ""
    assert _REALLY([FileState.read(path)], threading.Event()) == hashlib.sha256(path.read_bytes()).hexdigest()


async def test_unreadable_files_are_named_alone_and_left_out_of_lists(
    shelf: Shelf, tiny_models: Path, tmp_path: Path
) -> None:
    shelf.put("good", tiny_models / "tiny-chat.gguf")
    shelf.put("bad", tiny_models / "tiny-chat.gguf").write_bytes(b"PK\x03\x04" + bytes(40))
    shelf.models["missing"] = Model("missing", tmp_path / "missing.gguf", Params(), "table")
    models = shelf.library()
    assert list(await models.every(shelf.models)) == ["good"]
    for alias, said in (("bad", "not with b'GGUF'"), ("missing", "No such file")):
        for ask in (models.details, models.lists):
            with pytest.raises(Unavailable, match=said) as caught:
                await ask(alias)
            assert str(tmp_path) not in caught.value.message
    for ask in (models.details, models.lists):
        with pytest.raises(NoSuchModel):
            await ask("nobody")


async def test_lists_hold_vocabularies_of_any_length(shelf: Shelf, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(
        made(
            ARCHITECTURE,
            text("words") + struct.pack("<IIQ", 9, 8, 2000) + text("w") * 2000,
            text("few") + struct.pack("<IIQ", 9, 0, 2) + b"ab",
        )
    )
    shelf.put("m", source)
    models = shelf.library()
    assert await models.lists("m") == {"words": ["w"] * 2000, "few": [97, 98]}
    assert (await models.details("m")).info == {"general.architecture": "llama", "words": None, "few": None}


async def test_a_model_in_parts_is_all_of_them(shelf: Shelf, tmp_path: Path, tiny_models: Path) -> None:
    first = shelf.put("big", tiny_models / "tiny-chat.gguf", "big-00001-of-00002.gguf")
    second = tmp_path / "big-00002-of-00002.gguf"
    assert gguf_parts(first) == [first, second]
    with pytest.raises(Unavailable):
        await shelf.library().details("big")
    second.write_bytes(tensors((2, 3), (4,)) + bytes(10))
    found = await shelf.library().details("big")
    assert found.size_bytes == first.stat().st_size + second.stat().st_size
    assert found.parameters == read_tensors(first).parameters + 10
    assert found.digest == hashlib.sha256(first.read_bytes() + second.read_bytes()).hexdigest()
    second.write_bytes(b"damaged" + bytes(40))
    assert (await shelf.library().details("big")).parameters == 0
