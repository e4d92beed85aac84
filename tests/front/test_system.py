"""The addresses about the appliance itself: health, metrics, receipts."""

from typing import Any

import pytest

from appliance.base.metrics.exposition_read import MetricFamily
from appliance.base.metrics.registry import Metrics
from appliance.front.system import SHORT_STATUS, SystemHandlers
from tests.front.requests import json_of, make_request


def handlers(status: dict[str, Any] | None = None, **parts: Any) -> SystemHandlers:
    parts = {"metrics": Metrics(), "measure": lambda: None, **parts}
    return SystemHandlers(status=lambda: status or {"ok": True}, **parts)


@pytest.mark.parametrize(("is_ok", "code"), [(True, 200), (False, 503)])
async def test_healthz_is_503_while_not_serving(is_ok: bool, code: int) -> None:
    response = await handlers({"ok": is_ok, "machine_id": "secret", "state": "x"}).healthz(make_request())
    assert (response.status, json_of(response)) == (code, {"ok": is_ok, "state": "x"})


async def test_healthz_without_a_key_is_short() -> None:
    status = {name: name == "ok" for name in (*SHORT_STATUS, "machine_id", "backends", "steps", "warnings")}
    group = handlers(status, may_see_details=lambda headers, peer: "x-api-key" in headers)
    assert list(json_of(await group.healthz(make_request()))) == list(SHORT_STATUS)
    with_key = make_request(headers={"x-api-key": "k"})
    assert list(json_of(await group.healthz(with_key))) == [*SHORT_STATUS, "backends", "steps", "warnings"]


async def test_what_a_server_said_last_is_for_operators() -> None:
    row = {"url": "http://x", "last_error": "status_500: cannot read: my prompt"}
    status = {"ok": True, "backends": [{"name": "hosted", "endpoints": (row,)}]}
    group = handlers(status, is_operator=lambda headers, peer: "x-api-key" in headers)
    client, operator = make_request(), make_request(headers={"x-api-key": "k"})
    for request, said in ((client, "status_500"), (operator, row["last_error"])):
        (shown,) = json_of(await group.healthz(request))["backends"]
        assert shown == {"name": "hosted", "endpoints": [{**row, "last_error": said}]}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain; version=0.0.4"), ("application/openmetrics-text", "application/openmetrics-text")],
)
async def test_metrics_are_measured_and_in_the_wanted_format(accept: str, content_type: str) -> None:
    measured: list[bool] = []

    async def engines() -> list[MetricFamily]:
        return []

    group = handlers(measure=lambda: measured.append(True), engines=engines)
    response = await group.metrics(make_request(headers={"accept": accept}))
    assert response.content_type.startswith(content_type)
    assert (measured, response.body.endswith(b"# EOF\n")) == ([True], bool(accept))
