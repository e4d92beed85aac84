"""Settlements in the database: one usage row per attempt, its money, and what is counted by it, in batches.

A batch is one transaction. Sent again it changes nothing: attempts that have a row are left out once their
wallets are locked, and the row's key forbids a second one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from appliance.accounts.guardrails import ADD_TO_BUCKET, bucket_of
from appliance.accounts.ledger import LedgerEntry, post_all, wallet_account
from appliance.accounts.settlement import AttemptIds, Settlement
from appliance.accounts.wallets import Wallet, Wallets, read_wallet
from appliance.base.clock import format_rfc3339_ms
from appliance.base.errors import Invalid
from appliance.base.money import to_dollars
from appliance.storage.database import Transaction
from appliance.storage.statements import list_for, statement_for

SESSION_PAUSE_MS = 15 * 60_000
MAX_ROWS = 1000
INSERT_USAGE = (
    "INSERT INTO usage(attempt_id, at, wallet_id, user_id, key_id, kind, model, served_model, backend, "
    "tokens_in, tokens_cached, tokens_out, source, price_version, charged_musd, cost_musd, supply_musd) "
    "VALUES (:attempt_id, :at, :wallet_id, :user_id, :key_id, :kind, :model, :served_model, :backend, "
    ":tokens_in, :tokens_cached, :tokens_out, :source, :price_version, :charged_musd, :cost_musd, "
    ":supply_musd)"
)
ADD_TO_KEY = (
    "INSERT INTO key_spend(key_id, month, spent_musd) VALUES (:key_id, :month, :spent_musd) "
    "ON CONFLICT (key_id, month) DO UPDATE SET spent_musd = key_spend.spent_musd + excluded.spent_musd"
)
NOTE_SESSION = (
    "INSERT INTO credits(id, client_id, ip, date, time, duration, credits_remaining_musd, "
    "credits_total_musd, credits_overage_musd, credits_cap_musd, credits_auto_renew, created_at, "
    "updated_at) VALUES (:id, :client, :ip, :date, :time, :duration, :remaining, :total, :overage, "
    ":cap, :renew, :begun, :ended) ON CONFLICT (id) DO UPDATE SET duration = excluded.duration, "
    "credits_remaining_musd = excluded.credits_remaining_musd, "
    "credits_total_musd = excluded.credits_total_musd, "
    "credits_overage_musd = excluded.credits_overage_musd, "
    "credits_cap_musd = excluded.credits_cap_musd, "
    "credits_auto_renew = excluded.credits_auto_renew, updated_at = excluded.updated_at"
)
GROUPS = {
    "model": "model",
    "backend": "backend",
    "key": "key_id",
    "source": "source",
    "day": "at / 86400000",
}


@dataclass(slots=True)
class SettleResult:
    """What a batch has done.

    Attributes:
        new: How many attempts were settled; the others were before.
        late_wallets: Whose lease was smaller than what was to be settled: it was taken back meanwhile.
        uncollected_musd: What could not be taken from a wallet any more.
        extra_musd: What was taken beyond the holds, since responses cost more than was held for them.
    """

    new: int = 0
    late_wallets: set[str] = field(default_factory=set)
    uncollected_musd: int = 0
    extra_musd: int = 0


@dataclass(slots=True)
class _WalletPart:
    """A wallet in a batch: what is taken from our lease, and from the wallet itself where that is gone.

    `extra_musd` is taken from the wallet, too: for responses that cost more than was held for them.
    """

    wallet: Wallet | None
    lease_musd: int
    from_lease_musd: int = 0
    from_headroom_musd: int = 0
    extra_musd: int = 0

    @property
    def used_musd(self) -> int:
        """All that is taken."""
        return self.from_lease_musd + self.from_headroom_musd + self.extra_musd

    def take(self, musd: int) -> int:
        """Take so much, or what there is; the lease first."""
        if self.wallet is None:
            return 0
        leased = min(musd, self.lease_musd - self.from_lease_musd)
        other = min(musd - leased, self._left_musd(self.wallet))
        self.from_lease_musd += leased
        self.from_headroom_musd += other
        return leased + other

    def take_extra(self, musd: int) -> int:
        """Take so much that was not held, or what the wallet has left beyond all leases."""
        if self.wallet is None or musd <= 0:
            return 0
        extra = min(musd, self._left_musd(self.wallet))
        self.extra_musd += extra
        return extra

    def _left_musd(self, wallet: Wallet) -> int:
        return max(0, wallet.headroom_musd - self.from_headroom_musd - self.extra_musd)


class UsageStore:
    """Where settlements go; one per process.

    Args:
        wallets: Of this process.
    """

    def __init__(self, wallets: Wallets) -> None:
        self._wallets = wallets
        self._database = wallets.database
        self._ids = AttemptIds()

    def _sql(self, statement: str) -> str:
        return statement_for(self._database.kind, statement)

    async def settle(self, batch: Sequence[Settlement]) -> SettleResult:
        """Settle attempts, each one once however often it is sent.

        Args:
            batch: At most some hundreds, for it is one transaction.

        Raises:
            StoreUnavailable: Whether it was settled is not known: send it again.
        """
        return await self._database.run(lambda transaction: self._settle(transaction, batch))

    async def _settle(self, transaction: Transaction, batch: Sequence[Settlement]) -> SettleResult:
        result = SettleResult()
        by_id = {one.note.attempt_id: one for one in batch}
        parts = await self._lock(transaction, {one.note.wallet_id for one in batch})
        known = await transaction.execute(
            self._sql("SELECT attempt_id FROM usage WHERE attempt_id = ANY(:ids)"),
            {"ids": list_for(self._database.kind, by_id)},
        )
        for row in known:
            del by_id[row.attempt_id]
        new = [by_id[attempt_id] for attempt_id in sorted(by_id)]
        if not new:
            return result
        held = [parts[one.note.wallet_id].take(one.end.charged_musd) for one in new]
        extra = [
            parts[one.note.wallet_id].take_extra(one.end.cost_musd - one.end.charged_musd) for one in new
        ]
        collected = [sum(pair) for pair in zip(held, extra, strict=True)]
        await self._move_money(transaction, parts)
        await transaction.execute(
            INSERT_USAGE, [_usage_row(*pair) for pair in zip(new, collected, strict=True)]
        )
        await post_all(transaction, (_entry(*row) for row in zip(new, held, extra, strict=True)))
        await self._count(transaction, new, collected)
        await self._note_sessions(transaction, new, parts)
        result.new = len(new)
        result.uncollected_musd = sum(one.end.charged_musd for one in new) - sum(held)
        result.extra_musd = sum(extra)
        result.late_wallets = {
            wallet_id
            for wallet_id, part in parts.items()
            if part.from_headroom_musd
            or (result.uncollected_musd and part.lease_musd == part.from_lease_musd)
        }
        return result

    async def _lock(self, transaction: Transaction, wallet_ids: set[str]) -> dict[str, _WalletPart]:
        """Lock the wallets in the order of their ids; then read our leases."""
        ids = {"ids": list_for(self._database.kind, sorted(wallet_ids)), "replica": self._wallets.replica_id}
        rows = await transaction.execute(
            self._sql("SELECT * FROM wallets WHERE id = ANY(:ids) ORDER BY id FOR UPDATE"),
            {"ids": ids["ids"]},
        )
        leases = await transaction.execute(
            self._sql(
                "SELECT wallet_id, amount_musd FROM wallet_leases "
                "WHERE replica_id = :replica AND wallet_id = ANY(:ids)"
            ),
            ids,
        )
        amounts = {row.wallet_id: row.amount_musd for row in leases}
        wallets = {row.id: read_wallet(row) for row in rows}
        return {one: _WalletPart(wallets.get(one), amounts.get(one, 0)) for one in wallet_ids}

    async def _move_money(self, transaction: Transaction, parts: dict[str, _WalletPart]) -> None:
        rows = [
            {
                "wallet": wallet_id,
                "replica": self._wallets.replica_id,
                "used": part.used_musd,
                "leased": part.from_lease_musd,
            }
            for wallet_id, part in sorted(parts.items())
            if part.used_musd
        ]
        if not rows:
            return
        await transaction.execute(
            "UPDATE wallets SET used_musd = used_musd + :used, leased_musd = leased_musd - :leased "
            "WHERE id = :wallet",
            [{name: row[name] for name in ("used", "leased", "wallet")} for row in rows],
        )
        names = ("leased", "replica", "wallet")
        leased = [{name: row[name] for name in names} for row in rows if row["leased"]]
        if leased:
            await transaction.execute(
                "UPDATE wallet_leases SET amount_musd = amount_musd - :leased "
                "WHERE replica_id = :replica AND wallet_id = :wallet",
                leased,
            )

    async def _count(
        self, transaction: Transaction, new: Sequence[Settlement], collected: Sequence[int]
    ) -> None:
        """Add to the windows of the wallets and the months of the keys, in one order for all processes."""
        buckets: dict[tuple[str, int], int] = defaultdict(int)
        keys: dict[tuple[str, str], int] = defaultdict(int)
        for one, musd in zip(new, collected, strict=True):
            if not musd:
                continue
            buckets[one.note.wallet_id, bucket_of(one.note.at_ms)] += musd
            if one.note.key_id:
                keys[one.note.key_id, month_of(one.note.at_ms)] += musd
        if buckets:
            await transaction.execute(
                ADD_TO_BUCKET,
                [
                    {"wallet_id": wallet_id, "bucket": bucket, "spent_musd": musd}
                    for (wallet_id, bucket), musd in sorted(buckets.items())
                ],
            )
        if keys:
            await transaction.execute(
                ADD_TO_KEY,
                [
                    {"key_id": key_id, "month": month, "spent_musd": musd}
                    for (key_id, month), musd in sorted(keys.items())
                ],
            )

    # ---- sessions

    async def _note_sessions(
        self, transaction: Transaction, new: Sequence[Settlement], parts: dict[str, _WalletPart]
    ) -> None:
        """Note the credits of each client's session: it goes on while no pause is longer than 15 minutes."""
        spans: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for one in new:
            if one.note.client_id:
                spans[one.note.client_id, one.note.ip, one.note.wallet_id].append(one.note.at_ms)
        if not spans:
            return
        known = await self._latest_sessions(transaction, {(one[0], one[1]): min(spans[one]) for one in spans})
        rows = []
        for (client_id, ip, wallet_id), times in sorted(spans.items()):
            wallet = parts[wallet_id].wallet
            if wallet is not None:
                used = wallet.used_musd + parts[wallet_id].used_musd
                row = self._session_row(known.get((client_id, ip)), times, wallet, used)
                rows.append({**row, "client": client_id, "ip": ip})
        if rows:
            await transaction.execute(NOTE_SESSION, rows)

    async def _latest_sessions(
        self, transaction: Transaction, firsts_ms: dict[tuple[str, str], int]
    ) -> dict[tuple[str, str], Any]:
        """Return the session that goes on for each client and address; those without one are missing.

        Args:
            transaction: Of the batch.
            firsts_ms: The first attempt of each in the batch, epoch milliseconds.
        """
        clients = sorted({client_id for client_id, _ in firsts_ms})
        rows = await transaction.execute(
            self._sql(
                "SELECT id, client_id, ip, created_at, updated_at FROM credits "
                "WHERE client_id = ANY(:ids) AND updated_at >= :since ORDER BY updated_at"
            ),
            {
                "ids": list_for(self._database.kind, clients),
                "since": min(firsts_ms.values()) - SESSION_PAUSE_MS,
            },
        )
        found: dict[tuple[str, str], Any] = {}
        for row in rows:
            first = firsts_ms.get((row.client_id, row.ip))
            if first is not None and row.updated_at >= first - SESSION_PAUSE_MS:
                found[row.client_id, row.ip] = row
        return found

    def _session_row(self, known: Any, times: list[int], wallet: Wallet, used: int) -> dict[str, Any]:
        """Return what is stored of a session; `known`: how it was until now, None = it begins."""
        first, last = min(times), max(times)
        begun = min(first, known.created_at) if known is not None else first
        ended = max(last, known.updated_at) if known is not None else last
        moment = datetime.fromtimestamp(begun / 1000, UTC)
        return {
            "id": known.id if known is not None else self._ids.new(begun),
            "date": moment.strftime("%Y-%m-%d"),
            "time": moment.strftime("%H:%M:%S"),
            "duration": (ended - begun) // 1000,
            "remaining": max(0, wallet.total_musd - used),
            "total": wallet.total_musd,
            "overage": max(0, used - wallet.total_musd),
            "cap": wallet.cap_musd,
            "renew": int(wallet.auto_renew) if self._database.kind == "sqlite" else wallet.auto_renew,
            "begun": begun,
            "ended": ended,
        }

    # ---- what users and operators see

    async def rows(
        self, wallet_id: str, *, limit: int = 100, before_ms: int | None = None, before_id: str = ""
    ) -> list[dict[str, Any]]:
        """Return a wallet's latest attempts for JSON, newest first.

        Args:
            wallet_id: The wallet.
            limit: At most so many, up to MAX_ROWS.
            before_ms: Only those before, epoch milliseconds.
            before_id: And those of this very time with a lower id.
        """

        async def read(transaction: Transaction) -> list[dict[str, Any]]:
            rows = await transaction.execute(
                "SELECT * FROM usage WHERE wallet_id = :wallet AND at <= :before "
                "AND (at < :before OR attempt_id < :id) ORDER BY at DESC, attempt_id DESC LIMIT :limit",
                {
                    "wallet": wallet_id,
                    "before": 1 << 62 if before_ms is None else before_ms,
                    "id": before_id,
                    "limit": max(1, min(limit, MAX_ROWS)),
                },
            )
            return [
                {
                    "attempt_id": row.attempt_id,
                    "at": format_rfc3339_ms(row.at),
                    "model": row.model,
                    "served_model": row.served_model,
                    "backend": row.backend,
                    "tokens_in": row.tokens_in,
                    "tokens_cached": row.tokens_cached,
                    "tokens_out": row.tokens_out,
                    "source": row.source,
                    "price_version": row.price_version,
                    "cost": to_dollars(row.charged_musd),
                }
                for row in rows
            ]

        return await self._database.run(read, is_read_only=True)

    async def grouped(
        self,
        groups: Sequence[str],
        *,
        wallet_id: str | None = None,
        since_ms: int = 0,
        until_ms: int = 1 << 62,
    ) -> list[dict[str, Any]]:
        """Return sums of usage for JSON.

        Args:
            groups: Of `model`, `backend`, `key`, `source`, `day`; empty = one sum.
            wallet_id: Of this wallet; None = of all (then with what backends cost the operator).
            since_ms: From this time on, epoch milliseconds.
            until_ms: Before this time.

        Raises:
            Invalid: There is no such group.
        """
        for name in groups:
            if name not in GROUPS:
                raise Invalid(
                    f"Usage cannot be grouped by {name[:40]!r}; allowed are {', '.join(GROUPS)}.",
                    param="group",
                )
        names = list(dict.fromkeys(groups))
        shown = "".join(f"{GROUPS[name]} AS by_{name}, " for name in names)
        order = ", ".join(str(number) for number in range(1, len(names) + 1))
        sums = ", ".join(
            f"CAST(COALESCE(SUM({column}), 0) AS BIGINT) AS {column}"
            for column in (
                "tokens_in",
                "tokens_cached",
                "tokens_out",
                "charged_musd",
                "cost_musd",
                "supply_musd",
            )
        )
        of_wallet = "wallet_id = :wallet AND " if wallet_id is not None else ""
        statement = (
            f"SELECT {shown}COUNT(*) AS attempts, {sums} FROM usage "  # noqa: S608 - constants of this module
            f"WHERE {of_wallet}at >= :since AND at < :until"
            + (f" GROUP BY {order} ORDER BY {order}" if names else "")
        )
        parameters = {"since": since_ms, "until": until_ms}
        if wallet_id is not None:
            parameters["wallet"] = wallet_id  # type: ignore[assignment]

        async def read(transaction: Transaction) -> list[dict[str, Any]]:
            rows = await transaction.execute(statement, parameters)
            return [_grouped_row(row, names, is_operators=wallet_id is None) for row in rows]

        return await self._database.run(read, is_read_only=True)


