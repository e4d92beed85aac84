"""Users: registration, login, passwords, roles, export, deletion; on both databases."""

from collections.abc import AsyncIterator
from pathlib import Path

import bcrypt
import pytest
from sqlalchemy import insert, select, update

from appliance.accounts.actor import Limits
from appliance.accounts.identity import Identity
from appliance.accounts.issued_keys import KeyRequest
from appliance.accounts.user_export import export_user
from appliance.accounts.user_forms import UserChange, read_change, read_email
from appliance.base import jsons
from appliance.base.errors import Conflict, Exhausted, Forbidden, Invalid, NotFound, Unauthenticated
from appliance.storage.database import Database, Transaction
from appliance.storage.schema import api_keys, audit, credits, sessions, usage_quotas, users, wallets
from tests.accounts.parts import AUTHOR, PASSWORD, FakeClock, identity_on


@pytest.fixture
async def identity(database: Database, tmp_path: Path) -> AsyncIterator[Identity]:
    async with identity_on(database, tmp_path, clock=FakeClock()) as one:
        yield one


async def rows_of(identity: Identity, query: object) -> list:
    async with identity.database.transaction(is_read_only=True) as transaction:
        return list(await transaction.execute(query))


async def login(identity: Identity, password: str = PASSWORD, email: str = "a@example.org"):
    return await identity.users.login(email, password, peer="10.0.0.1", user_agent="test")


async def test_user_registers_logs_in_and_calls(identity: Identity) -> None:
    user = await identity.users.register(" A@Example.org ", PASSWORD, "Ada", peer="10.0.0.1")
    assert (user.email, user.name, user.is_admin, user.is_active) == ("a@example.org", "Ada", False, True)
    assert set(user.to_json()) >= {"id", "email", "name", "is_admin", "is_active", "created_at", "updated_at"}
    again, tokens = await login(identity)
    assert again == user
    assert set(tokens.to_json()) == {"access_token", "refresh_token", "expires_at"}
    assert tokens.access_token not in repr(tokens)
    actor = identity.callers.admit(
        "account", {"authorization": f"Bearer {tokens.access_token}"}, "10.0.0.1", scope="billing"
    )
    assert actor is None  # not in memory yet
    headers = {"authorization": f"Bearer {tokens.access_token}"}
    await identity.directory.look_up(headers, identity.callers)
    actor = identity.callers.admit("account", headers, "10.0.0.1", scope="billing")
    assert actor is not None
    assert actor.user == user.facts()
    [wallet] = await rows_of(identity, select(wallets))
    assert (wallet.id, wallet.user_id) == (user.wallet_id, user.id)
    [quota] = await rows_of(identity, select(usage_quotas))
    assert (quota.user_id, quota.max_requests, quota.reset_at) == (user.id, 10_000, 1_801_440_000_000)
    [row] = await rows_of(identity, select(audit))
    assert (row.action, row.subject_id, row.ip_address) == ("user.create", user.id, "10.0.0.1")


async def test_email_address_is_taken_once(identity: Identity) -> None:
    await identity.users.register("a@example.org", PASSWORD, "Ada", peer="10.0.0.1")
    with pytest.raises(Conflict) as refused:
        await identity.users.register("A@example.org", PASSWORD, "Bob", peer="10.0.0.2")
    assert refused.value.code == "email_taken"
    assert len(await rows_of(identity, select(wallets))) == 1


@pytest.mark.parametrize(
    ("email", "password", "name", "text"),
    [
        ("", PASSWORD, "Ada", "Missing required fields"),
        ("a@example.org", None, "Ada", "Missing required fields"),
        ("a@example.org", PASSWORD, "", "Missing required fields"),
        ("no address", PASSWORD, "Ada", "is no e-mail address"),
        ("a@example.org", "short", "Ada", "at least 10 are needed"),
        ("a@example.org", PASSWORD, "A\0da", "name: "),
        (5, PASSWORD, "Ada", "is no e-mail address"),
        ("a\0@example.org", PASSWORD, "Ada", "is no e-mail address"),
    ],
)
async def test_registration_that_is_refused(
    sqlite_database: Database, tmp_path: Path, email: object, password: object, name: object, text: str
) -> None:
    async with identity_on(sqlite_database, tmp_path) as identity:
        with pytest.raises(Invalid, match=text):
            await identity.users.register(email, password, name, peer="10.0.0.1")


