"""Who calls: the order of credentials, what is known, looked up, refused; and the database being down."""

import pytest

from appliance.accounts.actor import ANYBODY, Actor, KeyFacts, UserFacts
from appliance.accounts.api_keys import NewKey, make_key
from appliance.accounts.callers import LOOPBACK, Callers, credentials
from appliance.accounts.snapshot import KeyRow, Snapshot
from appliance.accounts.tokens import AccessTokens
from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, Unauthenticated, Unavailable
from tests.accounts.parts import SECRET, only_loopback

CLIENT, OPERATOR, LOCAL = "client-key-1", "operator-key-1", "client-key-local"


class World:
    """Callers over a snapshot, with a database that is up or down."""

    def __init__(self, *, has_static: bool = True) -> None:
        self.clock = FakeClock()
        self.is_up = True
        self.snapshot = Snapshot(clock=self.clock, max_age_s=3600)
        self.snapshot.confirm(self.clock.now_s())
        self.tokens = AccessTokens(SECRET, lifetime_s=86_400, clock=self.clock)
        self.callers = Callers(
            self.snapshot,
            self.tokens,
            clock=self.clock,
            is_store_up=lambda: self.is_up,
            check_loopback=only_loopback,
        )
        self.callers.apply(
            client_keys=[CLIENT, LOCAL] if has_static else [],
            operator_keys=[OPERATOR] if has_static else [],
            stay_local_keys=[LOCAL] if has_static else [],
        )

    def add_user(self, user_id: str = "u1", **facts: object) -> UserFacts:
        user = UserFacts(user_id, f"{user_id}@example.org", **facts)
        self.snapshot.put_user(user)
        return user

    def add_key(self, user: UserFacts, **facts: object) -> NewKey:
        key = make_key()
        self.snapshot.put_key(KeyRow(key.digest, user.id, KeyFacts(f"k-{key.prefix}", key.prefix, **facts)))
        return key

    def admit(
        self, level: str, *, x: str = "", bearer: str = "", peer: str = "10.0.0.9", scope: str = "inference"
    ) -> Actor | None:
        headers = {}
        if x:
            headers["x-api-key"] = x
        if bearer:
            headers["authorization"] = f"Bearer {bearer}"
        return self.callers.admit(level, headers, peer, scope=scope)

    def code(self, level: str, **how: str) -> str | None:
        with pytest.raises(ApplianceError) as refused:
            self.admit(level, **how)
        return refused.value.code


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({}, []),
        ({"x-api-key": " a ", "authorization": "Bearer b"}, ["a", "b"]),
        ({"authorization": "bearer  b "}, ["b"]),
        ({"authorization": "Basic b"}, []),
        ({"authorization": "Bearer"}, []),
        ({"x-api-key": "", "authorization": "Bearer b"}, ["b"]),
        ({"x-api-key": "b", "authorization": "Bearer b"}, ["b"]),
    ],
)
def test_credentials_in_the_order_in_which_they_count(headers: dict[str, str], wanted: list[str]) -> None:
    assert credentials(headers) == wanted


def test_public_addresses_are_for_anybody() -> None:
    assert World().admit("public", x="anything") is ANYBODY


def test_key_of_a_user_is_admitted_as_its_user() -> None:
    world = World()
    user = world.add_user(wallet_id="w1")
    key = world.add_key(user, stay_local=True)
    for how in ({"x": key.text}, {"bearer": key.text}, {"x": "dummy", "bearer": key.text}):
        actor = world.admit("client", **how)
        assert actor is not None
        assert (actor.kind, actor.user, actor.flow, actor.stay_local) == ("user", user, "u1", True)
        assert actor.key is not None
        assert actor.key.prefix == key.prefix
    assert world.snapshot.take_used() == [f"k-{key.prefix}"]
    assert world.snapshot.take_used() == []


def test_first_known_credential_counts_even_where_it_may_less() -> None:
    world = World()
    key = world.add_key(world.add_user(), scopes=frozenset({"billing"}))
    assert world.code("client", x=key.text, bearer=CLIENT) == "scope_missing"
    actor = world.admit("client", x=CLIENT, bearer=key.text)
    assert actor is not None
    assert actor.kind == "static"


