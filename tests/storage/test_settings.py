"""Settings of the database, of Redis and of accounts: what they mean, and what is refused."""

from decimal import Decimal
from pathlib import Path

import pytest

from appliance.accounts.settings import AccountSettings
from appliance.settings import load
from appliance.storage.open import postgres_address
from appliance.storage.settings import StorageSettings

LONG = "k3J9" * 12


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, "sqlite"),
        ({"DB_HOST": "db"}, "postgres"),
        ({"DB_HOST": "db", "DB_TYPE": "sqlite"}, "sqlite"),
        ({"DB_HOST": "db", "DB_TYPE": "PostgreSQL"}, "postgres"),
        ({"DB_TYPE": "sqlite3"}, "sqlite"),
    ],
)
def test_which_database_it_is(environ: dict[str, str], kind: str) -> None:
    assert StorageSettings.from_env(environ).db_kind == kind


@pytest.mark.parametrize(
    ("name", "path"),
    [("", "/state/gpuproxy.db"), ("mine.db", "/state/mine.db"), ("/data/mine.db", "/data/mine.db")],
)
def test_where_the_file_of_sqlite_is(name: str, path: str) -> None:
    assert StorageSettings(db_name=name).sqlite_path(Path("/state")) == Path(path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("250ms", 0.25), ("1m30s", 90), ("1.5h", 5400), ("2h45m30.5s", 9930.5)],
)
def test_durations_are_seconds_or_as_go_writes_them(text: str, seconds: float) -> None:
    assert StorageSettings.from_env({"DB_MAX_CONN_LIFETIME": text}).db_max_conn_lifetime == seconds


@pytest.mark.parametrize(
    ("value", "port"), [("6380", 6380), ("tcp://10.0.0.7:6380", 6380), ("tcp://[::1]:6380", 6380)]
)
def test_ports_may_be_addresses_of_kubernetes(value: str, port: int) -> None:
    settings = StorageSettings.from_env({"REDIS_PORT": value, "DB_PORT": value})
    assert (settings.redis_port, settings.db_port) == (port, port)


@pytest.mark.parametrize(
    ("environ", "variable", "message"),
    [
        ({"DB_TYPE": "mysql"}, "DB_TYPE", "postgres, sqlite, or empty"),
        ({"DB_TYPE": "postgres"}, "DB_HOST", "needs the host of the server"),
        ({"DB_NAME": "../other.db"}, "DB_NAME", "no '..'"),
        ({"DB_SSLMODE": "on"}, "DB_SSLMODE", "verify-full"),
        ({"DB_MAX_CONNS": "0"}, "DB_MAX_CONNS", "from 1 to 1000"),
        ({"DB_MAX_CONNS": "2", "DB_MIN_CONNS": "3"}, "DB_MIN_CONNS", "more than DB_MAX_CONNS, 2"),
        ({"DB_CONNECT_TIMEOUT": "soon"}, "DB_CONNECT_TIMEOUT", "a duration such as 250ms"),
        ({"DB_CONNECT_TIMEOUT": "1d"}, "DB_CONNECT_TIMEOUT", "a duration such as 250ms"),
        ({"DB_CONNECT_TIMEOUT": "0s"}, "DB_CONNECT_TIMEOUT", "a duration such as 250ms"),
        (
            {"DB_USE_PGBOUNCER": "1", "DB_PGBOUNCER_POOL_MODE": "statement"},
            "DB_PGBOUNCER_POOL_MODE",
            "there are no transactions",
        ),
        ({"ACCOUNTS": "1"}, "JWT_SECRET", "openssl rand -base64 48"),
        ({"JWT_SECRET": "short"}, "JWT_SECRET", "at least 32 characters"),
        ({"JWT_SECRET": "changeme" * 5}, "JWT_SECRET", "no well-known word"),
        ({"JWT_SECRET": "secret-password-changeme-secret-1234"}, "JWT_SECRET", "no well-known word"),
        ({"WALLET_LEASE_MAX_USD": "0.0000001"}, "WALLET_LEASE_MAX_USD", "up to 6 decimals"),
        ({"GUARDRAILS_MAX_5MIN_RATE": "-1"}, "GUARDRAILS_MAX_5MIN_RATE", "up to 6 decimals"),
    ],
)
def test_values_that_are_refused(environ: dict[str, str], variable: str, message: str) -> None:
    settings, problems = load({"PATH": "/usr/bin:/bin", **environ})
    (fatal,) = [problem for problem in problems if problem.is_fatal]
    assert settings is None
    assert fatal.variable == variable
    assert message in str(fatal)


def test_a_secret_is_not_in_the_problem_nor_in_the_settings(tmp_path: Path) -> None:
    _, problems = load({"JWT_SECRET": "changeme-" * 4})
    assert "changeme" not in str(problems)
    (tmp_path / "password").write_text("p4ssw0rd-of-the-database\n")
    settings, _ = load({"DB_HOST": "db", "DB_PASSWORD_FILE": str(tmp_path / "password")})
    assert settings is not None
    assert settings.storage.db_password.get_secret_value() == "p4ssw0rd-of-the-database"
    assert "p4ssw0rd" not in repr(settings) + str(postgres_address(settings.storage))


def test_money_and_windows_keep_what_was_written() -> None:
    settings = AccountSettings.from_env(
        {"ACCOUNTS": "on", "JWT_SECRET": LONG, "SIGNUP_CREDITS_USD": "0.1", "GUARDRAILS_MAX_48H_RATE": "12.5"}
    )
    assert settings.signup_credits_usd == Decimal("0.1")
    assert settings.guardrails_max_48h_rate == Decimal("12.5")


@pytest.mark.parametrize(
    ("environ", "has_session", "has_prepared"),
    [
        ({}, True, True),
        ({"DB_USE_PGBOUNCER": "1"}, False, False),
        ({"DB_USE_PGBOUNCER": "1", "DB_PGBOUNCER_POOL_MODE": "session"}, True, False),
    ],
)
def test_what_works_behind_pgbouncer(environ: dict[str, str], has_session: bool, has_prepared: bool) -> None:
    address = postgres_address(StorageSettings.from_env({"DB_HOST": "db", **environ}))
    assert (address.has_session, address.has_prepared) == (has_session, has_prepared)