async def test_closed_registration_leaves_creation_to_administrators(
    sqlite_database: Database, tmp_path: Path
) -> None:
    async with identity_on(sqlite_database, tmp_path, registration="off") as identity:
        with pytest.raises(Forbidden, match="REGISTRATION"):
            await identity.users.register("a@example.org", PASSWORD, "Ada", peer="10.0.0.1")
        user = await identity.users.create("a@example.org", PASSWORD, "Ada", author=AUTHOR, is_admin=True)
        assert user.is_admin


async def test_first_credits_are_part_of_the_registration(database: Database, tmp_path: Path) -> None:
    granted = []

    async def open_wallet(transaction: Transaction, wallet_id: str, user_id: str) -> None:
        granted.append((user_id, wallet_id))
        row = {"id": wallet_id, "user_id": user_id, "extra_musd": 5_000_000}
        await transaction.execute(insert(wallets), [row])

    async with identity_on(database, tmp_path) as identity:
        identity.users._open_wallet = open_wallet
        user = await identity.users.register("a@example.org", PASSWORD, "Ada", peer="10.0.0.1")
        assert granted == [(user.id, user.wallet_id)]
        assert (await rows_of(identity, select(wallets)))[0].extra_musd == 5_000_000


async def test_wrong_password_and_unknown_user_look_alike(identity: Identity) -> None:
    await identity.users.register("a@example.org", PASSWORD, "Ada", peer="10.0.0.1")
    for email, password in (
        ("a@example.org", "wrong"),
        ("b@example.org", PASSWORD),
        ("b\0@x", "x"),
        ("\ud800@x", "\ud800"),
    ):
        with pytest.raises(Unauthenticated, match=r"^invalid credentials$"):
            await login(identity, password, email)


async def test_logins_are_limited_per_email_and_per_address(identity: Identity) -> None:
    await identity.users.register("a@example.org", PASSWORD, "Ada", peer="10.0.0.1")
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await login(identity, "wrong")
    with pytest.raises(Exhausted, match="Too many logins of this e-mail address") as refused:
        await login(identity)
    assert refused.value.retry_after_s
    for number in range(14):
        with pytest.raises(Unauthenticated):
            await login(identity, "wrong", f"u{number}@example.org")
    with pytest.raises(Exhausted, match="from this address"):
        await login(identity, "wrong", "other@example.org")
    identity.clock.advance(120)
    await login(identity)


async def test_inactive_user_cannot_log_in_and_its_sessions_end(identity: Identity) -> None:
    user = await identity.users.register("a@example.org", PASSWORD, "Ada", peer="10.0.0.1")
    _, tokens = await login(identity)
    await identity.users.change(user.id, UserChange(is_active=False), author=AUTHOR)
    with pytest.raises(Unauthenticated, match=r"^user account is inactive$"):
        await login(identity)
    with pytest.raises(Unauthenticated):
        await identity.sessions.refresh(tokens.refresh_token)


async def test_bcrypt_of_a_user_who_was_taken_over_is_replaced(identity: Identity) -> None:
    user = await identity.users.create("a@example.org", PASSWORD, "Ada", author=AUTHOR)
    old = bcrypt.hashpw(b"from the original", bcrypt.gensalt(4)).decode().replace("$2b$", "$2a$")
    async with identity.database.transaction() as transaction:
        await transaction.execute(update(users).where(users.c.id == user.id).values(password_hash=old))
    await login(identity, "from the original")
    [row] = await rows_of(identity, select(users.c.password_hash))
    assert row.password_hash.startswith("$argon2id$")
    await login(identity, "from the original")


