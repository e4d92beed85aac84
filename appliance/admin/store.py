"""The parts of accounts on the database of the settings, opened without a server."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.accounts.audit_log import Author
from appliance.accounts.identity import Identity, build_identity
from appliance.accounts.money import MoneyStore
from appliance.accounts.settings import AccountSettings
from appliance.base.clock import SystemClock
from appliance.base.money import parse_musd
from appliance.base.settings import InvalidSettings
from appliance.base.tasks import Tasks
from appliance.control.account_service import AccountService
from appliance.control.settings import ControlSettings
from appliance.host.settings import HostSettings
from appliance.settings import effective_environ
from appliance.settings_prices import read_prices
from appliance.storage.database import Database, StoreUnavailable, Transaction
from appliance.storage.open import build_database
from appliance.storage.redis_store import RedisStore, build_redis
from appliance.storage.settings import StorageSettings

UNUSED = "no token is signed by these programs"


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """What has to be known of the settings to open the database, or to reach the appliance that holds it.

    Attributes:
        is_on: ACCOUNTS; `accounts` has it off, so that JWT_SECRET is not needed.
    """

    storage: StorageSettings
    accounts: AccountSettings
    control: ControlSettings
    state_dir: Path
    is_on: bool

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "StoreSettings":
        """Read them; JWT_SECRET is not needed.

        Raises:
            InvalidSettings: Some of them are not valid.
        """
        merged, _ = effective_environ(environ)
        host = HostSettings.from_env({"STATE_DIR": merged.get("STATE_DIR", "")})
        storage, control = StorageSettings.from_env(merged), ControlSettings.from_env(merged)
        accounts = AccountSettings.from_env({**merged, "ACCOUNTS": "0"})
        switch = {"ACCOUNTS": merged.get("ACCOUNTS", ""), "JWT_SECRET": UNUSED}
        is_on = AccountSettings.from_env(switch).accounts
        return cls(storage, accounts, control, host.state_dir, is_on)


@asynccontextmanager
async def opened_service(settings: StoreSettings) -> AsyncIterator[AccountService]:
    """Open the database, and Redis where there is one; close both at the end.

    Raises:
        InvalidSettings: PRICES_FILE cannot be read.
        StoreHeld: Another process uses SQLite's file.
        StoreRefused: The database can be reached, and cannot be used.
        StoreUnavailable: It cannot be reached.
    """
    clock = SystemClock()
    async with Tasks() as tasks:
        database = build_database(settings.storage, settings.state_dir, tasks=tasks, clock=clock)
        redis = build_redis(settings.storage, tasks=tasks)
        try:
            await database.open()
            if not database.is_up:
                raise StoreUnavailable(database.reason)
            if redis is not None:
                await redis.open()
            identity, store = _build(settings, database, redis, tasks)
            try:
                prices, problems = read_prices(settings.accounts.model_copy(update={"accounts": True}))
                if problems:
                    raise InvalidSettings(problems)
                yield AccountService(identity, store, author=Author("command"), file_prices=lambda: prices)
            finally:
                identity.passwords.close()
        finally:
            if redis is not None:
                await redis.close()
            await database.close()


def _build(
    settings: StoreSettings, database: Database, redis: RedisStore | None, tasks: Tasks
) -> tuple[Identity, MoneyStore]:
    """Build the parts; nothing runs in the background, and nothing is leased."""
    clock, own = SystemClock(), settings.accounts
    stores: list[MoneyStore] = []

    async def open_wallet(transaction: Transaction, wallet_id: str, user_id: str) -> None:
        extra_musd = parse_musd(own.signup_credits_usd)
        await stores[0].wallets.open(transaction, wallet_id, user_id, extra_musd=extra_musd)

    identity = build_identity(
        own,
        database,
        state_dir=settings.state_dir,
        clock=clock,
        tasks=tasks,
        check_loopback=lambda headers, peer: None,  # no request is admitted here
        redis=redis,
        open_wallet=open_wallet,
    )
    stores.append(MoneyStore(own, database, identity.changes, clock=clock))
    return identity, stores[0]
