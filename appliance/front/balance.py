"""The addresses about the backends: GET /health, and the load balancer's state under /api/v1/loadbalancer.

For compatibility, see docs/compatibility.md.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

from appliance.base.clock import Clock, format_rfc3339
from appliance.base.errors import ApplianceError, Invalid, NotFound
from appliance.engines.router import Router
from appliance.engines.types import BackendState
from appliance.front.manager.objects import health_checks
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.body import read_object
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.system import failing, without_errors
from appliance.models.status.views import ModelManagerApi

BASE = "/api/v1/loadbalancer"


class BalanceHandlers:
    """The handlers of /health and of load balancing.

    Args:
        router: The backends.
        clock: The time of ages and timestamps.
        set_strategy: Changes the strategy of all pools; raises Invalid for an unknown one.
        manager: The models that this appliance runs itself; None = none.
        may_see_details: Whether a caller (headers, address) sees all of /health.
        rented_loads: Returns the loads of a user's rented instances by their ids (None = of all users);
            None = there are none.
        account_checks: Returns the checks of database and Redis, by name; {} = there are no accounts.
    """

    def __init__(
        self,
        router: Router,
        *,
        clock: Clock,
        set_strategy: Callable[[str], None],
        manager: ModelManagerApi | None = None,
        may_see_details: Callable[[dict[str, str], str], bool] = lambda headers, peer: True,
        rented_loads: Callable[[str | None], Awaitable[dict[str, dict[str, Any]]]] | None = None,
        account_checks: Callable[[], dict[str, dict[str, Any]]] = dict,
    ) -> None:
        self._may_see_details = may_see_details
        self._account_checks = account_checks
        self._rented_loads = rented_loads
        self._router = router
        self._manager = manager
        self._clock = clock
        self._set_strategy = set_strategy

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("GET",), "/health", self.health, access=Access.PUBLIC, is_open_while_draining=True),
            Route(("GET",), f"{BASE}/strategy", self.strategy),
            Route(("PUT",), f"{BASE}/strategy", self.put_strategy, access=Access.OPERATOR),
            Route(("GET",), f"{BASE}/loads", self.loads),
            Route(("GET",), f"{BASE}/load", self.load),
        ]

    async def health(self, request: Request) -> Response:
        """Show whether every backend is up: `ok` or `degraded`, both with 200; without a key the short form.

        Returns:
            `{status, available_backends, total_backends, timestamp, details, checks?, detail?}`. The short
            form, where keys are set and none is sent: `{status}`, with the same HTTP status.
        """
        body, http_status = self._health()
        if not self._may_see_details(request.headers, request.peer):
            body = {"status": body["status"]}
        return json_response(body, http_status)

    def _health(self) -> tuple[dict[str, Any], int]:
        """Return the whole object and its HTTP status.

        1. with accounts          → their `checks`, and `degraded`, those that fail; requests are served all
            the same
        2. no models run here     → 200
        3. every check passes     → 200, with `checks`
        4. a check fails          → 503, with `checks`, and the same body under `detail` as well
        """
        states = self._router.states()
        up = [state for state in states if state.is_up]
        now_s = self._clock.now_s()
        body: dict[str, Any] = {
            "status": "ok" if states and len(up) == len(states) else "degraded",
            "available_backends": [state.url or state.name for state in up],
            "total_backends": len(states),
            "timestamp": now_s,
            "details": [_detail(state, now_s) for state in states],
        }
        of_accounts = without_errors(self._account_checks())
        if of_accounts:  # 1
            body["checks"] = of_accounts
            body["degraded"] = failing(of_accounts)
            body["status"] = "degraded" if body["degraded"] else body["status"]
        if self._manager is None:  # 2
            return body, 200
        checks = health_checks(self._manager)
        body["checks"] = {**checks, **of_accounts}
        if all(check["status"] == "ok" for check in checks.values()):  # 3
            return body, 200
        body["status"] = "degraded"  # 4
        return {**body, "detail": body}, 503

    async def strategy(self, request: Request) -> Response:
        """Show how a backend is chosen: `{strategy}`."""
        return json_response({"strategy": self._router.strategy})

    async def put_strategy(self, request: Request) -> Response:
        """Change how a backend is chosen, in all pools: `{strategy}`; counters are kept."""
        name = read_object(request.body).get("strategy")
        if not isinstance(name, str):
            raise Invalid("`strategy` must be a string.", param="strategy", code="invalid_type")
        self._set_strategy(name)
        return json_response({"strategy": name, "message": "Load balancing strategy updated"})

    async def loads(self, request: Request) -> Response:
        """Show the load of every backend and one's rented GPUs: `{strategy, count, loads: {name: load}}`."""
        loads = await self._loads(request)
        return json_response(
            {
                "strategy": self._router.strategy,
                "count": len(loads),
                "loads": loads,
            }
        )

    async def load(self, request: Request) -> Response:
        """Show the load of one backend: `?instance_id=NAME`."""
        name = parse_qs(request.query).get("instance_id", [""])[0]
        if not name:
            raise Invalid(
                "The query parameter `instance_id` is required.",
                param="instance_id",
                code="missing_required_parameter",
            )
        if (found := (await self._loads(request)).get(name)) is not None:
            return json_response(found)
        raise NotFound(f"There is no backend {name[:200]!r}.", code="no_such_backend")

    async def _loads(self, request: Request) -> dict[str, dict[str, Any]]:
        """Return the load of all backends, and of instances that the caller rents; operators see all."""
        rented: dict[str, dict[str, Any]] = {}
        actor = request.actor
        user = actor.user if actor is not None else None
        is_operator = actor is not None and (actor.kind == "operator" or (user is not None and user.is_admin))
        if self._rented_loads is not None and (is_operator or user is not None):
            with suppress(ApplianceError):  # the database is down: backends are shown all the same
                rented = await self._rented_loads(None if is_operator or user is None else user.id)
        return {**rented, **{state.name: _load(state) for state in self._router.states()}}


def _detail(state: BackendState, now_s: float) -> dict[str, Any]:
    """Return one row of `details`."""
    metrics = None
    if state.running is not None or state.waiting is not None:
        metrics = {
            "timestamp": now_s - (state.data_age_s or 0.0),
            "requests_processing": state.running,
            "requests_deferred": state.waiting,
            "ready": state.standing == "ready",
        }
    return {
        "backend": state.url or state.name,
        "ready": state.standing == "ready",
        "metrics": metrics,
        "name": state.name,
        "kind": state.kind,
        "pool": state.pool,
        "standing": state.standing,
        "detail": state.detail,
        "in_flight": state.in_flight,
    }


def _load(state: BackendState) -> dict[str, Any]:
    """Return one backend's load; times are seconds."""
    return {
        "instance_id": state.name,
        "provider": state.kind,
        "active_connections": state.in_flight,
        "total_connections": state.chosen_total,
        "avg_response_time": state.mean_s or 0.0,
        "last_response_time": state.last_s or 0.0,
        "weight": state.weight,
        "last_used": format_rfc3339(state.last_used_at_s) if state.last_used_at_s else None,
    }
