"""The database of accounts goes away and comes back: no charge is lost, nobody is turned away as unknown."""

import asyncio
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from appliance.accounts.audit_log import SYSTEM
from appliance.accounts.user_forms import UserChange
from tests.accounts.parts import PASSWORD
from tests.fakes.counting_engine import PROMPT_TOKENS, CountingEngine
from tests.journeys.paying import (
    DIALECTS,
    HELLO,
    PayingUser,
    Store,
    begin_paying,
    cost_of,
    environ,
    post,
    rows_of,
    settled,
    store_at,
    user_of,
)
from tests.journeys.running import Running, Spawn, Start, until
from tests.redis_server import RedisServer, redis_server
from tests.storage_servers import PostgresServer, make_template, postgres_name

__all__ = ["redis_server"]
CHAT = DIALECTS["chat"]
TOKENS = 10
UNKNOWN = "apk_abcdefgh_" + "x" * 43


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that loses nothing it has confirmed, and that tests may stop."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = PostgresServer(folder, "-c fsync=off")
    try:
        server.start()
        asyncio.run(make_template(server))
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def client_of(running: Running, key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=running.base_url, headers=headers, timeout=30) as http:
        yield http


async def ask(http: httpx.AsyncClient) -> httpx.Response:
    return await post(http, CHAT, max_tokens=TOKENS)


def is_away(answer: httpx.Response) -> bool:
    """Whether a refusal says that the database is away, and when to come again."""
    told = answer.json()["error"]["code"] == "store_unavailable"
    return (answer.status_code, told, "retry-after" in answer.headers) == (503, True, True)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as one:
        yield one


async def test_no_charge_is_lost_or_doubled_when_postgres_is_killed(
    start: Start, tmp_path: Path, own_server: PostgresServer, stack: AsyncExitStack
) -> None:
    engine = await stack.enter_async_context(CountingEngine(tokens=TOKENS))
    name = await stack.enter_async_context(postgres_name(own_server))
    running = await begin_paying(
        start,
        tmp_path,
        BACKENDS=f"e={engine.url}",
        WALLET_LEASE_MAX_USD="0.01",
        **own_server.environ(name),
    )
    user = await user_of(running, 10_000_000)
    statuses: Counter[int] = Counter()
    is_over = False

    async def work() -> None:
        async with client_of(running, user.key) as http:
            while not is_over:
                answer = await ask(http)
                statuses[answer.status_code] += 1
                if answer.status_code != 200:
                    assert is_away(answer), answer.text
                    await asyncio.sleep(0.02)

    workers = [asyncio.ensure_future(work()) for _ in range(8)]
    for _ in range(2):
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own_server.stop)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(own_server.start)
    await asyncio.sleep(0.5)
    is_over = True
    await asyncio.gather(*workers)
    async with client_of(running, user.key) as http:
        for _ in range(100):
            if (await ask(http)).status_code == 200:
                statuses[200] += 1
                break
            await asyncio.sleep(0.1)
    paid = [row for row in await rows_of(running, user) if row.source == "engine"]
    assert len(paid) == statuses[200] > 50
    assert {row.charged_musd for row in paid} == {PROMPT_TOKENS + 2 * TOKENS}


class Outage:
    """Takes the database away, and gives it back."""

    def __init__(self, server: PostgresServer | None, file: Path) -> None:
        self.server, self._file = server, file
        self._holder: sqlite3.Connection | None = None
        self._is_on = False

    async def begin(self) -> None:
        self._is_on = True
        if self.server is not None:
            await asyncio.to_thread(self.server.stop)
        else:  # another program holds the file
            self._holder = sqlite3.connect(self._file, isolation_level=None)
            self._holder.execute("BEGIN EXCLUSIVE")

    async def end(self) -> None:
        if not self._is_on:
            return
        self._is_on = False
        if self._holder is not None:
            self._holder.execute("ROLLBACK")
            self._holder.close()
        elif self.server is not None:
            await asyncio.to_thread(self.server.start)


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest) -> PostgresServer | None:
    """None = SQLite."""
    if request.param == "sqlite":
        return None
    return request.getfixturevalue("own_server")  # type: ignore[no-any-return]


