"""`aiserve-gpuproxy-admin` on the database itself: every command, wrong usage, refusals, secrets."""

import asyncio
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.admin.program import COMMANDS, main
from appliance.storage.revisions import NEWEST
from tests.redis_server import closed_port
from tests.storage_servers import PostgresServer, make_sqlite, postgres_name

ROOT = Path(__file__).parents[2]
EMAIL = "user@example.com"
PASSWORD = "password123"


class Terminal:
    """Runs the program in this process; keeps what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.out = self.err = ""

    def run(self, *words: str, stdin: str = "") -> int:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        self._capsys.readouterr()
        code = main(words)
        self.out, self.err = self._capsys.readouterr()
        return code

    def done(self, *words: str, stdin: str = "") -> str:
        assert self.run(*words, stdin=stdin) == 0, self.err
        return self.out


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Terminal:
    """On SQLite, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the process that makes the tables
    for name in ("CONTROL_ADDRESS", "CONTROL_TOKEN", "DB_HOST", "DB_TYPE", "REDIS_HOST", "ACCOUNTS"):
        monkeypatch.delenv(name, raising=False)
    return Terminal(capsys, monkeypatch)


@pytest.fixture(params=["sqlite", "postgres"])
def ready(
    request: pytest.FixtureRequest, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Terminal]:
    """A database with all tables, and one user: once SQLite, once PostgreSQL."""
    if request.param == "sqlite":
        make_sqlite(tmp_path / "gpuproxy.db")
        terminal.done("create-user", EMAIL, PASSWORD, "John Doe")
        yield terminal
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    context = postgres_name(server)
    with asyncio.Runner() as runner:
        name = runner.run(context.__aenter__())
        try:
            for variable, value in server.environ(name).items():
                monkeypatch.setenv(variable, value)
            terminal.done("create-user", EMAIL, PASSWORD, "John Doe")
            yield terminal
        finally:
            runner.run(context.__aexit__(None, None, None))


def test_users_are_listed_as_a_table_the_newest_first(ready: Terminal) -> None:
    ready.done("create-user", "b@example.com", PASSWORD, "B")
    ready.done("make-admin", "b@example.com")
    ready.done("deactivate", EMAIL)
    lines = ready.done("users").splitlines()
    day = r"20\d\d-\d\d-\d\d"
    assert lines[0] == "ID        EMAIL             NAME      ADMIN  ACTIVE  CREATED"
    assert lines[1] == "---       ---               ---       ---    ---     ---"
    assert re.fullmatch(rf"[0-9a-f]{{8}}  b@example.com     B         Yes    Yes     {day}", lines[2])
    assert re.fullmatch(rf"[0-9a-f]{{8}}  user@example.com  John Doe  No     No      {day}", lines[3])
    assert lines[4:] == ["", "Total: 2 users"]
    assert ready.done("users", "b@").splitlines()[-1] == "Total: 1 users"


def test_a_user_is_created_renders_its_id_and_cannot_be_twice(ready: Terminal) -> None:
    said = ready.done("create-user", "c@example.com", PASSWORD, "Carla C")
    assert re.fullmatch(
        r"User created successfully\nID: [0-9a-f-]{36}\nEmail: c@example.com\nName: Carla C\n", said
    )
    assert ready.run("create-user", "C@example.com", PASSWORD, "Carla C") == 1
    assert "error: There is a user with this e-mail address." in ready.err


def test_plans_and_limits_are_set(ready: Terminal) -> None:
    assert ready.done("set-plan", EMAIL, "gold") == f"The plan of {EMAIL}: gold\n"
    shown = ready.done("set-limits", "-tpd=5000", "--rpm", "7", EMAIL)
    assert re.search(r"^tokens in a day +5000$", shown, re.M)
    assert re.search(r"^requests in a minute +7$", shown, re.M)
    assert ready.run("set-limits", "-tpd=-1", EMAIL) == 2
    assert "'-1' is no limit of tokens in a day" in ready.err


