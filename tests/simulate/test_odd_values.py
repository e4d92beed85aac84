"""No odd value of a field makes a stand-in fail, or rent, or take money."""

import copy
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from appliance.simulate.twin import Twin
from tests.simulate.calls import ORDER, Calls
from tests.simulate.test_ionet import DEPLOY
from tests.simulate.test_novita import CHAT
from tests.simulate.test_stripe import INTENT, SESSION

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    "",
    "x" * 300,
    "\ud800",
    [],
    [[]],
    [{}],
    {},
    {"a": {"b": []}},
]
SEARCH = {"gpu_ram": {"gte": 1}, "gpu_name": {"in": ["H200"]}, "order": [["dph_total", "asc"]]}
SEARCH |= {"limit": 5, "type": "on-demand", "allocated_storage": 5.0}
TEXTS = {"model": "qwen/qwen3-32b", "prompt": ["a"], "stop": ["b"], "n": 1, "max_tokens": 5, "logprobs": 1}
RICH_CHAT = {
    **CHAT,
    "stop": ["b"],
    "n": 1,
    "max_tokens": 5,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "tool_choice": "auto",
}
LOGS = {"fromBlock": "latest", "toBlock": "latest", "address": "0x" + "ab" * 20, "topics": [None]}
TO = "0x" + "ab" * 20


def changed(value: Any) -> Iterator[Any]:
    """Yield copies of JSON with one part replaced by an odd value."""
    yield from ODD
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in list(parts):
        for inner in changed(part):
            whole = copy.deepcopy(value)
            whole[name] = inner
            yield whole


@pytest.mark.parametrize(
    ("service", "method", "path", "body"),
    [
        ("vast", "POST", "/api/v0/bundles/", SEARCH),
        ("vast", "PUT", "/api/v0/search/asks/", {"q": SEARCH}),
        ("vast", "PUT", "/api/v0/asks/1/", ORDER),
        ("vast", "PUT", "/api/v0/instances/7000001/", {"state": "running", "label": "x"}),
        ("vast", "DELETE", "/api/v0/instances/", {"instance_ids": [1]}),
        ("vast", "PUT", "/api/v0/instances/request_logs/7000001/", {"tail": 5}),
        ("ionet", "POST", "/v1/io-cloud/caas/deploy", DEPLOY),
        ("ionet", "POST", "/v1/io-cloud/caas/deployment/dep-7000001/extend", {"duration_hours": 1}),
        ("ionet", "PATCH", "/v1/io-cloud/caas/deployment/dep-7000001", {"env_variables": {"a": "b"}}),
        ("ionet", "PUT", "/v1/io-cloud/caas/clusters/dep-7000001/update-name", {"cluster_name": "n"}),
        ("novita", "POST", "/openai/v1/chat/completions", RICH_CHAT),
        ("novita", "POST", "/openai/v1/completions", TEXTS),
        (
            "novita",
            "POST",
            "/openai/v1/embeddings",
            {"model": "baai/bge-m3", "input": ["a"], "dimensions": 4},
        ),
        ("chain", "POST", "/", {"id": 1, "method": "eth_getLogs", "params": [LOGS]}),
        ("chain", "POST", "/", {"id": 1, "method": "eth_getBlockByNumber", "params": ["latest", False]}),
        ("chain", "POST", "/", {"id": 1, "method": "eth_call", "params": [{"to": TO, "data": "0x"}]}),
        ("chain", "POST", "/", {"id": 1, "method": "eth_getTransactionReceipt", "params": [TO]}),
        ("chain", "POST", "/_pay", {"service": "chain", "to": TO, "amount": "1", "network": "ethereum"}),
        ("stripe", "POST", "/_pay", {"service": "stripe", "id": "pi_x", "outcome": "paid"}),
        ("vast", "POST", "/_fault", {"service": "vast", "kind": "slow", "route": "logs", "seconds": 0}),
        ("vast", "POST", "/_clock", {"advance_s": 0, "speed": 1}),
    ],
)
async def test_odd_json_is_no_failure(call: Calls, twin: Twin, service, method, path, body) -> None:
    await call.rent()
    await call("ionet", "POST", "/v1/io-cloud/caas/deploy", DEPLOY)
    for number, odd in enumerate(changed(body)):
        if number % 3 == 0:
            await call(service, "DELETE", "/_fault")
        reply = await call(service, method, path, odd)
        assert reply.status < 500, (odd, reply.data[:300])
        assert b"Traceback" not in reply.data


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/checkout/sessions", SESSION),
        ("/v1/payment_intents", {**INTENT, "payment_method": "pm_card_visa"}),
        ("/v1/payment_methods", {"type": "card", "card[token]": "tok_visa"}),
        ("/v1/refunds", {"payment_intent": "pi_x", "amount": "5"}),
        ("/v1/webhook_endpoints", {"url": "http://127.0.0.1:1/", "enabled_events[0]": "*"}),
    ],
)
async def test_odd_forms_are_no_failure(call: Calls, path: str, form: dict[str, str]) -> None:
    values = ["", "x" * 3000, "-1", "1e9", "9" * 40, "\x00", "é"]
    for name in form:
        for other in (*values, None):
            odd = {key: value for key, value in form.items() if key != name}
            odd |= {name: other} if other is not None else {f"{name}[a]": "1", f"{name}[]": "2"}
            reply = await call("stripe", "POST", path, data=urlencode(odd), headers=FORM)
            assert reply.status < 500, (odd, reply.data[:300])


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"{", b"[[" * 20_000, b'{"a": 1e999}', b"a=" + b"\xff" * 10, b"=&=&"]
)
async def test_unreadable_bodies_are_refused(call: Calls, data: bytes) -> None:
    for service, path in (("vast", "/api/v0/bundles/"), ("stripe", "/v1/refunds"), ("chain", "/")):
        for headers in (FORM, {"Content-Type": "application/json"}):
            reply = await call(service, "POST", path, data=data, headers=headers)
            assert reply.status < 500, (service, data[:20], reply.data[:300])


async def test_odd_queries_are_no_failure(call: Calls) -> None:
    listing = ("limit", "order_by", "select_filters", "after_token")
    price = ("location_ids", "hardware_id", "gpus_per_container", "duration_qty", "replica_count", "currency")
    for odd in ("", "x", "[]", "{}", "-1", "1e99", "[[]]", '{"id": {"in": 5}}', "\x00", "9" * 50):
        for name in listing:
            assert (await call("vast", "GET", "/api/v1/instances/", params={name: odd})).status < 500
        for name in price:
            query = {
                "location_ids": "1",
                "hardware_id": "203",
                "gpus_per_container": "1",
                "duration_qty": "1",
                name: odd,
            }
            assert (await call("ionet", "GET", "/v1/io-cloud/caas/price", params=query)).status < 500
        for name in ("page", "page_size", "sort_by", "sort_order", "status"):
            assert (
                await call("ionet", "GET", "/v1/io-cloud/caas/deployments", params={name: odd})
            ).status < 500
        assert (await call("stripe", "GET", "/v1/events", params={"limit": odd})).status < 500
        assert (await call("vast", "GET", "/api/v0/bundles/", params={"q": odd})).status < 500
        assert (await call("vast", "DELETE", "/_fault", params={"id": odd})).status < 500
