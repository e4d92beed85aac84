"""Tokens that stand for keys: what is valid, and what ends it."""

import hashlib

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, Forbidden
from appliance.front.pipeline.access import Access, Keys
from appliance.front.settings import FrontSettings
from appliance.front.ui.sessions import MAX_ENDED, VALID_S, UiTokens

CLIENT, OPERATOR = "client-key-1", "operator-key-1"


def test_a_token_stands_for_its_key_and_does_not_hold_it() -> None:
    tokens = UiTokens(clock=FakeClock())
    token, _ = tokens.issue(CLIENT)
    assert tokens.digest_of(token) == hashlib.sha256(CLIENT.encode()).digest()[:8]
    assert CLIENT not in token


def test_a_token_ends_after_twelve_hours() -> None:
    clock = FakeClock()
    tokens = UiTokens(clock=clock)
    token, ends_s = tokens.issue(CLIENT)
    clock.advance(ends_s - clock.now_s() - 1)
    assert tokens.digest_of(token) is not None
    clock.advance(1)
    assert tokens.digest_of(token) is None
    assert VALID_S == 12 * 3600


@pytest.mark.parametrize("change", ["x{}", "{}A", "ui_", "ui_é", "ui_" + "A" * 500, "ui_AAAA"])
def test_a_token_that_was_changed_is_not_valid(change: str) -> None:
    tokens = UiTokens(clock=FakeClock())
    token, _ = tokens.issue(CLIENT)
    assert tokens.digest_of(change.format(token)) is None
    other, _ = UiTokens(clock=FakeClock()).issue(CLIENT)
    assert tokens.digest_of(other) is None, "it was signed by another process"


def test_each_changed_character_makes_a_token_invalid() -> None:
    tokens = UiTokens(clock=FakeClock())
    token, _ = tokens.issue(CLIENT)
    for at in range(3, len(token) - 1):  # of the last one some bits do not count
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert tokens.digest_of(changed) is None, at


def test_a_token_that_was_ended_is_not_valid_and_few_are_remembered() -> None:
    tokens = UiTokens(clock=FakeClock())
    issued = [tokens.issue(CLIENT)[0] for _ in range(MAX_ENDED + 2)]
    for token in issued:
        tokens.end(token)
    assert tokens.digest_of(issued[-1]) is None
    assert len(tokens._ended) == MAX_ENDED
    tokens.end("ui_wrong")
    assert len(tokens._ended) == MAX_ENDED


def keys_with(tokens: UiTokens, *, operator: str = OPERATOR) -> Keys:
    return Keys(FrontSettings(appliance_api_keys=CLIENT, operator_api_keys=operator), tokens)


@pytest.mark.parametrize(
    ("key", "access", "fault"),
    [
        (CLIENT, Access.CLIENT, None),
        (OPERATOR, Access.CLIENT, None),
        (OPERATOR, Access.OPERATOR, None),
        (CLIENT, Access.OPERATOR, Forbidden),
        ("another-key", Access.CLIENT, ApplianceError),
    ],
)
def test_a_token_opens_what_its_key_opens(
    key: str, access: Access, fault: type[ApplianceError] | None
) -> None:
    tokens = UiTokens(clock=FakeClock())
    headers = {"authorization": f"Bearer {tokens.issue(key)[0]}"}
    keys = keys_with(tokens)
    if fault is None:
        keys.check(access, headers, "192.0.2.1")
        assert keys.may_see_details(headers, "192.0.2.1")
        return
    with pytest.raises(fault):
        keys.check(access, headers, "192.0.2.1")


def test_a_token_ends_with_its_key() -> None:
    tokens = UiTokens(clock=FakeClock())
    headers = {"authorization": f"Bearer {tokens.issue(OPERATOR)[0]}"}
    with pytest.raises(ApplianceError):
        keys_with(tokens, operator="operator-key-2").check(Access.OPERATOR, headers, "192.0.2.1")


def test_a_key_that_begins_like_a_token_still_works() -> None:
    keys = Keys(FrontSettings(appliance_api_keys="ui_my-own-key"), UiTokens(clock=FakeClock()))
    keys.check(Access.CLIENT, {"authorization": "Bearer ui_my-own-key"}, "192.0.2.1")