@pytest.mark.parametrize(
    ("level", "key", "kind"),
    [("client", CLIENT, "static"), ("client", OPERATOR, "operator"), ("operator", OPERATOR, "operator")],
)
def test_keys_of_the_settings_keep_their_meaning(level: str, key: str, kind: str) -> None:
    actor = World().admit(level, bearer=key)
    assert actor is not None
    assert (actor.kind, actor.user, actor.limits_id) == (kind, None, "")


def test_stay_local_keys_of_the_settings() -> None:
    actor = World().admit("client", bearer=LOCAL)
    assert actor is not None
    assert actor.stay_local


def test_static_keys_are_billed_to_a_user_where_one_is_named() -> None:
    world = World()
    world.snapshot.static_user = user = world.add_user(wallet_id="w1")
    actor = world.admit("client", bearer=CLIENT)
    assert actor is not None
    assert (actor.kind, actor.user, actor.limits_id) == ("static", user, "static:u1")
    assert world.code("account", bearer=CLIENT) == "account_required"


@pytest.mark.parametrize(
    ("level", "how", "code"),
    [
        ("client", {}, "invalid_api_key"),
        ("client", {"bearer": "sk-wrong"}, "invalid_api_key"),
        ("operator", {"bearer": CLIENT}, "operator_only"),
        ("account", {"bearer": OPERATOR}, "account_required"),
        ("client", {"bearer": "a.b.c"}, "invalid_token"),
    ],
)
def test_refusals(level: str, how: dict[str, str], code: str) -> None:
    assert World().code(level, **how) == code


def test_accounts_without_static_keys_are_not_open() -> None:
    world = World(has_static=False)
    assert world.code("client") == "invalid_api_key"
    assert world.admit("operator", peer="127.0.0.1") is LOOPBACK
    assert world.admit("operator", peer="127.0.0.1", bearer="dummy") is LOOPBACK
    assert world.code("operator") == "operator_only"
    assert world.code("operator", bearer="dummy") == "invalid_api_key"
    assert World().code("operator", peer="127.0.0.1") == "invalid_api_key"


def test_key_that_may_be_a_user_s_is_looked_up_once() -> None:
    world = World()
    key = make_key()
    assert world.admit("client", bearer=key.text) is None
    world.snapshot.note_unknown(key.digest)
    assert world.code("client", bearer=key.text) == "invalid_api_key"
    world.clock.advance(5)
    assert world.admit("client", bearer=key.text) is None


def test_expired_key_and_inactive_user() -> None:
    world = World()
    user = world.add_user()
    key = world.add_key(user, expires_at_s=world.clock.now_s() + 10)
    assert world.admit("client", bearer=key.text) is not None
    world.clock.advance(10)
    assert world.code("client", bearer=key.text) == "api_key_expired"
    other = world.add_key(user)
    assert world.admit("client", bearer=other.text) is not None
    world.add_user(is_active=False)
    assert world.code("client", bearer=other.text) == "user_inactive"


def test_access_token_has_the_rights_of_the_snapshot_not_its_own() -> None:
    world = World()
    user = world.add_user(is_admin=True)
    token, _ = world.tokens.issue(user, "s1")
    actor = world.admit("operator", bearer=token)
    assert actor is not None
    assert (actor.user, actor.session_id, actor.key) == (user, "s1", None)
    assert world.admit("account", x=token, scope="billing") is actor
    world.add_user(is_admin=False)
    assert world.code("operator", bearer=token) == "operator_only"
    assert world.admit("client", bearer=token) is not actor
    world.add_user(is_active=False)
    assert world.code("client", bearer=token) == "user_inactive"


def test_access_token_of_an_ended_session_is_refused() -> None:
    world = World()
    token, expires_at_s = world.tokens.issue(world.add_user(), "s1")
    other, _ = world.tokens.issue(world.add_user(), "s2")
    assert world.admit("client", bearer=token) is not None
    world.snapshot.end_session("s1", expires_at_s)
    assert world.code("client", bearer=token) == "session_ended"
    assert world.admit("client", bearer=other) is not None
    world.clock.advance(90_000)
    world.snapshot.forget_ended()
    assert not world.snapshot.ended
    assert world.code("client", bearer=token) == "token_expired"


