"""The ledger: every movement of money as one entry of postings that add up to nothing, never changed.

Accounts: `wallet:ID` what a user has left · `receivable:ID` what a user owes us (negative) · `grants` what
was given · `income.inference` · `income.rental` rented GPUs · `loss` what a response or a rental cost beyond
what was held · `loss.late` what could not be collected any more · `cost.NAME` and `payable.NAME` what hosted
APIs and markets take. Money of a user is positive.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.base.clock import format_rfc3339_ms
from appliance.base.money import to_dollars
from appliance.storage.database import Database, Transaction

INSERT_ENTRY = (
    "INSERT INTO ledger_tx(id, kind, ref, at, note) VALUES (:id, :kind, :ref, :at, :note) "
    "ON CONFLICT (kind, ref) DO NOTHING"
)
INSERT_POSTING = (
    "INSERT INTO ledger_postings(tx_id, n, account, amount_musd) VALUES (:tx_id, :n, :account, :amount_musd)"
)
MAX_ENTRIES = 1000
Postings = Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One movement of money.

    Attributes:
        kind: What moved it: `usage`, `grant`, `renewal`, `payment` …
        ref: What it belongs to; one entry per kind and ref.
        at_ms: Epoch milliseconds.
        postings: Account and amount in micro-dollars; they add up to 0.
        note: For people.
    """

    kind: str
    ref: str
    at_ms: int
    postings: Postings
    note: str = ""

    @property
    def id(self) -> str:
        """Its id."""
        return f"{self.kind}:{self.ref}"


async def post(transaction: Transaction, entry: LedgerEntry) -> bool:
    """Add an entry; False = there is one of this kind and ref already, and nothing was added.

    Raises:
        ValueError: Its postings do not add up to nothing.
    """
    header, postings = _rows(entry)
    if not (await transaction.execute(INSERT_ENTRY, header)).changed:
        return False
    if postings:
        await transaction.execute(INSERT_POSTING, postings)
    return True


async def is_posted(transaction: Transaction, entry: LedgerEntry) -> bool:
    """Return whether the entry of this kind and ref has moved what this one would."""
    rows = await transaction.execute(
        "SELECT account, amount_musd FROM ledger_postings WHERE tx_id = :tx_id", {"tx_id": entry.id}
    )
    wanted = {(account, amount) for account, amount in entry.postings if amount}
    return {(row.account, row.amount_musd) for row in rows} == wanted


async def post_all(transaction: Transaction, entries: Iterable[LedgerEntry]) -> None:
    """Add entries that are known to be new.

    Raises:
        ValueError: Postings of one do not add up to nothing.
    """
    headers, postings = [], []
    for entry in entries:
        header, rows = _rows(entry)
        headers.append(header)
        postings += rows
    if headers:
        await transaction.execute(INSERT_ENTRY, headers)
    if postings:
        await transaction.execute(INSERT_POSTING, postings)


def _rows(entry: LedgerEntry) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if sum(amount for _, amount in entry.postings):
        raise ValueError(
            f"the postings of {entry.id} add up to {sum(a for _, a in entry.postings)}, not to 0"
        )
    header = {
        "id": entry.id,
        "kind": entry.kind,
        "ref": entry.ref,
        "at": entry.at_ms,
        "note": entry.note,
    }
    moved = [(account, amount) for account, amount in entry.postings if amount]
    postings = [
        {"tx_id": entry.id, "n": n, "account": account, "amount_musd": amount}
        for n, (account, amount) in enumerate(moved, 1)
    ]
    return header, postings


def wallet_account(wallet_id: str) -> str:
    """Return the account of a wallet."""
    return f"wallet:{wallet_id}"


def receivable_account(wallet_id: str) -> str:
    """Return the account of what a wallet's owner owes."""
    return f"receivable:{wallet_id}"


async def balances(database: Database) -> dict[str, int]:
    """Return what each account that belongs to no single user holds, and the sums of those that do.

    Wallets are summed up under `wallet:*`, receivables under `receivable:*`.
    """

    async def read(transaction: Transaction) -> dict[str, int]:
        rows = await transaction.execute(
            "SELECT CASE WHEN account LIKE 'wallet:%' THEN 'wallet:*' "
            "WHEN account LIKE 'receivable:%' THEN 'receivable:*' ELSE account END AS name, "
            "CAST(SUM(amount_musd) AS BIGINT) AS musd FROM ledger_postings GROUP BY 1 ORDER BY 1"
        )
        return {row.name: row.musd for row in rows}

    return await database.run(read, is_read_only=True)


async def entries_of(
    database: Database,
    wallet_id: str,
    *,
    limit: int = 100,
    before_ms: int | None = None,
    before_id: str = "",
) -> list[dict[str, Any]]:
    """Return a wallet's latest movements for JSON, newest first.

    Args:
        database: Where they are.
        wallet_id: The wallet.
        limit: At most so many, up to MAX_ENTRIES.
        before_ms: Only those before, epoch milliseconds.
        before_id: And those of this very time with a lower id.
    """

    async def read(transaction: Transaction) -> list[dict[str, Any]]:
        rows = await transaction.execute(
            "SELECT t.id, t.kind, t.ref, t.at, t.note, p.amount_musd FROM ledger_postings p "
            "JOIN ledger_tx t ON t.id = p.tx_id WHERE p.account = :account AND t.at <= :before "
            "AND (t.at < :before OR t.id < :id) ORDER BY t.at DESC, t.id DESC LIMIT :limit",
            {
                "account": wallet_account(wallet_id),
                "before": 1 << 62 if before_ms is None else before_ms,
                "id": before_id,
                "limit": max(1, min(limit, MAX_ENTRIES)),
            },
        )
        return [
            {
                "id": row.id,
                "kind": row.kind,
                "ref": row.ref,
                "at": format_rfc3339_ms(row.at),
                "amount": to_dollars(row.amount_musd),
                "note": row.note,
            }
            for row in rows
        ]

    return await database.run(read, is_read_only=True)
