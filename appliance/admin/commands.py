"""What each command about accounts does and prints. How it reaches them is `access`' matter.

Texts and tables of the commands that aiserve-gpuproxyd's README has are that program's own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from appliance.admin.access import AccountAccess
from appliance.admin.flags import WrongUsage
from appliance.admin.prices import price_table, read_prices
from appliance.admin.tables import align
from appliance.base import jsons
from appliance.base.money import format_dollars, parse_musd
from appliance.cli import messages as pb
from appliance.cli.client import FAILED
from appliance.cli.render.values import as_object
from appliance.cli.screen import clean
from appliance.command_lines import USER_LIMITS

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

PAGE: Final = 500
ID_CHARS: Final = 8
LIMIT_DIGITS: Final = 18
WINDOW_LABELS: Final = {
    "5min": "5 minutes",
    "15min": "15 minutes",
    "30min": "30 minutes",
    "60min": "60 minutes (1h)",
    "90min": "90 minutes (1.5h)",
    "120min": "120 minutes (2h)",
    "240min": "240 minutes (4h)",
    "300min": "300 minutes (5h)",
    "360min": "360 minutes (6h)",
    "400min": "400 minutes (6.67h)",
    "460min": "460 minutes (7.67h)",
    "520min": "520 minutes (8.67h)",
    "640min": "640 minutes (10.67h)",
    "700min": "700 minutes (11.67h)",
    "1440min": "1440 minutes (24h)",
    "48h": "48 hours",
    "72h": "72 hours",
}
_SIGNED: Final = re.compile(r"([+-]?)\$?(.+)")


@dataclass(slots=True)
class Commands:
    """The commands.

    Attributes:
        access: Makes the calls.
        out: Where they print.
        is_json: Print messages as JSON instead.
    """

    access: AccountAccess
    out: TextIO
    is_json: bool = False

    # ---- users

    def list_users(self, search: str = "") -> None:
        """Print all users, the newest first."""
        users = sorted(self._all_users(search), key=lambda one: one.id, reverse=True)
        if self._as_json([as_object(user) for user in users]):
            return
        rows = [["ID", "EMAIL", "NAME", "ADMIN", "ACTIVE", "CREATED"], ["---"] * 6]
        rows += [
            [
                user.id[:ID_CHARS],
                user.email,
                user.name,
                _yes(user.is_admin),
                _yes(user.is_active),
                _moment(user.created_at, "%Y-%m-%d"),
            ]
            for user in users
        ]
        self._say(align(rows), f"\nTotal: {len(users)} users\n")

    def _all_users(self, search: str) -> Iterator[Any]:
        after = ""
        while True:
            request = pb.ListUsersRequest(search=search, after=after, limit=PAGE)
            page = self.access.call("ListUsers", request).users
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1].id

    def create_user(self, email: str, password: str, name: str, *, is_admin: bool = False) -> None:
        """Create a user."""
        request = pb.CreateUserRequest(email=email, password=password, name=name, is_admin=is_admin)
        user = self.access.call("CreateUser", request).user
        if not self._as_json(as_object(user)):
            lines = [
                "User created successfully",
                f"ID: {user.id}",
                f"Email: {user.email}",
                f"Name: {user.name}",
            ]
            self._lines(lines)

    def set_admin(self, email: str, *, is_admin: bool = True) -> None:
        """Make a user an administrator, or take that away."""
        user = self._set(email, is_admin=is_admin)
        words = "is now an admin" if is_admin else "is no longer an admin"
        self._changed(user, f"User {user.name} ({user.email}) {words}")

    def set_active(self, email: str, *, is_active: bool) -> None:
        """Let a user call, or not."""
        user = self._set(email, is_active=is_active)
        words = "is active again" if is_active else "is inactive; its sessions have ended"
        self._changed(user, f"User {user.name} ({user.email}) {words}")

    def set_password(self, email: str, password: str) -> None:
        """Set a user's password."""
        user = self._set(email, password=password)
        self._changed(user, f"The password of {user.email} is set; its sessions have ended")

    def set_plan(self, email: str, plan: str) -> None:
        """Set the name of a user's plan; "" = none."""
        user = self._set(email, plan=plan)
        self._changed(user, f"The plan of {user.email}: {user.plan or 'none'}")

    def set_limits(self, email: str, given: Mapping[str, str]) -> None:
        """Set some of a user's limits, and print all of them.

        Args:
            given: By the names of USER_LIMITS; `none` ends a limit, and one that is not given stays.

        Raises:
            WrongUsage: A value is neither a number nor `none`.
        """
        wanted = {name: read_limit(name, text) for name, text in given.items()}
        user = self.access.call("GetUsage", pb.GetUsageRequest(user=email)).user
        if wanted:
            limits = user.limits
            for name, value in wanted.items():
                limits.ClearField(name)
                if value is not None:
                    setattr(limits, name, value)
            user = self._set(user.id, limits=limits)
        if self._as_json(as_object(user)):
            return
        rows = []
        for name, words in USER_LIMITS.items():
            value = getattr(user.limits, name) if user.limits.HasField(name) else None
            shown = "none" if value is None else str(value)
            rows.append([words, shown])
        self._say(align([["LIMIT", f"OF {user.email}"], *rows]))

    def delete_user(self, email: str, *, is_confirmed: bool) -> None:
        """Delete a user; the ledger keeps its id.

        Raises:
            WrongUsage: It was not confirmed.
        """
        if not is_confirmed:
            raise WrongUsage(f"Deleting {email[:100]} cannot be undone. Add --yes to do it.")
        user = self.access.call("DeleteUser", pb.DeleteUserRequest(user=email)).user
        self._changed(user, f"User {email} is deleted; rows of usage and money stay under {user.id}")

    def _set(self, email: str, **values: Any) -> Any:
        return self.access.call("SetUser", pb.SetUserRequest(user=email, **values)).user

    def _changed(self, user: Any, text: str) -> None:
        if not self._as_json(as_object(user)):
            self._lines([text])

    # ---- keys and sessions

    def create_key(self, email: str, name: str, **more: Any) -> None:
        """Make an API key, and print it: this once."""
        made = self.access.call("CreateApiKey", pb.CreateApiKeyRequest(user=email, name=name, **more))
        if self._as_json({"key": made.key, **as_object(made.api_key)}):
            return
        self._lines(
            [
                "API key created successfully",
                f"User: {made.user.email}",
                f"Name: {made.api_key.name}",
                f"Key: {made.key}",
                "\nSave this API key securely. It will not be shown again.",
            ]
        )

    def list_keys(self, email: str) -> None:
        """Print a user's API keys."""
        keys = self.access.call("ListApiKeys", pb.ListApiKeysRequest(user=email)).api_keys
        if self._as_json([as_object(key) for key in keys]):
            return
        rows = [["PREFIX", "NAME", "SCOPES", "MODELS", "ACTIVE", "CREATED", "LAST USED", "EXPIRES", "ID"]]
        rows += [
            [
                key.prefix,
                key.name,
                ",".join(key.scopes),
                ",".join(key.models) or "all",
                _yes(key.is_active),
                _moment(key.created_at),
                _moment(key.last_used_at) if key.HasField("last_used_at") else "never",
                _moment(key.expires_at) if key.HasField("expires_at") else "never",
                key.id,
            ]
            for key in keys
        ]
        self._say(align(rows), f"\nTotal: {len(keys)} API keys\n")

    def revoke_key(self, email: str, key: str) -> None:
        """Revoke an API key."""
        gone = self.access.call("RevokeApiKey", pb.RevokeApiKeyRequest(user=email, api_key=key)).api_key
        if not self._as_json(as_object(gone)):
            self._lines([f"API key {gone.prefix} ({gone.name}) is revoked"])

    def list_sessions(self, email: str) -> None:
        """Print a user's sessions."""
        found = self.access.call("ListSessions", pb.ListSessionsRequest(user=email)).sessions
        if self._as_json([as_object(one) for one in found]):
            return
        rows = [["ID", "ADDRESS", "PROGRAM", "OPENED", "LAST USED", "EXPIRES"]]
        rows += [
            [
                one.id,
                one.ip_address,
                one.user_agent[:40],
                _moment(one.created_at),
                _moment(one.last_used_at),
                _moment(one.expires_at),
            ]
            for one in found
        ]
        self._say(align(rows), f"\nTotal: {len(found)} sessions\n")

    def end_sessions(self, email: str, session: str = "") -> None:
        """End one session of a user, or all of them."""
        done = self.access.call("EndSessions", pb.EndSessionsRequest(user=email, session=session))
        if not self._as_json(as_object(done)):
            self._lines([f"Ended sessions: {done.ended}"])

    # ---- usage and credits

    def show_usage(self, email: str) -> None:
        """Print what a user may use and has used."""
        usage = self.access.call("GetUsage", pb.GetUsageRequest(user=email))
        if self._as_json(as_object(usage)):
            return
        hours = f"{usage.used_gpu_hours:.2f}", f"{usage.max_gpu_hours:.2f}"
        requests = f"{usage.used_requests:d}", f"{usage.max_requests:d}"
        self._lines(
            [
                f"Usage Statistics for {usage.user.name} ({usage.user.email})",
                "=====================================",
                f"GPU Hours: {_share(*hours)}",
                f"Requests: {_share(*requests)}",
                f"Quota resets: {_moment(usage.reset_at)}",
                f"Credits: {_credits(usage.credits)}",
            ]
        )
        if usage.models:
            rows = [["MODEL", "ATTEMPTS", "TOKENS IN", "CACHED", "TOKENS OUT", "COST"]]
            rows += [
                [
                    one.model,
                    str(one.attempts),
                    str(one.tokens_in),
                    str(one.tokens_cached),
                    str(one.tokens_out),
                    f"${format_dollars(one.charged_musd)}",
                ]
                for one in usage.models
            ]
            self._say("\n", align(rows))

    def grant(self, email: str, dollars: str, *, note: str = "", ref: str = "") -> None:
        """Add credits to a user, or take some away."""
        request = pb.GrantCreditsRequest(
            user=email, amount_musd=read_signed_musd(dollars), note=note, ref=ref
        )
        done = self.access.call("GrantCredits", request)
        if not self._as_json(as_object(done)):
            self._lines([f"Credits of {done.user.email}: {_credits(done.credits)}"])

    def show_credits(self, email: str) -> None:
        """Print a user's credits."""
        usage = self.access.call("GetUsage", pb.GetUsageRequest(user=email))
        if self._as_json(as_object(usage.credits)):
            return
        one = usage.credits
        end = _moment(one.period_end) if one.HasField("period_end") else "none"
        self._say(
            align(
                [
                    ["remaining", f"${format_dollars(one.remaining_musd)}"],
                    ["total", f"${format_dollars(one.total_musd)}"],
                    ["overage", f"${format_dollars(one.overage_musd)}"],
                    ["most overage", f"${format_dollars(one.cap_musd)}"],
                    ["held", f"${format_dollars(one.held_musd)}"],
                    ["owed", f"${format_dollars(one.owed_musd)}"],
                    ["auto-renew", _yes(one.auto_renew)],
                    ["period ends", end],
                ]
            )
        )

    # ---- the installation

    def show_stats(self) -> None:
        """Print how much there is of everything."""
        money = self.access.call("GetMoney", pb.GetMoneyRequest())
        if self._as_json(as_object(money)):
            return
        self._lines(
            [
                "System Statistics",
                "==================",
                f"Total Users: {money.users}",
                f"Active Users: {money.active_users}",
                f"Active API Keys: {money.active_api_keys}",
                f"Total Transactions: {money.transactions}",
                f"Total GPU Hours Used: {money.gpu_hours:.2f}",
            ]
        )

    def audit(self) -> int:
        """Compute every wallet anew from the ledger; return 1 where something differs."""
        money = self.access.call("GetMoney", pb.GetMoneyRequest(audit=True))
        total = sum(one.amount_musd for one in money.accounts)
        code = FAILED if money.differences or total else 0
        if self._as_json(as_object(money)):
            return code
        rows = [["ACCOUNT", "DOLLARS"]]
        rows += [[one.name, format_dollars(one.amount_musd)] for one in money.accounts]
        self._say(align([*rows, ["sum", format_dollars(total)]]), "\n")
        for one in money.differences:
            self._lines([f"{one.what} of {one.subject}: expected {one.expected}, found {one.found}"])
        wrong = len(money.differences) + bool(total)
        verdict = f"{wrong} differences" if code else "the money is right"
        self._lines([f"{money.transactions} movements: {verdict}"])
        return code

    # ---- guard rails

    def show_guardrails(self) -> None:
        """Print the limits on spending."""
        found = self.access.call("GetSpending", pb.GetSpendingRequest())
        if self._as_json(as_object(found)):
            return
        self._lines(
            [
                "Guard Rails Configuration",
                "=========================",
                f"Enabled: {str(found.is_enabled).lower()}\n",
            ]
        )
        if not found.is_enabled:
            self._lines(
                [
                    "Guard rails are currently disabled.",
                    "Set GUARDRAILS_ENABLED=true in .env to enable.",
                ]
            )
            return
        self._lines(["Spending Limits by Time Window:", "--------------------------------"])
        limits = [one for one in found.windows if one.limit_musd]
        self._lines(
            f"  {WINDOW_LABELS.get(one.name, one.name) + ':':<25} ${one.limit_musd / 1e6:.2f}"
            for one in limits
        )
        if limits:
            self._lines([f"\nTotal active limits: {len(limits)}"])
        else:
            self._lines(
                [
                    "\nNo time window limits are currently configured.",
                    "Configure limits in .env (e.g., GUARDRAILS_MAX_60MIN_RATE=100.00)",
                ]
            )

    def show_spending(self, email: str) -> None:
        """Print what a user has spent in each window."""
        found = self.access.call("GetSpending", pb.GetSpendingRequest(user=email))
        if self._as_json(as_object(found)):
            return
        self._lines(
            [
                f"Guard Rails Spending for {found.user.name} ({found.user.email})",
                "========================================",
                f"User ID: {found.user.id}",
                f"Timestamp: {datetime.now(UTC):%Y-%m-%d %H:%M:%S}\n",
            ]
        )
        if not found.total_musd:
            self._lines(["No spending data recorded yet."])
            return
        over = {one.name for one in found.windows if one.limit_musd and one.spent_musd > one.limit_musd}
        rows = [["WINDOW", "SPENT", "STATUS"], ["------", "-----", "------"]]
        rows += [
            [one.name, f"${one.spent_musd / 1e6:.2f}", "EXCEEDED" if one.name in over else "OK"]
            for one in found.windows
        ]
        self._say("Spending by Time Window:\n------------------------\n", align(rows))
        if over:
            self._lines(["\nLIMIT VIOLATIONS:"])
            self._lines(
                f"  ! {one.name}: ${one.spent_musd / 1e6:.2f} of ${one.limit_musd / 1e6:.2f}"
                for one in found.windows
                if one.name in over
            )

    def reset_spending(self, email: str, window: str) -> None:
        """Let a window of a user's spending begin anew, or all of them."""
        name = "" if window == "all" else window
        user = self.access.call("ResetSpending", pb.ResetSpendingRequest(user=email, window=name)).user
        what = f"{window} spending tracking" if name else "all spending tracking"
        self._changed(user, f"Successfully reset {what} for {user.name} ({user.email})")

    # ---- prices

    def list_prices(self) -> None:
        """Print the prices that are in force."""
        prices = self.access.call("ListPrices", pb.ListPricesRequest()).prices
        if not self._as_json([as_object(one) for one in prices]):
            self._say(price_table(prices), f"\nTotal: {len(prices)} prices\n")

    def set_prices(self, path: Path) -> None:
        """Add the prices of a file as new versions, where they differ."""
        request = pb.SetPricesRequest(prices=read_prices(path))
        added = self.access.call("SetPrices", request).prices
        if self._as_json([as_object(one) for one in added]):
            return
        if added:
            self._say(price_table(added), "\n")
        self._lines([f"New versions: {len(added)}; as before: {len(request.prices) - len(added)}"])

    # ---- printing

    def _as_json(self, value: Any) -> bool:
        if self.is_json:
            self.out.write(jsons.dumps_pretty(value) + "\n")
        return self.is_json

    def _lines(self, lines: Iterable[str]) -> None:
        self._say(*(f"{clean(line)}\n" for line in lines))

    def _say(self, *texts: str) -> None:
        self.out.write("".join(texts))


