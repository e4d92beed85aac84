"""Addresses about the appliance itself: health, metrics, receipts."""

from collections.abc import Callable
from typing import Any

from appliance.base import jsons
from appliance.base.errors import NotFound
from appliance.base.metrics import Metrics
from appliance.engines.receipts import Receipts
from appliance.front.call import Answer, Call


class SystemDoor:
    """The handlers. `status` gives the object that /healthz shows (and control's GetStatus); `measure` brings gauges up to date."""

    def __init__(self, *, status: Callable[[], dict[str, Any]], metrics: Metrics, receipts: Receipts,
                 measure: Callable[[], None]) -> None:
        self._status = status
        self._metrics = metrics
        self._receipts = receipts
        self._measure = measure

    async def healthz(self, call: Call) -> Answer:
        """GET /healthz: system A's `{ok, public_model, upstream_base, aliases, novita_endpoints}` and more; 503 while not serving."""
        status = {k: v for k, v in self._status().items() if k not in {"machine_id"}}
        return Answer(200 if status["ok"] else 503, jsons.dumps(status))

    async def metrics(self, call: Call) -> Answer:
        """GET /metrics: Prometheus' text format."""
        self._measure()
        return Answer(body=self._metrics.render(), content_type=self._metrics.content_type)

    async def receipts(self, call: Call) -> Answer:
        """GET /receipts: the latest hundred, newest first (operator)."""
        return Answer(body=jsons.dumps({"receipts": [r.as_dict() for r in self._receipts.latest(100)], "kept": len(self._receipts)}))

    async def receipt(self, call: Call) -> Answer:
        """GET /receipts/{id} (operator)."""
        receipt = self._receipts.get(call.params["id"])
        if receipt is None:
            raise NotFound(f"There is no receipt {call.params['id']!r}; the last thousand are kept.")
        return Answer(body=jsons.dumps(receipt.as_dict()))
