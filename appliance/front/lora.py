"""The addresses about LoRA adapters, as system E has them: load, unload, and the list, which is ours.

On the sidecar's port errors have system E's shape, on the main port ours. Decisions: engines/lora/orders.py and lora.py.
"""

from typing import Any

from appliance.base import jsons
from appliance.base.clock import format_rfc3339
from appliance.base.errors import ApplianceError, Invalid, Kind
from appliance.downloads.request import parse_config, parse_max_workers
from appliance.engines.lora.changes import AdapterChange
from appliance.engines.lora.order import AdapterOrder, OrderJob
from appliance.engines.lora.orders import AdapterOrders
from appliance.engines.lora.status_view import AdapterRow
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.body import check_types, read_object
from appliance.front.pipeline.errors import status_of
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route

TYPES: dict[str, Any] = {
    "lora_name": str,
    "lora_path": str,
    "source": str,
    "output_dir": str,
    "base_model": str,
    "backend": str,
    "async_download": bool,
    "partial": bool,
    "pinned": bool,
    "max_workers": int,
    "config": (str, dict),
}
OWN = {*TYPES}  # of an unload: what is ours and no engine's
OURS_TO_SAY = {
    Kind.INVALID,
    Kind.FORBIDDEN,
    Kind.NOT_FOUND,
    Kind.NO_SUCH_MODEL,
    Kind.CONFLICT,
    Kind.UNSUPPORTED,
}


class LoraHandlers:
    """The handlers. `is_sidecar`: success is the engine's own answer, and errors are `{detail}`."""

    def __init__(self, orders: AdapterOrders, *, is_sidecar: bool = False) -> None:
        self._orders = orders
        self._is_sidecar = is_sidecar

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("POST",), "/v1/load_lora_adapter", self.load, access=Access.OPERATOR, is_ours=True),
            Route(("POST",), "/v1/unload_lora_adapter", self.unload, access=Access.OPERATOR, is_ours=True),
            Route(
                ("GET",),
                "/v1/lora_adapters",
                self.adapters,
                access=Access.OPERATOR,
                is_open_while_draining=True,
                is_ours=True,
            ),
        ]

    async def load(self, request: Request) -> Response:
        """POST /v1/load_lora_adapter: load an adapter, downloaded first where it has a `source`; 202 at once with `async_download`."""
        try:
            body = read_object(request.body)
            check_types(body, TYPES)
            order = read_order(body)
            if body.get("async_download"):
                adapter = await self._orders.begin(order)
                message = (
                    f"The adapter {order.name!r} is being loaded; GET /v1/lora_adapters tells how far it is."
                )
                return json_response(
                    {
                        "status": "started",
                        "message": message,
                        "lora_name": order.name,
                        "source": adapter.source,
                        "output_dir": adapter.path,
                    },
                    202,
                )
            return self._done(
                await self._orders.load(order), f"The adapter {order.name!r} is loaded already."
            )
        except ApplianceError as error:
            return self._refused(error)

    async def unload(self, request: Request) -> Response:
        """POST /v1/unload_lora_adapter `{lora_name}`: further fields go to the engines as they came."""
        try:
            body = read_object(request.body)
            check_types(body, TYPES)
            name = _named(body)
            more = {key: value for key, value in body.items() if key not in OWN}
            changed = await self._orders.unload(name, partial=bool(body.get("partial")), more=more)
            return self._done(changed, f"The adapter {name!r} is not declared any more; no backend had it.")
        except ApplianceError as error:
            return self._refused(error)

    async def adapters(self, request: Request) -> Response:
        """GET /v1/lora_adapters: `{object: "list", data: [{id, base_model, path, source, backend, pinned, declared, state, backends: [{backend,
        kind, state, detail}]}], pending: [{lora_name, source, output_dir, phase, since, error, …}]}`."""
        return json_response(
            {
                "object": "list",
                "data": [as_row(row) for row in self._orders.adapters.status.rows()],
                "pending": [as_pending(one) for one in self._orders.pending.values()],
            }
        )

    def _done(self, changed: AdapterChange, otherwise: str) -> Response:
        """Give what the (first) engine said, and on the main port how the adapter stands."""
        said = next(iter(changed.replies.values()), None)
        body: dict[str, Any] = _spoken(said.text) if said is not None else {"message": otherwise}
        if self._is_sidecar:
            return json_response(body, said.status if said is not None else 200)
        row = as_row(changed.row)
        failed = {name: error.message for name, error in changed.errors.items()}
        return json_response(
            {
                **body,
                "lora_name": row["id"],
                "base_model": row["base_model"],
                "path": row["path"],
                "backends": row["backends"],
                **({"failed": failed} if failed else {}),
            }
        )

    def _refused(self, error: ApplianceError) -> Response:
        if not self._is_sidecar:
            raise error
        status = error.details.get("engine_status")
        if isinstance(status, int) and status >= 400:
            remedy = f" {error.message}" if error.code == "lora_not_enabled" else ""
            return json_response({"detail": f"HTTP {status}: {error.details['engine_text']}{remedy}"}, status)
        return json_response(
            {"detail": error.message}, status_of(error) if error.kind in OURS_TO_SAY else 500
        )


def read_order(body: dict[str, Any]) -> AdapterOrder:
    """Give what a body orders.

    Raises  Invalid
    """
    workers = parse_max_workers(body.get("max_workers"))
    texts = {key: body.get(key) or "" for key in ("source", "output_dir", "base_model", "backend")}
    return AdapterOrder(
        _named(body),
        body.get("lora_path") or "",
        **texts,
        is_pinned=bool(body.get("pinned")),
        is_partial=bool(body.get("partial")),
        max_workers=workers,
        config=parse_config(body.get("config")),
    )


def _named(body: dict[str, Any]) -> str:
    name = body.get("lora_name")
    if not name:
        raise Invalid("`lora_name` is required.", param="lora_name", code="missing_required_parameter")
    return str(name)


def _spoken(text: str) -> dict[str, Any]:
    """Give an engine's answer as an object: system E makes `{message}` of what is no JSON."""
    try:
        value = jsons.loads(text)
    except jsons.InvalidJson:
        return {"message": text}
    return value if isinstance(value, dict) else {"message": text}


def as_row(row: AdapterRow) -> dict[str, Any]:
    """Give an adapter as the list tells it. `state`: loaded (everywhere) | partial | the state that all backends are in | absent."""
    adapter, states = row.adapter, {one.state for one in row.backends}
    state = (
        states.pop()
        if len(states) == 1
        else "partial"
        if "loaded" in states
        else "pending"
        if states
        else "absent"
    )
    return {
        "id": adapter.name,
        "object": "lora_adapter",
        "base_model": adapter.base_model,
        "path": adapter.path,
        "source": adapter.source,
        "backend": adapter.backend,
        "pinned": adapter.is_pinned,
        "declared": row.is_declared,
        "state": state,
        "backends": [
            {"backend": one.backend, "kind": one.kind, "state": one.state, "detail": one.detail}
            for one in row.backends
        ],
    }


def as_pending(one: OrderJob) -> dict[str, Any]:
    told: dict[str, Any] = {
        "lora_name": one.name,
        "source": one.source,
        "output_dir": one.path,
        "phase": one.phase,
        "since": format_rfc3339(one.since_s),
    }
    if one.error:
        told["error"] = one.error
    if one.progress is not None:
        told |= {
            "done_bytes": one.progress.done_bytes,
            "total_bytes": one.progress.total_bytes,
            "rate_bytes_s": one.progress.rate_bytes_s,
        }
    return told
