"""Whole appliances with accounts: users with credits, what is in their database, and whether the money is right."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from appliance.accounts.actor import UserFacts
from appliance.accounts.audit import find_differences
from appliance.accounts.audit_log import SYSTEM
from appliance.accounts.identity import Identity
from appliance.accounts.issued_keys import KeyRequest
from appliance.accounts.money import MoneyStore
from appliance.accounts.prices import Price, TokenUsage
from appliance.accounts.wallets import Wallet
from appliance.base.clock import SystemClock
from appliance.base.ids import new_id
from appliance.storage.database import Database
from appliance.storage.settings import StorageSettings
from tests.accounts.parts import PASSWORD, SECRET, identity_on, settings_of
from tests.journeys.running import Running, Start, until
from tests.storage_servers import make_sqlite, opened

# One micro-dollar a token of the prompt, two a token of the response, three a token of embeddings.
PRICE = Price("*", in_per_mtok=1_000_000, out_per_mtok=2_000_000, embedding_per_mtok=3_000_000)
PRICE_ROW = {"model": "*", "in": "1", "out": "2", "embedding": "3"}
QUICK = {"SLOW_START_S": "0", "BACKEND_STARTUP_GRACE_S": "0"}
HELLO = [{"role": "user", "content": "hello"}]
Call = tuple[str, dict[str, Any]]
DIALECTS: dict[str, Call] = {
    "chat": ("/v1/chat/completions", {"messages": HELLO}),
    "completions": ("/v1/completions", {"prompt": "hello"}),
    "responses": ("/v1/responses", {"input": "hello"}),
    "anthropic": ("/v1/messages", {"messages": HELLO, "max_tokens": 100_000}),
    "ollama_chat": ("/api/chat", {"messages": HELLO}),
    "ollama_generate": ("/api/generate", {"prompt": "hello"}),
}


@dataclass(frozen=True)
class PayingUser:
    """A user with credits and a key."""

    id: str
    wallet_id: str
    key: str
    key_id: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def environ(folder: Path, *, price: dict[str, Any] = PRICE_ROW, **more: str) -> dict[str, str]:
    """Return the variables of an appliance with accounts, whose limits are out of the way."""
    prices = folder / "prices.json"
    prices.write_text(json.dumps({"prices": [price]}))
    return {
        "ACCOUNTS": "1",
        "JWT_SECRET": SECRET,
        "PRICES_FILE": str(prices),
        "RATE_LIMIT_REQUESTS_PER_MINUTE": "0",
        "QUOTA_MAX_REQUESTS": "0",
        **QUICK,
        **more,
    }


async def begin_paying(
    start: Start, folder: Path, *, price: dict[str, Any] = PRICE_ROW, **variables: str
) -> Running:
    """Start an appliance with accounts in this process, on SQLite where nothing else is said."""
    state = Path(variables.get("STATE_DIR", folder / "state"))
    state.mkdir(exist_ok=True)
    if not (state / "gpuproxy.db").exists() and "DB_HOST" not in variables:
        make_sqlite(state / "gpuproxy.db")
    return await start(**environ(folder, price=price) | variables)


async def make_user(identity: Identity, money: MoneyStore, musd: int, name: str = "user") -> PayingUser:
    """Make a user with credits and a key."""
    email = f"{name}-{new_id(identity.clock)}@example.org"
    user = await identity.users.create(email, PASSWORD, name, author=SYSTEM)
    facts = await identity.directory.user(user.id)
    assert isinstance(facts, UserFacts)
    key, stored = await identity.keys.create(facts, KeyRequest(name="test"), author=SYSTEM)
    if musd:
        await money.wallets.grant(facts.wallet_id, musd, ref=new_id(identity.clock))
    return PayingUser(user.id, facts.wallet_id, key.text, stored.id)


async def user_of(running: Running, musd: int) -> PayingUser:
    """Make a user of a running appliance."""
    accounts = running.appliance.accounts
    assert accounts is not None
    return await make_user(accounts.identity, accounts.money.store, musd)


@dataclass
class Store:
    """A database beside the appliances that use it."""

    database: Database
    identity: Identity
    money: MoneyStore

    async def user(self, musd: int) -> PayingUser:
        return await make_user(self.identity, self.money, musd)

    async def rows(self, wallet_id: str = "") -> list[Any]:
        return await usage_rows(self.database, wallet_id)

    async def wallet(self, wallet_id: str) -> Wallet:
        return await self.money.wallets.find(wallet_id)

    async def check(self) -> None:
        await check_money(self.database)


@asynccontextmanager
async def store_at(settings: StorageSettings, folder: Path) -> AsyncIterator[Store]:
    """Open a database; SQLite must not be in use by an appliance."""
    async with (
        opened(settings, folder) as database,
        identity_on(database, folder, is_started=False) as identity,
    ):
        yield Store(
            database, identity, MoneyStore(settings_of(), database, identity.changes, clock=SystemClock())
        )


async def usage_rows(database: Database, wallet_id: str = "") -> list[Any]:
    """Return the settled attempts, of one wallet or of all, in the order in which they began."""
    statement = "SELECT * FROM usage WHERE wallet_id = :wallet OR :wallet = '' ORDER BY at, attempt_id"
    async with database.transaction(is_read_only=True) as transaction:
        return list(await transaction.execute(statement, {"wallet": wallet_id}))


async def check_money(database: Database) -> None:
    """Ledger, wallets, leases and usage rows agree, and no wallet is beyond what it may."""
    assert [str(one) for one in await find_differences(database)] == []
    async with database.transaction(is_read_only=True) as transaction:
        beyond = await transaction.execute(
            "SELECT id FROM wallets WHERE used_musd + leased_musd > plan_musd + extra_musd + cap_musd"
        )
        sums = await transaction.execute("SELECT COALESCE(SUM(amount_musd), 0) AS musd FROM ledger_postings")
    assert (list(beyond), int(sums[0].musd)) == ([], 0)


async def settled(running: Running) -> None:
    """Wait until no request runs, nothing is held, and every charge is in the database."""
    accounts = running.appliance.accounts
    assert accounts is not None
    money, pipeline = accounts.money, running.appliance.pipeline

    def is_quiet() -> bool:
        held = sum(one.held_musd + one.spent_musd for one in money.allowances.all())
        return pipeline.in_flight == 0 == money.settler.waiting_count == held

    assert await until(is_quiet), "requests or charges are left over"
    assert money.settler.stuck == []
    assert money.journal.unsettled_count == 0


async def rows_of(running: Running, user: PayingUser) -> list[Any]:
    """Return a user's settled attempts when all are settled, with the money checked."""
    accounts = running.appliance.accounts
    assert accounts is not None
    await settled(running)
    await check_money(accounts.database)
    return await usage_rows(accounts.database, user.wallet_id)


def cost_of(row: Any, price: Price = PRICE) -> int:
    """Return what the tokens of a usage row cost."""
    tokens = TokenUsage(row.tokens_in, row.tokens_cached, row.tokens_out)
    return price.cost_musd(tokens, is_embedding=row.kind == "embedding")


async def post(
    http: httpx.AsyncClient, call: Call, *, stream: bool = False, query: str = "", **more: Any
) -> httpx.Response:
    """Send one request of a dialect, and read the answer whole."""
    path, body = call
    return await http.post(path + query, json={"model": "tiny", **body, "stream": stream, **more})


async def leave_after(http: httpx.AsyncClient, call: Call, token: str, *, query: str = "") -> None:
    """Send a streaming request, and leave when a token has come; "" = when the response's head has."""
    path, body = call
    request = {"model": "tiny", **body, "stream": True}
    async with http.stream("POST", path + query, json=request) as response:
        assert response.status_code == 200, await response.aread()
        got = ""
        async for text in response.aiter_text():
            got += text
            if token in got:
                return
    raise AssertionError(f"the response ended without {token!r}: {got[-500:]}")


async def gather_calm(*work: Awaitable[Any]) -> list[Any]:
    """Run all, and raise the first failure when all have ended."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)
