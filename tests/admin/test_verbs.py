"""`appliance users|keys|credits|prices|admin` on the database itself."""

import io
import json
import re
import sys
from pathlib import Path

import pytest

from appliance.__main__ import main
from appliance.command_lines import ACCOUNT_COMMANDS

EMAIL = "user@example.com"
PASSWORD = "a-password-of-stdin"


class Shell:
    """Runs the command in this process; keeps what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.err = ""

    def run(self, line: str, stdin: str = "") -> tuple[int, str]:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        self._capsys.readouterr()
        code = main(line.split())
        out, self.err = self._capsys.readouterr()
        assert PASSWORD not in out + self.err
        return code, out

    def done(self, line: str, stdin: str = "") -> str:
        code, out = self.run(line, stdin)
        assert code == 0, self.err
        return out


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    """With accounts on SQLite, and one user."""
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    monkeypatch.setenv("ACCOUNTS", "1")
    for name in ("CONTROL_ADDRESS", "CONTROL_TOKEN", "DB_HOST", "DB_TYPE", "REDIS_HOST", "JWT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    found = Shell(capsys, monkeypatch)
    found.done(f"users create {EMAIL} John", PASSWORD)
    return found


def test_users_are_made_listed_and_changed(shell: Shell) -> None:
    shell.done("users create b@example.com Berta --admin", PASSWORD)
    users = json.loads(shell.done("users list --json"))
    assert [(user["email"], user["is_admin"]) for user in users] == [("b@example.com", True), (EMAIL, False)]
    assert "Total: 1 users" in shell.done("users list berta")
    assert "is now an admin" in shell.done(f"users admin {EMAIL}")
    assert "no longer an admin" in shell.done(f"users no-admin {EMAIL}")
    assert "is inactive" in shell.done(f"users deactivate {EMAIL}")
    assert "is active again" in shell.done(f"users activate {EMAIL}")
    assert "is set" in shell.done(f"users password {EMAIL}", PASSWORD)
    assert "Requests: 0 / 10000 (0.0%)" in shell.done(f"users usage {EMAIL}")
    assert "Total: 0 sessions" in shell.done(f"users sessions {EMAIL}")
    assert shell.done(f"users logout {EMAIL}") == "Ended sessions: 0\n"
    assert "is deleted; rows of usage and money stay" in shell.done(f"users delete {EMAIL} --yes")
    assert "Total: 0 users" in shell.done(f"users list {EMAIL}")


def test_limits_and_plans_of_users_are_set(shell: Shell) -> None:
    shown = shell.done(f"users limits {EMAIL} --rpm 3 --tpd 5000")
    assert re.search(r"^requests in a minute +3$", shown, re.M)
    assert re.search(r"^tokens in a day +5000$", shown, re.M)
    shown = shell.done(f"users limits {EMAIL} --rpm none --concurrency 2")
    assert re.search(r"^requests in a minute +none$", shown, re.M)
    assert re.search(r"^requests at the same time +2$", shown, re.M)
    assert re.search(r"^tokens in a day +5000$", shown, re.M)
    assert shell.done(f"users limits {EMAIL}") == shown
    [user] = json.loads(shell.done("users list --json"))
    assert user["limits"] == {"concurrency": "2", "tpd": "5000"}
    assert shell.done(f"users plan {EMAIL} gold") == f"The plan of {EMAIL}: gold\n"
    assert shell.done(f"users plan {EMAIL}") == f"The plan of {EMAIL}: none\n"


def test_keys_are_made_with_what_they_open(shell: Shell) -> None:
    made = json.loads(
        shell.done(
            f"keys create {EMAIL} k --scope inference --scope billing --model llama* --stay-local "
            "--expires 2030-01-31T00:00:00Z --json"
        )
    )
    assert made["key"].startswith(made["prefix"] + "_")
    assert (made["scopes"], made["models"], made["stay_local"]) == (
        ["billing", "inference"],
        ["llama*"],
        True,
    )
    assert made["expires_at"] == "2030-01-31T00:00:00Z"
    assert made["prefix"] in shell.done(f"keys list {EMAIL}")
    assert "is revoked" in shell.done(f"keys revoke {EMAIL} {made['id']}")


def test_credits_prices_and_the_audit(shell: Shell, tmp_path: Path) -> None:
    for _ in range(2):
        assert "$5.00 of $5.00 left" in shell.done(f"credits grant {EMAIL} 5 welcome --ref r1")
    assert "$4.00 of $4.00 left" in shell.done(f"credits grant {EMAIL} -- -1")
    assert "remaining     $4.00" in shell.done(f"credits show {EMAIL}")
    assert "No spending data recorded yet." in shell.done(f"credits spending {EMAIL}")
    assert "Successfully reset all" in shell.done(f"credits reset {EMAIL}")
    path = tmp_path / "prices.json"
    path.write_text('{"prices": [{"model": "a", "in": "0.60"}]}')
    assert "1 prices, no problem" in shell.done(f"prices check {path}")
    assert "New versions: 1" in shell.done(f"prices set {path}")
    assert re.search(r"^a +\$0.60", shell.done("prices list"), re.M)
    assert "the money is right" in shell.done("admin audit")
    assert "Total Users: 1" in shell.done("admin stats")


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("users", 2, "the following arguments are required: COMMAND"),
        ("users what", 2, "invalid choice: 'what'"),
        ("users create a@example.com", 2, "the following arguments are required: name"),
        ("users create a@example.com A", 2, "there is no password on standard input"),
        ("credits grant a@example.com much", 2, "'much' is no amount"),
        (f"keys create {EMAIL} k --expires soon", 2, "--expires soon: use a time such as"),
        (f"users limits {EMAIL} --rpm many", 2, "'many' is no limit of requests in a minute: use a whole"),
        (f"users limits {EMAIL} --rpm 0", 1, "limits.rpm: 0 is not allowed"),
        (f"users delete {EMAIL}", 2, f"error: Deleting {EMAIL} cannot be undone. Add --yes to do it."),
        ("users admin x@example.com", 1, "error: There is no user 'x@example.com'."),
        (f"keys create {EMAIL} k --scope all", 1, "error: scopes: ['all'] is not allowed"),
        ("prices set /missing.json", 1, "No such file"),
        ("prices check /missing.json", 1, "No such file"),
        ("users list --address 127.0.0.1:1", 3, "No appliance responds at 127.0.0.1:1."),
    ],
)
def test_what_cannot_be_done_has_its_exit_code(shell: Shell, line: str, code: int, text: str) -> None:
    assert shell.run(line) == (code, "")
    assert text in shell.err


def test_an_environment_without_accounts_is_refused(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "another"))
    monkeypatch.setenv("ACCOUNTS", "0")
    assert shell.run("users list") == (1, "")
    assert "Accounts are off (ACCOUNTS=0) in this environment." in shell.err
    assert not (tmp_path / "another").exists()
    monkeypatch.setenv("ACCOUNTS", "maybe")
    assert shell.run("users list") == (78, "")
    assert "error: ACCOUNTS=maybe: allowed: 0 or 1." in shell.err


@pytest.mark.parametrize(
    "line", [f"{verb} {name}" for verb, names in ACCOUNT_COMMANDS.items() for name in names]
)
def test_every_command_of_accounts_has_help(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert main([*line.split(), "-h"]) == 0
    assert f"usage: appliance {line} [-h]" in capsys.readouterr().out
