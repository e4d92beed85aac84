"""Whether the money is right: every wallet computed anew from the ledger, the leases and the usage rows."""

from dataclasses import dataclass

from appliance.storage.database import Database, Transaction

LIMIT = 1000  # of each check


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that should be equal and is not.

    Attributes:
        what: What is compared.
        subject: Of which wallet, entry or attempt.
        expected_musd: Micro-dollars, or a count.
        found_musd: The same.
    """

    what: str
    subject: str
    expected_musd: int
    found_musd: int

    def __str__(self) -> str:
        return f"{self.what} of {self.subject}: expected {self.expected_musd}, found {self.found_musd}"


# Each query gives id, expected, found for what differs.
CHECKS = {
    "sum of the postings": (
        "SELECT tx_id AS id, 0 AS expected, CAST(SUM(amount_musd) AS BIGINT) AS found FROM ledger_postings "
        "GROUP BY tx_id HAVING SUM(amount_musd) <> 0"
    ),
    "balance in the ledger": (
        "SELECT w.id AS id, w.plan_musd + w.extra_musd - w.used_musd AS expected, "
        "CAST(COALESCE(SUM(p.amount_musd), 0) AS BIGINT) AS found FROM wallets w "
        "LEFT JOIN ledger_postings p ON p.account = 'wallet:' || w.id "
        "GROUP BY w.id, w.plan_musd, w.extra_musd, w.used_musd "
        "HAVING w.plan_musd + w.extra_musd - w.used_musd <> COALESCE(SUM(p.amount_musd), 0)"
    ),
    "what is owed by the ledger": (
        "SELECT w.id AS id, -w.owed_musd AS expected, "
        "CAST(COALESCE(SUM(p.amount_musd), 0) AS BIGINT) AS found "
        "FROM wallets w LEFT JOIN ledger_postings p ON p.account = 'receivable:' || w.id "
        "GROUP BY w.id, w.owed_musd HAVING -w.owed_musd <> COALESCE(SUM(p.amount_musd), 0)"
    ),
    "what is set aside": (
        "SELECT id, expected, found FROM (SELECT w.id AS id, w.leased_musd AS expected, CAST("
        "(SELECT COALESCE(SUM(l.amount_musd), 0) FROM wallet_leases l WHERE l.wallet_id = w.id) + "
        "(SELECT COALESCE(SUM(r.held_musd), 0) FROM rentals r WHERE r.wallet_id = w.id) AS BIGINT) AS found "
        "FROM wallets w) sums WHERE expected <> found"
    ),
    "charges of the rental": (
        "SELECT r.id AS id, r.charged_musd AS expected, CAST(COALESCE(u.musd, 0) AS BIGINT) AS found "
        "FROM rentals r LEFT JOIN (SELECT SUBSTR(attempt_id, 1, 36) AS rental, SUM(charged_musd) AS musd "
        "FROM usage WHERE kind = 'gpu' GROUP BY 1) u ON u.rental = r.id "
        "WHERE r.charged_musd <> COALESCE(u.musd, 0)"
    ),
    "charge in the ledger": (
        "SELECT u.attempt_id AS id, -u.charged_musd AS expected, "
        "CAST(COALESCE(SUM(p.amount_musd), 0) AS BIGINT) AS found FROM usage u "
        "LEFT JOIN ledger_postings p ON p.tx_id = 'usage:' || u.attempt_id "
        "AND p.account = 'wallet:' || u.wallet_id "
        "GROUP BY u.attempt_id, u.charged_musd HAVING -u.charged_musd <> COALESCE(SUM(p.amount_musd), 0)"
    ),
    "usage row": (
        "SELECT t.ref AS id, 1 AS expected, 0 AS found FROM ledger_tx t "
        "LEFT JOIN usage u ON u.attempt_id = t.ref WHERE t.kind = 'usage' AND u.attempt_id IS NULL"
    ),
    "ledger entry": (
        "SELECT u.attempt_id AS id, 1 AS expected, 0 AS found FROM usage u "
        "LEFT JOIN ledger_tx t ON t.id = 'usage:' || u.attempt_id WHERE t.id IS NULL"
    ),
}


async def find_differences(database: Database) -> list[Difference]:
    """Return everything that is not as it should be; empty = the money is right.

    One transaction: what is settled meanwhile makes no difference.
    """

    async def read(transaction: Transaction) -> list[Difference]:
        if database.kind == "postgres":
            await transaction.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        found = []
        for what, query in CHECKS.items():
            rows = await transaction.execute(f"{query} ORDER BY 1 LIMIT {LIMIT}")
            found += [Difference(what, row.id, row.expected, row.found) for row in rows]
        return found

    return await database.run(read, is_read_only=True)
