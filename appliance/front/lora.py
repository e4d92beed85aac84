"""The addresses about LoRA adapters: load, unload, list. Decisions: engines/lora/orders.py.

On the sidecar's port responses and errors are those of the engine: for compatibility, see
docs/compatibility.md.
"""

from functools import partial
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
OWN_FIELDS = {*TYPES}  # all others are sent on to the engines
OWN_STATUS = {  # kinds of errors whose status is kept on the sidecar's port; any other is 500
    Kind.INVALID,
    Kind.FORBIDDEN,
    Kind.NOT_FOUND,
    Kind.NO_SUCH_MODEL,
    Kind.CONFLICT,
    Kind.UNSUPPORTED,
}


class LoraHandlers:
    """The handlers of LoRA adapters.

    Args:
        orders: Carries out loading and unloading.
        is_sidecar: Whether it is for the sidecar's port, whose bodies differ (see above).
    """

    def __init__(self, orders: AdapterOrders, *, is_sidecar: bool = False) -> None:
        self._orders = orders
        self._is_sidecar = is_sidecar

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        ours = partial(Route, access=Access.OPERATOR)
        return [
            ours(("POST",), "/v1/load_lora_adapter", self.load),
            ours(("POST",), "/v1/unload_lora_adapter", self.unload),
            ours(("GET",), "/v1/lora_adapters", self.adapters, is_open_while_draining=True),
        ]

    async def load(self, request: Request) -> Response:
        """Load an adapter, downloaded first where it has a `source`.

        With `async_download` return 202 at once.
        """
        try:
            body = read_object(request.body)
            check_types(body, TYPES)
            order = parse_order(body)
            if body.get("async_download"):
                adapter = await self._orders.begin(order)
                message = f"The adapter {order.name!r} is being loaded. Its progress: GET /v1/lora_adapters."
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
                await self._orders.load(order), f"The adapter {order.name!r} is already loaded."
            )
        except ApplianceError as error:
            return self._refused(error)

    async def unload(self, request: Request) -> Response:
        """Unload an adapter: `{lora_name}`; other fields are sent on to the engines."""
        try:
            body = read_object(request.body)
            check_types(body, TYPES)
            name = _require_name(body)
            more = {key: value for key, value in body.items() if key not in OWN_FIELDS}
            changed = await self._orders.unload(name, partial=bool(body.get("partial")), more=more)
            return self._done(
                changed, f"The adapter {name!r} is no longer declared; no backend had loaded it."
            )
        except ApplianceError as error:
            return self._refused(error)

    async def adapters(self, request: Request) -> Response:
        """List the adapters, and the orders that are not done.

        Returns:
            `{object: "list", data: [{id, base_model, path, source, backend, pinned, declared, state,
            backends: [{backend, kind, state, detail}]}], pending: [{lora_name, source, output_dir, phase,
            since, error?, …}]}`.
        """
        return json_response(
            {
                "object": "list",
                "data": [as_row(row) for row in self._orders.adapters.status.rows()],
                "pending": [as_pending(order) for order in self._orders.pending.values()],
            }
        )

    def _done(self, changed: AdapterChange, otherwise: str) -> Response:
        """Return the first engine's response; on the main port with the adapter's state.

        Args:
            otherwise: The message where no engine was asked.
        """
        reply = next(iter(changed.replies.values()), None)
        body: dict[str, Any] = _engine_object(reply.text) if reply is not None else {"message": otherwise}
        if self._is_sidecar:
            return json_response(body, reply.status if reply is not None else 200)
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
        """Return the response of a failure.

        1. on the main port               → the error is raised
        2. an engine refused              → the engine's own status and text
        3. the appliance refused          → the status of the error
        4. anything else                  → 500
        """
        if not self._is_sidecar:  # 1
            raise error
        status = error.details.get("engine_status")
        if isinstance(status, int) and status >= 400:  # 2
            remedy = f" {error.message}" if error.code == "lora_not_enabled" else ""
            return json_response({"detail": f"HTTP {status}: {error.details['engine_text']}{remedy}"}, status)
        return json_response({"detail": error.message}, status_of(error) if error.kind in OWN_STATUS else 500)


def parse_order(body: dict[str, Any]) -> AdapterOrder:
    """Return the order in a body.

    Raises:
        Invalid: A field is missing or invalid.
    """
    workers = parse_max_workers(body.get("max_workers"))
    texts = {key: body.get(key) or "" for key in ("source", "output_dir", "base_model", "backend")}
    return AdapterOrder(
        _require_name(body),
        body.get("lora_path") or "",
        **texts,
        is_pinned=bool(body.get("pinned")),
        is_partial=bool(body.get("partial")),
        max_workers=workers,
        config=parse_config(body.get("config")),
    )


def _require_name(body: dict[str, Any]) -> str:
    name = body.get("lora_name")
    if not name:
        raise Invalid("`lora_name` is required.", param="lora_name", code="missing_required_parameter")
    return str(name)


def _engine_object(text: str) -> dict[str, Any]:
    """Return an engine's response as an object: `{message}` where it is not a JSON object."""
    try:
        value = jsons.loads(text)
    except jsons.InvalidJson:
        return {"message": text}
    return value if isinstance(value, dict) else {"message": text}


def as_row(row: AdapterRow) -> dict[str, Any]:
    """Return an adapter as in the list."""
    adapter = row.adapter
    return {
        "id": adapter.name,
        "object": "lora_adapter",
        "base_model": adapter.base_model,
        "path": adapter.path,
        "source": adapter.source,
        "backend": adapter.backend,
        "pinned": adapter.is_pinned,
        "declared": row.is_declared,
        "state": _common_state({status.state for status in row.backends}),
        "backends": [
            {"backend": status.backend, "kind": status.kind, "state": status.state, "detail": status.detail}
            for status in row.backends
        ],
    }


def _common_state(states: set[str]) -> str:
    """Return one word for the states on all backends.

    1. no backend              → absent
    2. the same everywhere     → that state
    3. loaded on some          → partial
    4. anything else           → pending
    """
    if not states:  # 1
        return "absent"
    if len(states) == 1:  # 2
        return next(iter(states))
    return "partial" if "loaded" in states else "pending"  # 3, 4


def as_pending(order: OrderJob) -> dict[str, Any]:
    """Return an order that is not done as in the list."""
    row: dict[str, Any] = {
        "lora_name": order.name,
        "source": order.source,
        "output_dir": order.path,
        "phase": order.phase,
        "since": format_rfc3339(order.since_s),
    }
    if order.error:
        row["error"] = order.error
    if order.progress is not None:
        row |= {
            "done_bytes": order.progress.done_bytes,
            "total_bytes": order.progress.total_bytes,
            "rate_bytes_s": order.progress.rate_bytes_s,
        }
    return row