def test_a_user_is_deleted_where_that_is_confirmed(ready: Terminal) -> None:
    assert ready.run("delete-user", EMAIL) == 2
    assert "cannot be undone. Add --yes" in ready.err
    said = ready.done("delete-user", "-yes", EMAIL)
    assert re.fullmatch(
        rf"User {EMAIL} is deleted; rows of usage and money stay under [0-9a-f-]{{36}}\n", said
    )
    assert ready.run("delete-user", "-yes", EMAIL) == 1
    ready.done("create-user", "-admin", EMAIL, PASSWORD, "Again")
    assert ready.run("delete-user", "-yes", EMAIL) == 1
    assert "only administrator" in ready.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["create-user", "no-address", PASSWORD, "N"], "is no e-mail address"),
        (["create-user", "d@example.com", "short", "N"], "password: it has 5 characters; at least 10"),
        (["make-admin", "x@example.com"], "There is no user 'x@example.com'."),
        (["create-apikey", "x@example.com", "k"], "There is no user 'x@example.com'."),
        (["usage", "x@example.com"], "There is no user"),
        (["revoke-apikey", EMAIL, "apk_unknown"], "There is no API key 'apk_unknown' of this user."),
        (["end-sessions", EMAIL, "none"], "There is no session 'none' of this user."),
        (["grant", EMAIL, "0"], "0.00 dollars cannot be granted"),
        (["grant", EMAIL, "-5"], "more is used or set aside than would be left"),
        (["guardrails-reset", EMAIL, "7min"], "There is no window '7min'"),
    ],
)
def test_refusals_end_with_1_and_one_sentence(ready: Terminal, words: list[str], text: str) -> None:
    assert ready.run(*words) == 1
    assert text in ready.err
    assert "Traceback" not in ready.err
    assert ready.out == ""


def test_an_api_key_is_shown_once_listed_by_prefix_and_revoked(ready: Terminal) -> None:
    said = ready.done("create-apikey", EMAIL, "Production Key")
    match = re.fullmatch(
        r"API key created successfully\nUser: user@example.com\nName: Production Key\nKey: ((apk_\w{8})_\S{43})\n\n"
        r"Save this API key securely. It will not be shown again.\n",
        said,
    )
    assert match is not None
    key, prefix = match[1], match[2]
    listed = ready.done("keys", EMAIL)
    assert key not in listed
    assert f"{prefix}  Production Key  billing,inference,market,proxy  all" in listed
    assert ready.done("revoke-apikey", EMAIL, prefix) == f"API key {prefix} (Production Key) is revoked\n"
    (row,) = json.loads(ready.done("keys", "-json", EMAIL))
    assert row["is_active"] is False


def test_credits_are_granted_once_for_each_ref_and_audited(ready: Terminal) -> None:
    assert ready.done("grant", EMAIL, "10.5", "welcome") == f"Credits of {EMAIL}: $10.50 of $10.50 left\n"
    for _ in range(2):
        said = ready.done("grant", "-ref=invoice-7", EMAIL, "2")
        assert said == f"Credits of {EMAIL}: $12.50 of $12.50 left\n"
    assert ready.done("grant", EMAIL, "-$0.25") == f"Credits of {EMAIL}: $12.25 of $12.25 left\n"
    assert "remaining     $12.25\n" in ready.done("credits", EMAIL)
    assert "Credits: $12.25 of $12.25 left" in ready.done("usage", EMAIL)
    audit = ready.done("audit")
    assert "grants    -12.25\nwallet:*  12.25\nsum       0.00\n" in audit
    assert audit.endswith("3 movements: the money is right\n")


def test_an_audit_that_finds_a_difference_ends_with_1(terminal: Terminal, tmp_path: Path) -> None:
    import sqlite3

    terminal.done("create-user", EMAIL, "-", "John Doe", stdin=f"{PASSWORD}\n")
    terminal.done("grant", EMAIL, "1")
    with sqlite3.connect(tmp_path / "gpuproxy.db") as connection:
        connection.execute("UPDATE wallets SET extra_musd = extra_musd + 1")
    assert terminal.run("audit") == 1
    assert "expected 1000001, found 1000000" in terminal.out
    assert terminal.out.endswith("1 movements: 1 differences\n")


