"""Wallets for rented GPUs: what is held, charged and counted, in the transaction that changes the rental.

A charge has one usage row (kind `gpu`) and one entry in the ledger, by its ref, as an attempt has. What a
rental cost and neither its hold nor its wallet has any more is the operator's loss. Quotas are locked before
wallets.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from appliance.accounts.guardrails import ADD_TO_BUCKET, bucket_of
from appliance.accounts.ledger import LedgerEntry, post, post_all, wallet_account
from appliance.accounts.quotas import RequestQuotas
from appliance.accounts.usage import ADD_TO_KEY, INSERT_USAGE, month_of
from appliance.accounts.wallets import Wallets
from appliance.base.rental_charges import RentalCharge, RentalFunds, RentalPaid, Renter
from appliance.storage.database import Transaction
from appliance.storage.statements import statement_for

KIND = "gpu"
INCOME = "income.rental"
MOVE = (
    "UPDATE wallets SET used_musd = used_musd + :used, leased_musd = leased_musd - :held, updated_at = :now "
    "WHERE id = :wallet"
)
HOLD = (
    "UPDATE wallets SET leased_musd = leased_musd + :musd, updated_at = :now WHERE id = :wallet "
    "AND state = 'active' AND plan_musd + extra_musd + cap_musd - used_musd - leased_musd >= :musd"
)


class RentalMoney:
    """The money of rentals; see `RentalPayments` in market.money.

    Args:
        wallets: Of this process, with the limits on spending.
        quotas: Of GPU hours.
        reclaim: Called with a wallet's id to have processes give back what they set aside of it and do not
            use; None = they are not asked.
    """

    def __init__(
        self,
        wallets: Wallets,
        quotas: RequestQuotas,
        *,
        reclaim: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._wallets = wallets
        self._quotas = quotas
        self._reclaim = reclaim

    async def funds(self, transaction: Transaction, renter: Renter) -> RentalFunds:
        """Return what a renter has; it stays so until the transaction ends.

        1. there is no wallet, or it is not active  → nothing
        2. the least of: credits, limits on spending less what is set aside, the key's cap of the month
        """
        left, ends_at = None, 0
        if renter.user_id:
            left, ends_at = await self._quotas.gpu_seconds_left(transaction, renter.user_id)
        wallet = await self._wallets.lock(transaction, renter.wallet_id)
        if wallet is None:  # 1
            return RentalFunds(0, "wallet_unknown", left, ends_at)
        if wallet.state != "active":
            return RentalFunds(0, "wallet_frozen", left, ends_at)
        found = [(max(0, wallet.headroom_musd), "credits")]  # 2
        limit = await self._wallets.spendable_musd(transaction, wallet)
        if limit is not None:
            found.append((limit, "spending_limit"))
        cap = await self._key_musd(transaction, renter.key_id)
        if cap is not None:
            found.append((cap, "key_cap"))
        musd, reason = min(found)
        return RentalFunds(musd, reason, left, ends_at)

    async def _key_musd(self, transaction: Transaction, key_id: str) -> int | None:
        """Return what a key may still spend in this month, less what its rentals hold; None = no cap."""
        if not key_id:
            return None
        rows = await transaction.execute(
            "SELECT k.spend_cap_musd AS cap, COALESCE(s.spent_musd, 0) AS spent, "
            "CAST((SELECT COALESCE(SUM(r.held_musd), 0) FROM rentals r WHERE r.key_id = k.id) AS BIGINT) "
            "AS held "
            "FROM api_keys k LEFT JOIN key_spend s ON s.key_id = k.id AND s.month = :month WHERE k.id = :key",
            {"key": key_id, "month": month_of(self._wallets.now_ms())},
        )
        if not rows or rows[0].cap is None:
            return None
        left: int = rows[0].cap - rows[0].spent - rows[0].held
        return max(0, left)

    async def hold(self, transaction: Transaction, renter: Renter, musd: int) -> bool:
        """Set aside so much of a wallet; False = it does not have it."""
        if not musd:
            return True
        done = await transaction.execute(HOLD, self._row(renter, musd=musd))
        return done.changed == 1

    async def release(self, transaction: Transaction, renter: Renter, musd: int) -> None:
        """Give back what was set aside."""
        if musd:
            await self._move(transaction, renter, used=0, held=musd)

    async def charge(self, transaction: Transaction, charge: RentalCharge) -> RentalPaid:
        """Charge a span of a rental's time: from what is held, then from what the wallet has beyond."""
        renter = charge.renter
        if charge.gpu_seconds and renter.user_id:
            await self._quotas.add_gpu_seconds(transaction, renter.user_id, charge.gpu_seconds)
        wallet = await self._wallets.lock(transaction, renter.wallet_id)
        held = min(charge.cost_musd, charge.held_musd)
        more = 0 if wallet is None else max(0, min(charge.cost_musd - held, wallet.headroom_musd))
        paid = RentalPaid(held, more)
        if paid.charged_musd:
            await self._move(transaction, renter, used=paid.charged_musd, held=held)
        await transaction.execute(INSERT_USAGE, _usage_row(charge, paid.charged_musd))
        await post_all(transaction, [_entry(charge, paid)])
        await self._count(transaction, charge, paid.charged_musd)
        return paid

    async def book_supply(
        self, transaction: Transaction, provider: str, ref: str, musd: int, *, at_ms: int, note: str
    ) -> None:
        """Note what a market takes for an instance that no user pays for; once for each `ref`."""
        postings = [(f"cost.{provider}", musd), (f"payable.{provider}", -musd)]
        await post(transaction, LedgerEntry("rental_supply", ref, at_ms, postings, note))

    async def reclaim(self, wallet_id: str) -> None:
        """Ask all processes for what they have set aside of a wallet and do not use."""
        if self._reclaim is not None:
            await self._reclaim(wallet_id)

    async def _move(self, transaction: Transaction, renter: Renter, *, used: int, held: int) -> None:
        await transaction.execute(
            statement_for(self._wallets.database.kind, MOVE), self._row(renter, used=used, held=held)
        )

    def _row(self, renter: Renter, **amounts: int) -> dict[str, Any]:
        return {"wallet": renter.wallet_id, "now": self._wallets.now_ms(), **amounts}

    async def _count(self, transaction: Transaction, charge: RentalCharge, musd: int) -> None:
        """Add to the windows of the wallet and the month of the key."""
        if not musd:
            return
        renter = charge.renter
        row = {"wallet_id": renter.wallet_id, "bucket": bucket_of(charge.at_ms), "spent_musd": musd}
        await transaction.execute(ADD_TO_BUCKET, row)
        if renter.key_id:
            month = month_of(charge.at_ms)
            await transaction.execute(
                ADD_TO_KEY, {"key_id": renter.key_id, "month": month, "spent_musd": musd}
            )


