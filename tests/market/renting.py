"""All that rents, on a database of tests, with a clock that moves only when it is told, at markets in memory."""

from collections.abc import Callable, Mapping
from typing import Any

from appliance.accounts.audit import find_differences
from appliance.accounts.guardrails import Guardrails
from appliance.accounts.quotas import RequestQuotas
from appliance.accounts.rental_money import RentalMoney
from appliance.accounts.wallets import Wallets
from appliance.base.clock import FakeClock
from appliance.base.rental_charges import Renter
from appliance.base.tasks import Tasks
from appliance.market.build import build_rentals
from appliance.market.candidates import OfferFinder
from appliance.market.providers.contract import Provider
from appliance.market.rental_types import Rental
from appliance.market.service import RentalService
from appliance.market.settings import MarketSettings
from appliance.storage.database import Database, Transaction
from tests.fakes.market import FakeMarket

MUSD = 1_000_000


class Events:
    """Keeps what was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str | None, str, dict[str, Any]]] = []

    async def append(
        self, transaction: Transaction, user_id: str | None, topic: str, data: Mapping[str, Any]
    ) -> int:
        self.told.append((user_id, topic, dict(data)))
        return len(self.told)

    async def announce(self) -> None:
        return None

    def kinds(self, user_id: str | None = "u1") -> list[str]:
        return [data["kind"] for user, _, data in self.told if user == user_id]


class Renting:
    """One replica."""

    def __init__(
        self,
        database: Database,
        tasks: Tasks,
        *,
        clock: FakeClock | None = None,
        markets: list[FakeMarket] | None = None,
        providers: Mapping[str, Provider] | None = None,
        finder: OfferFinder | None = None,
        limits: dict[str, int] | None = None,
        on_step: Callable[[], None] = lambda: None,
        strategy: str = "round_robin",
        **settings: Any,
    ) -> None:
        self.database = database
        self.clock = clock or FakeClock()
        self.markets = markets if markets is not None else [FakeMarket(self.clock)]
        guardrails = Guardrails(database, self.clock, lambda _: limits or {})
        self.wallets = Wallets(database, self.clock, "r1", guardrails=guardrails)
        self.quotas = RequestQuotas(database, self.clock)
        self.payments = RentalMoney(self.wallets, self.quotas)
        self.events = Events()
        self.settings = MarketSettings(**settings)
        self.service: RentalService = build_rentals(
            self.settings,
            database,
            self.payments,
            providers or {market.name: market for market in self.markets},
            finder or self.markets[0],
            clock=self.clock,
            tasks=tasks,
            strategy=lambda: strategy,
            events=self.events,
            pause=self.pause,
            on_step=on_step,
        )
        self.renter = Renter("u1", "w1")

    @property
    def market(self) -> FakeMarket:
        return self.markets[0]

    async def pause(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def open(self, *, dollars: float = 100) -> None:
        await self.service.open()
        await self.know_install()
        await self.add_user("u1", "w1", dollars)

    async def know_install(self) -> None:
        """Tell the markets whose instances are ours."""
        for market in self.markets:
            market.install_id = (await self.service.state()).install_id

    async def add_user(self, user_id: str, wallet_id: str, dollars: float) -> None:
        async with self.database.transaction() as transaction:
            await transaction.execute(
                "INSERT INTO users(id, email, password_hash, created_at, updated_at) VALUES (:id, :id, '', 1, 1)",
                {"id": user_id},
            )
            await self.wallets.open(transaction, wallet_id, user_id, extra_musd=round(dollars * MUSD))

    async def live_on(self, seconds: float, *, step_s: float = 5) -> None:
        """Let time go by, with rounds in the background."""
        end = self.clock.elapsed_s + seconds
        while self.clock.elapsed_s < end:
            self.clock.advance(min(step_s, end - self.clock.elapsed_s))
            await self.service.round()

    async def all(self) -> list[Rental]:
        return await self.service.rentals(user_id=None, limit=1000)

    async def one(self, rental_id: str) -> Rental:
        [found] = [one for one in await self.all() if one.id == rental_id]
        return found

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        async with self.database.transaction() as transaction:
            return list(await transaction.execute(statement, values))

    async def check_money(self, wallet_id: str = "w1") -> None:
        assert [str(one) for one in await find_differences(self.database)] == []

    async def check_ended(self) -> None:
        """Nothing of ours runs, no wallet holds anything, and the ledger has what the market takes."""
        await self.check_money()
        assert self.market.alive_of_ours() == []
        wallet = await self.wallets.find("w1")
        assert wallet.leased_musd == 0
        assert all(one.held_musd == 0 for one in await self.all())

    async def cost_in_ledger(self) -> int:
        rows = await self.sql(
            "SELECT CAST(COALESCE(SUM(amount_musd), 0) AS BIGINT) AS musd FROM ledger_postings "
            "WHERE account = :account",
            account=f"cost.{self.market.name}",
        )
        return int(rows[0].musd)