def test_usage_and_stats_have_the_lines_of_the_original(ready: Terminal) -> None:
    lines = ready.done("usage", EMAIL).splitlines()
    assert lines[:4] == [
        "Usage Statistics for John Doe (user@example.com)",
        "=====================================",
        "GPU Hours: 0.00 / 100.00 (0.0%)",
        "Requests: 0 / 10000 (0.0%)",
    ]
    assert re.fullmatch(r"Quota resets: 20\d\d-\d\d-01 00:00:00", lines[4])
    ready.done("create-apikey", EMAIL, "k")
    assert ready.done("stats") == (
        "System Statistics\n==================\nTotal Users: 1\nActive Users: 1\nActive API Keys: 1\n"
        "Total Transactions: 0\nTotal GPU Hours Used: 0.00\n"
    )


def test_roles_state_and_password_of_a_user_are_changed(ready: Terminal) -> None:
    assert ready.done("make-admin", EMAIL) == f"User John Doe ({EMAIL}) is now an admin\n"
    assert ready.done("revoke-admin", EMAIL) == f"User John Doe ({EMAIL}) is no longer an admin\n"
    assert "is inactive" in ready.done("deactivate", EMAIL)
    assert "is active again" in ready.done("activate", EMAIL)
    said = ready.done("set-password", EMAIL, "-", stdin="another password\n")
    assert said == f"The password of {EMAIL} is set; its sessions have ended\n"
    assert ready.done("sessions", EMAIL).endswith("Total: 0 sessions\n")
    assert ready.done("end-sessions", EMAIL) == "Ended sessions: 0\n"


def test_prices_are_checked_and_set_from_a_file(ready: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"prices": [{"model": "a", "in": "0.60", "out": "0.80"}, {"model": "*", "out": 1}]}')
    assert ready.done("prices", "check", str(path)) == f"{path}: 2 prices, no problem\n"
    assert ready.done("prices", "set", str(path)).endswith("New versions: 2; as before: 0\n")
    assert ready.done("prices", "set", str(path)) == "New versions: 0; as before: 2\n"
    listed = ready.done("prices")
    assert re.search(r"^a {6}\$0.60 +\$0.60 +\$0.80 +\$0.60 +\$0.00 +1 +20", listed, re.M)
    path.write_text('{"prices": [{"model": "a", "inn": "0.60"},\n{"model": "b", "in": "x"}]}')
    assert ready.run("prices", "set", str(path)) == 1
    assert "line 1, model 'a', field \"inn\": unknown; did you mean 'in'?" in ready.err
    assert "line 2, model 'b', field \"in\"" in ready.err
    assert ready.run("prices", "set", str(tmp_path / "missing")) == 1
    assert "No such file" in ready.err