def test_access_token_of_a_user_not_in_memory_is_looked_up() -> None:
    world = World()
    token, _ = world.tokens.issue(UserFacts("u9", "u9@example.org"), "s1")
    assert world.admit("client", bearer=token) is None
    assert world.callers.unknown_user(token) == "u9"
    world.add_user("u9")
    assert world.admit("client", bearer=token) is not None


@pytest.mark.parametrize("how", [{"x": make_key().text}, {"bearer": "sk-anything"}, {"bearer": "a.b.c"}])
def test_unknown_key_while_the_database_is_down_is_503_never_401(how: dict[str, str]) -> None:
    world = World()
    world.is_up = False
    with pytest.raises((Unavailable, Unauthenticated)) as refused:
        world.admit("client", **how)
    if how != {"bearer": "a.b.c"}:  # no access token of ours: no database could know it
        assert refused.value.code == "store_unavailable"
        assert refused.value.retry_after_s


def test_known_callers_go_on_while_the_database_is_down() -> None:
    world = World()
    user = world.add_user()
    key, (token, _) = world.add_key(user), world.tokens.issue(user, "s1")
    unknown, _ = world.tokens.issue(UserFacts("u9", "x@example.org"), "s9")
    world.is_up = False
    world.clock.advance(3600)
    assert world.admit("client", bearer=key.text) is not None
    assert world.admit("client", bearer=token) is not None
    assert world.code("client", bearer=unknown) == "store_unavailable"
    world.clock.advance(1)
    assert world.code("client", bearer=key.text) == "store_unavailable"
    assert world.code("client", bearer=token) == "store_unavailable"
    assert world.admit("client", bearer=CLIENT) is not None


def test_details_of_public_addresses_are_for_known_callers() -> None:
    world = World()
    key = world.add_key(world.add_user(), expires_at_s=world.clock.now_s() + 10)
    assert world.callers.knows({"x-api-key": key.text})
    assert world.callers.knows({"authorization": f"Bearer {OPERATOR}"})
    world.clock.advance(10)
    assert not world.callers.knows({"x-api-key": key.text})
    assert not world.callers.knows({})


def test_a_known_head_is_admitted_as_long_as_its_key_is_valid() -> None:
    world = World()
    user = world.add_user()
    key = world.add_key(user, expires_at_s=world.clock.now_s() + 60)
    headers = {"authorization": f"Bearer {key.text}"}
    actor = world.admit("client", bearer=key.text)
    assert actor is not None
    known = world.callers.key_of(actor, headers)
    assert known is not None
    assert known.actor is actor
    known.was_used = False
    assert world.callers.is_valid(known)
    assert known.was_used
    world.clock.advance(60)
    assert not world.callers.is_valid(known)


@pytest.mark.parametrize("change", ["revoked", "user_inactive", "user_changed", "stale"])
def test_a_known_head_is_not_admitted_once_its_key_has_changed(change: str) -> None:
    world = World()
    user = world.add_user()
    key = world.add_key(user)
    actor = world.admit("client", x=key.text)
    assert actor is not None
    known = world.callers.key_of(actor, {"x-api-key": key.text})
    assert known is not None
    if change == "revoked":
        world.snapshot.drop_key(f"k-{key.prefix}")
    elif change == "stale":
        world.clock.advance(3601)
    else:
        world.add_user(is_active=change != "user_inactive", plan="gold")
    assert not world.callers.is_valid(known)


def test_only_a_head_with_one_key_of_a_user_is_known() -> None:
    world = World()
    key = world.add_key(world.add_user())
    actor = world.admit("client", bearer=key.text)
    assert actor is not None
    assert world.callers.key_of(actor, {"x-api-key": "other", "authorization": f"Bearer {key.text}"}) is None
    static = world.admit("client", bearer=CLIENT)
    assert static is not None
    assert world.callers.key_of(static, {"authorization": f"Bearer {CLIENT}"}) is None
