"""The measurements of accounts: their data is right, and a turn of each kind is answered on both sides."""

import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bench.account_data import accounts_environ, add_users, open_store, plain_environ, settlements_of


async def test_the_users_of_a_measurement_can_pay(tmp_path: Path) -> None:
    environ = {**plain_environ(tmp_path, 9), **accounts_environ(tmp_path)}
    async with AsyncExitStack() as stack:
        accounts = await open_store(environ, stack)
        users = await add_users(accounts, 3)
        store = accounts.money.store
        answer = await store.wallets.lease(users[2].wallet_id, least_musd=1, want_musd=100, most_musd=100)
        assert answer.granted_musd == 100
        assert (await store.usage.settle(settlements_of(users, 6, 0))).new == 6


@pytest.mark.parametrize("mode", ["whole", "bursts"])
def test_a_turn_is_answered_with_accounts_and_without(mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.inside", mode, "1"], capture_output=True, text=True, timeout=60
    )
    assert f"inside, {mode}: off" in done.stdout, done.stderr[-2000:]
