"""The machine-id: kept, restored, made; the same for all who ask."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.host.identity import ensure_machine_id, read_machine_id

GOOD, OTHER = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"


def ensure(folder: Path, *, is_container: bool = True):
    return ensure_machine_id(
        folder / "etc" / "machine-id",
        folder / "state",
        dbus_path=folder / "dbus" / "machine-id",
        is_container=is_container,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("etc", "dbus"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, GOOD),
        (GOOD + "\n", GOOD),
        (GOOD.upper(), ""),
        (GOOD[:-1], ""),
        (GOOD + "0", ""),
        ("", ""),
        ("uninitialized\n", ""),
        ("0" * 32, ""),
        ("g" * 32, ""),
        (GOOD + "\n\n", ""),
    ],
)
def test_only_32_lower_case_hex_digits_are_valid(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "machine-id").write_text(text)
    assert read_machine_id(tmp_path / "machine-id") == found


def test_valid_id_is_kept_and_saved(folder: Path) -> None:
    (folder / "etc/machine-id").write_text(GOOD + "\n")
    result = ensure(folder)
    assert (result.value, result.source, result.is_kept) == (GOOD, "kept", True)
    assert read_machine_id(folder / "state/machine-id") == read_machine_id(folder / "dbus/machine-id") == GOOD


def test_new_container_gets_its_old_id_back(folder: Path) -> None:
    first = ensure(folder)
    assert first.source == "made"
    (folder / "etc/machine-id").write_text(OTHER)
    again = ensure(folder)
    assert (again.value, again.source) == (first.value, "restored")
    assert read_machine_id(folder / "etc/machine-id") == first.value


def test_read_only_root_leaves_the_id_to_the_state_folder(folder: Path) -> None:
    (folder / "etc").rmdir()
    (folder / "dbus").rmdir()
    assert ensure(folder).value == ensure(folder).value


def test_without_a_writable_folder_the_id_is_for_this_run(folder: Path) -> None:
    (folder / "state").write_text("a file, not a folder")
    (folder / "etc").rmdir()
    result = ensure(folder)
    assert len(result.value) == 32
    assert not result.is_kept


def test_two_processes_at_once_get_the_same_id(folder: Path) -> None:
    code = (
        "from pathlib import Path; from appliance.host.identity import ensure_machine_id as e;"
        "import sys; f = Path(sys.argv[1]);"
        "print(e(f/'none'/'machine-id', f/'state', dbus_path=f/'none'/'x', is_container=True).value)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        for _ in range(8)
    ]
    assert len({p.communicate()[0] for p in processes}) == 1


def test_id_saved_by_another_process_meanwhile_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []

    def look(path: Path) -> str:  # the other process writes right after our look at the state folder
        found = read_machine_id(path)
        if path == folder / "state/machine-id" and path not in looked:
            looked.append(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(OTHER + "\n")
        return found

    monkeypatch.setattr("appliance.host.identity.read_machine_id", look)
    assert ensure(folder).value == OTHER
    assert read_machine_id(folder / "state/machine-id") == OTHER


def test_files_of_a_real_machine_are_not_replaced(folder: Path) -> None:
    ensure(folder, is_container=False)
    (folder / "etc/machine-id").write_text(GOOD)
    (folder / "dbus/machine-id").write_text(OTHER)
    result = ensure(folder, is_container=False)
    assert (result.value, result.source) == (GOOD, "kept")
    assert read_machine_id(folder / "dbus/machine-id") == OTHER
    assert read_machine_id(folder / "state/machine-id") == GOOD


def test_unusual_path_has_no_second_place(folder: Path) -> None:
    result = ensure_machine_id(folder / "etc" / "machine-id", folder / "state")
    assert "dbus" not in result.detail
