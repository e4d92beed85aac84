"""Access: who may call which addresses; what a key's scopes, models and limits may be."""

import pytest

from appliance.accounts.actor import (
    ANYBODY,
    DEFAULT_SCOPES,
    Actor,
    KeyFacts,
    Limits,
    UserFacts,
    check_access,
    check_model,
    read_limits,
    read_models,
    read_scopes,
    render_limits,
)
from appliance.base.errors import Forbidden, Invalid

USER, ADMIN = UserFacts("u1", "a@example.org"), UserFacts("u2", "b@example.org", is_admin=True)
STATIC, OPERATOR = Actor("static"), Actor("operator")


def key_of(user: UserFacts, *scopes: str) -> Actor:
    return Actor("user", user, KeyFacts("k1", "apk_abcdefgh", frozenset(scopes or DEFAULT_SCOPES)))


def session_of(user: UserFacts) -> Actor:
    return Actor("user", user, session_id="s1")


@pytest.mark.parametrize(
    ("actor", "level", "scope", "has_operator_keys", "code"),
    [
        (ANYBODY, "public", "inference", True, ""),
        (STATIC, "client", "inference", True, ""),
        (STATIC, "account", "billing", True, "account_required"),
        (STATIC, "operator", "admin", True, "operator_only"),
        (STATIC, "operator", "admin", False, "operator_only"),
        (STATIC, "operator", "inference", True, "operator_only"),
        (STATIC, "operator", "inference", False, ""),
        (OPERATOR, "client", "inference", True, ""),
        (OPERATOR, "account", "billing", True, "account_required"),
        (OPERATOR, "operator", "admin", True, ""),
        (key_of(USER), "client", "inference", True, ""),
        (key_of(USER, "billing"), "client", "inference", True, "scope_missing"),
        (key_of(USER, "billing"), "account", "billing", True, ""),
        (key_of(USER, "inference"), "account", "market", True, "scope_missing"),
        (key_of(ADMIN), "operator", "admin", True, "scope_missing"),
        (key_of(USER, "admin"), "operator", "admin", True, "operator_only"),
        (key_of(ADMIN, "admin"), "operator", "admin", True, ""),
        (session_of(USER), "client", "inference", True, ""),
        (session_of(USER), "account", "market", True, ""),
        (session_of(USER), "operator", "admin", False, "operator_only"),
        (session_of(ADMIN), "operator", "admin", True, ""),
    ],
)
def test_access_by_credential_level_and_scope(
    actor: Actor, level: str, scope: str, has_operator_keys: bool, code: str
) -> None:
    if not code:
        check_access(actor, level, scope, has_operator_keys=has_operator_keys)
        return
    with pytest.raises(Forbidden) as refused:
        check_access(actor, level, scope, has_operator_keys=has_operator_keys)
    assert refused.value.code == code


def test_missing_scope_is_named_with_those_the_key_has() -> None:
    with pytest.raises(Forbidden, match=r"scope market; the key apk_abcdefgh has: inference, billing\."):
        check_access(key_of(USER, "billing", "inference"), "account", "market", has_operator_keys=False)


@pytest.mark.parametrize(
    ("models", "model", "is_allowed"),
    [
        ((), "any", True),
        (("llama",), "llama", True),
        (("llama",), "llama-70b", False),
        (("llama*", "qwen"), "llama-70b", True),
        (("llama*", "qwen"), "qwen3", False),
        (("*",), "any", True),
    ],
)
def test_models_of_a_key(models: tuple[str, ...], model: str, is_allowed: bool) -> None:
    actor = Actor("user", USER, KeyFacts("k1", "apk_abcdefgh", models=models))
    if is_allowed:
        check_model(actor, model)
    else:
        with pytest.raises(Forbidden, match="may not use the model"):
            check_model(actor, model)
    check_model(session_of(USER), model)


@pytest.mark.parametrize("value", ["inference", [], ["inference", "root"], [1], {"inference": 1}, True])
def test_scopes_that_are_refused(value: object) -> None:
    with pytest.raises(Invalid, match="scopes: "):
        read_scopes(value)


def test_scopes_default_to_all_but_admin() -> None:
    assert read_scopes(None) == {"inference", "market", "billing", "proxy"}
    assert read_scopes(["admin", "admin"]) == {"admin"}


@pytest.mark.parametrize("value", ["llama", [""], [1], ["a\nb"], ["x" * 257], ["m"] * 201])
def test_models_that_are_refused(value: object) -> None:
    with pytest.raises(Invalid, match="models: "):
        read_models(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "is not an object"),
        ({"rpm": 0}, "limits.rpm: 0 is not allowed"),
        ({"tpd": True}, "limits.tpd: True"),
        ({"concurrency": 1.5}, "limits.concurrency: 1.5"),
        ({"rpm": 10**13}, "limits.rpm"),
        ({"rps": 1}, "limits.rps: there is no such limit"),
        ({"monthly_cap": -1}, "limits.monthly_cap: -1"),
        ({"monthly_cap": 0.0000004}, "up to 6 decimals"),
        ({"monthly_cap": "5"}, "limits.monthly_cap: '5'"),
        ({"monthly_cap": float("nan")}, "limits.monthly_cap: nan"),
    ],
)
def test_limits_that_are_refused(value: object, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        read_limits(value)


def test_limits_are_rendered_as_they_are_read() -> None:
    given = {"rpm": 5, "rpd": None, "tpm": 1000, "tpd": None, "concurrency": 2, "monthly_cap": 2.5}
    limits = read_limits(given)
    assert limits == Limits(rpm=5, tpm=1000, concurrency=2, monthly_cap_musd=2_500_000)
    assert render_limits(limits) == given