async def test_new_password_ends_all_other_sessions(identity: Identity) -> None:
    user = await identity.users.register("a@example.org", PASSWORD, "Ada", peer="10.0.0.1")
    _, first = await login(identity)
    _, second = await login(identity)
    with pytest.raises(Unauthenticated, match="old password is wrong"):
        await identity.users.change_password(user.id, "wrong", "another password", author=AUTHOR)
    await identity.users.change_password(
        user.id, PASSWORD, "another password", author=AUTHOR, session_id=second.session_id
    )
    assert [row.id for row in await identity.sessions.of_user(user.id)] == [second.session_id]
    with pytest.raises(Unauthenticated):
        await identity.sessions.refresh(first.refresh_token)
    with pytest.raises(Unauthenticated):
        await login(identity)
    await login(identity, "another password")


async def test_changes_of_an_administrator_hold_at_once(identity: Identity) -> None:
    user = await identity.users.create("a@example.org", PASSWORD, "Ada", author=AUTHOR)
    key, _ = await identity.keys.create(user.facts(), KeyRequest("one"), author=AUTHOR)
    headers = {"x-api-key": key.text}
    wanted = read_change({"is_admin": True, "plan": "pro", "limits": {"rpm": 3}, "name": "Ada L"})
    changed = await identity.users.change(user.id, wanted, author=AUTHOR)
    assert (changed.is_admin, changed.plan, changed.limits, changed.name) == (
        True,
        "pro",
        Limits(rpm=3),
        "Ada L",
    )
    actor = identity.callers.admit("client", headers, "10.0.0.1")
    assert actor is not None
    assert actor.user == changed.facts()
    details = [
        jsons.loads(row.details)
        for row in await rows_of(identity, select(audit))
        if row.action == "user.change"
    ]
    unlimited = dict.fromkeys(("rpm", "rpd", "tpm", "tpd", "concurrency", "monthly_cap"))
    assert details == [
        {
            "before": {"is_admin": False, "plan": "", "limits": unlimited},
            "after": {"is_admin": True, "plan": "pro", "limits": unlimited | {"rpm": 3}},
        }
    ]
    with pytest.raises(NotFound):
        await identity.users.change("nobody", wanted, author=AUTHOR)


@pytest.mark.parametrize(
    "body",
    [[], {}, {"email": "x"}, {"is_admin": 1}, {"is_active": "yes"}, {"plan": 5}, {"limits": 5}, {"name": ""}],
)
def test_change_that_is_refused(body: object) -> None:
    with pytest.raises(Invalid):
        read_change(body)


async def test_deleted_user_is_anonymous_and_calls_no_more(identity: Identity) -> None:
    user = await identity.users.register("a@example.org", PASSWORD, "Ada Lovelace", peer="10.0.0.1")
    key, stored = await identity.keys.create(user.facts(), KeyRequest("secret name"), author=AUTHOR)
    _, tokens = await login(identity)
    headers = {"x-api-key": key.text}
    assert identity.callers.admit("client", headers, "10.0.0.1") is not None
    for client in (user.id, stored.id):
        row = {
            "id": client,
            "client_id": client,
            "ip": "10.0.0.1",
            "date": "2027-01-15",
            "time": "08:00:00",
            "created_at": 0,
        }
        async with identity.database.transaction() as transaction:
            await transaction.execute(insert(credits), [row])
    await identity.users.change(user.id, UserChange(name="Ada L"), author=AUTHOR)
    found = await export_user(
        user.id,
        database=identity.database,
        users=identity.users,
        keys=identity.keys,
        sessions=identity.sessions,
        clock=identity.clock,
    )
    assert len(found["credits"]) == 2
    await identity.users.delete(user.id, author=AUTHOR)
    await identity.directory.look_up(headers, identity.callers)
    with pytest.raises(Unauthenticated):
        identity.callers.admit("client", headers, "10.0.0.1")
    with pytest.raises(Unauthenticated):
        await identity.sessions.refresh(tokens.refresh_token)
    with pytest.raises(Unauthenticated):
        await login(identity)
    [row] = await rows_of(identity, select(users))
    assert (row.email, row.name, row.password_hash) == (f"deleted-{user.id}@invalid", "", "")
    [row] = await rows_of(identity, select(sessions))
    assert (row.ip_address, row.user_agent) == ("", "")
    for table in (audit, api_keys, credits, users, wallets):
        text = repr(await rows_of(identity, select(table)))
        gone = ["example.org", "Ada", "secret name"]
        if table is not audit:  # it keeps from where something was done
            gone.append("10.0.0.1")
        assert not [one for one in gone if one in text], table.name
    assert len(await rows_of(identity, select(wallets))) == 1
    for change in (UserChange(is_active=True), UserChange(is_admin=True)):
        with pytest.raises(NotFound, match="it was deleted"):
            await identity.users.change(user.id, change, author=AUTHOR)
    with pytest.raises(NotFound, match="it was deleted"):
        await identity.users.set_password(user.id, PASSWORD, author=AUTHOR)
    await identity.users.register("a@example.org", PASSWORD, "Another", peer="10.0.0.1")


