"""What accounts cost: requests and streams with ACCOUNTS on beside off, in one run; the database; memory.

    python -m bench.accounts                                  # everything, some minutes
    python -m bench.accounts --only load,inside --rounds 5 --seconds 2
    python -m bench.accounts --only memory --before ../before # a source tree from before there were accounts

Groups (`--only`):

    load      two processes side by side, off and on, measured in turn by load.c: everything counts, also what is
              settled in the background
    inside    both in this process, without sockets: what the path of a request itself costs (bench/inside.py)
    store     leases, settlements and logins, on SQLite and on PostgreSQL with its disk writes on
    memory    PSS six seconds after the start: off, SQLite with the keys, PostgreSQL and Redis with the keys

Accounts are on with SQLite, KEYS users with a key and a wallet each, a price, limits of requests and tokens, quotas and
holds. PostgreSQL and redis-server are those that the tests start; without them their rows are missing.
"""

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import _pytest.outcomes

from bench.__main__ import (
    SUBJECT_CPU,
    Bench,
    Subject,
    cpu_s,
    free_port,
    memory_mb,
    running_program,
    wait_for_port,
)
from bench.account_data import PASSWORD, accounts_environ, fill, open_store, plain_environ, settlements_of

GROUPS = ("load", "inside", "store", "memory")
ROWS = (  # mode, number, body, what counts, name
    ("closed", 64, "chat.json", "done", "requests per core second, 64 connections"),
    ("stream", 64, "stream.json", "events", "stream events per core second in bursts, 64 streams"),
)
SETTLE_S = 6.0
BATCH, BATCHES, LEASES, LOGINS, AT_ONCE = 256, 20, 2000, 60, 16


@contextmanager
def served(environ: dict[str, str], folder: Path, tree: Path | None = None) -> Iterator[Subject]:
    """Run an appliance on the subject's core.

    Args:
        environ: Its settings.
        folder: Where its log goes.
        tree: The source tree; None = this one.
    """
    port = free_port()
    more = {**os.environ, **environ, "PROXY_PORT": str(port), "CONTROL_PORT": str(free_port())}
    with (
        open(folder / "log", "w") as out,
        running_program(
            [sys.executable, "-m", "appliance", "serve"],
            SUBJECT_CPU,
            env=more,
            cwd=tree or Path(__file__).resolve().parent.parent,
            stdout=out,
            stderr=out,
        ) as process,
    ):
        wait_for_port(port, 40)
        yield process.pid, port


def load(bench: Bench, keys: int, rounds: int, seconds: float) -> None:
    """Measure off and on in turn, each round beginning with the other one."""
    with ExitStack() as stack:
        upstream = stack.enter_context(bench.upstream())
        subjects = {}
        for name in ("off", "on"):
            folder = bench.dir / name
            folder.mkdir()
            environ = plain_environ(folder, upstream)
            if name == "on":
                environ |= accounts_environ(folder)
                asyncio.run(fill(environ, keys))
            subjects[name] = stack.enter_context(served(environ, folder))
        time.sleep(2)
        for mode, number, body, figure, label in ROWS:
            found: dict[str, list[float]] = {"off": [], "on": []}
            for number_of_round in range(rounds):
                for name in ("off", "on") if number_of_round % 2 else ("on", "off"):
                    pid, port = subjects[name]
                    bench.load(mode, port, number, 0.5, body)
                    before = cpu_s(pid)
                    done = bench.load(mode, port, number, seconds, body)
                    time.sleep(1)  # what is settled after it counts, too
                    found[name].append(done[figure] / (cpu_s(pid) - before))
            off, on = (statistics.median(found[name]) for name in ("off", "on"))
            ratios = sorted(b / a for a, b in zip(found["off"], found["on"], strict=True))
            print(
                f"{label}: off {off:,.0f}, on {on:,.0f}; ratio {statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}); {1e6 / on - 1e6 / off:.2f} µs more each",
                flush=True,
            )


def inside() -> None:
    """Measure the path of a request itself, in a process of its own."""
    for mode in ("whole", "stream", "bursts"):
        done = subprocess.run(
            ["taskset", "-c", SUBJECT_CPU, sys.executable, "-m", "bench.inside", mode],
            capture_output=True,
            text=True,
            timeout=300,
        )
        print(done.stdout.strip() or done.stderr[-600:], flush=True)


# ---- the database


