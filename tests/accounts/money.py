"""Wallets, settlements and replicas on a database, for tests."""

from pathlib import Path
from typing import Any

from appliance.accounts.allowance import Allowances
from appliance.accounts.audit import find_differences
from appliance.accounts.guardrails import Guardrails
from appliance.accounts.journal import Journal
from appliance.accounts.meter import Metering
from appliance.accounts.recovery import Recovered, recover
from appliance.accounts.settlement import AttemptEnd, AttemptNote, Settlement
from appliance.accounts.settler import Settler
from appliance.accounts.usage import UsageStore
from appliance.accounts.wallets import Wallets
from appliance.base.clock import FakeClock
from appliance.base.tasks import Tasks
from appliance.storage.database import Database, Transaction

NOON_MS = 1_800_000_000_000


def settlement(
    number: int,
    wallet_id: str = "w1",
    charged: int = 10,
    *,
    cost: int | None = None,
    supply: int = 0,
    **note: Any,
) -> Settlement:
    fields = {
        "attempt_id": f"attempt-{number:06d}",
        "at_ms": NOON_MS,
        "wallet_id": wallet_id,
        "user_id": "",
        "key_id": "",
        "client_id": "",
        "ip": "",
        "kind": "inference",
        "model": "m",
        "served_model": "s",
        "backend": "b",
        "price_version": 1,
        "prompt_tokens": 5,
        **note,
    }
    cost = charged if cost is None else cost
    return Settlement(number, AttemptNote(**fields), AttemptEnd("engine", 5, 1, 7, charged, cost, supply))


class Money:
    """What one replica has for money."""

    def __init__(
        self, database: Database, replica_id: str = "r1", clock: FakeClock | None = None, **limits: int
    ) -> None:
        self.database = database
        self.clock = clock or FakeClock(at_s=NOON_MS / 1000)
        self.guardrails = Guardrails(database, self.clock, lambda wallet_id: limits)
        self.wallets = Wallets(database, self.clock, replica_id, guardrails=self.guardrails)
        self.usage = UsageStore(self.wallets)

    async def open(self, wallet_id: str, extra: int = 0, cap: int = 0) -> None:
        async def change(transaction: Transaction) -> None:
            await self.wallets.open(transaction, wallet_id, None, extra_musd=extra, cap_musd=cap)

        await self.database.run(change)

    async def sql(self, statement: str, **parameters: Any) -> Any:
        async with self.database.transaction() as transaction:
            return await transaction.execute(statement, parameters)

    async def check(self) -> None:
        """The money is right: ledger, wallets, leases and usage rows agree."""
        assert await find_differences(self.database) == []


class Replica(Money):
    """A whole process: allowances, journal, settler, meters."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        tasks: Tasks,
        replica_id: str = "r1",
        clock: FakeClock | None = None,
        *,
        most_musd: int = 2000,
        slice_tokens: int = 32,
    ) -> None:
        super().__init__(database, replica_id, clock)
        self.journal = Journal(folder, max_bytes=10**8)
        self.allowances = Allowances(self.wallets, self.journal, tasks, self.clock, most_musd=most_musd)
        self.settler = Settler(self.usage, self.allowances, self.journal, self.clock)
        self.metering = Metering(
            self.allowances, self.journal, self.settler.add, self.clock, slice_tokens=slice_tokens
        )

    async def recover(self) -> Recovered:
        return await recover(
            self.journal, self.usage, self.wallets, self.allowances, self.settler, self.clock
        )

    async def stop(self) -> None:
        await self.settler.drain()
        await self.allowances.close()
        self.journal.close()
