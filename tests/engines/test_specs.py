"""Backends as operators write them.

What is read, and what is refused with which words; and the engines' words for too long.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.engines.specs import BackendSpec, parse_backend
from appliance.settings import load

ROOT = {"PATH": "/usr/bin:/bin"}


def read(tmp_path: Path, config: Any = None, **environ: str) -> tuple[Any, str]:
    """Return (the fleet or None, the fatal problems as text)."""
    if config is not None:
        path = tmp_path / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        environ["CONFIG_PATH"] = str(path)
    settings, problems = load(ROOT | environ)
    return settings.fleet if settings else None, "\n".join(str(p) for p in problems if p.is_fatal)


@pytest.mark.parametrize(
    ("address", "name", "url"),
    [
        ("http://llm-1:8080", "llm-1:8080", "http://llm-1:8080"),
        ("http://llm-1:8080/v1/", "llm-1:8080", "http://llm-1:8080"),
        ("llm-1:8080", "llm-1:8080", "http://llm-1:8080"),
        ("https://x.example/proxy/v1", "x.example:443", "https://x.example/proxy"),
        ("http://[::1]:9", "[::1]:9", "http://[::1]:9"),
        ("big=http://llm-1", "big", "http://llm-1"),
    ],
)
def test_addresses(tmp_path: Path, address: str, name: str, url: str) -> None:
    fleet, problems = read(tmp_path, BACKENDS=address)
    assert not problems
    assert (fleet.backends[0].name, fleet.backends[0].url) == (name, url)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://x", "'ftp://x' is not an http(s) address"),
        ("http://", "is not an http(s) address"),
        ("http://u:p@x", "must not hold credentials"),
        ("http://x?y=1", "must not hold '?' or '#'"),
        ("http://x:99999", "Port out of range"),
        ("a b=http://x", "1-128 letters, digits and"),
    ],
)
def test_addresses_that_are_none(tmp_path: Path, address: str, message: str) -> None:
    fleet, problems = read(tmp_path, BACKENDS=address)
    assert fleet is None
    assert "BACKENDS" in problems
    assert message in problems


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_password_in_an_address_is_not_shown(tmp_path: Path, scheme: str) -> None:
    address = f"{scheme}://user:pass-word@x"
    assert "pass-word" not in read(tmp_path, BACKENDS=address)[1]
    assert "pass-word" not in read(tmp_path, {"backends": [{"url": address}]})[1]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "one JSON object"),
        ({"backend": []}, "'backend'"),
        ({"backends": {}}, "must be a list"),
        ({"backends": [{}]}, "backends[0]: url"),
        ({"backends": [{"url": "http://x", "wieght": 1}]}, "wieght"),
        ({"backends": [{"url": "http://x", "kind": "ollama"}]}, "kind"),
        ({"backends": [{"url": "http://x", "weight": 0}]}, "weight"),
        ({"backends": [{"url": "http://x", "api_key_env": "NOT_SET"}]}, "the variable NOT_SET is not set"),
        ({"backends": [{"url": "http://x", "api_key_file": "/nowhere/key"}]}, "/nowhere/key cannot be read"),
        ({"backends": [{"url": "http://x", "api_key": "k", "api_key_env": "E"}]}, "one of api_key"),
        (
            {"backends": [{"url": "https://x", "tls": {"ca_file": "/nowhere/ca"}}]},
            "/nowhere/ca is not a readable file",
        ),
        ({"backends": [{"url": "https://x", "tls": {"cert_file": __file__}}]}, "must both be given"),
        ({"backends": [{"url": "http://x"}, {"url": "http://x"}]}, "Two backends"),
        ({"pools": [{"name": "default", "overflow": "moon"}]}, "does not exist"),
        (
            {"pools": [{"name": "default", "overflow": "b"}, {"name": "b", "overflow": "default"}]},
            "leads back",
        ),
        ({"pools": [{"name": "default", "strategy": "best"}]}, "strategy"),
        ({"pools": [{"name": "default", "overflow": "hosted"}]}, "NOVITA_API_KEY"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, config: Any, said: str) -> None:
    fleet, problems = read(tmp_path, config)
    assert fleet is None
    assert said in problems


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    fleet, problems = read(tmp_path, CONFIG_PATH=str(tmp_path / "absent.json"))
    assert fleet is None
    assert "CONFIG_PATH" in problems


@pytest.mark.parametrize(
    ("pools", "overflows"),
    [
        ([], {"default": "slow"}),
        ([{"name": "default", "strategy": "round_robin"}], {"default": "slow"}),
        ([{"name": "default", "overflow": "other"}], {"default": "other"}),  # the file's word
    ],
)
def test_lb_overflow_is_the_default_pools(
    tmp_path: Path, pools: list[dict[str, str]], overflows: dict[str, str]
) -> None:
    backends = [{"url": f"http://{pool}", "pool": pool} for pool in ("slow", "other")]
    fleet, problems = read(tmp_path, {"backends": backends, "pools": pools}, LB_OVERFLOW="slow")
    assert not problems
    assert {pool.name: pool.overflow for pool in fleet.pools} == overflows
    assert fleet.pool("default").strategy == (pools[0].get("strategy", "") if pools else "")


def test_a_file_with_everything(tmp_path: Path) -> None:
    fleet, problems = read(
        tmp_path,
        {
            "system": {},
            "$schema": "s.json",
            "backends": [{"url": "http://x", "vram_gib": 80, "price_per_hour": 0.5, "api_key_env": "K"}],
            "pools": [{"name": "default", "strategy": "power_of_two"}],
        },
        K="sk_secret_of_x",
        BACKENDS="http://y",
    )
    assert not problems
    assert [b.name for b in fleet.backends] == ["y:80", "x:80"]
    assert fleet.backends[1].effective_weight == pytest.approx(3.6)
    assert fleet.backends[1].api_key.get_secret_value() == "sk_secret_of_x"
    assert "sk_secret_of_x" not in repr(fleet)


def test_an_unknown_strategy_is_round_robin_with_a_warning() -> None:
    settings, problems = load(ROOT | {"LB_STRATEGY": "best"})
    assert settings is not None
    assert any("round_robin" in str(p) for p in problems)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({}, "url"),
        ({"url": "http://x", "weight": -1}, "weight"),
        ({"url": "http://x", "api_key_env": "NOT_SET"}, "api_key"),
    ],
)
def test_a_backend_at_run_time_that_cannot_be_used(value: dict[str, Any], param: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_backend(value, {})
    assert caught.value.param == param


def test_the_key_is_in_no_representation() -> None:
    assert "sk_hidden" not in repr(BackendSpec(url="http://x", api_key="sk_hidden"))
