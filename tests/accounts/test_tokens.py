"""Access tokens: what is accepted, for how long, under which secret. Refresh tokens: proof, successors, verdicts."""

import base64
import uuid
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.accounts import tokens as tokens_module
from appliance.accounts.actor import UserFacts
from appliance.accounts.refresh_rules import RefreshVerdict, SessionRow, judge_refresh
from appliance.accounts.tokens import AccessTokens, RefreshToken, RefreshTokens, is_access_token_form
from appliance.base.clock import FakeClock
from appliance.base.errors import Unauthenticated

SECRET, OLD_SECRET = "s3cr3t-" * 10, "0ld-s3cr3t-" * 5
USER = UserFacts("u1", "a@example.org", is_admin=True)
SESSION = str(uuid.UUID(int=7))


def tokens_at(clock: FakeClock, secret: str = SECRET, previous: str = "") -> AccessTokens:
    return AccessTokens(secret, previous=previous, lifetime_s=900, clock=clock)


def signed(secret: str = SECRET, algorithm: str = "HS256", **changed: Any) -> str:
    now = 1_800_000_000
    claims = {"sub": "u1", "sid": SESSION, "jti": "j", "exp": now + 60, "iat": now, "nbf": now} | changed
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None}, secret, algorithm=algorithm
    )


def test_token_has_the_original_s_claims_and_ours() -> None:
    clock = FakeClock()
    token, expires_at_s = tokens_at(clock).issue(USER, SESSION)
    claims = jwt.decode(
        token,
        SECRET,
        algorithms=["HS256"],
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    assert set(claims) == {"user_id", "email", "is_admin", "exp", "iat", "nbf", "sub", "sid", "jti"}
    assert (claims["user_id"], claims["sub"], claims["sid"], claims["is_admin"]) == (
        "u1",
        "u1",
        SESSION,
        True,
    )
    assert claims["exp"] == expires_at_s == clock.now_s() + 900


def test_token_is_valid_until_it_expires() -> None:
    clock = FakeClock()
    tokens = tokens_at(clock)
    token, expires_at_s = tokens.issue(USER, SESSION)
    for _ in range(2):  # decoded, then remembered
        claims = tokens.verify(token)
        assert (claims.user_id, claims.session_id, claims.expires_at_s) == ("u1", SESSION, expires_at_s)
    clock.advance(899)
    tokens.verify(token)
    clock.advance(1)
    for _ in range(2):
        with pytest.raises(Unauthenticated) as refused:
            tokens.verify(token)
        assert refused.value.code == "token_expired"


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (signed(secret="another secret of 32 characters!!"), "invalid_token"),
        (signed(algorithm="HS512"), "invalid_token"),
        (
            jwt.encode({"sub": "u1", "sid": SESSION, "exp": 1_900_000_000}, "", algorithm="none"),
            "invalid_token",
        ),
        (signed(sid=None), "invalid_token"),
        (signed(exp=None), "invalid_token"),
        (signed(jti=None), "invalid_token"),
        (signed(sid=5), "invalid_token"),
        (signed(exp=1_799_999_999), "token_expired"),
        (signed(nbf=1_800_000_006), "token_not_yet_valid"),
        (signed() + "x", "invalid_token"),
        ("a.b.c", "invalid_token"),
        ("..", "invalid_token"),
        (signed(jti="x" * 5000), "invalid_token"),
        ("ü.ü.ü", "invalid_token"),
    ],
)
def test_token_that_is_refused(token: str, code: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        tokens_at(FakeClock()).verify(token)
    assert refused.value.code == code


def test_clock_of_the_issuer_may_be_some_seconds_ahead() -> None:
    tokens_at(FakeClock()).verify(signed(nbf=1_800_000_004, iat=1_800_000_004))


def test_previous_secret_verifies_and_never_signs() -> None:
    clock = FakeClock()
    old, _ = tokens_at(clock, OLD_SECRET).issue(USER, SESSION)
    both = tokens_at(clock, SECRET, OLD_SECRET)
    assert both.verify(old).user_id == "u1"
    new, _ = both.issue(USER, SESSION)
    assert tokens_at(clock).verify(new).user_id == "u1"
    with pytest.raises(Unauthenticated):
        tokens_at(clock).verify(old)


def test_verified_tokens_are_bounded_and_forgotten_by_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "MAX_VERIFIED", 10)
    tokens = tokens_at(FakeClock())
    for number in range(30):
        tokens.verify(tokens.issue(USER, f"s{number % 3}")[0])
    assert len(tokens._verified) == 10
    for number in range(3):
        tokens.forget_session(f"s{number}")
    assert not tokens._verified
    assert not tokens._of_session