def month_of(at_ms: int) -> str:
    """Return the calendar month of a time, UTC: `2026-11`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m")


def _grouped_row(row: Any, names: Sequence[str], *, is_operators: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name in names:
        value = getattr(row, f"by_{name}")
        if name == "day":
            value = datetime.fromtimestamp(value * 86_400, UTC).strftime("%Y-%m-%d")
        shown[name] = value
    shown |= {
        "attempts": row.attempts,
        "tokens_in": row.tokens_in,
        "tokens_cached": row.tokens_cached,
        "tokens_out": row.tokens_out,
        "cost": to_dollars(row.charged_musd),
    }
    if is_operators:
        shown |= {
            "loss": to_dollars(row.cost_musd - row.charged_musd),
            "supply": to_dollars(row.supply_musd),
        }
    return shown


def _usage_row(one: Settlement, collected_musd: int) -> dict[str, Any]:
    note, end = one.note, one.end
    return {
        "attempt_id": note.attempt_id,
        "at": note.at_ms,
        "wallet_id": note.wallet_id,
        "user_id": note.user_id or None,
        "key_id": note.key_id or None,
        "kind": note.kind,
        "model": note.model,
        "served_model": note.served_model,
        "backend": note.backend,
        "tokens_in": end.read,
        "tokens_cached": end.cached,
        "tokens_out": end.written,
        "source": end.source,
        "price_version": note.price_version,
        "charged_musd": collected_musd,
        "cost_musd": end.cost_musd,
        "supply_musd": end.supply_musd,
    }


def _entry(one: Settlement, held_musd: int, extra_musd: int) -> LedgerEntry:
    """Return the ledger entry of an attempt; see `ledger` for the accounts.

    Args:
        held_musd: Taken of what was held.
        extra_musd: Taken beyond that.
    """
    note, end = one.note, one.end
    return LedgerEntry(
        "usage",
        note.attempt_id,
        note.at_ms,
        [
            (wallet_account(note.wallet_id), -held_musd - extra_musd),
            ("income.inference", end.cost_musd),
            ("loss", end.charged_musd + extra_musd - end.cost_musd),
            ("loss.late", held_musd - end.charged_musd),
            (f"cost.{note.backend}", end.supply_musd),
            (f"payable.{note.backend}", -end.supply_musd),
        ],
    )
