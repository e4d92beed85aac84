"""Limits on what is spent in a span of time. Spending is kept in buckets of 5 minutes, which only grow.

A window counts every bucket that it touches, so that no span of its length ever has more than its limit. A
reset leaves out the buckets up to its time; what was spent stays where it is.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.accounts.settings import WINDOW_MINUTES, AccountSettings
from appliance.base.clock import Clock, format_rfc3339
from appliance.base.errors import Invalid, PaymentRequired, Unavailable
from appliance.base.money import format_dollars, parse_musd, to_dollars
from appliance.base.tasks import Tasks
from appliance.storage.database import Database, Transaction

BUCKET_MS = 300_000
REREAD_S = 5.0
MAX_LATEST = 20_000  # wallets
Headers = list[tuple[str, str]]
WINDOWS = {**{f"{minutes}min": minutes for minutes in WINDOW_MINUTES}, "48h": 2880, "72h": 4320}
LONGEST_MINUTES = max(WINDOWS.values())
ADD_TO_BUCKET = (
    "INSERT INTO spend_buckets(wallet_id, bucket, spent_musd) VALUES (:wallet_id, :bucket, :spent_musd) "
    "ON CONFLICT (wallet_id, bucket) DO UPDATE "
    "SET spent_musd = spend_buckets.spent_musd + excluded.spent_musd"
)


def bucket_of(at_ms: int) -> int:
    """Return the bucket of a time, epoch milliseconds."""
    return at_ms // BUCKET_MS


def limits_of_settings(settings: AccountSettings) -> dict[str, int]:
    """Return the limits of GUARDRAILS_*: window → micro-dollars; none where GUARDRAILS_ENABLED=0."""
    if not settings.guardrails_enabled:
        return {}
    named = {name: getattr(settings, f"guardrails_max_{name}_rate") for name in WINDOWS}
    return {name: parse_musd(value) for name, value in named.items() if value}


def sum_windows(
    buckets: Iterable[tuple[int, int]], resets_ms: Mapping[str, int], now_ms: int
) -> dict[str, int]:
    """Return what was spent in each window, micro-dollars.

    Args:
        buckets: Bucket, and what was spent in it.
        resets_ms: When a window was reset, epoch milliseconds.
        now_ms: The present time.
    """
    rows = list(buckets)
    spent = {}
    for name, minutes in WINDOWS.items():
        first = bucket_of(now_ms - minutes * 60_000)
        if name in resets_ms:
            first = max(first, bucket_of(resets_ms[name]) + 1)
        spent[name] = sum(musd for bucket, musd in rows if bucket >= first)
    return spent


@dataclass(frozen=True, slots=True)
class WalletSpending:
    """What a wallet has spent.

    Attributes:
        windows: Window → micro-dollars.
        limits: Window → micro-dollars, of those that have one.
        total_musd: In all time.
        at_ms: When this was read.
    """

    windows: dict[str, int]
    limits: Mapping[str, int]
    total_musd: int
    at_ms: int

    def violations(self, more_musd: int = 0) -> list[dict[str, Any]]:
        """Return the limits that are exceeded once `more_musd` is spent, for JSON."""
        return [
            {"window": name, "limit": to_dollars(limit), "spent": to_dollars(self.windows[name])}
            for name, limit in self.limits.items()
            if self.windows[name] + more_musd > limit
        ]

    def headroom_musd(self) -> int | None:
        """Return how much may still be spent; None = there is no limit."""
        left = [limit - self.windows[name] for name, limit in self.limits.items()]
        return min(left) if left else None

    def info(self, user_id: str) -> dict[str, Any]:
        """Return what `GET /guardrails/spending` answers."""
        return {
            "user_id": user_id,
            "total_spent": to_dollars(self.total_musd),
            "window_spent": {name: to_dollars(musd) for name, musd in self.windows.items()},
            "window_limits": {name: to_dollars(musd) for name, musd in self.limits.items()},
            "violations": self.violations(),
            "timestamp": format_rfc3339(self.at_ms / 1000),
        }

    def refusal(self, needed_musd: int) -> PaymentRequired:
        """Return what a caller is told whose request does not fit below the limits.

        Where only what other requests hold is in its way, the window is named that has the least left.
        """
        violations = self.violations(needed_musd)
        if not violations and self.limits:
            name = min(self.limits, key=lambda one: self.limits[one] - self.windows[one])
            limit, spent = to_dollars(self.limits[name]), to_dollars(self.windows[name])
            violations = [{"window": name, "limit": limit, "spent": spent}]
        return _exceeded(violations)

    def headers(self) -> list[tuple[str, str]]:
        """Return the header fields that show it, one of each window with a limit."""
        if not self.limits:
            return []
        shown = [(f"X-GuardRails-{name}", format_dollars(self.windows[name])) for name in self.limits]
        return [("X-GuardRails-Enabled", "true"), *shown]


def _exceeded(violations: list[dict[str, Any]]) -> PaymentRequired:
    spent = {one["window"]: one["spent"] for one in violations}
    return PaymentRequired(
        "Spending limit exceeded",
        code="spending_limit",
        details={"error_fields": {"violations": violations, "spent": spent}},
    )


class Guardrails:
    """The limits of all wallets, and what they have spent.

    Args:
        database: Where spending is kept.
        clock: The time.
        limits_of: Wallet → its limits, window → micro-dollars; must not wait.
    """

    def __init__(
        self, database: Database, clock: Clock, limits_of: Callable[[str], Mapping[str, int]]
    ) -> None:
        self._database = database
        self._clock = clock
        self.limits_of = limits_of

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)

    async def spending_in(self, transaction: Transaction, wallet_id: str) -> WalletSpending:
        """Return what a wallet has spent, as a transaction sees it."""
        now_ms = self._now_ms()
        buckets = await transaction.execute(
            "SELECT bucket, spent_musd FROM spend_buckets WHERE wallet_id = :wallet AND bucket >= :first",
            {"wallet": wallet_id, "first": bucket_of(now_ms - LONGEST_MINUTES * 60_000)},
        )
        total = await transaction.execute(
            "SELECT CAST(COALESCE(SUM(spent_musd), 0) AS BIGINT) AS musd FROM spend_buckets "
            "WHERE wallet_id = :wallet",
            {"wallet": wallet_id},
        )
        resets = await transaction.execute(
            "SELECT window_name, reset_at FROM spend_resets WHERE wallet_id = :wallet", {"wallet": wallet_id}
        )
        windows = sum_windows(
            [(row.bucket, row.spent_musd) for row in buckets],
            {row.window_name: row.reset_at for row in resets},
            now_ms,
        )
        return WalletSpending(windows, self.limits_of(wallet_id), total[0].musd, now_ms)

    async def spending(self, wallet_id: str) -> WalletSpending:
        """Return what a wallet has spent."""
        return await self._database.run(
            lambda transaction: self.spending_in(transaction, wallet_id), is_read_only=True
        )

    async def check(self, wallet_id: str, estimated_musd: int) -> WalletSpending:
        """Return what a wallet has spent, where so much more may be spent.

        Raises:
            PaymentRequired: A limit would be exceeded; `details["error_fields"]` has violations and what was
                spent.
        """
        spending = await self.spending(wallet_id)
        violations = spending.violations(estimated_musd)
        if violations:
            raise _exceeded(violations)
        return spending

    async def record(self, wallet_id: str, amount_musd: int) -> WalletSpending:
        """Add what was spent elsewhere; it can only be added to.

        Raises:
            Invalid: The amount is not above 0.
        """
        if amount_musd <= 0:
            raise Invalid("amount must be above 0: what was spent can only be added to.", param="amount")

        async def change(transaction: Transaction) -> WalletSpending:
            bucket = bucket_of(self._now_ms())
            await transaction.execute(
                ADD_TO_BUCKET, {"wallet_id": wallet_id, "bucket": bucket, "spent_musd": amount_musd}
            )
            return await self.spending_in(transaction, wallet_id)

        return await self._database.run(change)

    async def reset(self, wallet_id: str, window_name: str = "") -> WalletSpending:
        """Let a window begin anew; what was spent stays in the others.

        Args:
            wallet_id: The wallet.
            window_name: `5min` … `72h`; "" = all of them.

        Raises:
            Invalid: There is no such window.
        """
        if window_name and window_name not in WINDOWS:
            raise Invalid(
                f"There is no window {window_name[:40]!r}; allowed are {', '.join(WINDOWS)}.",
                param="window_name",
            )
        names = [window_name] if window_name else list(WINDOWS)

        async def change(transaction: Transaction) -> WalletSpending:
            await transaction.execute(
                "INSERT INTO spend_resets(wallet_id, window_name, reset_at) VALUES (:wallet, :name, :at) "
                "ON CONFLICT (wallet_id, window_name) DO UPDATE SET reset_at = excluded.reset_at",
                [{"wallet": wallet_id, "name": name, "at": self._now_ms()} for name in names],
            )
            return await self.spending_in(transaction, wallet_id)

        return await self._database.run(change)

    async def remove_old(self) -> None:
        """Sum up the buckets of which no window needs the single ones any more."""
        last = bucket_of(self._now_ms() - LONGEST_MINUTES * 60_000) - 1

        async def change(transaction: Transaction) -> None:
            sums: dict[str, int] = defaultdict(int)
            for row in await transaction.execute(
                "DELETE FROM spend_buckets WHERE bucket <= :last AND bucket > 0 "
                "RETURNING wallet_id, spent_musd",
                {"last": last},
            ):
                sums[row.wallet_id] += row.spent_musd
            if not sums:
                return
            rows = [
                {"wallet_id": wallet_id, "bucket": 0, "spent_musd": musd}
                for wallet_id, musd in sorted(sums.items())
            ]
            await transaction.execute(ADD_TO_BUCKET, rows)

        await self._database.run(change)


class LatestSpending:
    """What wallets have spent, as it was read some seconds ago: for the header fields of responses.

    Args:
        guardrails: Where it is read.
        tasks: Read it in the background.
        clock: The time.
    """

    def __init__(self, guardrails: Guardrails, tasks: Tasks, clock: Clock) -> None:
        self._guardrails = guardrails
        self._tasks = tasks
        self._clock = clock
        self._latest: dict[str, WalletSpending] = {}
        self._reading: set[str] = set()

    def try_headers(self, wallet_id: str) -> Headers | None:
        """Return the header fields of a wallet without waiting; None = ask `headers`.

        What is older than REREAD_S is read again in the background.
        """
        if not self._guardrails.limits_of(wallet_id):
            return []
        latest = self._latest.get(wallet_id)
        if latest is None:
            return None
        is_old = self._clock.now_s() * 1000 - latest.at_ms > REREAD_S * 1000
        if is_old and wallet_id not in self._reading:
            self._reading.add(wallet_id)
            self._tasks.start(self._read_again(wallet_id), name="spending_read")
        return latest.headers()

    async def headers(self, wallet_id: str) -> Headers:
        """Return the header fields of a wallet; without the windows where the database is down."""
        latest = await self._read(wallet_id)
        return latest.headers() if latest is not None else [("X-GuardRails-Enabled", "true")]

    async def refusal(self, wallet_id: str, needed_musd: int) -> PaymentRequired:
        """Return what a caller is told whose request does not fit below the limits of a wallet."""
        latest = await self._read(wallet_id) or self._latest.get(wallet_id)
        return latest.refusal(needed_musd) if latest is not None else _exceeded([])

    async def _read_again(self, wallet_id: str) -> None:
        try:
            await self._read(wallet_id)
        finally:
            self._reading.discard(wallet_id)

    async def _read(self, wallet_id: str) -> WalletSpending | None:
        """Read what a wallet has spent; None = the database is down."""
        try:
            found = await self._guardrails.spending(wallet_id)
        except Unavailable:
            return None
        self._latest.pop(wallet_id, None)
        self._latest[wallet_id] = found
        if len(self._latest) > MAX_LATEST:
            del self._latest[next(iter(self._latest))]
        return found
