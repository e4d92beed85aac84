"""How much there is of everything, for operators: users, keys, movements of the ledger, what is set aside."""

from dataclasses import dataclass

from appliance.storage.database import Database, Transaction

COUNTS = {
    "users": "SELECT COUNT(*) FROM users",
    "active_users": "SELECT COUNT(*) FROM users WHERE is_active",
    "active_api_keys": "SELECT COUNT(*) FROM api_keys WHERE is_active",
    "transactions": "SELECT COUNT(*) FROM ledger_tx",
    "gpu_seconds": "SELECT CAST(COALESCE(SUM(used_gpu_seconds), 0) AS BIGINT) FROM usage_quotas",
    "leased_musd": "SELECT CAST(COALESCE(SUM(leased_musd), 0) AS BIGINT) FROM wallets",
}


@dataclass(frozen=True, slots=True)
class AccountTotals:
    """The totals of an installation.

    Attributes:
        users: Inactive ones included.
        active_users: Who may call.
        active_api_keys: That were not revoked.
        transactions: Movements of the ledger.
        gpu_seconds: Of rented GPUs, in this month.
        leased_musd: What replicas have set aside of all wallets.
    """

    users: int
    active_users: int
    active_api_keys: int
    transactions: int
    gpu_seconds: int
    leased_musd: int


async def read_totals(database: Database) -> AccountTotals:
    """Count everything, in one transaction.

    Raises:
        StoreUnavailable: The database is down.
    """

    async def read(transaction: Transaction) -> AccountTotals:
        return AccountTotals(
            **{name: (await transaction.execute(query))[0][0] for name, query in COUNTS.items()}
        )

    return await database.run(read, is_read_only=True)
