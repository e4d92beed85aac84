"""What was written is read again, whatever the process or the disk did; nothing is doubled."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.accounts.journal import TIDY_BYTES, Journal, JournalFull, JournalState
from appliance.accounts.settlement import AttemptEnd, AttemptNote

MB = 1024 * 1024


def note(number: int = 1, wallet_id: str = "w") -> AttemptNote:
    return AttemptNote(f"a{number}", 5, wallet_id, "u", "k", "c", "ip", "inference", "m", "s", "b", 3, 10)


def end(charged: int) -> AttemptEnd:
    return AttemptEnd("engine", 10, 0, 20, charged, charged, 0)


def journal_in(folder: Path, **options: int) -> Journal:
    return Journal(folder, **{"max_bytes": 64 * MB, **options})


def reopened(journal: Journal, folder: Path, **options: int) -> Journal:
    os.close(journal._lock)  # as if it was killed
    return journal_in(folder, **options)


def only_file(folder: Path) -> Path:
    (path,) = (path for path in folder.glob("*.journal") if path.stat().st_size)
    return path


def test_attempts_and_leases_are_read_again(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    journal.lease("w", 1000)
    first, second, third = (journal.begin(note(number), 50) for number in (1, 2, 3))
    journal.progress(second, 7, 90, 30)
    journal.end(third, end(40), 50)
    fourth = journal.begin(note(4), 50)
    journal.end(fourth, end(1), 50)
    journal.lease("w", 999)
    journal.settled([fourth])
    journal.lease("gone", 5)
    journal.lease("gone", 0)
    journal.contact(77)
    state = reopened(journal, tmp_path).state
    assert sorted(state.attempts) == [first, second, third]
    assert (state.leases, state.reached_ms, state.damaged_bytes) == ({"w": 999}, 77, 0)
    ends = {number: one.settlement().end for number, one in state.attempts.items()}
    assert ends[first] == AttemptEnd("journal")
    assert ends[second] == AttemptEnd("journal", 10, 0, 7, 30, 30, 0)
    assert ends[third] == end(40)
    assert state.attempts[second].note == note(2)


def test_a_killed_attempt_never_pays_more_than_was_held(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    number = journal.begin(note(), 50)
    journal.progress(number, 9, 50, 80)
    assert reopened(journal, tmp_path).state.attempts[number].settlement().end.charged_musd == 50


def test_numbers_go_on_after_a_start(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    number = journal.begin(note(), 1)
    journal.settled([number])
    again = reopened(journal, tmp_path)
    assert again.state.attempts == {}
    assert again.begin(note(), 1) == number + 1


def test_files_are_for_their_owner_alone_and_for_one_process(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        journal = journal_in(tmp_path / "state" / "journal")
    finally:
        os.umask(old)
    journal.begin(note(), 1)
    assert stat.S_IMODE((tmp_path / "state" / "journal").stat().st_mode) == 0o700
    assert stat.S_IMODE(only_file(tmp_path / "state" / "journal").stat().st_mode) == 0o600
    with pytest.raises(BlockingIOError):
        journal_in(tmp_path / "state" / "journal")
    journal.close()
    journal_in(tmp_path / "state" / "journal").close()


def test_files_go_once_all_in_them_is_settled_the_oldest_first(tmp_path: Path) -> None:
    journal = journal_in(tmp_path, segment_bytes=2000)
    journal.lease("w", 500)
    numbers = [journal.begin(note(number), 1) for number in range(60)]
    assert len(list(tmp_path.glob("*.journal"))) > 2
    journal.settled(numbers[1:])
    files = len(list(tmp_path.glob("*.journal")))
    assert files > 2  # the first attempt runs
    journal.settled(numbers[:1])
    assert len(list(tmp_path.glob("*.journal"))) == 1
    again = reopened(journal, tmp_path)
    assert (again.state.attempts, again.state.leases) == ({}, {"w": 500})
    assert again.size_bytes < 6000


def test_a_large_file_is_replaced_where_all_in_it_is_settled(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    numbers = []
    while journal.size_bytes <= TIDY_BYTES:
        numbers.append(journal.begin(note(), 1))
    journal.settled(numbers)
    assert journal.size_bytes == 0
    journal.close()
    assert list(tmp_path.glob("*.journal")) == []


def test_a_full_journal_takes_no_attempt_but_what_ends(tmp_path: Path) -> None:
    journal = journal_in(tmp_path, max_bytes=2000, segment_bytes=1000)
    numbers = []
    while journal.size_bytes <= 2000:
        numbers.append(journal.begin(note(), 1))
    with pytest.raises(JournalFull, match="JOURNAL_MAX_MB") as refusal:
        journal.begin(note(), 1)
    assert (refusal.value.code, refusal.value.retry_after_s) == ("store_unavailable", 10.0)
    for number in numbers:
        journal.end(number, end(1), 1)
    journal.settled(numbers)
    journal.begin(note(), 1)


def test_a_full_disk_refuses_attempts_and_leaves_whole_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journal_in(tmp_path)
    first = journal.begin(note(1), 1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:20]))
    with pytest.raises(JournalFull, match="The disk is full"):
        journal.begin(note(2), 1)
    journal.progress(first, 5, 9, 9)  # logged, and goes on
    monkeypatch.undo()
    third = journal.begin(note(3), 1)
    state = reopened(journal, tmp_path).state
    assert (sorted(state.attempts), state.damaged_bytes) == ([first, third], 0)


def content(folder: Path) -> bytes:
    journal = journal_in(folder)
    journal.lease("w", 100)
    for number in (1, 2):
        journal.begin(note(number), 50)
        journal.progress(number, 3, 60, number)
    journal.end(1, end(40), 60)
    journal.settled([1])
    data = only_file(folder).read_bytes()
    journal.close()
    return data


def read(folder: Path, data: bytes) -> JournalState:
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.journal"):
        path.unlink()
    (folder / "00000001.journal").write_bytes(data)
    journal = journal_in(folder)
    state = journal.state
    number = journal.begin(note(9), 1)
    assert number > state.last_number
    again = reopened(journal, folder)
    assert number in again.state.attempts  # what is written after damage is read
    os.close(again._lock)
    for fd in (journal._fd, again._fd):
        os.close(fd)
    return state


def test_a_journal_cut_off_at_any_byte_is_read_up_to_there(tmp_path: Path) -> None:
    data = content(tmp_path / "a")
    seen = set()
    for length in range(len(data) + 1):
        state = read(tmp_path / "b", data[:length])
        assert state.damaged_bytes < 300
        for one in state.attempts.values():
            assert one.settlement().end.charged_musd in (0, 1, 2, 40)
        seen.add((tuple(state.attempts), state.leases.get("w", 0)))
    assert seen == {((), 0), ((), 100), ((1,), 100), ((1, 2), 100), ((2,), 100)}


def test_a_journal_with_any_byte_damaged_loses_one_record(tmp_path: Path) -> None:
    data = content(tmp_path / "a")
    whole = read(tmp_path / "b", data)
    for place in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        state = read(tmp_path / "b", bytes(damaged))
        assert 0 < state.damaged_bytes < 300
        assert set(state.attempts) >= set(whole.attempts) - {2}
        for one in state.attempts.values():
            assert one.settlement().end.charged_musd <= 60


def test_foreign_files_and_odd_bytes_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "x.journal").write_bytes(b"hello")
    (tmp_path / "00000007.journal").write_bytes(os.urandom(5000) + b"\xa5" * 500)
    journal = journal_in(tmp_path)
    assert journal.state.damaged_bytes == 5500
    assert (tmp_path / "00000008.journal").exists()
    journal.close()


async def test_records_reach_the_disk_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), fdatasync(fd)))
    monkeypatch.setattr("appliance.accounts.journal.SYNC_EVERY_S", 0.001)
    journal = journal_in(tmp_path, segment_bytes=500)
    keeping = asyncio.ensure_future(journal.keep_synced())
    for number in range(9):
        journal.begin(note(number), 1)
    async with asyncio.timeout(10):
        while len(synced) < 2:
            await asyncio.sleep(0.001)
    keeping.cancel()
    journal.close()
    assert len(list(tmp_path.glob("*.journal"))) > 1  # nothing is settled


KILLED = """
import sys, os, signal
from pathlib import Path
from appliance.accounts.journal import Journal
from tests.accounts.test_journal import note, end
journal = Journal(Path(sys.argv[1]), max_bytes=10**8)
journal.lease("w", 1000)
for number in range(1, 400):
    journal.begin(note(number), 50)
    journal.progress(number, 1, 60, number)
    journal.end(number, end(number), 60)
    print(number, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_nothing_that_it_wrote(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    state = journal_in(tmp_path).state
    assert len(state.attempts) == len(child.stdout.split()) == 399
    assert all(one.settlement().end.charged_musd == number for number, one in state.attempts.items())
    assert state.damaged_bytes == 0