async def test_export_has_everything_and_no_secret(identity: Identity) -> None:
    user = await identity.users.register("a@example.org", PASSWORD, "Ada", peer="10.0.0.1")
    key, _ = await identity.keys.create(user.facts(), KeyRequest("one"), author=AUTHOR)
    _, tokens = await login(identity)
    found = await export_user(
        user.id,
        database=identity.database,
        users=identity.users,
        keys=identity.keys,
        sessions=identity.sessions,
        clock=identity.clock,
    )
    assert set(found) >= {
        "user",
        "api_keys",
        "usage_quota",
        "gpu_usage",
        "transactions",
        "credits",
        "exported_at",
    }
    text = jsons.dumps_text(found)
    assert len(found["sessions"]) == len(found["api_keys"]) == 1
    quota = found["usage_quota"]
    assert set(quota) == {
        "id",
        "user_id",
        "max_gpu_hours",
        "used_gpu_hours",
        "max_requests",
        "used_requests",
        "reset_at",
        "reset_interval",
        "created_at",
        "updated_at",
    }
    assert (quota["max_gpu_hours"], quota["used_gpu_hours"], quota["max_requests"]) == (100.0, 0.0, 10_000)
    assert (quota["user_id"], quota["reset_interval"]) == (user.id, "monthly")
    for secret in (key.text, tokens.refresh_token, tokens.access_token, "argon2", key.digest.hex()):
        assert secret not in text


async def test_users_are_searched_and_listed_by_pages(identity: Identity) -> None:
    for number in range(3):
        await identity.users.create(f"u{number}@example.org", PASSWORD, f"User_{number}%", author=AUTHOR)
        identity.clock.advance(1)
    every = await identity.users.search()
    assert [user.email for user in every] == ["u0@example.org", "u1@example.org", "u2@example.org"]
    assert [user.email for user in await identity.users.search("user_1")] == ["u1@example.org"]
    assert await identity.users.search("%") == every
    assert await identity.users.search("x%y") == []
    assert await identity.users.search(after=every[0].id, limit=1) == [every[1]]
    assert (await identity.users.find_by_email("U2@example.org ")).id == every[2].id
    with pytest.raises(NotFound):
        await identity.users.find_by_email("nobody@example.org")


def test_email_addresses_that_look_the_same_are_the_same() -> None:
    assert read_email(" \uff41LICE@Example.org ") == read_email("alice@example.org")


@pytest.mark.parametrize(
    "value", ["a", "a@", "@b", "a@b@c", "a b@c", "a@b\n", "x" * 250 + "@example.org", None, ["a@b"]]
)
def test_email_address_that_is_none(value: object) -> None:
    if value == "a@b\n":
        assert read_email(value) == "a@b"
        return
    with pytest.raises(Invalid):
        read_email(value)
