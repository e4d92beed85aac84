"""The calls of `gpuproxy.GPUProxyService`: which address each asks, with what, and what it makes of the answer."""

from collections.abc import Mapping
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Exhausted,
    Forbidden,
    Internal,
    Invalid,
    NotFound,
    PaymentRequired,
    Unauthenticated,
    Unavailable,
    Unsupported,
    UpstreamFailed,
)
from appliance.control.gpuproxy import gpuproxy_pb2 as pb
from appliance.control.gpuproxy.answers import HttpAnswer
from appliance.control.gpuproxy.servicer import GpuProxyServicer


class Context:
    """What a call has of its caller."""

    def __init__(self, metadata: Mapping[str, str] | None = None, peer: str = "ipv4:192.0.2.7:5000") -> None:
        self._metadata = tuple((metadata or {"x-api-key": "apk_1"}).items())
        self._peer = peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return self._peer


class Http:
    """Answers what it is told to, and records what it was asked."""

    def __init__(self, value: Any = None, status: int = 200, **more: Any) -> None:
        self.answer = HttpAnswer(status, value, **more)
        self.asked: list[tuple[str, str, Any, Any]] = []
        self.headers: dict[str, str] = {}
        self.peer = ""

    async def __call__(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        peer: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> HttpAnswer:
        self.asked.append((method, path, query, body))
        self.headers, self.peer = headers, peer
        return self.answer


def calls(http: Http) -> Any:
    return GpuProxyServicer(http, clock=FakeClock())


BASE = "/api/v1"
OFFER = {
    "id": "vast-7",
    "provider": "vast.ai",
    "gpu_name": "RTX 4090",
    "gpu_count": 2,
    "vram_gb": 24,
    "price_per_hour": 0.35,
    "location": "Oslo, NO",
    "available": True,
}
RENTAL = {
    "id": "r1",
    "contract_id": "c9",
    "provider": "vast.ai",
    "instance_id": "vast-7",
    "state": "ready",
    "gpu_name": "RTX 4090",
    "gpu_count": 1,
    "vram_gb": 24,
    "price_per_hour": 0.35,
    "address": "http://192.0.2.9:8000",
    "last_error": None,
}


@pytest.mark.parametrize(
    ("name", "request_", "asked"),
    [
        (
            "Login",
            pb.LoginRequest(email="a@b.c", password="p"),
            ("POST", "/auth/login", None, {"email": "a@b.c", "password": "p"}),
        ),
        ("CreateAPIKey", pb.CreateAPIKeyRequest(name="k"), ("POST", "/auth/apikey", None, {"name": "k"})),
        (
            "ListGPUInstances",
            pb.ListGPUInstancesRequest(),
            ("GET", "/gpu/instances", {"provider": "all"}, None),
        ),
        (
            "ListGPUInstances",
            pb.ListGPUInstancesRequest(provider="io.net", min_vram=16, max_price=1.5, gpu_model="4090"),
            (
                "GET",
                "/gpu/instances",
                {"provider": "io.net", "min_vram": 16, "max_price": 1.5, "gpu_model": "4090"},
                None,
            ),
        ),
        (
            "CreateGPUInstance",
            pb.CreateGPUInstanceRequest(
                provider="vast.ai", instance_id="12345", image="i", env={"A": "1"}, ports=[8000]
            ),
            (
                "POST",
                "/gpu/instances/vast.ai/12345",
                None,
                {"image": "i", "env": {"A": "1"}, "ports": [8000]},
            ),
        ),
        (
            "DestroyGPUInstance",
            pb.DestroyGPUInstanceRequest(provider="vast.ai", instance_id="12345"),
            ("DELETE", "/gpu/instances/vast.ai/12345", None, None),
        ),
        (
            "GetGPUInstance",
            pb.GetGPUInstanceRequest(provider="vast.ai", instance_id="12345"),
            ("GET", "/gpu/instances/vast.ai/12345", None, None),
        ),
        (
            "ReserveGPUs",
            pb.ReserveGPUsRequest(count=4, provider="vast.ai", min_vram=24, max_price=0.5),
            (
                "POST",
                "/gpu/instances/reserve",
                None,
                {"count": 4, "filters": {"min_vram": 24, "max_price": 0.5, "provider": "vast.ai"}},
            ),
        ),
        (
            "ProxyRequest",
            pb.ProxyRequestMessage(
                protocol="https",
                target_url="https://x",
                method="PUT",
                headers={"A": "b"},
                body=b'{"a": 1}',
                timeout=5,
            ),
            (
                "POST",
                "/gpu/proxy",
                None,
                {
                    "protocol": "https",
                    "target_url": "https://x",
                    "method": "PUT",
                    "headers": {"A": "b"},
                    "timeout": 5,
                    "body": {"a": 1},
                },
            ),
        ),
        ("GetSpendingInfo", pb.GetSpendingInfoRequest(), ("GET", "/guardrails/spending", None, None)),
        (
            "CheckSpendingLimit",
            pb.CheckSpendingLimitRequest(amount=0.1),
            ("POST", "/guardrails/check", None, {"estimated_cost": 0.1}),
        ),
        (
            "SetLoadBalancerStrategy",
            pb.SetLoadBalancerStrategyRequest(strategy="round_robin"),
            ("PUT", "/loadbalancer/strategy", None, {"strategy": "round_robin"}),
        ),
        ("GetLoadInfo", pb.GetLoadInfoRequest(type="server"), ("GET", "/loadbalancer/loads", None, None)),
    ],
)
async def test_each_call_asks_its_address(name: str, request_: Any, asked: tuple[Any, ...]) -> None:
    http = Http({})
    await getattr(calls(http), name)(request_, Context())
    assert http.asked == [(asked[0], BASE + asked[1], *asked[2:])]
    assert (http.headers, http.peer) == ({"x-api-key": "apk_1"}, "192.0.2.7")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid),
        (401, Unauthenticated),
        (402, PaymentRequired),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (429, Exhausted),
        (501, Unsupported),
        (502, UpstreamFailed),
        (503, Unavailable),
        (500, Internal),
        (507, Internal),
        (418, Invalid),
    ],
)
async def test_a_failure_is_that_of_the_address(status: int, kind: type[ApplianceError]) -> None:
    http = Http({"error": "said so", "code": "its_code"}, status, retry_after_s=3.0)
    with pytest.raises(kind) as refused:
        await calls(http).ListGPUInstances(pb.ListGPUInstancesRequest(), Context())
    error = refused.value
    assert (error.message, error.code, error.retry_after_s) == ("said so", "its_code", 3.0)


