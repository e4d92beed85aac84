"""The table of declared adapters, and its file."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import Conflict, Invalid
from appliance.engines.lora.plan import Adapter, Failure
from appliance.engines.lora.table import AdapterTable
from appliance.engines.lora.table_file import read_adapters, write_adapters

STYLE = Adapter("style", "/a/style", "tiny", "hf://o/a", "v", is_pinned=True)
LEAVING = Adapter("old", "/a/old", "tiny", is_wanted=False, unload_from=("v", "w"))
BOTH = {"style": STYLE, "old": LEAVING}


# ---- the file


def test_adapters_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "lora-adapters.json"
    assert read_adapters(path) == {}
    write_adapters(path, BOTH)
    assert read_adapters(path) == BOTH
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_keeps_the_keys_of_every_release(tmp_path: Path) -> None:
    path = tmp_path / "lora-adapters.json"
    write_adapters(path, {"old": LEAVING})
    assert jsons.loads(path.read_bytes()) == {
        "adapters": [
            {
                "name": "old",
                "path": "/a/old",
                "base_model": "tiny",
                "source": "",
                "backend": "",
                "is_pinned": False,
                "is_wanted": False,
                "leaves": ["v", "w"],
            }
        ]
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "InvalidJson"),
        (b"[]", "TypeError"),
        (b'{"adapters": [{"name": "a"}]}', "KeyError"),
        (b'{"adapters": [{"name": 1, "path": "", "base_model": ""}]}', "fields of an adapter must be texts"),
    ],
)
def test_an_unreadable_file_is_logged_and_left(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "lora-adapters.json"
    path.write_bytes(content)
    with capture_logs() as lines:
        assert read_adapters(path) == {}
    assert path.read_bytes() == content
    assert [line["event"] for line in lines] == ["adapters_unreadable"]
    assert reason in lines[0]["error"]


async def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "no folder").write_bytes(b"")
    table = AdapterTable(tmp_path / "no folder" / "x.json", clock=FakeClock())
    with pytest.raises(Conflict) as raised:
        await table.save()
    assert raised.value.code == "not_persisted"


# ---- the table


@pytest.fixture
def table() -> AdapterTable:
    return AdapterTable(None, clock=FakeClock())


async def test_without_a_file_nothing_is_stored(table: AdapterTable) -> None:
    table.declared["style"] = STYLE
    await table.save()
    assert AdapterTable(None, clock=FakeClock()).declared == {}


def test_failures_in_a_row_are_counted_until_a_success(table: AdapterTable) -> None:
    table.add_failure("style", "v", Invalid("no such folder"))
    table.add_failure("style", "v", Invalid("still none"))
    failure = table.failures["style", "v"]
    assert isinstance(failure, Failure)
    assert (failure.count, failure.error) == (2, "still none")
    table.clear_failures("style", "v")
    assert table.failures == {}
    table.clear_failures("style", "v")


def test_adapters_about_to_be_declared_are_known(table: AdapterTable) -> None:
    table.declared["style"] = STYLE
    table.changing |= {"style": STYLE, "new": Adapter("new", "/n", "tiny")}
    assert [one.name for one in table.all_known()] == ["style", "new"]


@pytest.mark.parametrize(("unload_from", "remaining"), [((), []), (("w",), ["style"])])
def test_a_removed_adapter_stays_until_it_is_unloaded(
    table: AdapterTable, unload_from: tuple[str, ...], remaining: list[str]
) -> None:
    table.declared["style"] = STYLE
    table.remove(STYLE, unload_from)
    assert list(table.declared) == remaining
    assert all(not one.is_wanted and one.unload_from == unload_from for one in table.declared.values())


@pytest.mark.parametrize(
    ("existing", "is_changed", "left"),
    [
        ({"v", "w"}, True, ("w",)),
        ({"v"}, True, None),  # w was removed
    ],
)
def test_an_unload_is_noted_for_each_backend(table, existing, is_changed, left) -> None:
    table.declared["old"] = LEAVING
    assert table.mark_unloaded(LEAVING, "v", existing) is is_changed
    remaining = table.declared.get("old")
    assert (remaining.unload_from if remaining else None) == left


def test_an_unload_of_a_former_declaration_changes_nothing(table: AdapterTable) -> None:
    table.declared["old"] = Adapter("old", "/a/old", "tiny")  # declared again meanwhile
    assert table.mark_unloaded(LEAVING, "v", {"v", "w"}) is False
    assert table.mark_unloaded(table.declared["old"], "v", {"v", "w"}) is False
    assert table.declared["old"].is_wanted
