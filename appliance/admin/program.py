"""`aiserve-gpuproxy-admin`: the commands of that project's administrator, and ours.

Exit codes: 0 done · 1 refused · 2 wrong usage · 3 the database, or the appliance that holds it, cannot be
reached · 78 invalid settings.
"""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.admin.flags import GoFlag, WrongUsage, switches
from appliance.admin.go_program import FAILED, GoCommand, GoProgram, GoRun, fail, usage_rows
from appliance.admin.passwords import read_password
from appliance.command_lines import USER_LIMITS

if TYPE_CHECKING:
    from appliance.admin.commands import Commands

PROGRAM: Final = "aiserve-gpuproxy-admin"
FLAGS: Final = {
    **switches(["dv", "developer-mode"], ["dm", "debug-mode"], ["json"], ["h", "help"]),
    "address": GoFlag("address", has_value=True),
}


class AdminRun(GoRun):
    """One run of a command: its words and flags, and what it needs.

    Args:
        environ: As os.environ, with `.env`.
        stack: Closes what is opened.
    """

    def __init__(
        self, words: list[str], flags: dict[str, str], environ: dict[str, str], stack: ExitStack
    ) -> None:
        super().__init__(words, flags)
        self.environ = environ
        self._stack = stack

    @property
    def commands(self) -> "Commands":
        """The commands, on the database or an appliance.

        Raises:
            CallFailed: Neither can be used.
            InvalidSettings: The settings are not valid.
        """
        from appliance.admin.access import open_access
        from appliance.admin.commands import Commands
        from appliance.admin.store import StoreSettings

        settings = StoreSettings.read(self.environ)
        access = open_access(self._stack, settings, self.environ, self.flag("address"))
        return Commands(access, sys.stdout, is_json=self.flag("json") == "1")


AdminCommand = GoCommand[AdminRun]


def _migrate(run: AdminRun) -> int:
    """Bring the tables of the database to a revision."""
    from appliance.admin.store import StoreSettings
    from appliance.cli.client import UNREACHABLE
    from appliance.storage.database import StoreRefused, StoreUnavailable
    from appliance.storage.migrate import migrate
    from appliance.storage.revisions import NEWEST

    text = run.flag("to") or str(NEWEST)
    if not text.isdecimal() or not 1 <= int(text) <= NEWEST:
        raise WrongUsage(f"-to {text[:20]}: revisions are 1 to {NEWEST}")
    settings, is_dry = StoreSettings.read(run.environ), run.flag("dry-run") == "1"
    try:
        migrate(settings.storage, settings.state_dir, to=int(text), is_dry=is_dry, output=sys.stdout)
    except StoreRefused as error:
        return fail(f"Migration failed: {error}", FAILED)
    except StoreUnavailable as error:
        return fail(f"Migration failed: {error.reason}", UNREACHABLE)
    if not is_dry:
        print("Database migration completed successfully")
    return 0


def _prices(run: AdminRun) -> None:
    """List prices, check a file of them, or set those of a file."""
    from appliance.admin.prices import check_prices

    verb, path = run.word(0, "list"), run.word(1)
    if verb == "list" and not path:
        run.commands.list_prices()
    elif verb == "check" and path:
        check_prices(Path(path), sys.stdout)
    elif verb == "set" and path:
        run.commands.set_prices(Path(path))
    else:
        raise WrongUsage(f"Usage: {PROGRAM} prices [list | check FILE | set FILE]")


def _create_user(run: AdminRun) -> None:
    password = read_password(run.word(1))
    run.commands.create_user(run.word(0), password, run.word(2), is_admin=run.flag("admin") == "1")


def _set_password(run: AdminRun) -> None:
    password = read_password(run.word(1))
    run.commands.set_password(run.word(0), password)


