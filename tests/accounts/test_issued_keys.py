"""API keys of users: made, used, listed, rotated, revoked; on both databases."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from appliance.accounts import issued_keys, snapshot_reader
from appliance.accounts.actor import Limits, UserFacts
from appliance.accounts.api_keys import NewKey
from appliance.accounts.identity import Identity
from appliance.accounts.issued_keys import KeyRequest
from appliance.accounts.snapshot import Snapshot
from appliance.accounts.snapshot_reader import SnapshotReader
from appliance.accounts.user_forms import UserChange
from appliance.base.errors import Conflict, Forbidden, NotFound, Unauthenticated
from appliance.storage.database import Database
from appliance.storage.schema import api_keys, audit
from tests.accounts.parts import AUTHOR, PASSWORD, FakeClock, eventually, identity_on


@pytest.fixture
async def identity(database: Database, tmp_path: Path) -> AsyncIterator[Identity]:
    async with identity_on(database, tmp_path, clock=FakeClock()) as one:
        yield one


@pytest.fixture
async def user(identity: Identity) -> UserFacts:
    return (await identity.users.create("a@example.org", PASSWORD, "Ada", author=AUTHOR)).facts()


async def code_of(identity: Identity, key: NewKey) -> str | None:
    """Return why a key is refused; "" = it is admitted."""
    headers = {"x-api-key": key.text}
    try:
        actor = identity.callers.admit("client", headers, "10.0.0.1")
        if actor is None:
            await identity.directory.look_up(headers, identity.callers)
            actor = identity.callers.admit("client", headers, "10.0.0.1")
        assert actor is not None
        return ""
    except Unauthenticated as error:
        return error.code


async def test_an_older_row_is_never_noted_after_a_newer_one(
    identity: Identity, user: UserFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, stored = await identity.keys.create(user, KeyRequest("k"), author=AUTHOR)
    reader = identity.directory._reader
    rows_of, has_read, may_go_on = reader._rows, asyncio.Event(), asyncio.Event()

    async def rows_late(query: Any) -> Any:
        rows = await rows_of(query)
        if not has_read.is_set():
            has_read.set()
            await may_go_on.wait()
        return rows

    monkeypatch.setattr(reader, "_rows", rows_late)
    before = asyncio.create_task(reader.read_keys([stored.id]))
    await has_read.wait()  # it is active in what was read
    revoking = asyncio.create_task(identity.keys.revoke(user.id, stored.id, author=AUTHOR))
    while (await identity.keys.get(user.id, stored.id)).is_active:
        pass
    for _ in range(20):  # as long as it takes to note it, where nothing holds it up
        await identity.keys.get(user.id, stored.id)
    may_go_on.set()
    await asyncio.gather(before, revoking)
    assert not identity.directory._snapshot.has_key(stored.id)
    assert await code_of(identity, key) == "invalid_api_key"


async def test_key_is_stored_as_its_digest_alone(identity: Identity, user: UserFacts) -> None:
    wanted = KeyRequest(
        "one",
        frozenset({"inference"}),
        ("llama*",),
        Limits(rpm=5, monthly_cap_musd=2_500_000),
        True,
        1_900_000_000_000,
    )
    key, stored = await identity.keys.create(user, wanted, author=AUTHOR)
    async with identity.database.transaction(is_read_only=True) as transaction:
        [row] = await transaction.execute(select(api_keys))
        trail = await transaction.execute(select(audit.c.details))
    assert bytes(row.key_hash) == key.digest
    assert key.text not in repr(row)
    assert key.text not in repr(trail)
    assert await identity.keys.of_user(user.id) == [stored]
    assert stored.to_json() == {
        "id": stored.id,
        "prefix": key.prefix,
        "name": "one",
        "scopes": ["inference"],
        "models": ["llama*"],
        "limits": {"rpm": 5, "rpd": None, "tpm": None, "tpd": None, "concurrency": None, "monthly_cap": 2.5},
        "stay_local": True,
        "last_used_at": None,
        "expires_at": "2030-03-17T17:46:40.000Z",
        "is_active": True,
        "created_at": "2027-01-15T08:00:00.000Z",
    }
    actor = identity.callers.admit("client", {"authorization": f"Bearer {key.text}"}, "10.0.0.1")
    assert actor is None or actor.key is not None
    assert await code_of(identity, key) == ""
    actor = identity.callers.admit("client", {"authorization": f"Bearer {key.text}"}, "10.0.0.1")
    assert actor is not None
    assert actor.key is not None
    assert (actor.key.limits, actor.key.models, actor.stay_local) == (wanted.limits, wanted.models, True)


async def test_both_keys_work_during_the_grace_of_a_rotation(identity: Identity, user: UserFacts) -> None:
    old, stored = await identity.keys.create(user, KeyRequest("one", models=("m",)), author=AUTHOR)
    new, replaced = await identity.keys.rotate(user, stored.id, grace_s=60, author=AUTHOR)
    assert (replaced.name, replaced.models) == ("one", ("m",))
    assert [await code_of(identity, one) for one in (old, new)] == ["", ""]
    identity.clock.advance(60)
    assert [await code_of(identity, one) for one in (old, new)] == ["api_key_expired", ""]
    with pytest.raises(Conflict, match="was revoked or has expired"):
        await identity.keys.rotate(user, stored.id, grace_s=60, author=AUTHOR)


async def test_rotation_without_grace_ends_the_old_key_at_once(identity: Identity, user: UserFacts) -> None:
    old, stored = await identity.keys.create(user, KeyRequest("one"), author=AUTHOR)
    assert await code_of(identity, old) == ""
    new, _ = await identity.keys.rotate(user, stored.id, grace_s=0, author=AUTHOR)
    assert [await code_of(identity, one) for one in (old, new)] == ["invalid_api_key", ""]


async def test_revoked_key_is_refused_at_once_and_stays_listed(identity: Identity, user: UserFacts) -> None:
    key, stored = await identity.keys.create(user, KeyRequest("one"), author=AUTHOR)
    assert await code_of(identity, key) == ""
    for _ in range(2):
        await identity.keys.revoke(user.id, stored.id, author=AUTHOR)
    assert await code_of(identity, key) == "invalid_api_key"
    assert [one.is_active for one in await identity.keys.of_user(user.id)] == [False]


async def test_keys_of_others_are_not_found(identity: Identity, user: UserFacts) -> None:
    _, stored = await identity.keys.create(user, KeyRequest("one"), author=AUTHOR)
    other = (await identity.users.create("b@example.org", PASSWORD, "Bob", author=AUTHOR)).facts()
    for work in (
        identity.keys.revoke(other.id, stored.id, author=AUTHOR),
        identity.keys.get(other.id, stored.id),
        identity.keys.rotate(other, stored.id, grace_s=0, author=AUTHOR),
    ):
        with pytest.raises(NotFound):
            await work
    assert (await identity.keys.get(user.id, stored.id)).is_active


async def test_scope_admin_is_for_administrators(identity: Identity, user: UserFacts) -> None:
    wanted = KeyRequest("one", frozenset({"admin"}))
    with pytest.raises(Forbidden):
        await identity.keys.create(user, wanted, author=AUTHOR)
    admin = (
        await identity.users.create("b@example.org", PASSWORD, "Bob", author=AUTHOR, is_admin=True)
    ).facts()
    key, _ = await identity.keys.create(admin, wanted, author=AUTHOR)
    await identity.directory.look_up({"x-api-key": key.text}, identity.callers)
    assert identity.callers.admit("operator", {"x-api-key": key.text}, "10.0.0.1") is not None


async def test_keys_of_one_user_are_bounded(
    identity: Identity, user: UserFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issued_keys, "MAX_KEYS", 2)
    for _ in range(2):
        await identity.keys.create(user, KeyRequest("one"), author=AUTHOR)
    with pytest.raises(Conflict, match="has 2 API keys"):
        await identity.keys.create(user, KeyRequest("one"), author=AUTHOR)


async def test_last_use_is_written_later(identity: Identity, user: UserFacts) -> None:
    key, stored = await identity.keys.create(user, KeyRequest("one"), author=AUTHOR)
    assert await code_of(identity, key) == ""
    identity.clock.advance(30)
    await identity.directory.write_used()
    assert (await identity.keys.get(user.id, stored.id)).last_used_at_ms == 1_800_000_030_000


async def test_start_reads_all_valid_keys(identity: Identity, user: UserFacts, tmp_path: Path) -> None:
    made = [await identity.keys.create(user, KeyRequest(f"k{number}"), author=AUTHOR) for number in range(5)]
    await identity.keys.revoke(user.id, made[0][1].id, author=AUTHOR)
    async with identity_on(identity.database, tmp_path, clock=identity.clock) as other:
        await eventually(lambda: len(other.snapshot.keys) == 4)
        assert other.callers.admit("client", {"x-api-key": made[1][0].text}, "10.0.0.1") is not None
    async with identity_on(identity.database, tmp_path, clock=identity.clock, key_snapshot_max=100) as other:
        assert await code_of(other, made[2][0]) == ""


async def test_keys_used_last_are_in_memory_where_not_all_fit(
    identity: Identity, user: UserFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_reader, "PAGE", 2)
    made = [await identity.keys.create(user, KeyRequest(f"k{number}"), author=AUTHOR) for number in range(7)]
    await eventually(lambda: len(identity.snapshot.keys) == 7)
    for key, _ in made[3:]:
        assert await code_of(identity, key) == ""
    await identity.directory.write_used()
    for most, wanted in ((7, 7), (3, 3), (4, 4)):
        snapshot = Snapshot(clock=identity.clock, max_keys=most)
        reader = SnapshotReader(
            identity.database, snapshot, clock=identity.clock, token_lifetime_s=60, max_keys=most
        )
        await reader.fill()
        await reader.fill()
        assert len(snapshot.keys) == wanted
        if most < 7:
            assert set(snapshot.keys) <= {key.digest for key, _ in made[3:]}


async def test_static_keys_are_billed_to_the_user_of_the_settings(database: Database, tmp_path: Path) -> None:
    async with identity_on(database, tmp_path, static_keys_user="Payer@example.org") as one:
        one.callers.apply(client_keys=["client-key-1"], operator_keys=[], stay_local_keys=[])
        headers = {"authorization": "Bearer client-key-1"}
        actor = one.callers.admit("client", headers, "10.0.0.1")
        assert actor is not None
        assert actor.user is None  # there is no such user yet
        payer = await one.users.create("payer@example.org", PASSWORD, "Payer", author=AUTHOR)
        await eventually(lambda: one.snapshot.static_user is not None)
        actor = one.callers.admit("client", headers, "10.0.0.1")
        assert actor is not None
        assert (actor.kind, actor.user, actor.flow) == ("static", payer.facts(), payer.id)
        await one.users.change(payer.id, UserChange(limits=Limits(rpm=1)), author=AUTHOR)
        actor = one.callers.admit("client", headers, "10.0.0.1")
        assert actor is not None
        assert actor.user is not None
        assert actor.user.limits == Limits(rpm=1)


async def test_close_writes_the_snapshot_and_what_was_used(database: Database, tmp_path: Path) -> None:
    async with identity_on(database, tmp_path) as one:
        user = (await one.users.create("a@example.org", PASSWORD, "Ada", author=AUTHOR)).facts()
        key, stored = await one.keys.create(user, KeyRequest("one"), author=AUTHOR)
        assert await code_of(one, key) == ""
        await one.close()
        assert (await one.keys.get(user.id, stored.id)).last_used_at_ms is not None
        assert key.digest.hex().encode() in (tmp_path / "accounts-snapshot").read_bytes()
        assert key.text.encode() not in (tmp_path / "accounts-snapshot").read_bytes()
