"""The environment of aiserve-gpuproxyd's programs: `.env`, and that project's names."""

from pathlib import Path

import pytest

from appliance.base.settings import InvalidSettings
from appliance.gpuproxy_environ import read_env_file, read_environ
from appliance.settings import load

BASE = {"PROXY_PORT": "8080", "ACCOUNTS": "1", "REGISTRATION": "open", "GRPC_PORT": "9090", "MARKET": "1"}


@pytest.mark.parametrize(
    ("environ", "file", "expected"),
    [
        ({}, "", BASE),
        (
            {},
            "SERVER_PORT=9000\nSERVER_HOST=::",
            BASE | {"PROXY_PORT": "9000", "PROXY_HOST": "::", "GRPC_HOST": "::"},
        ),
        ({"SERVER_PORT": "1"}, "SERVER_PORT=2", BASE | {"PROXY_PORT": "1"}),
        ({"PROXY_PORT": "3"}, "SERVER_PORT=2", BASE | {"PROXY_PORT": "3"}),
        ({"PORT": "4"}, "", BASE | {"PORT": "4", "PROXY_PORT": "4"}),
        (
            {"ACCOUNTS": "0", "REGISTRATION": "off"},
            "",
            BASE | {"ACCOUNTS": "0", "MARKET": "0", "REGISTRATION": "off"},
        ),
        ({"DB_NAME": ""}, "DB_NAME=x", BASE | {"DB_NAME": ""}),
    ],
)
def test_the_environment_wins_and_names_are_translated(
    tmp_path: Path, environ: dict[str, str], file: str, expected: dict[str, str]
) -> None:
    path = tmp_path / ".env"
    path.write_text(file)
    found = read_environ(environ, path)
    assert {name: value for name, value in found.values.items() if not name.startswith("SERVER_")} == expected
    assert found.without_effect == ()


def test_what_has_no_effect_is_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(
        "GRPC_PORT=9191\nVASTAI_API_KEY=v\nSTRIPE_SECRET_KEY=s\nCRYPTO_ENABLED=true\nMARKET=1\nLOG_FILE=\n"
        "GPU_MODE=off\n"
    )
    found = read_environ({"AFTERDARK_API_KEY": "a"}, path)
    assert found.without_effect == (
        "AFTERDARK_API_KEY",
        "CRYPTO_ENABLED",
        "STRIPE_SECRET_KEY",
    )
    assert found.values == {
        "GPU_MODE": "off",
        "LOG_FILE": "",
        "VASTAI_API_KEY": "v",
        **BASE,
        "GRPC_PORT": "9191",
    }


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("export A = b ", "b"),
        ("A=200                      # most", "200"),
        ("A=# nothing", ""),
        ("A=a#b", "a#b"),
        ("A='a # b'  # c", "a # b"),
        ('A="a\\"b\\n$c"', 'a"b\n$c'),
        ("A=", ""),
    ],
)
def test_values_are_read_as_godotenv_reads_them(tmp_path: Path, line: str, value: str) -> None:
    path = tmp_path / ".env"
    path.write_text(f"# a comment\n\n{line}\n")
    assert read_env_file(path) == {"A": value}


def test_the_names_and_values_of_the_projects_example_are_all_taken(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(
        """
SERVER_HOST=::
SERVER_PORT=8080
GRPC_PORT=9090
ENVIRONMENT=development
DB_HOST=localhost
DB_PORT=5432
DB_USER=postgres
DB_PASSWORD=changeme
DB_NAME=gpuproxy
DB_SSLMODE=disable
DB_MAX_CONNS=200                      # many
DB_MIN_CONNS=20                       # some
DB_MAX_CONN_LIFETIME=15m              # a duration
DB_MAX_CONN_IDLE_TIME=5m
DB_HEALTH_CHECK_PERIOD=1m
DB_CONNECT_TIMEOUT=5s
DB_USE_PGBOUNCER=true
DB_PGBOUNCER_POOL_MODE=transaction    # a word
                                      # a comment that goes on
REDIS_HOST=localhost
REDIS_PORT=6379
REDIS_PASSWORD=
REDIS_DB=0
REDIS_POOL_SIZE=50
REDIS_MIN_IDLE_CONNS=10
REDIS_DIAL_TIMEOUT=5s
SESSION_MODE=balanced                 # sql, redis, or balanced
JWT_SECRET=0f3d9a1c7b5e2846a0c4d8e6f2b19375
JWT_EXPIRATION=24h
REFRESH_EXPIRATION=168h
API_KEY_LENGTH=32
GPU_API_TIMEOUT=30s
CRYPTO_ENABLED=true
LB_ENABLED=true
LB_STRATEGY=round_robin
GUARDRAILS_ENABLED=false
GUARDRAILS_MAX_5MIN_RATE=0
SYSLOG_ENABLED=false
"""
    )
    found = read_environ({"STATE_DIR": str(tmp_path)}, path)
    assert len(found.without_effect) == 4
    settings, problems = load(found.values)
    assert settings is not None
    assert [problem.variable for problem in problems] == ["MARKET"]  # no market has a key
    assert not problems[0].is_fatal
    assert (settings.front.proxy_port, settings.storage.db_max_conns) == (8080, 200)
    assert settings.accounts.registration == "open"


@pytest.mark.parametrize("line", ["A", "1A=b", 'A="b', "A='b' c"])
def test_a_line_that_is_none_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / ".env"
    path.write_text(f"B=secret\n{line}\n")
    with pytest.raises(InvalidSettings, match=r"Line 2 is neither\.") as caught:
        read_env_file(path)
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert read_env_file(tmp_path / "missing") == {}
    with pytest.raises(InvalidSettings, match=r"It cannot be read"):
        read_env_file(tmp_path)