def test_access_tokens_are_told_by_two_dots() -> None:
    assert is_access_token_form("a.b.c")
    assert not is_access_token_form("apk_abcdefgh_x")


# ---- refresh tokens


def test_successor_is_the_same_each_time_and_for_each_replica() -> None:
    first = RefreshTokens(SECRET).first(SESSION)
    successors = [RefreshTokens(SECRET).successors(first)[0].text for _ in range(2)]
    assert successors[0] == successors[1] != first.text
    assert len(first.text) == 89
    read = RefreshTokens(SECRET).read(successors[0])
    assert read is not None
    assert (read.session_id, read.generation) == (SESSION, 1)
    assert first.text not in repr(first)


def test_successor_needs_the_secret() -> None:
    first = RefreshTokens(SECRET).first(SESSION)
    assert (
        RefreshTokens(OLD_SECRET).successors(first)[0].text != RefreshTokens(SECRET).successors(first)[0].text
    )


def test_invented_tokens_are_known_as_such() -> None:
    tokens = RefreshTokens(SECRET)
    good = tokens.first(SESSION).text
    assert tokens.read(good) is not None
    assert RefreshTokens(OLD_SECRET).read(good) is None
    assert RefreshTokens(OLD_SECRET, previous=SECRET).read(good) is not None
    for text in (
        "",
        "rt_",
        good[:-1],
        good + "A",
        good.replace("rt_", "rT_"),
        good[:-1] + "=",
        None,
        5,
        "rt_" + "ü" * 86,
        "rt_" + "A" * 86,
        good[:20] + "\n" + good[20:],
    ):
        assert tokens.read(text) is None


@given(st.integers(0, 63), st.integers(1, 255))
def test_no_byte_of_a_token_can_be_changed(place: int, change: int) -> None:
    tokens = RefreshTokens(SECRET)
    data = bytearray(base64.urlsafe_b64decode(tokens.first(SESSION).text[3:] + "=="))
    data[place] ^= change
    assert tokens.read("rt_" + base64.urlsafe_b64encode(data).decode().rstrip("=")) is None


NOW_MS = 1_800_000_000_000


def row_of(newest: RefreshToken, previous: RefreshToken | None = None, **changed: Any) -> SessionRow:
    fields: dict[str, Any] = {
        "id": SESSION,
        "user_id": "u1",
        "token_hash": newest.digest,
        "expires_at_ms": NOW_MS + 1000,
        "previous_hash": previous.digest if previous is not None else "",
        "generation": newest.generation,
        "rotated_at_ms": NOW_MS - 5_000,
    }
    return SessionRow(**(fields | changed))


def test_verdicts_on_refresh_tokens() -> None:
    tokens = RefreshTokens(SECRET)
    first = tokens.first(SESSION)
    second = tokens.successors(first)[0]
    third = tokens.successors(second)[0]
    table = [
        (None, first, RefreshVerdict.GONE),
        (row_of(first, revoked_at_ms=NOW_MS), first, RefreshVerdict.GONE),
        (row_of(first, expires_at_ms=NOW_MS), first, RefreshVerdict.GONE),
        (row_of(first), first, RefreshVerdict.ROTATE),
        (row_of(second, first), second, RefreshVerdict.ROTATE),
        (row_of(second, first), first, RefreshVerdict.REPEAT),
        (row_of(second, first, rotated_at_ms=NOW_MS - 20_000), first, RefreshVerdict.REPEAT),
        (row_of(second, first, rotated_at_ms=NOW_MS - 20_001), first, RefreshVerdict.REUSED),
        (row_of(third, second), first, RefreshVerdict.REUSED),
        (row_of(first), third, RefreshVerdict.BEHIND),
        (row_of(first), tokens.first(SESSION), RefreshVerdict.REUSED),
    ]
    for row, token, verdict in table:
        assert judge_refresh(row, token, now_ms=NOW_MS, grace_s=20) is verdict, (row, token)
