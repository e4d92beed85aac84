"""The metric families of accounts; an appliance without accounts (ACCOUNTS=0) does not show them.

They are read from what the parts know anyway, when the page is read: nothing is counted for them on the path
of a request. For the names with `gpuproxy_`, see docs/compatibility.md.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from appliance.base.metrics.tallies import CounterFamily, HistogramFamily

QUANTILES = (0.5, 0.95, 0.99)
FAILED_FROM = 400  # statuses of failed requests


@dataclass(frozen=True, slots=True)
class AccountFigures:
    """What is known of accounts and money at one moment.

    Attributes:
        uptime_s: Since the start, seconds.
        in_flight: Requests in flight.
        is_store_up: The database can be used.
        is_redis_up: Redis can be used; None = there is none.
        connections: Open connections to the database, and those of them that are not in use; None = there
            is no pool of them.
        statements: Sent to the database.
        leased_musd: Set aside for this process, micro-dollars.
        held_musd: Of it, held by running requests.
        settled: Attempts that were settled, by who counted their tokens.
        loss_musd: What they cost beyond what could be charged.
        stopped: Responses that were ended, by reason.
        unsettled: Attempts that wait to be settled.
        oldest_unsettled_s: How long ago the oldest of them began, seconds; 0 = none waits.
        stuck: Attempts that the database does not take.
        journal_bytes: Of the journal's files.
        are_limits_local: Rate limits are not counted together with other replicas.
        snapshot_age_s: When the database confirmed users and keys last, seconds ago; None = never.
        known_keys: API keys in memory.
    """

    uptime_s: float = 0.0
    in_flight: int = 0
    is_store_up: bool = True
    is_redis_up: bool | None = None
    connections: tuple[int, int] | None = None
    statements: int = 0
    leased_musd: int = 0
    held_musd: int = 0
    settled: Mapping[str, int] = field(default_factory=dict)
    loss_musd: int = 0
    stopped: Mapping[str, int] = field(default_factory=dict)
    unsettled: int = 0
    oldest_unsettled_s: float = 0.0
    stuck: int = 0
    journal_bytes: int = 0
    are_limits_local: bool = False
    snapshot_age_s: float | None = None
    known_keys: int = 0


@dataclass(frozen=True, slots=True)
class RequestTotals:
    """All requests of clients, by the appliance's own families."""

    count: float
    failed: float
    seconds: float
    quantiles_s: Mapping[float, float]


class AccountMetrics(Collector):
    """Every family of accounts. Names and labels are part of the product's interface.

    Args:
        read: Returns what is known now.
        requests: The family of finished requests, with route and status.
        request_seconds: The family of their times.
    """

    def __init__(
        self, read: Callable[[], AccountFigures], requests: CounterFamily, request_seconds: HistogramFamily
    ) -> None:
        self._read = read
        self._requests = requests
        self._request_seconds = request_seconds

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the names are no other family's."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return all families as they are now."""
        figures = self._read()
        totals = add_requests(self._requests, self._request_seconds)
        return [*_own_families(figures), *_compatible_families(figures, totals)]


def compatible_numbers(figures: AccountFigures, totals: RequestTotals) -> dict[str, float]:
    """Return the numbers of the families with `gpuproxy_`, by their names without it.

    Quantiles are named `request_duration_milliseconds_p50` and so on.
    """
    found = {}
    for family in _compatible_families(figures, totals):
        for sample in family.samples:
            name = sample.name.removeprefix("gpuproxy_")
            if "quantile" in sample.labels:
                name += f"_p{round(100 * float(sample.labels['quantile']))}"
            found[name] = float(sample.value)
    return found


def add_requests(requests: CounterFamily, request_seconds: HistogramFamily) -> RequestTotals:
    """Add up the requests of all routes and statuses; quantiles are estimated within a bucket."""
    rows = requests.rows()
    count = sum(child.value for _, child in rows)
    failed = sum(child.value for (_, status), child in rows if int(status) >= FAILED_FROM)
    histograms = [child for _, child in request_seconds.rows()]
    bounds = histograms[0].bounds if histograms else ()
    counts = [sum(column) for column in zip(*(one.counts for one in histograms), strict=True)]
    seconds = sum(one.total for one in histograms)
    return RequestTotals(
        count, failed, seconds, {share: find_quantile(bounds, counts, share) for share in QUANTILES}
    )


