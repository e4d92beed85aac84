"""Measure what choosing a backend costs: microseconds per choice among 2, 16 and 256. `python -m bench.choice`.

strategy     the pure choice among members that are all ready
dispatcher   everything between a request and its slot: statuses, candidates, choice, counters, and the release
"""

import asyncio
import statistics
import time
from collections.abc import Callable

from appliance.base.balancing import STRATEGIES, Balancer, Member
from appliance.base.clock import SystemClock
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.engines.backends.server import EngineServer
from appliance.engines.dialects.contract import EngineFacts, EngineHealth
from appliance.engines.dispatch_request import DispatchRequest
from appliance.engines.outcome import Outcome
from appliance.engines.pool import Pool
from appliance.engines.receipts import Receipt
from appliance.engines.router import Router
from appliance.engines.settings import EngineSettings
from appliance.engines.specs import BackendSpec
from appliance.engines.types import NO_OPTIONS, ModelCard, ServedModel

COUNTS = (2, 16, 256)
ROUNDS = 5
ROUND_S = 0.2
CALLS_PER_CHECK = 20  # of the time


def measure_us(action: Callable[[], object]) -> float:
    """Return the median over some rounds of microseconds per call."""
    rows = []
    for _ in range(ROUNDS):
        calls, started_s = 0, time.perf_counter()
        ends_s = started_s + ROUND_S
        while time.perf_counter() < ends_s:
            for _ in range(CALLS_PER_CHECK):
                action()
            calls += CALLS_PER_CHECK
        rows.append((time.perf_counter() - started_s) / calls * 1e6)
    return statistics.median(rows)


def measure_strategy_us(strategy: str, count: int) -> float:
    """Measure the pure choice among `count` members."""
    balancer, members = Balancer(strategy, seed=1), [Member(f"m{n}", active=n % 7) for n in range(count)]
    prefixes = list(range(16)) if strategy == "prefix_affinity" else []
    if prefixes:
        balancer.remember(members[-1], prefixes)
    return measure_us(lambda: balancer.choose(members, prefixes=prefixes))


def make_router(count: int, wire: ConnectionPool, clock: SystemClock) -> Router:
    """Return a router before one pool of `count` servers that are ready."""
    settings, metrics = EngineSettings(), Metrics()
    router, pool = Router(settings, clock=clock, metrics=metrics), Pool("default", strategy="least_busy")
    card = ModelCard("m", 0, "vllm", "m")
    for number in range(count):
        server = EngineServer(
            BackendSpec(url=f"http://127.0.0.1:{number + 1}", kind="vllm"),
            settings=settings,
            wire=wire,
            clock=clock,
            metrics=metrics,
            callbacks=router.callbacks,
        )
        server.state.update_facts(EngineFacts({"m": ServedModel(card, "m")}))
        server.state.health = EngineHealth(True)
        server.state.update_load(1.0, 0.0, "ok")
        pool.backends.append(server)
    router.set_pools([pool])
    return router


def measure_dispatcher_us(count: int, wire: ConnectionPool) -> float:
    """Measure taking a slot on one of `count` servers, and releasing it."""
    clock = SystemClock()
    router = make_router(count, wire, clock)
    request = DispatchRequest(
        stages=router.pools,
        model="m",
        reason="model",
        options=NO_OPTIONS,
        receipt=Receipt("r"),
        deadline_s=clock.monotonic_s() + 300,
    )

    def take_and_release() -> None:
        try:
            router.dispatcher.take_slot(request).send(None)
        except StopIteration as done:  # at once: nothing waits here
            done.value.release(Outcome.OK)

    return measure_us(take_and_release)


async def main() -> None:
    """Print a table: one row per strategy, and one for the dispatcher."""
    print(f"microseconds per choice, median of {ROUNDS} rounds")
    print(f"{'':24}" + "".join(f"{count:>10}" for count in COUNTS))
    for strategy in STRATEGIES:
        figures = "".join(f"{measure_strategy_us(strategy, count):10.2f}" for count in COUNTS)
        print(f"{strategy:24}{figures}", flush=True)
    async with ConnectionPool(PoolLimits()) as wire:
        figures = "".join(f"{measure_dispatcher_us(count, wire):10.2f}" for count in COUNTS)
        print(f"{'dispatcher':24}{figures}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