def read_limit(name: str, text: str) -> int | None:
    """Return a limit of a command line; None = `none`, which ends it.

    Args:
        name: Of USER_LIMITS.
        text: A whole number, or `none`.

    Raises:
        WrongUsage: It is neither.
    """
    if text == "none":
        return None
    if text.isascii() and text.isdecimal() and len(text) <= LIMIT_DIGITS:
        return int(text)
    raise WrongUsage(f"{text[:40]!r} is no limit of {USER_LIMITS[name]}: use a whole number, or none")


def read_signed_musd(text: str) -> int:
    """Return dollars as micro-dollars; below 0 is allowed.

    Raises:
        WrongUsage: It is no amount.
    """
    match = _SIGNED.fullmatch(text.strip())
    try:
        musd = parse_musd(match[2] if match else text)
    except ValueError as wrong:
        raise WrongUsage(str(wrong)) from None
    return -musd if match and match[1] == "-" else musd


def _yes(flag: bool) -> str:
    return "Yes" if flag else "No"


def _moment(at: "Timestamp", form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return at.ToDatetime().strftime(form)


def _share(used: str, most: str) -> str:
    if not float(most):
        return f"{used} / no limit"
    return f"{used} / {most} ({float(used) / float(most) * 100:.1f}%)"


def _credits(one: Any) -> str:
    text = f"${format_dollars(one.remaining_musd)} of ${format_dollars(one.total_musd)} left"
    if one.overage_musd or one.cap_musd:
        text += f", ${format_dollars(one.overage_musd)} of ${format_dollars(one.cap_musd)} overage"
    return text
