"""The verbs users, keys, credits, prices and admin of `appliance`; `command_lines` has their arguments."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from appliance.admin.access import open_access
from appliance.admin.commands import Commands
from appliance.admin.flags import WrongUsage
from appliance.admin.passwords import FROM_INPUT, read_password
from appliance.admin.prices import check_prices, print_price_schema
from appliance.admin.store import StoreSettings
from appliance.base import logs
from appliance.base.clock import SystemClock, parse_moment_s
from appliance.cli.client import FAILED, USAGE, CallFailed
from appliance.cli.screen import clean
from appliance.command_lines import USER_LIMITS

Options = argparse.Namespace
INTERRUPTED: Final = 130


def run_verb(verb: str, options: Options) -> int:
    """Run one command of a verb; say in one sentence what fails.

    Args:
        verb: `users`, `keys` …
        options: Its command line; `command` is the command.

    Returns:
        The exit code.

    Raises:
        InvalidSettings: The settings are not valid.
    """
    logs.configure(level="error", form="console", stream=io.StringIO())
    try:
        if (verb, options.command) == ("prices", "check"):
            check_prices(Path(options.file), sys.stdout)
            return 0
        if (verb, options.command) == ("prices", "schema"):
            print_price_schema(sys.stdout)
            return 0
        prepared = _prepare(verb, options)
        with ExitStack() as stack:
            return prepared(_open(stack, options)) or 0
    except WrongUsage as fault:
        return _fail(str(fault), USAGE)
    except CallFailed as failure:
        return _fail(failure.message, failure.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED


def _fail(text: str, code: int) -> int:
    print(f"error: {clean(text)}", file=sys.stderr)
    return code


def _open(stack: ExitStack, options: Options) -> Commands:
    settings = StoreSettings.read(os.environ)
    if not (settings.is_on or options.address or os.environ.get("CONTROL_ADDRESS")):
        raise CallFailed(
            "Accounts are off (ACCOUNTS=0) in this environment. Run it with the environment of `serve`, "
            "which says where the database is, too; or give --address.",
            FAILED,
        )
    access = open_access(stack, settings, os.environ, options.address)
    return Commands(access, sys.stdout, is_json=options.json)


def _prepare(verb: str, options: Options) -> Callable[[Commands], int | None]:
    """Return what runs a command; what has to be typed or read is there then.

    Raises:
        WrongUsage: It cannot be read.
    """
    if (verb, options.command) in (("users", "create"), ("users", "password")):
        password = read_password(FROM_INPUT)
        if options.command == "password":
            return lambda commands: commands.set_password(options.email, password)
        return lambda commands: commands.create_user(
            options.email, password, options.name, is_admin=options.admin
        )
    if (verb, options.command) == ("keys", "create"):
        more = _key_options(options)
        return lambda commands: commands.create_key(options.email, options.name, **more)
    run = _RUN[verb, options.command]
    return lambda commands: run(commands, options)


def _key_options(options: Options) -> dict[str, Any]:
    more: dict[str, Any] = {
        "scopes": options.scope or [],
        "models": options.model or [],
        "stay_local": options.stay_local,
    }
    if options.expires:
        try:
            at_s = parse_moment_s(options.expires, SystemClock().now_s())
            more["expires_at"] = Timestamp(seconds=int(at_s))
        except (ValueError, OverflowError):
            raise WrongUsage(
                f"--expires {options.expires[:40]}: use a time such as 2030-01-31T00:00:00Z."
            ) from None
    return more


_RUN: Final[dict[tuple[str, str], Callable[[Commands, Options], int | None]]] = {
    ("users", "list"): lambda commands, options: commands.list_users(options.part),
    ("users", "admin"): lambda commands, options: commands.set_admin(options.email),
    ("users", "no-admin"): lambda commands, options: commands.set_admin(options.email, is_admin=False),
    ("users", "activate"): lambda commands, options: commands.set_active(options.email, is_active=True),
    ("users", "deactivate"): lambda commands, options: commands.set_active(options.email, is_active=False),
    ("users", "plan"): lambda commands, options: commands.set_plan(options.email, options.plan),
    ("users", "limits"): lambda commands, options: commands.set_limits(
        options.email, {name: getattr(options, name) for name in USER_LIMITS if getattr(options, name)}
    ),
    ("users", "delete"): lambda commands, options: commands.delete_user(
        options.email, is_confirmed=options.yes
    ),
    ("users", "usage"): lambda commands, options: commands.show_usage(options.email),
    ("users", "sessions"): lambda commands, options: commands.list_sessions(options.email),
    ("users", "logout"): lambda commands, options: commands.end_sessions(options.email, options.session),
    ("keys", "list"): lambda commands, options: commands.list_keys(options.email),
    ("keys", "revoke"): lambda commands, options: commands.revoke_key(options.email, options.key),
    ("credits", "show"): lambda commands, options: commands.show_credits(options.email),
    ("credits", "grant"): lambda commands, options: commands.grant(
        options.email, options.dollars, note=options.note, ref=options.ref
    ),
    ("credits", "spending"): lambda commands, options: commands.show_spending(options.email),
    ("credits", "reset"): lambda commands, options: commands.reset_spending(
        options.email, options.window or "all"
    ),
    ("prices", "list"): lambda commands, options: commands.list_prices(),
    ("prices", "set"): lambda commands, options: commands.set_prices(Path(options.file)),
    ("admin", "audit"): lambda commands, options: commands.audit(),
    ("admin", "stats"): lambda commands, options: commands.show_stats(),
}
