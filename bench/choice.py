"""What choosing a backend costs: microseconds per choice at 2, 16 and 256 backends. `python -m bench.choice`

strategy     the pure choice among members that are all ready
dispatcher   everything between a request and its place: standings, candidates, choice, counters, and giving the place back
"""

import asyncio
import statistics
import time

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
SECONDS = 0.2


def timed(action) -> float:
    """Give the median over some rounds of microseconds per call."""
    rows = []
    for _ in range(ROUNDS):
        calls, ends = 0, time.perf_counter() + SECONDS
        began = time.perf_counter()
        while time.perf_counter() < ends:
            for _ in range(20):
                action()
            calls += 20
        rows.append((time.perf_counter() - began) / calls * 1e6)
    return statistics.median(rows)


def pure(strategy: str, count: int) -> float:
    balancer, members = Balancer(strategy, seed=1), [Member(f"m{n}", active=n % 7) for n in range(count)]
    prefixes = list(range(16)) if strategy == "prefix_affinity" else ()
    if prefixes:
        balancer.remember(members[-1], prefixes)
    return timed(lambda: balancer.choose(members, prefixes=prefixes))


def whole(count: int, wire: ConnectionPool) -> float:
    settings, clock, metrics = EngineSettings(), SystemClock(), Metrics()
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
    asking = DispatchRequest([pool], "m", "model", NO_OPTIONS, Receipt("r"), clock.monotonic_s() + 300)

    def once() -> None:
        place = router.dispatcher._choose(asking)
        assert place is not None
        place.release(Outcome.OK)

    return timed(once)


async def main() -> None:
    print(
        f"microseconds per choice, median of {ROUNDS} rounds\n{'':24}"
        + "".join(f"{count:>10}" for count in COUNTS)
    )
    for strategy in STRATEGIES:
        print(f"{strategy:24}" + "".join(f"{pure(strategy, count):10.2f}" for count in COUNTS), flush=True)
    async with ConnectionPool(PoolLimits()) as wire:
        print(f"{'dispatcher':24}" + "".join(f"{whole(count, wire):10.2f}" for count in COUNTS), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