async def test_known_keys_go_on_to_their_lease_while_the_database_is_away(
    start: Start,
    tmp_path: Path,
    server: PostgresServer | None,
    stack: AsyncExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("appliance.accounts.allowance.LONGEST_WAIT_S", 1.0)
    engine = await stack.enter_async_context(CountingEngine(tokens=TOKENS))
    reached: dict[str, str] = {}
    if server is not None:
        reached = server.environ(await stack.enter_async_context(postgres_name(server)))
    running = await begin_paying(
        start,
        tmp_path,
        BACKENDS=f"e={engine.url}",
        HOLD_SLICE_TOKENS="16",
        WALLET_LEASE_MAX_USD="0.001",
        **reached,
    )
    user, accounts = await user_of(running, 1_000_000), running.appliance.accounts
    assert accounts is not None
    http = await stack.enter_async_context(client_of(running, user.key))
    stranger = await stack.enter_async_context(client_of(running, UNKNOWN))
    assert (await ask(http)).status_code == 200
    await settled(running)
    outage = Outage(server, tmp_path / "state" / "gpuproxy.db")
    stack.push_async_callback(outage.end)
    engine.tokens, engine.token_s = 2000, 0.002
    stream = asyncio.ensure_future(post(http, CHAT, stream=True))
    assert await until(lambda: len(engine.served) == 2 and engine.served[1].tokens > 3)
    await outage.begin()
    lease_musd = accounts.money.allowances.of(user.wallet_id).lease_musd
    ended = await stream  # it has more tokens than the lease is worth
    assert '"finish_reason":"length"' in ended.text
    assert '"stop_reason":"store_unavailable"' in ended.text
    engine.tokens, engine.token_s = TOKENS, 0.0
    statuses: list[int] = []
    while not statuses or statuses[-1] == 200:
        answer = await ask(http)
        statuses.append(answer.status_code)
    assert is_away(answer), answer.text
    if server is not None:
        assert is_away(await ask(stranger))
        health = await http.get("/healthz")
        assert (health.status_code, health.json()["degraded"]) == (200, ["store"])
    allowance = accounts.money.allowances.of(user.wallet_id)
    assert allowance.spent_musd <= lease_musd
    await outage.end()
    assert await _comes_back(http)
    assert (await ask(stranger)).status_code == 401
    rows = await rows_of(running, user)
    assert all(row.charged_musd == cost_of(row) == row.cost_musd for row in rows)
    assert sum(row.charged_musd for row in rows) <= 1_000_000


async def _comes_back(http: httpx.AsyncClient) -> bool:
    for _ in range(150):
        answer = await ask(http)
        if answer.status_code == 200:
            return True
        assert is_away(answer), answer.text
        await asyncio.sleep(0.1)
    return False


# ---- three replicas


@dataclass
class Revoked:
    """Users with something that is going to be revoked, each shown as a bearer."""

    keyed: PayingUser
    blocked: PayingUser
    logged_in: PayingUser
    demoted: PayingUser
    session: str
    admin: str

    @classmethod
    async def make(cls, store: Store) -> "Revoked":
        four = [await store.user(100_000) for _ in range(4)]
        await store.identity.users.change(four[3].id, UserChange(is_admin=True), author=SYSTEM)
        return cls(*four, await _log_in(store, four[2]), await _log_in(store, four[3]))

    async def revoke(self, store: Store) -> None:
        users = store.identity.users
        await store.identity.keys.revoke(self.keyed.id, self.keyed.key_id, author=SYSTEM)
        await users.change(self.blocked.id, UserChange(is_active=False), author=SYSTEM)
        await store.identity.sessions.end_all(self.logged_in.id)
        await users.change(self.demoted.id, UserChange(is_admin=False), author=SYSTEM)

    async def statuses(self, http: httpx.AsyncClient, urls: list[str]) -> list[set[int]]:
        """Return what each of the four is answered by all replicas."""
        body = {"model": "tiny", "messages": HELLO, "max_tokens": TOKENS}
        found = []
        for key in (self.keyed.key, self.blocked.key, self.session):
            headers = {"Authorization": f"Bearer {key}"}
            answers = [await http.post(url + CHAT[0], json=body, headers=headers) for url in urls]
            found.append({answer.status_code for answer in answers})
        headers = {"Authorization": f"Bearer {self.admin}"}
        answers = [await http.get(url + "/api/v1/admin/money", headers=headers) for url in urls]
        return [*found, {answer.status_code for answer in answers}]


async def _reach(wanted: list[set[int]], ask_all: Callable[[], Awaitable[list[set[int]]]]) -> float:
    """Ask until all are answered as wanted; return how long it took, seconds."""
    began = time.monotonic()
    while (now := await ask_all()) != wanted:
        assert time.monotonic() - began < 6, now
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def test_what_is_revoked_ends_on_three_replicas_within_2_s(
    spawn: Spawn,
    tmp_path: Path,
    own_server: PostgresServer,
    redis_server: RedisServer,
    stack: AsyncExitStack,
) -> None:
    engine = await stack.enter_async_context(CountingEngine(tokens=TOKENS))
    name = await stack.enter_async_context(postgres_name(own_server))
    store = await stack.enter_async_context(store_at(own_server.settings(name), tmp_path))
    http = await stack.enter_async_context(httpx.AsyncClient(timeout=20))
    reached = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_server.port), **own_server.environ(name)}
    given = environ(tmp_path, BACKENDS=f"e={engine.url}", CONTROL="0", **reached)
    folders = [tmp_path / f"state-{number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()
    deaf = {"DB_USE_PGBOUNCER": "1", "REDIS_HOST": ""}  # it hears nothing, and has to ask
    replicas = await asyncio.gather(
        *(
            asyncio.to_thread(
                spawn, **given | {"STATE_DIR": str(folder)} | (deaf if folder == folders[-1] else {})
            )
            for folder in folders
        )
    )
    urls = [one.base_url for one in replicas]
    for is_heard in (True, False):
        four = await Revoked.make(store)
        await _reach([{200}] * 4, lambda four=four: four.statuses(http, urls))  # type: ignore[misc]
        if not is_heard:  # Redis ends and the connections that listen are cut, so that nothing is heard
            redis_server.stop()
            cut = await own_server.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%LISTEN%' "
                f"AND datname = '{name}' AND pid <> pg_backend_pid()"
            )
            assert len(cut) >= 2
        await four.revoke(store)
        took_s = await _reach(
            [{401}, {401}, {401}, {403}],
            lambda four=four: four.statuses(http, urls),  # type: ignore[misc]
        )
        assert took_s < 2.5, is_heard  # 2 s, and what it takes to ask
    await store.check()


async def _log_in(store: Store, user: PayingUser) -> str:
    stored = await store.identity.users.get(user.id)
    _, tokens = await store.identity.users.login(stored.email, PASSWORD, peer="127.0.0.1", user_agent="t")
    return str(tokens.access_token)
