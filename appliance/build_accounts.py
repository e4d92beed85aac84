"""Build the accounts: who calls, what it costs, and the gate through which the pipeline asks.

Imported where accounts are on (ACCOUNTS=1): nothing of the database's libraries is loaded otherwise.
"""

import asyncio
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from appliance import __version__
from appliance.accounts.event_feed import EventFeed
from appliance.accounts.guardrails import LatestSpending, limits_of_settings
from appliance.accounts.identity import Identity, build_identity
from appliance.accounts.money import Money, build_money
from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.base.money import parse_musd
from appliance.base.tasks import Tasks
from appliance.front.account_gate import UserGate
from appliance.front.pipeline.access import Keys
from appliance.front.spending import Spending
from appliance.settings import Settings
from appliance.storage.database import Database, StoreRefused, Transaction
from appliance.storage.open import build_database
from appliance.storage.redis_store import RedisStore, build_redis

log = get_logger("accounts")


@dataclass(frozen=True, slots=True)
class Accounts:
    """The parts of the accounts.

    Attributes:
        redis: None = REDIS_HOST is not set.
        gate: What the pipeline asks.
        events: What users and operators are told.
    """

    database: Database
    redis: RedisStore | None
    identity: Identity
    money: Money
    spending: Spending
    gate: UserGate
    events: EventFeed


async def open_accounts(settings: Settings, stack: AsyncExitStack, *, clock: Clock, tasks: Tasks) -> Accounts:
    """Build the accounts and open them; the stack closes them.

    A database that is down is no failure: what is known from before goes on.

    Raises:
        OSError: The database can be reached and cannot be used, or another process holds it.
    """
    own, state_dir = settings.accounts, Path(settings.host.state_dir)
    database = build_database(settings.storage, state_dir, tasks=tasks, clock=clock)
    stack.push_async_callback(database.close)
    try:
        await database.open()
    except StoreRefused as exc:
        raise OSError(f"The database of accounts cannot be used: {exc}") from exc
    redis = build_redis(settings.storage, tasks=tasks)
    if redis is not None:
        stack.push_async_callback(redis.close)
        await redis.open()
    opened: list[Money] = []

    async def open_wallet(transaction: Transaction, wallet_id: str, user_id: str) -> None:
        """Make a user's wallet with the first credits."""
        extra_musd = parse_musd(own.signup_credits_usd)
        await opened[0].store.wallets.open(transaction, wallet_id, user_id, extra_musd=extra_musd)

    identity = build_identity(
        own,
        database,
        state_dir=state_dir,
        clock=clock,
        tasks=tasks,
        check_loopback=Keys(settings.front).check_loopback,
        redis=redis,
        open_wallet=open_wallet,
    )
    money = await asyncio.to_thread(
        build_money,
        own,
        database,
        identity.changes,
        state_dir=state_dir,
        clock=clock,
        tasks=tasks,
        host=socket.gethostname(),
        version=__version__,
    )
    opened.append(money)
    stack.push_async_callback(money.close)
    money.file_prices = list(settings.prices)
    await money.start()
    stack.push_async_callback(identity.close)
    events = EventFeed(money.store.events, identity.changes)
    await identity.start()
    limits = limits_of_settings(own)
    spending = Spending(
        money.metering,
        lambda: money.book,
        identity.limits,
        quotas=money.store.quotas,
        clock=clock,
        latest=LatestSpending(money.store.guardrails, tasks, clock) if limits else None,
    )
    gate = UserGate(identity.callers, identity.directory, spending, limited_windows=limits)
    return Accounts(database, redis, identity, money, spending, gate, events)