async def test_a_failure_without_words_still_has_some() -> None:
    with pytest.raises(Internal, match="status 500"):
        await calls(Http(None, 500)).ListGPUInstances(pb.ListGPUInstancesRequest(), Context())


async def test_offers_are_listed_as_instances() -> None:
    found = await calls(Http({"instances": [OFFER, "wrong", {}]})).ListGPUInstances(
        pb.ListGPUInstancesRequest(), Context()
    )
    first = found.instances[0]
    assert (found.total_count, first.id, first.num_gpus, first.vram_gb) == (2, "vast-7", 2, 24)
    assert (first.status, first.price_per_hour, first.location) == ("available", 0.35, "Oslo, NO")
    assert found.instances[1].status == "unavailable"


async def test_a_rental_is_shown_with_its_address() -> None:
    request = pb.GetGPUInstanceRequest(provider="vast.ai", instance_id="c9")
    shown = (await calls(Http(RENTAL)).GetGPUInstance(request, Context())).instance
    assert (shown.id, shown.status, shown.gpu_model) == ("c9", "ready", "RTX 4090")
    assert dict(shown.metadata) == {"id": "r1", "contract_id": "c9", "address": "http://192.0.2.9:8000"}


async def test_a_reservation_has_contract_ids() -> None:
    row = {
        "instance_id": "vast-7",
        "contract_id": "c1",
        "provider": "vast.ai",
        "gpu_model": "x",
        "price": 0.5,
    }
    done = await calls(Http({"reserved": [row]})).ReserveGPUs(pb.ReserveGPUsRequest(count=1), Context())
    assert (done.reserved_count, done.reserved_instances[0].metadata["contract_id"]) == (1, "c1")
    assert done.message == "Reserved 1 of 1 GPUs"


