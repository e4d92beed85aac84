"""Adapters of the configuration file: what may stand there, and what becomes of those that change."""

from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.config_file import ConfigFile
from appliance.engines.lora.config_section import adapter_differences, read_adapter_rows
from appliance.engines.lora.plan import Adapter
from appliance.engines.lora.table import AdapterTable
from appliance.engines.lora.table_file import read_adapters
from appliance.settings import load

STYLE = Adapter("style", "/a/style", "tiny", is_configured=True)
OTHER = Adapter("style", "/a/other", "tiny", is_configured=True)
ORDERED = Adapter("mine", "/a/mine", "tiny")


def test_rows_become_adapters() -> None:
    row = {"name": "style", "path": "/a/style", "base_model": "tiny", "backend": "v", "pinned": True}
    found, problems = read_adapter_rows(ConfigFile(Path("/c"), {"adapters": [row]}))
    assert found == (Adapter("style", "/a/style", "tiny", backend="v", is_pinned=True, is_configured=True),)
    assert problems == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({}, "adapters: allowed: a JSON or YAML file with"),
        ({}, "It must be a list."),
        ([{"name": "a", "path": "/a"}], "adapters.0.base_model: allowed"),
        ([{"name": "a,b", "path": "/a", "base_model": "b"}], "Invalid `lora_name` 'a,b'"),
        ([{"name": "a", "path": "a", "base_model": "b"}], "The path must be absolute"),
        ([{"name": "a", "path": "/x/../a", "base_model": "b"}], "without `..`"),
        ([{"name": "a", "paht": "/a", "base_model": "b"}], "Unknown key. Did you mean path?"),
        ([{"name": "a", "path": "/a", "base_model": "b"}] * 2, "Two adapters are called 'a'."),
        ([1], "adapters.0: allowed"),
    ],
)
def test_rows_that_cannot_be_used_are_told(rows: Any, said: str) -> None:
    _, problems = read_adapter_rows(ConfigFile(Path("/c"), {"adapters": rows}))
    assert said in "\n".join(map(str, problems))


def test_name_of_a_model_is_none_for_an_adapter(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "models: {a: {model_path: a.gguf, aliases: [b]}}\nadapters: [{name: b, path: /b, base_model: a}]"
    )
    settings, problems = load({"CONFIG_PATH": str(path), "LLAMA_SERVER_PATH": "/bin/true"})
    assert settings is None
    assert "'b' is the name of a model here. Choose another one." in "\n".join(map(str, problems))


def test_differences_have_a_sentence_each() -> None:
    assert adapter_differences([STYLE], [STYLE]) == []
    assert adapter_differences([STYLE], [OTHER]) == ["The adapter style changes."]
    assert adapter_differences([STYLE], []) == ["The adapter style is removed."]
    assert adapter_differences([], [STYLE]) == ["The adapter style is added."]


# ---- the table


@pytest.fixture
def table(tmp_path: Path) -> AdapterTable:
    made = AdapterTable(tmp_path / "lora.json", clock=FakeClock())
    made.declared["mine"] = ORDERED
    return made


def configure(table: AdapterTable, *adapters: Adapter, backends: tuple[str, ...] = ("v",)) -> list[tuple]:
    table.configure(adapters, lambda _: backends)
    return sorted((one.name, one.path, one.is_wanted) for one in table.declared.values())


async def test_adapters_of_the_file_are_declared_and_not_stored(table: AdapterTable, tmp_path: Path) -> None:
    assert configure(table, STYLE) == [("mine", "/a/mine", True), ("style", "/a/style", True)]
    assert configure(table, STYLE) == [("mine", "/a/mine", True), ("style", "/a/style", True)]
    await table.save()
    assert list(read_adapters(tmp_path / "lora.json")) == ["mine"]


async def test_adapter_that_left_the_file_is_unloaded(table: AdapterTable, tmp_path: Path) -> None:
    configure(table, STYLE)
    assert configure(table) == [("mine", "/a/mine", True), ("style", "/a/style", False)]
    await table.save()  # it is not forgotten by a restart before it is unloaded
    assert read_adapters(tmp_path / "lora.json")["style"].unload_from == ("v",)
    assert table.mark_unloaded(table.declared["style"], "v", ["v"])
    assert list(table.declared) == ["mine"]


def test_adapter_that_no_backend_can_have_is_just_forgotten(table: AdapterTable) -> None:
    configure(table, STYLE)
    assert configure(table, backends=()) == [("mine", "/a/mine", True)]


def test_changed_adapter_is_declared_once_the_former_one_is_unloaded(table: AdapterTable) -> None:
    configure(table, STYLE)
    assert ("style", "/a/style", False) in configure(table, OTHER)
    table.mark_unloaded(table.declared["style"], "v", ["v"])
    assert table.declared["style"] == OTHER


def test_file_wins_over_an_order_of_the_same_name(table: AdapterTable) -> None:
    same = Adapter("mine", "/a/mine", "tiny", is_configured=True)
    assert configure(table, same) == [("mine", "/a/mine", True)]
    assert table.declared["mine"].is_configured
    other = Adapter("mine", "/a/new", "tiny", is_configured=True)
    assert configure(table, other, backends=()) == [("mine", "/a/new", True)]
