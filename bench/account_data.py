"""Users, keys, wallets and attempts for bench/accounts.py and bench/inside.py."""

import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.base.clock import SystemClock
from appliance.base.tasks import Tasks
from appliance.build_accounts import Accounts, open_accounts
from appliance.settings import load_or_raise
from bench.peers import CLIENT_KEY

if TYPE_CHECKING:
    from appliance.accounts.settlement import Settlement

PASSWORD = "correct horse battery staple"
SECRET = "x9y8z7w6v5u4t3s2r1q0p9o8n7m6l5k4j3h2"
CREDIT_MUSD = 10**12
MANY = "10000000"


@dataclass(frozen=True, slots=True)
class BenchUser:
    """A user with a wallet and a key."""

    id: str
    email: str
    wallet_id: str
    key_id: str
    key: str


def plain_environ(folder: Path, upstream: int) -> dict[str, str]:
    """Return the settings of an appliance with everything on but accounts."""
    return {
        "NOVITA_API_KEY": "sk_bench_000000000",
        "NOVITA_OPENAI_ENDPOINTS": f"http://127.0.0.1:{upstream}/v1",
        "UPSTREAM_MAX_CONNECTIONS": "4096",
        "APPLIANCE_API_KEYS": CLIENT_KEY,
        "STATE_DIR": str(folder / "state"),
        "MACHINE_ID_PATH": str(folder / "machine-id"),
        "LOG_FORMAT": "json",
        "NAT_REDIRECT": "off",
    }


def accounts_environ(folder: Path) -> dict[str, str]:
    """Return what turns accounts on, with a price, limits and quotas that are not reached."""
    prices = folder / "prices.json"
    prices.write_text(
        json.dumps({"prices": [{"model": "*", "in": "0.60", "cached_in": "0.15", "out": "0.80"}]})
    )
    return {
        "ACCOUNTS": "1",
        "APPLIANCE_API_KEYS": "",
        "JWT_SECRET": SECRET,
        "PRICES_FILE": str(prices),
        "RATE_LIMIT_REQUESTS_PER_MINUTE": MANY,
        "RATE_LIMIT_TOKENS_PER_MINUTE": MANY + "00",
        "QUOTA_MAX_REQUESTS": MANY + "00",
        "WALLET_LEASE_MAX_USD": "1",
    }


async def open_store(environ: dict[str, str], stack: AsyncExitStack) -> Accounts:
    """Open the accounts of some settings, without the rest of the appliance."""
    tasks = await stack.enter_async_context(Tasks())
    settings, _ = load_or_raise(environ)
    return await open_accounts(settings, stack, clock=SystemClock(), tasks=tasks)


async def fill(environ: dict[str, str], count: int) -> list[BenchUser]:
    """Put so many users into the database; the first one's key is what load.c sends."""
    async with AsyncExitStack() as stack:
        return await add_users(await open_store(environ, stack), count)


async def add_users(accounts: Accounts, count: int) -> list[BenchUser]:
    """Add so many users, each with a wallet and a key."""
    from sqlalchemy import insert

    from appliance.accounts.api_keys import digest_of
    from appliance.base.ids import new_id
    from appliance.storage import schema
    from appliance.storage.database import Transaction

    clock = SystemClock()
    now_ms = round(clock.now_s() * 1000)
    hashed = await accounts.identity.passwords.hash(PASSWORD)
    keys = [CLIENT_KEY, *(f"apk_benchkey_{number:032d}" for number in range(1, count))]
    users = [
        BenchUser(new_id(clock), f"{number}@example.org", new_id(clock), new_id(clock), key)
        for number, key in enumerate(keys)
    ]
    times = {"created_at": now_ms, "updated_at": now_ms}

    async def work(transaction: Transaction) -> None:
        await transaction.execute(
            insert(schema.users),
            [
                {"id": one.id, "email": one.email, "password_hash": hashed, "name": "n", **times}
                for one in users
            ],
        )
        await transaction.execute(
            insert(schema.wallets),
            [{"id": one.wallet_id, "user_id": one.id, "extra_musd": CREDIT_MUSD, **times} for one in users],
        )
        await transaction.execute(
            insert(schema.api_keys),
            [
                {
                    "id": one.key_id,
                    "user_id": one.id,
                    "key_hash": digest_of(one.key),
                    "prefix": "apk_benchkey",
                    "name": "n",
                    "scopes": '["inference"]',
                    "created_at": now_ms,
                }
                for one in users
            ],
        )

    await accounts.database.run(work)
    return users


def settlements_of(users: Sequence[BenchUser], count: int, start: int) -> "list[Settlement]":
    """Return attempts that have ended, of 64 users in turn."""
    from appliance.accounts.settlement import AttemptEnd, AttemptIds, AttemptNote, Settlement

    ids, at_ms = AttemptIds(), round(SystemClock().now_s() * 1000)
    found: list[Settlement] = []
    for number in range(start, start + count):
        user = users[number % min(64, len(users))]
        note = AttemptNote(
            ids.new(at_ms),
            at_ms,
            user.wallet_id,
            user.id,
            user.key_id,
            user.key_id,
            "10.0.0.1",
            "inference",
            "m",
            "upstream/base-model",
            "hosted",
            1,
            60,
        )
        found.append(Settlement(0, note, AttemptEnd("engine", 12, 0, 9, 15, 15, 0)))
    return found