@pytest.mark.parametrize(
    ("sent", "body"),
    [(b'{"a":1}', {"a": 1}), (b"[1]", [1]), (b"5", "5"), (b"plain", "plain"), ("é".encode(), "é")],
)
async def test_a_body_is_sent_as_json_or_as_text(sent: bytes, body: Any) -> None:
    http = Http({"status_code": 200})
    await calls(http).ProxyRequest(pb.ProxyRequestMessage(body=sent), Context())
    assert http.asked[0][3]["body"] == body


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({"body": {"a": 1}}, b'{"a":1}'),
        ({"body": "text"}, b"text"),
        ({"body": "AAE=", "body_encoding": "base64"}, b"\x00\x01"),
        ({}, b""),
    ],
)
async def test_a_proxied_body_comes_back_as_bytes(value: dict[str, Any], body: bytes) -> None:
    done = await calls(Http({"status_code": 201, "headers": {"A": "b"}, **value})).ProxyRequest(
        pb.ProxyRequestMessage(), Context()
    )
    assert (done.status_code, dict(done.headers), done.body) == (201, {"A": "b"}, body)


async def test_spending_is_shown_with_its_limits() -> None:
    value = {"window_spent": {"5min": 2.0, "1440min": 3.0}, "window_limits": {"5min": 1.5}}
    info = await calls(Http(value)).GetSpendingInfo(pb.GetSpendingInfoRequest(), Context())
    first, second = info.windows
    assert (first.window, first.limit, first.remaining, first.exceeded) == ("5min", 1.5, 0, True)
    assert (second.limit, second.exceeded) == (0, False)
    assert (info.guard_rails_enabled, info.total_spent_24h) == (True, 3.0)


async def test_a_limit_that_forbids_is_an_answer() -> None:
    value = {"error": "Spending limit exceeded", "violations": [{"window": "5min"}]}
    done = await calls(Http(value, 402)).CheckSpendingLimit(pb.CheckSpendingLimitRequest(amount=9), Context())
    assert (done.allowed, done.reason, list(done.would_exceed)) == (
        False,
        "Spending limit exceeded",
        ["5min"],
    )


async def test_a_token_of_the_message_counts_without_one_in_the_metadata() -> None:
    http = Http({"api_key": "apk_2"})
    request = pb.CreateAPIKeyRequest(name="k", token="jwt")
    assert (await calls(http).CreateAPIKey(request, Context({"x": "y"}))).api_key == "apk_2"
    assert http.headers == {"authorization": "Bearer jwt"}
    await calls(http).CreateAPIKey(request, Context({"authorization": "Bearer other"}))
    assert http.headers == {"authorization": "Bearer other"}


@pytest.mark.parametrize(
    ("name", "request_", "words"),
    [
        ("GetGPUInstance", pb.GetGPUInstanceRequest(provider="vast.ai"), "instance_id is ''"),
        ("GetGPUInstance", pb.GetGPUInstanceRequest(provider="../x", instance_id="1"), "provider is"),
        ("DestroyGPUInstance", pb.DestroyGPUInstanceRequest(provider="a", instance_id="1/renew"), "without"),
        ("ListGPUInstances", pb.ListGPUInstancesRequest(min_vram=-1), "min_vram is -1.0"),
        ("ListGPUInstances", pb.ListGPUInstancesRequest(max_price=float("nan")), "max_price is nan"),
        ("CheckSpendingLimit", pb.CheckSpendingLimitRequest(amount=float("inf")), "amount is inf"),
        ("GetLoadInfo", pb.GetLoadInfoRequest(type="other"), "type is 'other'"),
        ("ProxyRequest", pb.ProxyRequestMessage(body=b"\xff"), "must be UTF-8"),
    ],
)
async def test_what_is_refused_before_an_address_is_asked(name: str, request_: Any, words: str) -> None:
    http = Http({})
    with pytest.raises(Invalid, match=words):
        await getattr(calls(http), name)(request_, Context())
    assert http.asked == []


@pytest.mark.parametrize(
    ("name", "request_"),
    [("CreatePayment", pb.CreatePaymentRequest(amount=5)), ("GetTransactions", pb.GetTransactionsRequest())],
)
async def test_payments_are_not_offered_yet(name: str, request_: Any) -> None:
    with pytest.raises(Unsupported, match="not offered"):
        await getattr(calls(Http({})), name)(request_, Context())


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:5000", "192.0.2.7"),
        ("ipv6:[2001:db8::1]:5000", "2001:db8::1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("unix:", "unix"),
        ("unix:/run/x", "unix"),
    ],
)
async def test_the_callers_address_is_that_of_its_connection(peer: str, address: str) -> None:
    http = Http({})
    await calls(http).ListGPUInstances(pb.ListGPUInstancesRequest(), Context(peer=peer))
    assert http.peer == address
