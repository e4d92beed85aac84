"""The calls about accounts, by the generated client against the real server, on a real database."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from appliance.accounts.audit_log import Author
from appliance.accounts.money import MoneyStore
from appliance.base.clock import SystemClock
from appliance.base.errors import PaymentRequired
from appliance.control.account_service import AccountService
from appliance.control.errors import code_of, http_status_of, rich_status
from appliance.control.v1 import control_pb2 as pb
from appliance.storage.database import Database
from tests.accounts.parts import PASSWORD, identity_on, settings_of
from tests.control.fake_appliance import FakeAppliance, OpenControl, opened, refused
from tests.control.test_servicer import details_of
from tests.storage_servers import database, postgres_database, postgres_server, sqlite_database

__all__ = ["database", "postgres_database", "postgres_server", "sqlite_database"]
EMAIL = "a@example.com"
CALLS = [
    "ListUsers",
    "CreateUser",
    "SetUser",
    "DeleteUser",
    "GrantCredits",
    "ListApiKeys",
    "CreateApiKey",
    "RevokeApiKey",
    "ListSessions",
    "EndSessions",
    "GetUsage",
    "GetSpending",
    "ResetSpending",
    "GetMoney",
    "ListPrices",
    "SetPrices",
]


@pytest.fixture
async def control(database: Database, tmp_path: Path) -> AsyncIterator[OpenControl]:
    async with identity_on(database, tmp_path) as identity:
        store = MoneyStore(settings_of(), database, identity.changes, clock=SystemClock())
        fake = FakeAppliance()
        fake.accounts = AccountService(identity, store, author=Author("operator"))
        async with opened(tmp_path, fake) as control:
            await control.stub.CreateUser(pb.CreateUserRequest(email=EMAIL, password=PASSWORD, name="A"))
            yield control


@pytest.mark.parametrize("name", CALLS)
async def test_without_accounts_every_call_says_what_to_do(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path) as control:
        error = await refused(getattr(control.stub, name)(getattr(pb, f"{name}Request")()))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "Accounts are not available on this appliance: start it with ACCOUNTS=1."
    assert details_of(error)["ErrorInfo"].reason == "NO_ACCOUNTS"


@pytest.mark.parametrize("name", CALLS)
async def test_every_call_needs_the_token(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path, control_token="a-long-random-token") as control:
        error = await refused(getattr(control.stub, name)(getattr(pb, f"{name}Request")()))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_users_are_created_listed_and_changed(control: OpenControl) -> None:
    stub = control.stub
    for number in range(3):
        request = pb.CreateUserRequest(email=f"u{number}@example.com", password=PASSWORD, name=f"U{number}")
        made = (await stub.CreateUser(request)).user
        assert (made.email, made.name, made.is_admin, made.is_active) == (
            request.email,
            request.name,
            False,
            True,
        )
    page = (await stub.ListUsers(pb.ListUsersRequest(search="U", limit=2))).users
    rest = (await stub.ListUsers(pb.ListUsersRequest(search="U", limit=2, after=page[-1].id))).users
    assert [user.email for user in [*page, *rest]] == [f"u{n}@example.com" for n in range(3)]
    request = pb.SetUserRequest(user=page[0].id, is_admin=True, name="Other", plan="gold")
    changed = (await stub.SetUser(request)).user
    assert (changed.is_admin, changed.name, changed.plan, changed.is_active) == (True, "Other", "gold", True)
    changed = (await stub.SetUser(pb.SetUserRequest(user=changed.email, is_active=False))).user
    assert (changed.is_admin, changed.is_active) == (True, False)


async def test_limits_of_a_user_are_set_and_end(control: OpenControl) -> None:
    limits = pb.UserLimits(rpm=3, concurrency=2)
    user = (await control.stub.SetUser(pb.SetUserRequest(user=EMAIL, limits=limits, plan="gold"))).user
    assert (user.limits, user.plan) == (limits, "gold")
    [user] = (await control.stub.ListUsers(pb.ListUsersRequest())).users
    assert user.limits == limits
    facts = await control.fake.accounts._users.find_by_email(EMAIL)
    assert (facts.limits.rpm, facts.limits.tpm, facts.limits.concurrency) == (3, None, 2)
    await control.stub.SetUser(pb.SetUserRequest(user=EMAIL, name="B"))
    [user] = (await control.stub.ListUsers(pb.ListUsersRequest())).users
    assert (user.limits, user.name) == (limits, "B")
    user = (await control.stub.SetUser(pb.SetUserRequest(user=EMAIL, limits=pb.UserLimits()))).user
    assert user.limits == pb.UserLimits()


async def test_a_deleted_user_keeps_its_id_alone(control: OpenControl) -> None:
    gone = (await control.stub.DeleteUser(pb.DeleteUserRequest(user=EMAIL))).user
    assert (gone.email, gone.name, gone.is_active) == (f"deleted-{gone.id}@invalid", "", False)
    for name in (gone.id, EMAIL):
        error = await refused(control.stub.DeleteUser(pb.DeleteUserRequest(user=name)))
        assert error.code() is grpc.StatusCode.NOT_FOUND
    made = await control.stub.CreateUser(
        pb.CreateUserRequest(email=EMAIL, password=PASSWORD, name="A", is_admin=True)
    )
    error = await refused(control.stub.DeleteUser(pb.DeleteUserRequest(user=made.user.id)))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "Make another user an administrator first." in error.details()


async def test_keys_are_made_listed_and_revoked(control: OpenControl) -> None:
    stub = control.stub
    request = pb.CreateApiKeyRequest(
        user=EMAIL, name="k", scopes=["inference"], models=["llama*"], stay_local=True
    )
    request.expires_at.FromJsonString("2030-01-01T00:00:00Z")
    made = await stub.CreateApiKey(request)
    assert made.key.startswith(made.api_key.prefix + "_")
    (key,) = (await stub.ListApiKeys(pb.ListApiKeysRequest(user=EMAIL))).api_keys
    assert key == made.api_key
    assert (list(key.scopes), list(key.models), key.stay_local) == (["inference"], ["llama*"], True)
    assert key.expires_at == request.expires_at
    gone = (await stub.RevokeApiKey(pb.RevokeApiKeyRequest(user=EMAIL, api_key=key.prefix))).api_key
    assert (gone.id, gone.is_active) == (key.id, False)


async def test_sessions_are_listed_and_ended(control: OpenControl) -> None:
    users = control.fake.accounts._users
    for agent in ("one", "two", "three"):
        await users.login(EMAIL, PASSWORD, peer="10.0.0.1", user_agent=agent)
    found = (await control.stub.ListSessions(pb.ListSessionsRequest(user=EMAIL))).sessions
    assert [one.user_agent for one in found] == ["three", "two", "one"]
    assert {one.ip_address for one in found} == {"10.0.0.1"}
    request = pb.EndSessionsRequest(user=EMAIL, session=found[0].id)
    assert (await control.stub.EndSessions(request)).ended == 1
    assert (await control.stub.EndSessions(pb.EndSessionsRequest(user=EMAIL))).ended == 2
    assert not (await control.stub.ListSessions(pb.ListSessionsRequest(user=EMAIL))).sessions


async def test_money_is_granted_and_audited(control: OpenControl, database: Database) -> None:
    request = pb.GrantCreditsRequest(user=EMAIL, amount_musd=2_500_000, note="hello", ref="r1")
    for _ in range(2):
        credits = (await control.stub.GrantCredits(request)).credits
        assert (credits.total_musd, credits.remaining_musd) == (2_500_000, 2_500_000)
    money = await control.stub.GetMoney(pb.GetMoneyRequest(audit=True))
    assert {one.name: one.amount_musd for one in money.accounts} == {
        "grants": -2_500_000,
        "wallet:*": 2_500_000,
    }
    assert (money.users, money.active_users, money.transactions) == (1, 1, 1)
    assert not money.differences
    usage = await control.stub.GetUsage(pb.GetUsageRequest(user=EMAIL))
    assert usage.credits == credits
    assert (usage.max_requests, usage.used_requests, usage.max_gpu_hours) == (10_000, 0, 100.0)
    async with database.transaction(is_read_only=True) as transaction:
        rows = await transaction.execute("SELECT actor_kind, action FROM audit ORDER BY id")
    assert ("operator", "credits.grant") in [tuple(row) for row in rows]


async def test_prices_are_set_by_versions_and_listed(control: OpenControl) -> None:
    prices = [
        pb.ModelPrice(model="a", in_musd=600_000, out_musd=800_000),
        pb.ModelPrice(model="*", out_musd=1),
    ]
    added = (await control.stub.SetPrices(pb.SetPricesRequest(prices=prices))).prices
    assert [(one.model, one.version, one.cached_in_musd, one.embedding_musd) for one in added] == [
        ("a", 1, 600_000, 600_000),
        ("*", 1, 0, 0),
    ]
    assert not (await control.stub.SetPrices(pb.SetPricesRequest(prices=prices))).prices
    assert (await control.stub.ListPrices(pb.ListPricesRequest())).prices == added


async def test_spending_is_shown_and_reset(control: OpenControl) -> None:
    limits = await control.stub.GetSpending(pb.GetSpendingRequest())
    assert (limits.is_enabled, len(limits.windows), limits.HasField("user")) == (False, 17, False)
    await control.fake.accounts._store.guardrails.record(
        (await control.fake.accounts._users.find_by_email(EMAIL)).wallet_id, 5_000_000
    )
    spent = await control.stub.GetSpending(pb.GetSpendingRequest(user=EMAIL))
    assert {one.spent_musd for one in spent.windows} == {5_000_000}
    assert spent.total_musd == 5_000_000
    await control.stub.ResetSpending(pb.ResetSpendingRequest(user=EMAIL, window="5min"))
    spent = await control.stub.GetSpending(pb.GetSpendingRequest(user=EMAIL))
    assert {one.name for one in spent.windows if not one.spent_musd} == {"5min"}


CODES = grpc.StatusCode


@pytest.mark.parametrize(
    ("name", "fields", "code", "text"),
    [
        ("ListUsers", {"limit": 501}, CODES.INVALID_ARGUMENT, "`limit` must be from 0 to 500, not 501."),
        ("CreateUser", {"email": "x"}, CODES.INVALID_ARGUMENT, "is no e-mail address"),
        (
            "CreateUser",
            {"email": EMAIL, "password": PASSWORD, "name": "A"},
            CODES.FAILED_PRECONDITION,
            "There is a user with this e-mail address.",
        ),
        ("SetUser", {"user": EMAIL}, CODES.INVALID_ARGUMENT, "There is nothing to change."),
        ("SetUser", {"name": "B"}, CODES.INVALID_ARGUMENT, "`user` is required: an id or an e-mail address."),
        ("SetUser", {"user": "x\0@y", "name": "B"}, CODES.NOT_FOUND, "There is no user"),
        ("SetUser", {"user": EMAIL, "password": "x"}, CODES.INVALID_ARGUMENT, "at least 10 are needed"),
        (
            "SetUser",
            {"user": EMAIL, "limits": {"rpm": 0}},
            CODES.INVALID_ARGUMENT,
            "limits.rpm: 0 is not allowed: a whole number from 1",
        ),
        ("ListApiKeys", {"user": "nobody"}, CODES.NOT_FOUND, "There is no user 'nobody'."),
        ("CreateApiKey", {"user": EMAIL}, CODES.INVALID_ARGUMENT, "name: "),
        (
            "CreateApiKey",
            {"user": EMAIL, "name": "k", "scopes": ["all"]},
            CODES.INVALID_ARGUMENT,
            "scopes: ['all'] is not allowed",
        ),
        (
            "CreateApiKey",
            {"user": EMAIL, "name": "k", "scopes": ["admin"]},
            CODES.PERMISSION_DENIED,
            "Only administrators can have keys with the scope admin.",
        ),
        ("RevokeApiKey", {"user": EMAIL, "api_key": "k"}, CODES.NOT_FOUND, "There is no API key 'k'"),
        ("EndSessions", {"user": EMAIL, "session": "s"}, CODES.NOT_FOUND, "There is no session 's'"),
        ("GrantCredits", {"user": EMAIL}, CODES.INVALID_ARGUMENT, "0.00 dollars cannot be granted"),
        (
            "GrantCredits",
            {"user": EMAIL, "amount_musd": -1},
            CODES.FAILED_PRECONDITION,
            "more is used or set aside than would be left",
        ),
        (
            "GrantCredits",
            {"user": EMAIL, "amount_musd": 1, "note": "a\nb"},
            CODES.INVALID_ARGUMENT,
            "`note` must have at most 200 printable characters.",
        ),
        ("ResetSpending", {"user": EMAIL, "window": "1h"}, CODES.INVALID_ARGUMENT, "There is no window '1h'"),
        ("SetPrices", {}, CODES.INVALID_ARGUMENT, "`prices` must have 1 to 10000 prices, not 0."),
        (
            "SetPrices",
            {"prices": [{"model": "a"}, {"model": "a"}]},
            CODES.INVALID_ARGUMENT,
            "`prices` has a model twice with the same time",
        ),
        (
            "SetPrices",
            {"prices": [{}]},
            CODES.INVALID_ARGUMENT,
            "`prices[0].model` must be a model's public name",
        ),
        (
            "SetPrices",
            {"prices": [{"model": "a", "out_musd": -1}]},
            CODES.INVALID_ARGUMENT,
            "`prices[0].out_musd` must be from 0 to",
        ),
        (
            "SetPrices",
            {"prices": [{"model": "a", "gpu_hour_markup_percent": 10_001}]},
            CODES.INVALID_ARGUMENT,
            "`prices[0].gpu_hour_markup_percent` must be from 0 to 10000, not 10001.",
        ),
        (
            "SetPrices",
            {"prices": [{"model": "a", "valid_from": {"seconds": -1}}]},
            CODES.INVALID_ARGUMENT,
            "`prices[0].valid_from` must be after 1970.",
        ),
    ],
)
async def test_refusals_have_a_code_and_say_what_is_allowed(
    control: OpenControl, name: str, fields: dict[str, object], code: grpc.StatusCode, text: str
) -> None:
    error = await refused(getattr(control.stub, name)(getattr(pb, f"{name}Request")(**fields)))
    assert error.code() is code
    assert text in error.details()
    assert PASSWORD not in error.details()


def test_what_cannot_be_paid_is_resource_exhausted_with_its_reason() -> None:
    error = PaymentRequired("Your credits are used up.")
    assert code_of(error) is CODES.RESOURCE_EXHAUSTED
    status = rich_status(error)
    assert b"INSUFFICIENT_CREDITS" in status.details[0].value
    assert http_status_of(error) == 402