COMMANDS: Final = {
    # those of the original
    "users": AdminCommand("[search]", "List all users", lambda run: run.commands.list_users(run.word(0))),
    "create-user": AdminCommand(
        "[-admin] <email> <pass> <name>", "Create a new user", _create_user, switches(["admin"])
    ),
    "make-admin": AdminCommand(
        "<email>", "Grant admin privileges to user", lambda run: run.commands.set_admin(run.word(0))
    ),
    "create-apikey": AdminCommand(
        "<email> <name>",
        "Create API key for user",
        lambda run: run.commands.create_key(run.word(0), run.word(1)),
    ),
    "usage": AdminCommand(
        "<email>", "Show usage stats for user", lambda run: run.commands.show_usage(run.word(0))
    ),
    "migrate": AdminCommand(
        "[-dry-run] [-to=N]",
        "Run database migrations",
        _migrate,
        {**switches(["dry-run"]), "to": GoFlag("to", has_value=True)},
    ),
    "stats": AdminCommand("", "Show system statistics", lambda run: run.commands.show_stats()),
    "guardrails-status": AdminCommand(
        "", "Show guard rails configuration", lambda run: run.commands.show_guardrails()
    ),
    "guardrails-spending": AdminCommand(
        "<email>",
        "Show spending by time window for user",
        lambda run: run.commands.show_spending(run.word(0)),
    ),
    "guardrails-reset": AdminCommand(
        "<email> [window]",
        "Reset spending tracking (default: all)",
        lambda run: run.commands.reset_spending(run.word(0), run.word(1, "all")),
    ),
    # ours
    "revoke-admin": AdminCommand(
        "<email>",
        "Take admin privileges from user",
        lambda run: run.commands.set_admin(run.word(0), is_admin=False),
    ),
    "activate": AdminCommand(
        "<email>", "Let user call again", lambda run: run.commands.set_active(run.word(0), is_active=True)
    ),
    "deactivate": AdminCommand(
        "<email>",
        "Refuse all calls of user, end its sessions",
        lambda run: run.commands.set_active(run.word(0), is_active=False),
    ),
    "set-password": AdminCommand("<email> <pass>", "Set password of user, end its sessions", _set_password),
    "set-plan": AdminCommand(
        "<email> [plan]",
        "Set plan of user (default: none)",
        lambda run: run.commands.set_plan(run.word(0), run.word(1)),
    ),
    "set-limits": AdminCommand(
        "[-rpm=N …] <email>",
        "Set limits of user, of rpm rpd tpm tpd concurrency",
        lambda run: run.commands.set_limits(
            run.word(0), {name: run.flag(name) for name in USER_LIMITS if run.flag(name)}
        ),
        {name: GoFlag(name, has_value=True) for name in USER_LIMITS},
    ),
    "delete-user": AdminCommand(
        "[-yes] <email>",
        "Delete user for good, its keys and sessions",
        lambda run: run.commands.delete_user(run.word(0), is_confirmed=run.flag("yes") == "1"),
        switches(["yes"]),
    ),
    "keys": AdminCommand("<email>", "List API keys of user", lambda run: run.commands.list_keys(run.word(0))),
    "revoke-apikey": AdminCommand(
        "<email> <key>",
        "Revoke API key, by its prefix or id",
        lambda run: run.commands.revoke_key(run.word(0), run.word(1)),
    ),
    "sessions": AdminCommand(
        "<email>", "List sessions of user", lambda run: run.commands.list_sessions(run.word(0))
    ),
    "end-sessions": AdminCommand(
        "<email> [session]",
        "End session of user (default: all)",
        lambda run: run.commands.end_sessions(run.word(0), run.word(1)),
    ),
    "credits": AdminCommand(
        "<email>", "Show credits of user", lambda run: run.commands.show_credits(run.word(0))
    ),
    "grant": AdminCommand(
        "[-ref=R] <email> <dollars> [note]",
        "Add credits; below 0 takes them away",
        lambda run: run.commands.grant(run.word(0), run.word(1), note=run.word(2), ref=run.flag("ref")),
        {"ref": GoFlag("ref", has_value=True)},
    ),
    "prices": AdminCommand("[list|check|set] [file]", "List prices, check or set a file", _prices),
    "audit": AdminCommand(
        "", "Compute all money anew; exit 1 on a difference", lambda run: run.commands.audit()
    ),
}


def usage() -> str:
    """Return the usage."""
    rows = usage_rows(COMMANDS, width=47)
    return "\n".join(
        [
            "GPU Proxy Admin Utility",
            "",
            "Usage:",
            f"  {PROGRAM} [flags] <command> [args]",
            "",
            "Flags, with one dash or two:",
            "  -dv, -developer-mode    Show where an unexpected error comes from",
            "  -dm, -debug-mode        Show the log",
            "  -json                   Print JSON",
            "  -address=HOST:PORT      Use the control API of this appliance, not the database",
            "",
            "Commands:",
            *rows,
            "",
            "A password - is read from standard input. Settings come from the environment and .env.",
            "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 not reachable, 78 invalid settings.",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program; None = those of the process.

    Returns:
        The exit code.
    """
    return ADMIN.main(sys.argv[1:] if arguments is None else arguments)


def run_command(command: AdminCommand, words: list[str], flags: dict[str, str]) -> int:
    """Run a command; say what an appliance, the database or the settings refuse."""
    from appliance.base import logs
    from appliance.base.settings import InvalidSettings
    from appliance.cli.client import CallFailed
    from appliance.gpuproxy_environ import read_environ

    is_debug = flags.get("debug-mode") == "1"
    logs.configure(
        level="debug" if is_debug else "error",
        form="console",
        stream=sys.stderr if is_debug else io.StringIO(),
    )
    try:
        with ExitStack() as stack:
            environ = read_environ(os.environ)
            return command.run(AdminRun(words, flags, environ.values, stack)) or 0
    except CallFailed as failure:
        return fail(f"error: {failure.message}", failure.exit_code)
    except InvalidSettings as invalid:
        return fail("\n".join(f"error: {problem}" for problem in invalid.problems), os.EX_CONFIG)


ADMIN: Final = GoProgram(
    PROGRAM,
    COMMANDS,
    FLAGS,
    usage,
    too_many="there are too many words; quote names",
    run=run_command,
)