async def rate(count: int, at_once: int, one: Callable[[int], Awaitable[object]]) -> float:
    """Do something `count` times, `at_once` at a time; return how often a second."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    began_s = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return count / (time.monotonic() - began_s)


async def measure_store(environ: dict[str, str], keys: int) -> dict[str, float]:
    """Measure a database: leases, settlements and logins a second."""
    users = await fill(environ, keys)
    async with AsyncExitStack() as stack:
        accounts = await open_store(environ, stack)
        wallets, usage = accounts.money.store.wallets, accounts.money.store.usage

        async def lease(number: int) -> None:
            wallet_id = users[number % len(users)].wallet_id
            answer = await wallets.lease(wallet_id, least_musd=1, want_musd=10_000, most_musd=10_000)
            assert answer.granted_musd

        batches = [settlements_of(users, BATCH, start) for start in range(0, BATCH * BATCHES, BATCH)]

        async def settle(number: int) -> None:
            assert (await usage.settle(batches[number])).new == BATCH

        async def login(number: int) -> None:
            user = users[number]
            await accounts.identity.users.login(
                user.email, PASSWORD, peer=f"10.0.{number // 250}.{number % 250}", user_agent="bench"
            )

        return {
            "leases a second": await rate(LEASES, AT_ONCE, lease),
            f"settlements a second, in batches of {BATCH}": BATCH * await rate(BATCHES, 1, settle),
            "logins a second": await rate(LOGINS, AT_ONCE, login),
        }


@contextmanager
def postgres(folder: Path, name: str) -> Iterator[dict[str, str] | None]:
    """Run PostgreSQL with a database that has all tables; yields its variables, None = it is not installed."""
    from tests.storage_servers import PostgresServer, make_template

    try:
        server = PostgresServer(folder, options="")
    except _pytest.outcomes.OutcomeException as reason:
        print(f"PostgreSQL: not available: {reason}")
        yield None
        return
    server.start()
    try:
        asyncio.run(make_template(server))
        asyncio.run(server.sql(f"CREATE DATABASE {name} TEMPLATE ready"))
        yield {"DB_TYPE": "postgres", **server.environ(name)}
    finally:
        server.stop()


def store(folder: Path, keys: int) -> None:
    """Measure both databases."""
    folder.mkdir()
    environ = {**plain_environ(folder, 9), **accounts_environ(folder)}
    show_store("SQLite", asyncio.run(measure_store(environ, keys)))
    with tempfile.TemporaryDirectory(prefix="pg-") as place, postgres(Path(place), "bench") as reached:
        if reached is not None:
            own = folder / "postgres"
            own.mkdir()
            environ = {**plain_environ(own, 9), **accounts_environ(own), **reached}
            show_store("PostgreSQL", asyncio.run(measure_store(environ, keys)))


def show_store(name: str, found: dict[str, float]) -> None:
    for label, value in found.items():
        print(f"{name}: {label}: {value:,.0f}", flush=True)


# ---- memory


def memory(folder: Path, keys: int, before: Path | None) -> None:
    """Measure the memory of a process without requests."""
    folder.mkdir()
    if before is not None:
        show_memory(folder / "before", "before there were accounts", {}, before)
    show_memory(folder / "off", "off", {})
    show_memory(folder / "sqlite", f"on, SQLite, {keys:,} keys", {}, keys=keys)
    with tempfile.TemporaryDirectory(prefix="pg-") as place, postgres(Path(place), "bench") as reached:
        if reached is None:
            return
        from tests.redis_server import RedisServer

        redis = RedisServer(Path(place))
        redis.start()
        try:
            reached |= {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis.port)}
            show_memory(folder / "all", f"on, PostgreSQL and Redis, {keys:,} keys", reached, keys=keys)
        finally:
            redis.stop()


def show_memory(
    folder: Path, label: str, environ: dict[str, str], tree: Path | None = None, keys: int = 0
) -> None:
    folder.mkdir()
    environ = plain_environ(folder, 9) | environ
    if keys:
        environ |= accounts_environ(folder)
        asyncio.run(fill(environ, keys))
    found = []
    for _ in range(3):
        with served(environ, folder, tree) as (pid, _port):
            time.sleep(SETTLE_S)
            own = Path(f"/proc/{pid}/smaps_rollup").read_text()
            anonymous = int(own.split("Pss_Anon:")[1].split()[0]) / 1024
            found.append((memory_mb(pid), anonymous))
    total, anonymous = sorted(found)[1]
    print(f"memory, {label}: PSS {total:.1f} MB, of it its own {anonymous:.1f}", flush=True)


# ---- the program


def groups(value: str) -> Sequence[str]:
    """Read `--only`."""
    names = value.split(",")
    if unknown := [name for name in names if name not in GROUPS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(GROUPS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--only", type=groups, default=GROUPS, metavar="LIST", help=", ".join(GROUPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--keys", type=int, default=10_000, help="users with a key and a wallet each")
    parser.add_argument("--before", type=Path, help="a source tree whose memory is measured, too")
    requested: Any = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
    bench = Bench(quick=True)
    if "load" in requested.only:
        load(bench, requested.keys, requested.rounds, requested.seconds)
    if "inside" in requested.only:
        inside()
    if "store" in requested.only:
        store(bench.dir / "store", requested.keys)
    if "memory" in requested.only:
        memory(bench.dir / "memory", requested.keys, requested.before)


if __name__ == "__main__":
    main()
