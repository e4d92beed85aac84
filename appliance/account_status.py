"""What an appliance with accounts shows of them: in /healthz, /health and the metrics."""

from collections.abc import Callable
from typing import Any

from appliance.base.clock import Clock
from appliance.base.metrics.accounts import AccountFigures
from appliance.build_accounts import Accounts
from appliance.front.pipeline.pipeline import RequestPipeline


class AccountStatus:
    """Views of the accounts.

    Args:
        accounts: The parts.
        pipeline: Knows how many requests are in flight.
        clock: The time.
        started_s: When the appliance started, seconds since 1970.
    """

    def __init__(
        self, accounts: Accounts, pipeline: RequestPipeline, *, clock: Clock, started_s: float
    ) -> None:
        self._accounts = accounts
        self._pipeline = pipeline
        self._clock = clock
        self._started_s = started_s
        self._more: list[Callable[[], dict[str, dict[str, Any]]]] = []

    def add_checks(self, read: Callable[[], dict[str, dict[str, Any]]]) -> None:
        """Show checks of another part, too."""
        self._more.append(read)

    def checks(self) -> dict[str, dict[str, Any]]:
        """Return the `checks` of /healthz and /health: `database`, and `redis` where there is one.

        Each is `{status: ok | error, healthy, kind?, total_connections?, idle_connections?, error?}`; the
        error is for operators.
        """
        database, redis = self._accounts.database, self._accounts.redis
        checks = {"database": {**_check(database.is_up, database.reason), "kind": database.kind}}
        if (connections := database.connections) is not None:
            checks["database"] |= {"total_connections": connections[0], "idle_connections": connections[1]}
        if redis is not None:
            checks["redis"] = _check(redis.is_up, redis.reason)
        for read in self._more:
            checks |= read()
        return checks

    def figures(self) -> AccountFigures:
        """Return what the metrics show."""
        accounts, now_s = self._accounts, self._clock.now_s()
        money, identity = accounts.money, accounts.identity
        allowances, snapshot = money.allowances.all(), identity.snapshot
        settler = money.settler
        return AccountFigures(
            uptime_s=now_s - self._started_s,
            in_flight=self._pipeline.in_flight,
            is_store_up=accounts.database.is_up,
            is_redis_up=None if accounts.redis is None else accounts.redis.is_up,
            connections=accounts.database.connections,
            statements=accounts.database.statements,
            leased_musd=sum(one.lease_musd for one in allowances),
            held_musd=sum(one.held_musd for one in allowances),
            settled=settler.settled,
            loss_musd=settler.loss_musd,
            stopped=accounts.spending.stopped,
            unsettled=settler.waiting_count,
            oldest_unsettled_s=settler.oldest_s,
            stuck=len(settler.stuck),
            journal_bytes=money.journal.size_bytes,
            are_limits_local=identity.limits.is_local,
            snapshot_age_s=now_s - snapshot.as_of_s if snapshot.as_of_s > 0 else None,
            known_keys=len(snapshot.keys),
        )


def _check(is_up: bool, reason: str) -> dict[str, Any]:
    if is_up:
        return {"status": "ok", "healthy": True}
    return {"status": "error", "healthy": False, "error": reason}
