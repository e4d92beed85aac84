"""An appliance is killed at each step with money; after the next start every attempt has one row, and the money is right.

PAYING_FAULTS=all in the environment: at every step, before and after it, the first three times.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from appliance.storage.settings import StorageSettings
from tests.fakes.counting_engine import PROMPT_TOKENS, CountingEngine, token_text
from tests.journeys.killed_appliance import STEPS
from tests.journeys.paying import (
    DIALECTS,
    PayingUser,
    begin_paying,
    environ,
    leave_after,
    post,
    rows_of,
    store_at,
)
from tests.journeys.running import Process, Spawn, Start
from tests.storage_servers import PostgresServer, make_sqlite, postgres_name, postgres_server

__all__ = ["postgres_server"]
CHAT = DIALECTS["chat"]
TOKENS = 6
COST = PROMPT_TOKENS + 2 * TOKENS
MOST = TOKENS + 1  # counted: the last event has no text, and is one all the same
SMALL = {"HOLD_SLICE_TOKENS": "2", "WALLET_LEASE_MAX_USD": "0.0001", "CONTROL": "0"}
IS_LONG = os.environ.get("PAYING_FAULTS") == "all"
FEW = {
    "sqlite": [
        "journal.begin:after:2",
        "upstream.send:after:2",
        "journal.progress:before:1",
        "journal.end:before:2",
        "journal.end:after:2",
        "usage.settle:after:1",
    ],
    "postgres": ["wallets.lease:after:2", "usage.settle:after:2"],
}
ALL = [f"{step}:{when}:{number}" for step in STEPS for when in ("before", "after") for number in (1, 2, 3)]
CASES = [(kind, point) for kind, few in FEW.items() for point in (ALL if IS_LONG else few)]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as one:
        yield one


@pytest.fixture
def server(request: pytest.FixtureRequest, kind: str) -> PostgresServer | None:
    """None = SQLite."""
    if kind == "sqlite":
        return None
    return request.getfixturevalue("postgres_server")  # type: ignore[no-any-return]


async def use(process: Process, user: PayingUser, engine: CountingEngine) -> int:
    """Send requests of all kinds until the process dies; return how many responses came whole."""
    whole = 0
    async with httpx.AsyncClient(base_url=process.base_url, headers=user.headers, timeout=10) as http:
        try:
            for _ in range(2):
                for stream in (False, True):
                    answer = await post(http, CHAT, stream=stream, max_tokens=TOKENS)
                    assert answer.status_code == 200, answer.text
                    whole += not stream or "[DONE]" in answer.text
                engine.stall_at = 3
                await leave_after(http, CHAT, token_text(3))
                engine.stall_at = None
                await asyncio.sleep(0.2)
        except httpx.TransportError:
            pass  # it is dead
    engine.stall_at = None
    return whole


@pytest.mark.parametrize(("kind", "point"), CASES)
async def test_a_kill_at_any_step_loses_and_doubles_no_charge(
    spawn: Spawn,
    start: Start,
    tmp_path: Path,
    stack: AsyncExitStack,
    server: PostgresServer | None,
    kind: str,
    point: str,
) -> None:
    engine = await stack.enter_async_context(CountingEngine(tokens=TOKENS))
    state, settings = tmp_path / "state", StorageSettings()
    reached: dict[str, str] = {}
    state.mkdir()
    if server is None:
        make_sqlite(state / "gpuproxy.db")
    else:
        name = await stack.enter_async_context(postgres_name(server))
        reached, settings = server.environ(name), server.settings(name)
    async with store_at(settings, state) as store:
        user = await store.user(100_000)
    given = environ(tmp_path, BACKENDS=f"e={engine.url}", **SMALL, **reached)
    path = str(Path(__file__).parents[2])
    process = await asyncio.to_thread(
        spawn,
        program=("tests.journeys.killed_appliance",),
        wait=False,
        FAULT_POINT=point,
        PYTHONPATH=path,
        **given,
    )
    whole = 0
    if await _answers(process):
        whole = await use(process, user, engine)
    if process.process.poll() is None:  # its point was not reached: killed here
        process.process.kill()
    assert await asyncio.to_thread(process.process.wait, 10) == -signal.SIGKILL, process.text()[-2000:]
    served = len(engine.served)

    running = await begin_paying(start, tmp_path, BACKENDS=f"e={engine.url}", **SMALL, **reached)
    rows = await rows_of(running, user)
    assert served <= len(rows) <= served + 1  # it was noted, and killed before it was sent
    paid = [row for row in rows if row.charged_musd]
    assert len(paid) >= whole
    assert all(row.charged_musd <= row.tokens_in + 2 * MOST for row in paid)
    assert {row.charged_musd for row in rows if row.source == "engine"} <= {COST}
    accounts = running.appliance.accounts
    assert accounts is not None
    wallet = await accounts.money.store.wallets.find(user.wallet_id)
    assert (wallet.leased_musd, wallet.used_musd) == (0, sum(row.charged_musd for row in rows))
    async with httpx.AsyncClient(base_url=running.base_url, headers=user.headers, timeout=10) as http:
        assert (await post(http, CHAT)).status_code == 200
    assert (await rows_of(running, user))[-1].charged_musd == COST


async def _answers(process: Process) -> bool:
    """Wait until it serves; False = it was killed before."""
    async with httpx.AsyncClient(base_url=process.base_url, timeout=2) as http:
        while process.process.poll() is None:
            try:
                await http.get("/healthz")
            except httpx.TransportError:
                await asyncio.sleep(0.02)
            else:
                return True
    return False