def test_prices_of_the_settings_file_are_listed_below_those_set(
    ready: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_settings, other = tmp_path / "settings.json", tmp_path / "other.json"
    of_settings.write_text('{"prices": [{"model": "a", "in": "1"}, {"model": "b", "in": "2"}]}')
    other.write_text('{"prices": [{"model": "a", "in": "3"}]}')
    monkeypatch.setenv("PRICES_FILE", str(of_settings))
    ready.done("prices", "set", str(other))
    rows = [line.split()[:2] for line in ready.done("prices").splitlines()]
    assert rows[1:3] == [["a", "$3.00"], ["b", "$2.00"]]
    of_settings.write_text("{}")
    assert ready.run("prices") == 78
    assert "error: PRICES_FILE=" in ready.err


def test_sessions_that_redis_alone_keeps_need_it(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.done("create-user", EMAIL, PASSWORD, "John Doe")
    monkeypatch.setenv("SESSION_MODE", "redis")
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("REDIS_PORT", str(closed_port()))
    assert terminal.run("sessions", EMAIL) == 3
    assert len(terminal.err.splitlines()) == 1


def test_guard_rails_are_shown_and_reset(ready: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ready.done("guardrails-status").splitlines()[2] == "Enabled: false"
    monkeypatch.setenv("GUARDRAILS_ENABLED", "true")
    assert "No time window limits are currently configured." in ready.done("guardrails-status")
    monkeypatch.setenv("GUARDRAILS_MAX_60MIN_RATE", "100.00")
    said = ready.done("guardrails-status")
    assert "  60 minutes (1h):          $100.00\n\nTotal active limits: 1\n" in said
    assert "No spending data recorded yet." in ready.done("guardrails-spending", EMAIL)
    said = ready.done("guardrails-reset", EMAIL)
    assert said == f"Successfully reset all spending tracking for John Doe ({EMAIL})\n"
    said = ready.done("guardrails-reset", EMAIL, "60min")
    assert said == f"Successfully reset 60min spending tracking for John Doe ({EMAIL})\n"


def test_migrate_makes_the_tables_and_can_only_show_them(terminal: Terminal, tmp_path: Path) -> None:
    assert "CREATE TABLE users" in terminal.done("migrate", "-dry-run")
    assert not (tmp_path / "gpuproxy.db").exists()
    said = terminal.done("migrate")
    assert said.splitlines()[0].startswith("Migrated ")
    assert said.splitlines()[-1] == "Database migration completed successfully"
    assert "nothing to do." in terminal.done("migrate")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "GPU Proxy Admin Utility"),
        (["nonsense"], "Unknown command: nonsense\nGPU Proxy Admin Utility"),
        (["-what", "users"], "flag provided but not defined: -what"),
        (["create-user", "a@example.com"], "words are missing\nUsage: aiserve-gpuproxy-admin create-user "),
        (["create-user", "a@example.com", PASSWORD, "John", "Doe"], "there are too many words; quote names"),
        (["make-admin"], "words are missing\nUsage: aiserve-gpuproxy-admin make-admin <email>"),
        (["stats", "-json=x"], "invalid boolean value 'x' for -json"),
        (["migrate", "-to", "99"], f"-to 99: revisions are 1 to {NEWEST}"),
        (["prices", "set"], "Usage: aiserve-gpuproxy-admin prices [list | check FILE | set FILE]"),
        (["grant", EMAIL, "much"], "'much' is no amount: write dollars as a decimal number"),
        (["create-user", "a@example.com", "-", "A"], "there is no password on standard input"),
    ],
)
def test_wrong_usage_ends_with_2(terminal: Terminal, words: list[str], text: str) -> None:
    assert terminal.run(*words) == 2
    assert text in terminal.err
    assert PASSWORD not in terminal.err
    assert terminal.out == ""


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["help"], *([name, "-h"] for name in COMMANDS)])
def test_every_command_has_help(terminal: Terminal, words: list[str]) -> None:
    assert "sage:" in terminal.done(*words)


def test_settings_come_from_the_file_in_the_working_folder(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DB_TYPE=sqlite\nDB_NAME=other.db   # a comment\n")
    terminal.done("users")
    assert (tmp_path / "other.db").exists()
    (tmp_path / ".env").write_text("what\n")
    assert terminal.run("users") == 78
    assert "Line 1 is neither." in terminal.err
    (tmp_path / ".env").write_text("DB_PORT=none\n")
    assert terminal.run("users") == 78
    assert terminal.err.startswith("error: DB_PORT=none: allowed: a whole number from 1 to 65535")


def test_a_database_that_cannot_be_reached_ends_with_3(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DB_HOST", str(tmp_path))  # the folder of a socket that is not there
    for words in (["users"], ["migrate"]):
        assert terminal.run(*words) == 3
        assert len(terminal.err.splitlines()) == 1, terminal.err


def test_tables_that_are_missing_are_told_with_what_to_do(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, postgres_server: PostgresServer
) -> None:
    for variable, value in postgres_server.environ("postgres").items():
        monkeypatch.setenv(variable, value)
    assert terminal.run("users") == 1
    assert "It has no tables yet: run `appliance migrate`" in terminal.err


def test_a_password_is_in_no_output_and_no_file(ready: Terminal, tmp_path: Path) -> None:
    secret = "a-very-secret-passphrase"
    for words in (
        ["create-user", "e@example.com", secret, "E"],
        ["-dm", "create-user", "e@example.com", secret, "E"],
        ["-dm", "-dv", "-json", "set-password", "e@example.com", secret],
    ):
        ready.run(*words)
        assert secret not in ready.out + ready.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()