def _usage_row(charge: RentalCharge, charged_musd: int) -> dict[str, Any]:
    return {
        "attempt_id": charge.ref,
        "at": charge.at_ms,
        "wallet_id": charge.renter.wallet_id,
        "user_id": charge.renter.user_id or None,
        "key_id": charge.renter.key_id or None,
        "kind": KIND,
        "model": charge.gpu_name,
        "served_model": charge.instance_id,
        "backend": charge.provider,
        "tokens_in": 0,
        "tokens_cached": 0,
        "tokens_out": 0,
        "source": charge.clock,
        "price_version": None,
        "charged_musd": charged_musd,
        "cost_musd": charge.cost_musd,
        "supply_musd": charge.supply_musd,
    }


def _entry(charge: RentalCharge, paid: RentalPaid) -> LedgerEntry:
    """Return the ledger entry of a charge; see `ledger` for the accounts."""
    return LedgerEntry(
        "usage",
        charge.ref,
        charge.at_ms,
        [
            (wallet_account(charge.renter.wallet_id), -paid.charged_musd),
            (INCOME, charge.cost_musd),
            ("loss", paid.charged_musd - charge.cost_musd),
            (f"cost.{charge.provider}", charge.supply_musd),
            (f"payable.{charge.provider}", -charge.supply_musd),
        ],
        f"{charge.gpu_name} {charge.instance_id}",
    )