def find_quantile(bounds: Iterable[float], counts: Iterable[float], share: float) -> float:
    """Return the value that `share` of all values do not exceed, taken as evenly spread within a bucket.

    Args:
        bounds: Upper bounds of the buckets but the last, rising.
        counts: Of each bucket.
        share: From 0 to 1.

    Returns:
        The value; 0 = there are none; the highest bound for what is above it.
    """
    uppers, numbers = list(bounds), list(counts)
    wanted = share * sum(numbers)
    so_far, lower = 0.0, 0.0
    for upper, number in zip(uppers, numbers, strict=False):
        if number and so_far + number >= wanted:
            return lower + (upper - lower) * (wanted - so_far) / number
        so_far, lower = so_far + number, upper
    return lower if so_far < sum(numbers) else 0.0


def _family(name: str, text: str, kind: str, value: float | None = None) -> Metric:
    metric = Metric(name, text, kind)
    if value is not None:
        metric.add_sample(f"{name}_total" if kind == "counter" else name, {}, value)
    return metric


def _labelled(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    metric = Metric(name, text, "counter")
    for word, value in sorted(values.items()):
        metric.add_sample(f"{name}_total", {label: word}, value)
    return metric


def _own_families(figures: AccountFigures) -> list[Metric]:
    p = "appliance_"
    redis = [] if figures.is_redis_up is None else [
        _family(p + "redis_up", "1 while Redis can be used", "gauge", figures.is_redis_up)
    ]  # fmt: skip
    age = [] if figures.snapshot_age_s is None else [
        _family(
            p + "accounts_snapshot_age_seconds",
            "How long ago the database confirmed users and keys in memory", "gauge", figures.snapshot_age_s,
        )
    ]  # fmt: skip
    return [
        _family(p + "store_up", "1 while the database of accounts can be used", "gauge", figures.is_store_up),
        *redis,
        _family(p + "known_api_keys", "API keys of users in memory", "gauge", figures.known_keys),
        *age,
        _family(
            p + "wallet_leased_musd", "Micro-dollars of wallets set aside for this process", "gauge",
            figures.leased_musd,
        ),
        _family(p + "wallet_held_musd", "Of them, held by running requests", "gauge", figures.held_musd),
        _labelled(
            p + "settlements", "Attempts settled in the database, by who counted the tokens", "source",
            figures.settled,
        ),
        _family(
            p + "loss_musd", "Micro-dollars that responses cost beyond what could be charged", "counter",
            figures.loss_musd,
        ),
        _labelled(
            p + "streams_stopped", "Responses ended by the appliance before their end", "reason",
            figures.stopped,
        ),
        _family(
            p + "unsettled_attempts", "Attempts in the journal that wait for the database", "gauge",
            figures.unsettled,
        ),
        _family(
            p + "oldest_unsettled_seconds", "How long ago the oldest of them began; 0 = none waits", "gauge",
            figures.oldest_unsettled_s,
        ),
        _family(
            p + "stuck_attempts", "Attempts that the database does not take, for a fault of the appliance",
            "gauge", figures.stuck,
        ),
        _family(p + "journal_bytes", "Size of the journal of charges", "gauge", figures.journal_bytes),
        _family(
            p + "limits_local", "1 while rate limits are not counted together with other replicas", "gauge",
            figures.are_limits_local,
        ),
    ]  # fmt: skip


def _compatible_families(figures: AccountFigures, totals: RequestTotals) -> list[Metric]:
    p = "gpuproxy_"
    rate = 100 * (totals.count - totals.failed) / totals.count if totals.count else 0.0
    times = Metric(p + "request_duration_milliseconds", "Time of requests, all together", "summary")
    for share, value_s in totals.quantiles_s.items():
        times.add_sample(times.name, {"quantile": f"{share:g}"}, value_s * 1000)
    times.add_sample(times.name + "_sum", {}, totals.seconds * 1000)
    times.add_sample(times.name + "_count", {}, totals.count)
    connections = []
    if figures.connections is not None:
        opened, idle = figures.connections
        connections = [
            _family(
                p + "db_connections_active", "Connections to the database in use", "gauge", opened - idle
            ),
            _family(
                p + "db_connections_idle", "Connections to the database that are not in use", "gauge", idle
            ),
        ]
    return [
        _family(p + "uptime_seconds", "Time since the start", "gauge", figures.uptime_s),
        _family(p + "requests", "Completed requests", "counter", totals.count),
        _family(p + "requests_failed", "Of them, those with a status from 400", "unknown", totals.failed),
        _family(p + "requests_in_flight", "Requests in flight", "gauge", figures.in_flight),
        _family(p + "request_success_rate", "Percentage of requests with a status below 400", "gauge", rate),
        times,
        *connections,
        _family(p + "db_queries", "Statements sent to the database", "counter", figures.statements),
    ]
