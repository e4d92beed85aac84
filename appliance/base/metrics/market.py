"""The metric families of renting GPUs; an appliance that rents none (MARKET=0) does not show them.

For the names with `gpuproxy_`, see docs/compatibility.md.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

MUSD_PER_DOLLAR = 1_000_000


@dataclass(frozen=True, slots=True)
class MarketFigures:
    """What is known of rented GPUs.

    Attributes:
        instances: Rentals that have not ended, by market.
        requests: Calls of clients that needed a market.
        failed: Of them, those that a market, or the database, made fail.
        cost_musd: What users have paid for GPUs, all rentals together, micro-dollars.
        supply_musd: What the markets took, likewise.
        alarms: What an operator has to look at, by kind.
        is_frozen: Launching is stopped by an operator.
        age_s: How old this is, seconds; None = it was never read.
    """

    instances: Mapping[str, int] = field(default_factory=dict)
    requests: int = 0
    failed: int = 0
    cost_musd: int = 0
    supply_musd: int = 0
    alarms: Mapping[str, int] = field(default_factory=dict)
    is_frozen: bool = False
    age_s: float | None = None


class MarketMetrics(Collector):
    """Every family of renting. Names and labels are part of the product's interface.

    Args:
        read: Returns what is known now.
    """

    def __init__(self, read: Callable[[], MarketFigures]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the names are no other family's."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return all families as they are now."""
        figures = self._read()
        live = Metric("appliance_rentals", "Rentals that have not ended", "gauge")
        for provider, count in sorted(figures.instances.items()):
            live.add_sample(live.name, {"provider": provider}, count)
        alarms = Metric("appliance_market_alarms", "What an operator has to look at, by kind", "gauge")
        for kind, count in sorted(figures.alarms.items()):
            alarms.add_sample(alarms.name, {"kind": kind}, count)
        families = [
            live,
            alarms,
            _market_family(
                "appliance_market_frozen", "Launching is stopped: 1 = yes", int(figures.is_frozen)
            ),
            _market_family(
                "appliance_rental_supply_dollars",
                "What the markets took for rented GPUs, dollars",
                figures.supply_musd / MUSD_PER_DOLLAR,
                "counter",
            ),
            _market_family(
                "gpuproxy_gpu_instances_active",
                "Rented GPUs that have not ended",
                sum(figures.instances.values()),
            ),
            _market_family(
                "gpuproxy_gpu_requests", "Calls that needed a market", figures.requests, "counter"
            ),
            _market_family(
                "gpuproxy_gpu_requests_failed",
                "Of them, those that a market made fail",
                figures.failed,
                "unknown",
            ),
            _market_family(
                "gpuproxy_gpu_cost",
                "What users paid for rented GPUs, dollars",
                figures.cost_musd / MUSD_PER_DOLLAR,
                "counter",
            ),
        ]
        if figures.age_s is not None:
            text = "How old these numbers of rentals are, seconds"
            families.append(_market_family("appliance_rentals_age_seconds", text, figures.age_s))
        return families


def _market_family(name: str, text: str, value: float, kind: str = "gauge") -> Metric:
    metric = Metric(name, text, kind)
    metric.add_sample(f"{name}_total" if kind == "counter" else name, {}, value)
    return metric
