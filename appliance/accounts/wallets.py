"""Wallets in the database: leases of replicas, grants, and the credits that users see.

Every amount is computed in the row's own UPDATE, or after the row was locked by an earlier statement: of 24
connections that draw on one wallet none goes beyond its credit. Wallets are locked before leases, several in
the order of their ids.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from appliance.accounts.allowance import LeaseAnswer
from appliance.accounts.changes import ChangeFeed
from appliance.accounts.guardrails import Guardrails
from appliance.accounts.ledger import LedgerEntry, is_posted, post, receivable_account, wallet_account
from appliance.base.clock import Clock, format_rfc3339_ms
from appliance.base.errors import Conflict, Invalid, NotFound
from appliance.base.money import MAX_MUSD, format_dollars, to_dollars
from appliance.storage.database import ConstraintViolated, Database, Rows, Transaction
from appliance.storage.events import EventLog
from appliance.storage.statements import list_for, statement_for

HEADROOM = "plan_musd + extra_musd + cap_musd - used_musd - leased_musd"
AMOUNT = (
    f"LEAST({HEADROOM}, CAST(:bound AS BIGINT), "
    f"GREATEST(CAST(:want AS BIGINT), LEAST(CAST(:most AS BIGINT), ({HEADROOM}) / 4)))"
)
LEASE = (
    f"UPDATE wallets SET leased_musd = leased_musd + {AMOUNT}, last_grant_musd = {AMOUNT} "  # noqa: S608 - constants
    f"WHERE id = :wallet AND state = 'active' AND LEAST({HEADROOM}, CAST(:bound AS BIGINT)) >= :least "
    f"RETURNING last_grant_musd, {HEADROOM} AS headroom"
)
ADD_TO_LEASE = (
    "INSERT INTO wallet_leases(replica_id, wallet_id, amount_musd, epoch, updated_at) "
    "VALUES (:replica, :wallet, :musd, :epoch, :now) ON CONFLICT (replica_id, wallet_id) DO UPDATE "
    "SET amount_musd = wallet_leases.amount_musd + excluded.amount_musd, updated_at = excluded.updated_at"
)
WALLET = "SELECT * FROM wallets WHERE id = :wallet FOR UPDATE"
UNBOUNDED = MAX_MUSD
RETURN_CHANNEL = "appliance_returns"
MONEY_CHANGED = "wallet"  # in `changes`
TAKE_BACK_AFTER_S = 600.0
STATES = ("active", "frozen", "closed")
_TOTAL = "plan_musd + extra_musd"
TOTALS = {
    "total": _TOTAL,
    "used": "used_musd",
    "held": "leased_musd",
    "owed": "owed_musd",
    "remaining": f"CASE WHEN {_TOTAL} > used_musd THEN {_TOTAL} - used_musd ELSE 0 END",
    "overage": f"CASE WHEN used_musd > {_TOTAL} THEN used_musd - ({_TOTAL}) ELSE 0 END",
}
Alongside = Callable[[Transaction], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Wallet:
    """A wallet, as the database has it; see `wallets` in storage.schema.

    Attributes:
        id: Its id.
        user_id: Its owner; "" = none.
        plan_musd: Granted for each period, spent first.
        extra_musd: Bought or granted; stays.
        used_musd: Used in this period.
        leased_musd: Set aside for replicas.
        cap_musd: The most overage.
        owed_musd: Overage of former periods, not paid yet.
        auto_renew: The plan is granted anew at `period_end_ms`.
        period_end_ms: Epoch milliseconds; None = there are no periods.
        anchor_day: Of the month, on which periods begin.
        state: `active`, `frozen` or `closed`.
    """

    id: str
    user_id: str
    plan_musd: int
    extra_musd: int
    used_musd: int
    leased_musd: int
    cap_musd: int
    owed_musd: int
    auto_renew: bool
    period_end_ms: int | None
    anchor_day: int
    state: str

    @property
    def total_musd(self) -> int:
        """Plan and extra."""
        return self.plan_musd + self.extra_musd

    @property
    def remaining_musd(self) -> int:
        """What is left before overage begins."""
        return max(0, self.total_musd - self.used_musd)

    @property
    def overage_musd(self) -> int:
        """What was used beyond plan and extra."""
        return max(0, self.used_musd - self.total_musd)

    @property
    def headroom_musd(self) -> int:
        """What may still be leased."""
        return self.total_musd + self.cap_musd - self.used_musd - self.leased_musd

    def credits(self, client_id: str) -> dict[str, Any]:
        """Return the credits as users see them: dollars, the seed's names and ours."""
        return {
            "client_id": client_id,
            "credits_remaining": to_dollars(self.remaining_musd),
            "credits_total": to_dollars(self.total_musd),
            "credits_overage": to_dollars(self.overage_musd),
            "credits_cap": to_dollars(self.cap_musd),
            "credits_auto_renew": self.auto_renew,
            "credits_held": to_dollars(self.leased_musd),
            "credits_owed": to_dollars(self.owed_musd),
            "period_end": None if self.period_end_ms is None else format_rfc3339_ms(self.period_end_ms),
        }

    def change_told(self, kind: str, amount_musd: int, note: str = "") -> dict[str, Any]:
        """Return the data of the event that credits were changed (see `Wallets.tell`)."""
        return {
            "kind": kind,
            "amount": to_dollars(amount_musd),
            "note": note[:200],
            "credits": self.credits(self.user_id),
        }


