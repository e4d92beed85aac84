"""Periods of wallets: at their end the plan is granted anew, once, whenever that is noticed.

What of the plan was not used lapses; what was used of the extra credits stays used; overage becomes owed.
"""

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime

from appliance.accounts.ledger import LedgerEntry, Postings, post, receivable_account, wallet_account
from appliance.accounts.wallets import Wallet, Wallets
from appliance.storage.database import Rows, Transaction


def next_period_end_ms(anchor_day: int, after_ms: int) -> int:
    """Return the first midnight, UTC, of an anchor day after a time, epoch milliseconds.

    Args:
        anchor_day: 1 to 31; in a shorter month its last day.
        after_ms: The time.
    """
    after = datetime.fromtimestamp(after_ms / 1000, UTC)
    year, month = after.year, after.month
    while True:
        day = min(anchor_day, monthrange(year, month)[1])
        end = datetime(year, month, day, tzinfo=UTC)
        if end > after:
            return round(end.timestamp() * 1000)
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)


@dataclass(frozen=True, slots=True)
class Renewal:
    """What the end of a period does to a wallet, micro-dollars.

    Attributes:
        lapsed_musd: Of the plan, not used.
        from_extra_musd: Of the extra credits, used.
        overage_musd: Becomes owed.
        plan_musd: Granted anew.
    """

    lapsed_musd: int
    from_extra_musd: int
    overage_musd: int
    plan_musd: int

    def postings(self, wallet_id: str) -> Postings:
        """Return what the ledger says of it."""
        given = self.plan_musd - self.lapsed_musd
        return [
            (wallet_account(wallet_id), given + self.overage_musd),
            ("grants", -given),
            (receivable_account(wallet_id), -self.overage_musd),
        ]


def renewal_of(wallet: Wallet) -> Renewal:
    """Return what the end of its period does to a wallet."""
    beyond_plan = max(0, wallet.used_musd - wallet.plan_musd)
    return Renewal(
        lapsed_musd=max(0, wallet.plan_musd - wallet.used_musd),
        from_extra_musd=min(wallet.extra_musd, beyond_plan),
        overage_musd=max(0, beyond_plan - wallet.extra_musd),
        plan_musd=wallet.plan_musd,
    )


async def renew(wallets: Wallets, wallet_id: str, seen_end_ms: int) -> bool:
    """Renew a wallet whose period ended; False = another process has, or it is not to be renewed.

    Args:
        wallets: Where it is.
        wallet_id: The wallet.
        seen_end_ms: The end of its period, as it was seen: the second process changes nothing.
    """
    now_ms = wallets.now_ms()

    async def change(transaction: Transaction) -> bool:
        wallet = await wallets.lock(transaction, wallet_id)
        if wallet is None or not wallet.auto_renew or wallet.period_end_ms != seen_end_ms > 0:
            return False
        if seen_end_ms > now_ms:
            return False
        renewal = renewal_of(wallet)
        entry = LedgerEntry("renewal", f"{wallet_id}:{seen_end_ms}", seen_end_ms, renewal.postings(wallet_id))
        if not await post(transaction, entry):
            return False
        done = await transaction.execute(
            "UPDATE wallets SET extra_musd = extra_musd - :extra, owed_musd = owed_musd + :owed, "
            "used_musd = 0, "
            "period_end = :next, updated_at = :now WHERE id = :wallet AND period_end = :seen",
            {
                "extra": renewal.from_extra_musd,
                "owed": renewal.overage_musd,
                "next": next_period_end_ms(wallet.anchor_day, now_ms),
                "now": now_ms,
                "wallet": wallet_id,
                "seen": seen_end_ms,
            },
        )
        if done.changed == 1:
            await wallets.tell(transaction, wallet_id, "renewal", renewal.plan_musd)
        return done.changed == 1

    is_done: bool = await wallets.run_noted(wallet_id, change)
    return is_done


async def renew_due(wallets: Wallets, *, most: int = 500) -> int:
    """Renew the wallets whose period has ended; return how many. Call it every minute, on any process.

    Args:
        wallets: Where they are.
        most: At a time.
    """

    async def read(transaction: Transaction) -> Rows:
        return await transaction.execute(
            "SELECT id, period_end, auto_renew FROM wallets WHERE period_end <= :now "
            "ORDER BY period_end LIMIT :most",
            {"now": wallets.now_ms(), "most": most},
        )

    due = await wallets.database.run(read, is_read_only=True)
    return sum([await renew(wallets, row.id, row.period_end) for row in due if row.auto_renew])
