"""What `appliance check` and the start say about the settings of accounts, and the prices of PRICES_FILE."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.accounts.prices import Price
from appliance.accounts.settings import AccountSettings
from appliance.app import commands_to_try
from appliance.settings import load
from appliance.settings_accounts import check_prices
from appliance.settings_prices import price_differences

SECRET = "0123456789abcdefghijklmnopqrstuvwxyz-ABCDEFGH"
ON = {"ACCOUNTS": "1", "JWT_SECRET": SECRET}
GOOD = '{"prices": [\n  {"model": "m", "in": "1"}\n]}'
WRONG = '{"prices": [\n  {"model": "m", "in": "1"},\n  {"model": "n", "in": "much"}\n]}'


def found(environ: dict[str, str]) -> dict[str, str]:
    return {problem.variable: str(problem) for problem in load(environ)[1]}


@pytest.mark.parametrize(
    ("environ", "variable", "text"),
    [
        ({"SESSION_MODE": "redis"}, "SESSION_MODE", "Set REDIS_HOST, or SESSION_MODE=sql."),
        ({"JWT_SECRET": ""}, "JWT_SECRET", "ACCOUNTS=1 needs a secret for tokens"),
    ],
)
def test_accounts_do_not_start_with(environ: dict[str, str], variable: str, text: str) -> None:
    assert load(ON | environ)[0] is None
    assert text in found(ON | environ)[variable]


def test_a_weak_secret_is_told_once_and_not_as_a_missing_one() -> None:
    told = [str(problem) for problem in load(ON | {"JWT_SECRET": "short"})[1]]
    assert told == [
        "JWT_SECRET=(hidden): allowed: at least 32 characters, no well-known word. "
        "It has 5 characters, and needs 32."
    ]


@pytest.mark.parametrize("needs_key", [True, False])
def test_commands_to_try_have_a_key_where_one_is_needed(needs_key: bool) -> None:
    text = commands_to_try("http://127.0.0.1:14000", needs_key=needs_key)
    assert text.count("-H 'authorization: Bearer KEY'") == (2 if needs_key else 0)
    assert "curl http://127.0.0.1:14000/healthz\n" in text


@pytest.mark.parametrize(
    ("environ", "variable", "text"),
    [
        ({"REDIS_HOST": "redis"}, "DB_TYPE", "SQLite serves one process, and REDIS_HOST is for several"),
        (
            {"REGISTRATION": "open", "SIGNUP_CREDITS_USD": "0.50"},
            "SIGNUP_CREDITS_USD",
            "Each registration gets 0.50 dollars",
        ),
        ({"GUARDRAILS_MAX_48H_RATE": "3"}, "GUARDRAILS_ENABLED", "The limits of 48h have no effect"),
        ({"STATIC_KEYS_USER": "a@example.com"}, "STATIC_KEYS_USER", "APPLIANCE_API_KEYS has no keys"),
    ],
)
def test_accounts_start_with_a_warning_of(environ: dict[str, str], variable: str, text: str) -> None:
    assert load(ON | environ)[0] is not None
    assert text in found(ON | environ)[variable]
    assert variable not in found(environ)  # without accounts nothing is said of them


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"PROXY_HOST": "0.0.0.0"},  # without a key nobody is admitted
        {"REDIS_HOST": "redis", "DB_HOST": "db", "SESSION_MODE": "redis"},
        {"REDIS_HOST": "redis", "SIDECAR_PORT": "9000"},
        {"REGISTRATION": "open"},
        {"SIGNUP_CREDITS_USD": "5"},
        {"GUARDRAILS_MAX_48H_RATE": "3", "GUARDRAILS_ENABLED": "1"},
        {"STATIC_KEYS_USER": "a@example.com", "APPLIANCE_API_KEYS": "long-enough-key"},
    ],
)
def test_nothing_is_wrong_with_accounts_and(environ: dict[str, str]) -> None:
    assert found(ON | environ) == {}


def with_file(tmp_path: Path, text: str | None) -> dict[str, str]:
    path = tmp_path / "prices.json"
    if text is not None:
        path.write_text(text)
    return ON | {"PRICES_FILE": str(path)}


def test_prices_are_read_with_the_settings(tmp_path: Path) -> None:
    settings, problems = load(with_file(tmp_path, GOOD))
    assert settings is not None
    assert problems == []
    assert [(price.model, price.in_per_mtok) for price in settings.prices] == [("m", 1_000_000)]
    assert tmp_path / "prices.json" in settings.files  # CONFIG_WATCH follows it
    off, _ = load(with_file(tmp_path, GOOD) | {"ACCOUNTS": "0"})
    assert off is not None
    assert (off.prices, off.files) == ((), [])


@pytest.mark.parametrize(
    ("text", "said"),
    [(WRONG, "line 3, model 'n', field \"in\""), (None, "It cannot be read"), ("[", "expected an object")],
)
def test_a_wrong_file_of_prices_is_told_by_its_line(tmp_path: Path, text: str | None, said: str) -> None:
    environ = with_file(tmp_path, text)
    assert load(environ)[0] is None
    assert said in found(environ)["PRICES_FILE"]


def test_of_many_wrong_prices_the_first_are_told(tmp_path: Path) -> None:
    rows = [{"model": f"m{number}", "in": "x"} for number in range(50)]
    problems = load(with_file(tmp_path, json.dumps({"prices": rows})))[1]
    assert len(problems) == 21
    assert "30 more problems." in str(problems[-1])


@pytest.mark.parametrize(
    ("settings", "models", "variable"),
    [
        ({"accounts": True}, set(), "PRICES_FILE"),
        ({"accounts": True, "unpriced": "flat"}, {"m"}, "UNPRICED"),
        ({"accounts": True, "unpriced": "flat"}, {"m", "*"}, ""),
        ({"accounts": True, "unpriced": "free"}, set(), ""),
        ({"accounts": True}, {"m"}, ""),
        ({}, set(), ""),
    ],
)
def test_models_without_a_price_are_a_warning(
    settings: dict[str, Any], models: set[str], variable: str
) -> None:
    problems = check_prices(AccountSettings(jwt_secret=SECRET, **settings), models)
    assert [(problem.variable, problem.is_fatal) for problem in problems] == (
        [(variable, False)] if variable else []
    )


def test_the_verb_check_warns_of_missing_prices() -> None:
    environ = ON | {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "check"], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "Users get 402 for every model that has no price in the database" in done.stderr


def test_differences_of_prices_are_told_by_model() -> None:
    before = [Price("a", in_per_mtok=1_000_000), Price("b"), Price("c", out_per_mtok=5)]
    after = [Price("a", in_per_mtok=2_000_000), Price("c", out_per_mtok=5), Price("d")]
    assert price_differences(before, after) == [
        "a: 2.00 in, 0.00 cached, 0.00 out per 1M tokens",
        "b has no price any more",
        "d: 0.00 in, 0.00 cached, 0.00 out per 1M tokens",
    ]