def read_wallet(row: Any) -> Wallet:
    """Return the wallet of a row of `wallets`."""
    return Wallet(
        id=row.id,
        user_id=row.user_id or "",
        plan_musd=row.plan_musd,
        extra_musd=row.extra_musd,
        used_musd=row.used_musd,
        leased_musd=row.leased_musd,
        cap_musd=row.cap_musd,
        owed_musd=row.owed_musd,
        auto_renew=bool(row.auto_renew),
        period_end_ms=row.period_end,
        anchor_day=row.anchor_day,
        state=row.state,
    )


def _plan_of(wallet: Wallet) -> tuple[int, int, bool, int | None]:
    return wallet.plan_musd, wallet.cap_musd, wallet.auto_renew, wallet.period_end_ms


class Wallets:
    """The wallets, for one replica: it is also the `LeaseStore` of its allowances.

    Args:
        database: Where they are.
        clock: The time.
        replica_id: Of this process; the same after it starts again with the same journal.
        epoch: When it started, epoch milliseconds.
        guardrails: Limits on spending, which bound leases, too; None = there are none.
        changes: Tells all replicas where a wallet has more to spend; None = they find out when they ask.
        events: Tell users that their credits were changed; None = they are not told.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        replica_id: str,
        *,
        epoch: int = 0,
        guardrails: Guardrails | None = None,
        changes: ChangeFeed | None = None,
        events: EventLog | None = None,
    ) -> None:
        self.database = database
        self.clock = clock
        self.replica_id = replica_id
        self._epoch = epoch
        self._guardrails = guardrails
        self.changes = changes
        self._events = events

    def _sql(self, statement: str) -> str:
        return statement_for(self.database.kind, statement)

    def now_ms(self) -> int:
        """Return the present time, epoch milliseconds."""
        return int(self.clock.now_s() * 1000)

    async def lock(self, transaction: Transaction, wallet_id: str) -> Wallet | None:
        """Return a wallet that no other transaction can change until this one ends; None = there is none."""
        rows = await transaction.execute(self._sql(WALLET), {"wallet": wallet_id})
        return read_wallet(rows[0]) if rows else None

    # ---- leases; see LeaseStore

    async def lease(self, wallet_id: str, *, least_musd: int, want_musd: int, most_musd: int) -> LeaseAnswer:
        """Add to our lease of a wallet; see LeaseStore. Limits on spending bound it as the credit does."""

        async def change(transaction: Transaction) -> LeaseAnswer:
            bound = await self._bound(transaction, wallet_id)
            rows = await transaction.execute(
                self._sql(LEASE),
                {
                    "wallet": wallet_id,
                    "bound": bound,
                    "least": max(1, least_musd),
                    "want": max(1, want_musd),
                    "most": max(1, most_musd),
                },
            )
            is_elsewhere = await self._is_elsewhere(transaction, wallet_id)
            if not rows:
                return await self._refusal(transaction, wallet_id, bound, is_elsewhere)
            granted: int = rows[0].last_grant_musd
            await transaction.execute(ADD_TO_LEASE, self._lease_row(wallet_id, granted))
            return LeaseAnswer(granted, min(rows[0].headroom, bound - granted), "", is_elsewhere)

        return await self.database.run(change)

    def _lease_row(self, wallet_id: str, musd: int) -> dict[str, Any]:
        return {
            "replica": self.replica_id,
            "wallet": wallet_id,
            "musd": musd,
            "epoch": self._epoch,
            "now": self.now_ms(),
        }

    async def _bound(self, transaction: Transaction, wallet_id: str) -> int:
        """Return how much more the limits on spending allow to be leased; the wallet is then locked."""
        if self._guardrails is None or not self._guardrails.limits_of(wallet_id):
            return UNBOUNDED
        wallet = await self.lock(transaction, wallet_id)
        bound = None if wallet is None else await self.spendable_musd(transaction, wallet)
        return UNBOUNDED if bound is None else bound

    async def spendable_musd(self, transaction: Transaction, wallet: Wallet) -> int | None:
        """Return how much more the limits on spending allow to be set aside; None = there is none.

        Args:
            transaction: In which the wallet is locked.
            wallet: As `lock` gave it.
        """
        if self._guardrails is None or not self._guardrails.limits_of(wallet.id):
            return None
        headroom = (await self._guardrails.spending_in(transaction, wallet.id)).headroom_musd()
        return None if headroom is None else max(0, headroom - wallet.leased_musd)

    async def _is_elsewhere(self, transaction: Transaction, wallet_id: str) -> bool:
        rows = await transaction.execute(
            "SELECT 1 FROM wallet_leases WHERE wallet_id = :wallet AND replica_id <> :replica "
            "AND amount_musd > 0 LIMIT 1",
            {"wallet": wallet_id, "replica": self.replica_id},
        )
        return bool(rows)

    async def _refusal(
        self, transaction: Transaction, wallet_id: str, bound: int, is_elsewhere: bool
    ) -> LeaseAnswer:
        rows = await transaction.execute("SELECT * FROM wallets WHERE id = :wallet", {"wallet": wallet_id})
        if not rows:
            return LeaseAnswer(0, reason="wallet_unknown")
        wallet = read_wallet(rows[0])
        if wallet.state != "active":
            return LeaseAnswer(0, reason="wallet_frozen")
        reason = "spending_limit" if bound < wallet.headroom_musd else "credits"
        return LeaseAnswer(0, min(wallet.headroom_musd, bound), reason, is_elsewhere)

    async def give_back(self, wallet_id: str, musd: int) -> bool:
        """Take from our lease what is not used; see LeaseStore."""

        async def change(transaction: Transaction) -> bool:
            await self.lock(transaction, wallet_id)
            done = await transaction.execute(
                "UPDATE wallet_leases SET amount_musd = amount_musd - :musd, updated_at = :now "
                "WHERE replica_id = :replica AND wallet_id = :wallet AND amount_musd >= :musd",
                self._lease_row(wallet_id, musd),
            )
            if not done.changed:
                return False
            await self._return(transaction, wallet_id, musd)
            return True

        return await self.database.run(change)

    async def _return(self, transaction: Transaction, wallet_id: str, musd: int) -> None:
        await transaction.execute(
            "UPDATE wallets SET leased_musd = leased_musd - :musd WHERE id = :wallet",
            {"wallet": wallet_id, "musd": musd},
        )

    async def give_back_all(self, wallet_id: str) -> int:
        """End our lease of a wallet; see LeaseStore."""
        return await self.database.run(
            lambda transaction: self._end_lease(transaction, self.replica_id, wallet_id)
        )

    async def _end_lease(self, transaction: Transaction, replica_id: str, wallet_id: str) -> int:
        await self.lock(transaction, wallet_id)
        rows = await transaction.execute(
            "DELETE FROM wallet_leases WHERE replica_id = :replica AND wallet_id = :wallet "
            "RETURNING amount_musd",
            {"replica": replica_id, "wallet": wallet_id},
        )
        musd: int = sum(row.amount_musd for row in rows)
        if musd:
            await self._return(transaction, wallet_id, musd)
        return musd

    async def own_leases(self, wallet_ids: Collection[str]) -> dict[str, int]:
        """Return our leases of these wallets; see LeaseStore."""

        async def read(transaction: Transaction) -> dict[str, int]:
            rows = await transaction.execute(
                self._sql(
                    "SELECT wallet_id, amount_musd FROM wallet_leases "
                    "WHERE replica_id = :replica AND wallet_id = ANY(:ids)"
                ),
                {"replica": self.replica_id, "ids": list_for(self.database.kind, wallet_ids)},
            )
            return {row.wallet_id: row.amount_musd for row in rows}

        return await self.database.run(read, is_read_only=True)

    async def ask_others(self, wallet_id: str) -> None:
        """Ask other processes for what they do not use of a wallet, where the database can tell them."""
        if not self.database.can_listen:
            return

        async def change(transaction: Transaction) -> None:
            await transaction.execute(
                "SELECT pg_notify(:channel, :text)",
                {"channel": RETURN_CHANNEL, "text": f"{self.replica_id} {wallet_id}"},
            )

        await self.database.run(change)

    def asked_wallet(self, text: str | None) -> str:
        """Return the wallet that a message on RETURN_CHANNEL asks us about; "" = none."""
        replica_id, _, wallet_id = (text or "").partition(" ")
        return "" if replica_id == self.replica_id else wallet_id

    async def give_all_leases_back(self) -> int:
        """End all leases of this replica, after its journal is settled; return how much they were."""

        async def wallets(transaction: Transaction) -> Rows:
            return await transaction.execute(
                "SELECT wallet_id FROM wallet_leases WHERE replica_id = :replica ORDER BY wallet_id",
                {"replica": self.replica_id},
            )

        rows = await self.database.run(wallets)
        return sum([await self.give_back_all(row.wallet_id) for row in rows])

    # ---- replicas

    async def heartbeat(self, host: str = "", version: str = "") -> None:
        """Note that this replica lives."""

        async def change(transaction: Transaction) -> None:
            await transaction.execute(
                "INSERT INTO replicas(id, host, version, epoch, started_at, seen_at) "
                "VALUES (:id, :host, :version, :epoch, :now, :now) "
                "ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, host = excluded.host, "
                "version = excluded.version, epoch = excluded.epoch",
                {
                    "id": self.replica_id,
                    "host": host,
                    "version": version,
                    "epoch": self._epoch,
                    "now": self.now_ms(),
                },
            )

        await self.database.run(change)

    async def take_back(self, fence_after_s: float) -> int:
        """Return the leases of replicas that were not seen for long to their wallets.

        They have stopped spending by then (`Allowances`, `fence_after_s`). What they used and did not settle
        is the operator's loss, unless they come back: then it is settled late.

        Args:
            fence_after_s: After so long without the database a replica stops spending (SNAPSHOT_MAX_AGE_S).

        Returns:
            How much, micro-dollars.
        """
        before_ms = self.now_ms() - round((fence_after_s + TAKE_BACK_AFTER_S) * 1000)

        async def dead(transaction: Transaction) -> Rows:
            return await transaction.execute(
                "SELECT l.replica_id, l.wallet_id FROM wallet_leases l LEFT JOIN replicas r "
                "ON r.id = l.replica_id WHERE COALESCE(r.seen_at, l.updated_at) < :before "
                "AND l.replica_id <> :replica ORDER BY l.wallet_id",
                {"before": before_ms, "replica": self.replica_id},
            )

        taken = 0
        for row in await self.database.run(dead):
            taken += await self._take_back_one(row.replica_id, row.wallet_id, before_ms)
        return taken

    async def _take_back_one(self, replica_id: str, wallet_id: str, before_ms: int) -> int:
        async def change(transaction: Transaction) -> int:
            seen = await transaction.execute(
                "SELECT seen_at FROM replicas WHERE id = :id", {"id": replica_id}
            )
            if seen and seen[0].seen_at >= before_ms:
                return 0  # it has come back
            return await self._end_lease(transaction, replica_id, wallet_id)

        return await self.database.run(change)

    # ---- what users and operators do

    async def open(
        self,
        transaction: Transaction,
        wallet_id: str,
        user_id: str | None,
        *,
        extra_musd: int = 0,
        cap_musd: int = 0,
    ) -> None:
        """Make a wallet, with credits that stay, in the transaction that makes its owner.

        Its periods begin on the day of the month that it is now.

        Args:
            transaction: Of the owner.
            wallet_id: Its id.
            user_id: Its owner; None = it belongs to no user.
            extra_musd: A first grant.
            cap_musd: The most overage.
        """
        now = self.now_ms()
        await transaction.execute(
            "INSERT INTO wallets(id, user_id, extra_musd, cap_musd, anchor_day, created_at, updated_at) "
            "VALUES (:id, :user_id, :extra, :cap, :day, :now, :now)",
            {
                "id": wallet_id,
                "user_id": user_id,
                "extra": extra_musd,
                "cap": cap_musd,
                "day": datetime.fromtimestamp(now / 1000, UTC).day,
                "now": now,
            },
        )
        if extra_musd:
            postings = [(wallet_account(wallet_id), extra_musd), ("grants", -extra_musd)]
            await post(transaction, LedgerEntry("grant", f"open:{wallet_id}", now, postings, "first credits"))

    async def find(self, wallet_id: str) -> Wallet:
        """Return a wallet.

        Raises:
            NotFound: There is none of this id.
        """

        async def read(transaction: Transaction) -> Rows:
            return await transaction.execute(
                "SELECT * FROM wallets WHERE id = :wallet", {"wallet": wallet_id}
            )

        rows = await self.database.run(read, is_read_only=True)
        if not rows:
            raise NotFound(f"There is no wallet {wallet_id[:60]!r}.")
        return read_wallet(rows[0])

    async def grant(
        self,
        wallet_id: str,
        amount_musd: int,
        *,
        ref: str,
        note: str = "",
        alongside: Alongside | None = None,
    ) -> Wallet:
        """Add credits that stay, or take some of them away; once for each `ref`.

        Args:
            wallet_id: The wallet.
            amount_musd: Below 0 = taken away; no more than is there and is not set aside.
            ref: The request's own id: repeated, nothing is added.
            note: For people.
            alongside: What is to be written in the same transaction, where the grant is new.

        Raises:
            NotFound: There is no such wallet.
            Invalid: The amount is 0 or too large.
            Conflict: So much cannot be taken away, `ref` was used for another amount, or the wallet is
                closed, since its user was deleted.
        """
        if not amount_musd or abs(amount_musd) > MAX_MUSD:
            raise Invalid(
                f"{format_dollars(amount_musd)} dollars cannot be granted; allowed is any but 0, up to "
                f"{format_dollars(MAX_MUSD)}.",
                param="amount",
            )
        postings = [(wallet_account(wallet_id), amount_musd), ("grants", -amount_musd)]
        entry = LedgerEntry("grant", ref, self.now_ms(), postings, note)
        return await self._change(wallet_id, entry, {"extra_musd": amount_musd}, alongside)

    async def pay_in(self, wallet_id: str, amount_musd: int, *, ref: str, note: str = "") -> Wallet:
        """Add credits that were paid for; what is owed is paid off first. Once for each `ref`.

        Raises:
            NotFound: There is no such wallet.
            Invalid: The amount is not above 0.
        """
        if not 0 < amount_musd <= MAX_MUSD:
            raise Invalid(f"{format_dollars(amount_musd)} dollars cannot be paid in.", param="amount")

        async def change(transaction: Transaction) -> Wallet:
            wallet = await self._locked(transaction, wallet_id)
            paid_off = min(wallet.owed_musd, amount_musd)
            postings = [
                (wallet_account(wallet_id), amount_musd - paid_off),
                (receivable_account(wallet_id), paid_off),
                ("cash", -amount_musd),
            ]
            if await post(transaction, LedgerEntry("payment", ref, self.now_ms(), postings, note)):
                await self._add(
                    transaction, wallet_id, {"extra_musd": amount_musd - paid_off, "owed_musd": -paid_off}
                )
                await self.tell(transaction, wallet_id, "payment", amount_musd, note)
            return await self._locked(transaction, wallet_id)

        wallet: Wallet = await self.run_noted(wallet_id, change)
        await self._announce()
        return wallet

    async def set_plan(
        self,
        wallet_id: str,
        *,
        plan_musd: int,
        cap_musd: int,
        auto_renew: bool,
        period_end_ms: int | None,
        anchor_day: int,
        ref: str,
        seen: Wallet | None = None,
        alongside: Alongside | None = None,
    ) -> Wallet:
        """Set what a wallet gets for each period; it gets the difference now. Once for each `ref`.

        Args:
            wallet_id: The wallet.
            plan_musd: Granted for each period.
            cap_musd: The most overage.
            auto_renew: The plan is granted anew at the end of each period.
            period_end_ms: Epoch milliseconds; None = there are no periods.
            anchor_day: Of the month, on which periods begin.
            ref: The request's own id.
            seen: What the caller took the other values from; None = it set all of them.
            alongside: What is to be written in the same transaction, where something is set.

        Raises:
            NotFound: There is no such wallet.
            Conflict: More is used or set aside than would be left, or it was set otherwise since `seen`.
        """

        async def change(transaction: Transaction) -> Wallet:
            wallet = await self._locked(transaction, wallet_id)
            if seen is not None and _plan_of(seen) != _plan_of(wallet):
                raise Conflict("The credits were set otherwise meanwhile. Try again.", code="credits_changed")
            more = plan_musd - wallet.plan_musd
            postings = [(wallet_account(wallet_id), more), ("grants", -more)] if more else []
            if await post(transaction, LedgerEntry("plan", ref, self.now_ms(), postings)):
                await transaction.execute(
                    "UPDATE wallets SET plan_musd = :plan, cap_musd = :cap, auto_renew = :renew, "
                    "period_end = :end, anchor_day = :day, updated_at = :now WHERE id = :wallet",
                    {
                        "plan": plan_musd,
                        "cap": cap_musd,
                        "renew": int(auto_renew) if self.database.kind == "sqlite" else auto_renew,
                        "end": period_end_ms,
                        "day": anchor_day,
                        "now": self.now_ms(),
                        "wallet": wallet_id,
                    },
                )
                if alongside is not None:
                    await alongside(transaction)
                await self.tell(transaction, wallet_id, "plan", more)
            return await self._locked(transaction, wallet_id)

        return await self._refused_if_used(change, wallet_id)

    async def set_state(self, wallet_id: str, state: str) -> Wallet:
        """Freeze a wallet, or let it be used again; leases that are out stay.

        Raises:
            NotFound: There is no such wallet.
            Invalid: There is no such state.
        """
        if state not in STATES:
            raise Invalid(
                f"There is no state {state[:40]!r}; allowed are {', '.join(STATES)}.", param="state"
            )

        async def change(transaction: Transaction) -> Wallet:
            await self._locked(transaction, wallet_id)
            await transaction.execute(
                "UPDATE wallets SET state = :state, updated_at = :now WHERE id = :wallet",
                {"state": state, "now": self.now_ms(), "wallet": wallet_id},
            )
            return await self._locked(transaction, wallet_id)

        wallet: Wallet = await self.run_noted(wallet_id, change)
        return wallet

    async def totals(self) -> dict[str, Any]:
        """Return the sums over all wallets for JSON, in dollars."""

        async def read(transaction: Transaction) -> Rows:
            sums = ", ".join(
                f"CAST(COALESCE(SUM({column}), 0) AS BIGINT) AS {name}" for name, column in TOTALS.items()
            )
            return await transaction.execute(f"SELECT COUNT(*) AS wallets, {sums} FROM wallets")  # noqa: S608 - constants of this module

        [row] = await self.database.run(read, is_read_only=True)
        return {"count": row.wallets} | {name: to_dollars(getattr(row, name)) for name in TOTALS}

    async def sessions(self, client_ids: Collection[str], *, limit: int = 100) -> list[dict[str, Any]]:
        """Return the latest sessions of clients, and what credits were left in each, for JSON."""

        async def read(transaction: Transaction) -> Rows:
            return await transaction.execute(
                self._sql(
                    "SELECT * FROM credits WHERE client_id = ANY(:ids) ORDER BY created_at DESC, id DESC "
                    "LIMIT :limit"
                ),
                {"ids": list_for(self.database.kind, client_ids), "limit": max(1, min(limit, 1000))},
            )

        return [
            {
                "id": row.id,
                "client_id": row.client_id,
                "ip": row.ip,
                "date": row.date,
                "time": row.time,
                "duration": row.duration,
                "credits_remaining": to_dollars(row.credits_remaining_musd),
                "credits_total": to_dollars(row.credits_total_musd),
                "credits_overage": to_dollars(row.credits_overage_musd),
                "credits_cap": to_dollars(row.credits_cap_musd),
                "credits_auto_renew": bool(row.credits_auto_renew),
                "created_at": format_rfc3339_ms(row.created_at),
            }
            for row in await self.database.run(read, is_read_only=True)
        ]

    # ---- helpers

    async def _locked(self, transaction: Transaction, wallet_id: str) -> Wallet:
        wallet = await self.lock(transaction, wallet_id)
        if wallet is None:
            raise NotFound(f"There is no wallet {wallet_id[:60]!r}.")
        return wallet

    async def _add(self, transaction: Transaction, wallet_id: str, amounts: Mapping[str, int]) -> None:
        """Add to columns of a wallet."""
        parts = ", ".join(f"{name} = {name} + :{name}" for name in amounts)
        await transaction.execute(
            f"UPDATE wallets SET {parts}, updated_at = :now WHERE id = :wallet",  # noqa: S608 - names of columns
            {**amounts, "now": self.now_ms(), "wallet": wallet_id},
        )

    async def _change(
        self, wallet_id: str, entry: LedgerEntry, amounts: Mapping[str, int], alongside: Alongside | None
    ) -> Wallet:
        async def change(transaction: Transaction) -> Wallet:
            wallet = await self._locked(transaction, wallet_id)
            if wallet.state == "closed" and sum(amounts.values()) > 0:
                raise Conflict(
                    f"Wallet {wallet_id[:64]!r} is closed, since its user was deleted: credits could not be "
                    "spent.",
                    code="wallet_closed",
                )
            if await post(transaction, entry):
                await self._add(transaction, wallet_id, amounts)
                if alongside is not None:
                    await alongside(transaction)
                await self.tell(transaction, wallet_id, entry.kind, sum(amounts.values()), entry.note)
            elif not await is_posted(transaction, entry):
                raise Conflict(
                    "Credits were granted before under the same reference (Idempotency-Key), with another "
                    "amount. Use another one.",
                    code="idempotency_key_reused",
                )
            return await self._locked(transaction, wallet_id)

        return await self._refused_if_used(change, wallet_id)

    async def run_noted(self, wallet_id: str, change: Callable[[Transaction], Awaitable[Any]]) -> Any:
        """Run a transaction after which a wallet may have more to spend, and tell all replicas."""
        changes = self.changes
        if changes is None:
            return await self.database.run(change)

        async def noted(transaction: Transaction) -> Any:
            result = await change(transaction)
            await changes.note(transaction, MONEY_CHANGED, [wallet_id])
            return result

        result = await self.database.run(noted)
        await changes.announce()
        return result

    async def _refused_if_used(self, change: Any, wallet_id: str) -> Wallet:
        try:
            wallet: Wallet = await self.run_noted(wallet_id, change)
        except ConstraintViolated:
            raise Conflict(
                f"So much cannot be taken from wallet {wallet_id!r}: more is used or set aside than "
                "would be left.",
                code="credits_in_use",
            ) from None
        await self._announce()
        return wallet

    async def tell(
        self, transaction: Transaction, wallet_id: str, kind: str, amount_musd: int, note: str = ""
    ) -> None:
        """Write the event that a wallet's credits were changed, in the transaction that has changed them.

        Args:
            transaction: Of the change.
            wallet_id: The wallet; of one without user nothing is told.
            kind: grant, payment, plan or renewal.
            amount_musd: What was added; below 0 = taken away.
            note: For people.
        """
        if self._events is None:
            return
        wallet = await self._locked(transaction, wallet_id)
        if wallet.user_id:
            data = wallet.change_told(kind, amount_musd, note)
            await self._events.append(transaction, wallet.user_id, "billing", data)

    async def _announce(self) -> None:
        if self._events is not None:
            await self._events.announce()
