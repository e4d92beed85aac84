"""Users and keys in memory: bounds, what follows a change; the file for restarts without the database."""

from pathlib import Path

import pytest

from appliance.accounts.actor import KeyFacts, Limits, UserFacts
from appliance.accounts.snapshot import MAX_UNKNOWN, KeyRow, Snapshot
from appliance.accounts.snapshot_file import SnapshotContent, SnapshotFile
from appliance.base.clock import FakeClock
from tests.accounts.parts import SECRET

USER = UserFacts("u1", "a@example.org", True, True, "w1", "pro", Limits(rpm=5, monthly_cap_musd=7))


def digest(number: int) -> bytes:
    return number.to_bytes(32)


def row(number: int, **facts: object) -> KeyRow:
    return KeyRow(digest(number), USER.id, KeyFacts(f"k{number}", "apk_abcdefgh", **facts))


def filled(clock: FakeClock, keys: int = 3, **more: int) -> Snapshot:
    snapshot = Snapshot(clock=clock, **more)
    snapshot.put_user(USER)
    for number in range(keys):
        snapshot.put_key(row(number))
    return snapshot


def test_keys_that_are_used_stay_when_memory_is_full() -> None:
    snapshot = filled(FakeClock(), 10, max_keys=10)
    snapshot.keys[digest(0)].was_used = True
    snapshot.put_key(row(10))
    snapshot.put_key(row(11))
    assert len(snapshot.keys) == 10
    assert digest(0) in snapshot.keys
    assert digest(1) not in snapshot.keys
    assert digest(2) not in snapshot.keys
    assert not snapshot.has_key("k1")


def test_unknown_keys_are_remembered_for_a_while_and_bounded() -> None:
    clock = FakeClock()
    snapshot = Snapshot(clock=clock)
    for number in range(MAX_UNKNOWN * 2):
        snapshot.note_unknown(digest(number))
    assert len(snapshot._unknown) <= MAX_UNKNOWN
    last = digest(MAX_UNKNOWN * 2 - 1)
    assert snapshot.is_unknown(last)
    clock.advance(5)
    assert not snapshot.is_unknown(last)


def test_new_key_is_no_longer_unknown() -> None:
    snapshot = filled(FakeClock())
    snapshot.note_unknown(digest(9))
    snapshot.put_key(row(9))
    assert not snapshot.is_unknown(digest(9))


def test_change_of_a_user_reaches_its_keys_and_only_changes_do() -> None:
    snapshot = filled(FakeClock())
    before = snapshot.keys[digest(0)].actor
    version = snapshot.version
    snapshot.put_user(UserFacts(*(getattr(USER, name) for name in USER.__slots__)))
    snapshot.put_key(row(0))
    assert snapshot.keys[digest(0)].actor is before
    assert snapshot.version == version
    snapshot.put_user(UserFacts("u1", "a@example.org", is_active=False))
    assert snapshot.keys[digest(0)].valid_until_s < 0
    snapshot.drop_user("u1")
    assert not snapshot.keys
    assert not snapshot.users


def test_rotated_digest_replaces_the_old_one() -> None:
    snapshot = filled(FakeClock(), 1)
    snapshot.put_key(KeyRow(digest(7), USER.id, KeyFacts("k0", "apk_abcdefgh")))
    assert list(snapshot.keys) == [digest(7)]


def file_in(folder: Path, clock: FakeClock, secret: str = SECRET) -> SnapshotFile:
    return SnapshotFile(folder / "accounts-snapshot", secret, max_age_s=3600, clock=clock)


def test_file_gives_back_the_snapshot(tmp_path: Path) -> None:
    clock = FakeClock()
    before = filled(clock)
    before.put_key(
        row(
            1,
            models=("a", "b*"),
            scopes=frozenset({"admin"}),
            stay_local=True,
            expires_at_s=clock.now_s() + 5,
            limits=Limits(tpm=9),
        )
    )
    before.end_session("s1", clock.now_s() + 60)
    before.static_user = USER
    before.confirm(clock.now_s())
    file = file_in(tmp_path, clock)
    file.write(SnapshotContent.of(before))
    assert (tmp_path / "accounts-snapshot").stat().st_mode & 0o777 == 0o600
    clock.advance(3000)
    after = Snapshot(clock=clock)
    assert file_in(tmp_path, clock).load(after)
    assert after.users == before.users
    assert {one: known.actor.key for one, known in after.keys.items()} == {
        one: known.actor.key for one, known in before.keys.items()
    }
    assert after.ended == before.ended
    assert after.static_user == USER
    assert after.valid_until_s == clock.now_s() + 600


@pytest.mark.parametrize("case", ["absent", "changed", "secret", "old", "future", "short", "empty"])
def test_file_that_must_not_be_used_is_not(tmp_path: Path, case: str) -> None:
    clock = FakeClock()
    before = filled(clock)
    before.confirm(clock.now_s() + (600 if case == "future" else 0))
    path = tmp_path / "accounts-snapshot"
    file_in(tmp_path, clock).write(SnapshotContent.of(before))
    content = path.read_bytes()
    if case == "absent":
        path.unlink()
    if case == "changed":
        path.write_bytes(content.replace(b'"u1"', b'"u2"'))
    if case == "short":
        path.write_bytes(content[:-30])
    if case == "empty":
        path.write_bytes(b"")
    if case == "old":
        clock.advance(3601)
    after = Snapshot(clock=clock)
    assert not file_in(tmp_path, clock, "another " * 6 if case == "secret" else SECRET).load(after)
    assert not after.users
    assert after.valid_until_s < clock.now_s()
