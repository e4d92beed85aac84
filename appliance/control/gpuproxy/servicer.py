"""The calls of `gpuproxy.GPUProxyService`, each made of HTTP addresses of the same meaning."""

import base64
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from grpc.aio import ServicerContext

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import Invalid, Unsupported
from appliance.control.gpuproxy import gpuproxy_pb2 as pb
from appliance.control.gpuproxy.answers import (
    AskHttp,
    HttpAnswer,
    error_of,
    number_of_field,
    objects_of,
    text_of_field,
)
from appliance.control.gpuproxy.gpuproxy_pb2_grpc import GPUProxyServiceServicer
from appliance.control.writing import write

BASE: Final = "/api/v1"
KINDS_OF_LOAD: Final = ("", "all", "server", "provider")
MAX_STREAMED: Final = 1000  # requests of one StreamProxyRequest
INT32: Final = 2**31 - 1
AnyCall = ServicerContext[Any, Any]


class GpuProxyServicer(GPUProxyServiceServicer):
    """Answers the calls.

    Args:
        ask: Asks an HTTP address.
        clock: The time.
    """

    def __init__(self, ask: AskHttp, *, clock: Clock) -> None:
        self._ask_http = ask
        self._clock = clock

    async def _ask(
        self,
        context: AnyCall,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        token: str = "",
        refused: tuple[int, ...] = (),
    ) -> HttpAnswer:
        """Ask an address with the caller's credentials.

        Args:
            token: An access token of the message, which is used where there is no credential in the metadata.
            refused: Statuses that are returned, not raised.

        Raises:
            ApplianceError: What the address tells.
        """
        headers = _credentials(context)
        if token and "authorization" not in headers:
            headers["authorization"] = f"Bearer {token}"
        answer = await self._ask_http(
            method, BASE + path, headers=headers, peer=_peer(context), query=query, body=body
        )
        if answer.status >= 400 and answer.status not in refused:
            raise error_of(answer)
        return answer

    # ---- users

    async def Login(self, request: pb.LoginRequest, context: AnyCall) -> pb.LoginResponse:
        """Exchange e-mail and password for an access token."""
        body = {"email": request.email, "password": request.password}
        value = (await self._ask(context, "POST", "/auth/login", body=body)).value
        user, tokens = value.get("user"), value.get("tokens")
        return pb.LoginResponse(
            token=text_of_field(tokens, "access_token"),
            user_id=text_of_field(user, "id"),
            email=text_of_field(user, "email"),
        )

    async def CreateAPIKey(
        self, request: pb.CreateAPIKeyRequest, context: AnyCall
    ) -> pb.CreateAPIKeyResponse:
        """Make an API key."""
        body = {"name": request.name}
        value = (await self._ask(context, "POST", "/auth/apikey", body=body, token=request.token)).value
        return pb.CreateAPIKeyResponse(
            api_key=text_of_field(value, "api_key"), name=request.name, created_at=int(self._clock.now_s())
        )

    # ---- GPUs

    async def ListGPUInstances(
        self, request: pb.ListGPUInstancesRequest, context: AnyCall
    ) -> pb.ListGPUInstancesResponse:
        """List offers."""
        query = {
            "provider": request.provider or "all",
            **_wanted(request.min_vram, request.max_price),
            **({"gpu_model": request.gpu_model} if request.gpu_model else {}),
        }
        value = (await self._ask(context, "GET", "/gpu/instances", query=query)).value
        rows = [_offer(row) for row in objects_of(value, "instances")]
        return pb.ListGPUInstancesResponse(instances=rows, total_count=len(rows))

    async def CreateGPUInstance(
        self, request: pb.CreateGPUInstanceRequest, context: AnyCall
    ) -> pb.CreateGPUInstanceResponse:
        """Rent an offer."""
        body: dict[str, Any] = {}
        if request.image:
            body["image"] = request.image
        if request.env:
            body["env"] = dict(request.env)
        if request.ports:
            body["ports"] = list(request.ports)
        path = _instance(request.provider, request.instance_id)
        value = (await self._ask(context, "POST", path, body=body)).value
        return pb.CreateGPUInstanceResponse(
            instance_id=text_of_field(value, "contract_id"),
            provider=text_of_field(value, "provider"),
            status=text_of_field(value, "state") or "creating",
            message="Instance created",
        )

    async def DestroyGPUInstance(
        self, request: pb.DestroyGPUInstanceRequest, context: AnyCall
    ) -> pb.DestroyGPUInstanceResponse:
        """End a rental."""
        path = _instance(request.provider, request.instance_id)
        value = (await self._ask(context, "DELETE", path)).value
        return pb.DestroyGPUInstanceResponse(success=True, message=text_of_field(value, "message"))

    async def GetGPUInstance(
        self, request: pb.GetGPUInstanceRequest, context: AnyCall
    ) -> pb.GetGPUInstanceResponse:
        """Show a rental."""
        path = _instance(request.provider, request.instance_id)
        value = (await self._ask(context, "GET", path)).value
        return pb.GetGPUInstanceResponse(instance=_rental(value))

    async def ReserveGPUs(self, request: pb.ReserveGPUsRequest, context: AnyCall) -> pb.ReserveGPUsResponse:
        """Rent several offers: all or none."""
        filters = _wanted(request.min_vram, request.max_price)
        if request.provider and request.provider != "all":
            filters["provider"] = request.provider
        body = {"count": request.count, "filters": filters}
        value = (await self._ask(context, "POST", "/gpu/instances/reserve", body=body)).value
        rows = [
            pb.GPUInstance(
                id=text_of_field(row, "instance_id"),
                provider=text_of_field(row, "provider"),
                status=text_of_field(row, "state") or "reserved",
                price_per_hour=number_of_field(row, "price"),
                vram_gb=number_of_field(row, "vram"),
                gpu_model=text_of_field(row, "gpu_model"),
                metadata={"contract_id": text_of_field(row, "contract_id")},
            )
            for row in objects_of(value, "reserved")
        ]
        message = f"Reserved {len(rows)} of {request.count} GPUs"
        return pb.ReserveGPUsResponse(reserved_instances=rows, reserved_count=len(rows), message=message)

    # ---- the proxy

    async def ProxyRequest(self, request: pb.ProxyRequestMessage, context: AnyCall) -> pb.ProxyResponse:
        """Send one request."""
        return await self._proxy(request, context)

    async def StreamProxyRequest(
        self, request_iterator: AsyncIterator[pb.ProxyRequestMessage], context: AnyCall
    ) -> None:
        """Send one request after the other."""
        count = 0
        async for request in request_iterator:
            count += 1
            if count > MAX_STREAMED:
                raise Invalid(f"A stream may hold {MAX_STREAMED} requests. Begin another one.")
            await write(context, await self._proxy(request, context))

    async def _proxy(self, request: pb.ProxyRequestMessage, context: AnyCall) -> pb.ProxyResponse:
        body: dict[str, Any] = {"protocol": request.protocol, "target_url": request.target_url}
        if request.method:
            body["method"] = request.method
        if request.headers:
            body["headers"] = dict(request.headers)
        if request.timeout:
            body["timeout"] = request.timeout
        if request.body:
            body["body"] = _sent(request.body)
        value = (await self._ask(context, "POST", "/gpu/proxy", body=body)).value
        headers = value.get("headers")
        return pb.ProxyResponse(
            status_code=int(number_of_field(value, "status_code")),
            headers={str(name): str(text) for name, text in headers.items()}
            if isinstance(headers, dict)
            else {},
            body=_received(value),
            error=text_of_field(value, "error"),
        )

    # ---- money

    async def CreatePayment(
        self, request: pb.CreatePaymentRequest, context: AnyCall
    ) -> pb.CreatePaymentResponse:
        """Begin a payment."""
        del request, context
        raise Unsupported("Payments are not offered in this version. Ask an administrator for credits.")

    async def GetTransactions(
        self, request: pb.GetTransactionsRequest, context: AnyCall
    ) -> pb.GetTransactionsResponse:
        """List payments."""
        del request, context
        raise Unsupported(
            "Payments are not offered in this version. GET /api/v1/billing/ledger lists movements of credits."
        )

    async def GetSpendingInfo(
        self, request: pb.GetSpendingInfoRequest, context: AnyCall
    ) -> pb.GetSpendingInfoResponse:
        """Show what was spent in each window."""
        value = (await self._ask(context, "GET", "/guardrails/spending")).value
        spent, limits = value.get("window_spent") or {}, value.get("window_limits") or {}
        windows = []
        for name in spent:
            used, limit = number_of_field(spent, name), number_of_field(limits, name)
            windows.append(
                pb.SpendingWindow(
                    window=name,
                    spent=used,
                    limit=limit,
                    remaining=max(0.0, limit - used) if name in limits else 0.0,
                    exceeded=name in limits and used > limit,
                )
            )
        return pb.GetSpendingInfoResponse(
            windows=windows,
            guard_rails_enabled=bool(limits),
            total_spent_24h=number_of_field(spent, "1440min"),
        )

    async def CheckSpendingLimit(
        self, request: pb.CheckSpendingLimitRequest, context: AnyCall
    ) -> pb.CheckSpendingLimitResponse:
        """Say whether so much more may be spent."""
        if not math.isfinite(request.amount) or request.amount < 0:
            raise Invalid(f"amount is {request.amount}; allowed are 0 and more.", param="amount")
        body = {"estimated_cost": round(request.amount, 6)}
        answer = await self._ask(context, "POST", "/guardrails/check", body=body, refused=(402,))
        if answer.status < 400:
            return pb.CheckSpendingLimitResponse(allowed=True)
        names = [text_of_field(row, "window") for row in objects_of(answer.value, "violations")]
        return pb.CheckSpendingLimitResponse(
            allowed=False, reason=text_of_field(answer.value, "error"), would_exceed=names
        )

    # ---- load balancing

    async def SetLoadBalancerStrategy(
        self, request: pb.SetLoadBalancerStrategyRequest, context: AnyCall
    ) -> pb.SetLoadBalancerStrategyResponse:
        """Set the strategy."""
        body = {"strategy": request.strategy}
        value = (await self._ask(context, "PUT", "/loadbalancer/strategy", body=body)).value
        return pb.SetLoadBalancerStrategyResponse(strategy=text_of_field(value, "strategy"), success=True)

    async def GetLoadInfo(self, request: pb.GetLoadInfoRequest, context: AnyCall) -> pb.GetLoadInfoResponse:
        """Show how busy servers are, and what markets offer."""
        if request.type not in KINDS_OF_LOAD:
            raise Invalid(
                f"type is {request.type[:40]!r}; allowed are server, provider and all.", param="type"
            )
        value = (await self._ask(context, "GET", "/loadbalancer/loads")).value
        servers: list[pb.LoadInfo] = []
        if request.type != "provider":
            loads = value.get("loads")
            servers = [_load(row) for row in loads.values()] if isinstance(loads, dict) else []
        markets = await self._markets(context) if request.type != "server" else []
        return pb.GetLoadInfoResponse(
            server_load=servers, provider_load=markets, current_strategy=text_of_field(value, "strategy")
        )

    async def _markets(self, context: AnyCall) -> list[pb.LoadInfo]:
        """Return how many instances each market offers; [] = nothing can be rented here."""
        answer = await self._ask(context, "GET", "/gpu/instances", refused=(404, 502, 503))
        counts: dict[str, int] = {}
        if answer.status < 400:
            for row in objects_of(answer.value, "instances"):
                name = text_of_field(row, "provider")
                counts[name] = counts.get(name, 0) + 1
        return [pb.LoadInfo(provider=name, connections=count) for name, count in counts.items()]

    # ---- health

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: AnyCall) -> pb.HealthCheckResponse:
        """Say whether it serves."""
        del request
        answer = await self._ask_http("GET", "/health", headers=_credentials(context), peer=_peer(context))
        checks = answer.value.get("checks") if isinstance(answer.value, dict) else None
        details = (
            {name: text_of_field(row, "status") for name, row in checks.items()}
            if isinstance(checks, dict)
            else {}
        )
        return pb.HealthCheckResponse(
            status=text_of_field(answer.value, "status"), timestamp=int(self._clock.now_s()), details=details
        )


def _credentials(context: AnyCall) -> dict[str, str]:
    """Return the caller's credentials as header fields."""
    headers: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if name in ("x-api-key", "authorization", "idempotency-key", "x-timelimit"):
            headers.setdefault(name, value.decode("ascii", "replace") if isinstance(value, bytes) else value)
    return headers


def _peer(context: AnyCall) -> str:
    """Return the caller's address, as HTTP requests have it."""
    peer = context.peer()
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return "unix"
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")


def _instance(provider: str, name: str) -> str:
    """Return the path of an instance.

    Raises:
        Invalid: A part of it is missing, or is no name.
    """
    for field, value in (("provider", provider), ("instance_id", name)):
        if not value or not value.isprintable() or set(value) & set("/?#% ") or len(value) > 200:
            raise Invalid(f"{field} is {value[:40]!r}; it must be a name without `/`.", param=field)
    return f"/gpu/instances/{provider}/{name}"


def _wanted(min_vram: float, max_price: float) -> dict[str, Any]:
    """Return the filters of a message; 0 = any.

    Raises:
        Invalid: One is no number from 0 on.
    """
    found: dict[str, Any] = {}
    for name, value in (("min_vram", min_vram), ("max_price", max_price)):
        if not math.isfinite(value) or value < 0:
            raise Invalid(f"{name} is {value}; allowed are 0 (any) and more.", param=name)
        if value:
            found[name] = int(value) if value.is_integer() else value
    return found


def _offer(row: dict[str, Any]) -> pb.GPUInstance:
    return pb.GPUInstance(
        id=text_of_field(row, "id"),
        provider=text_of_field(row, "provider"),
        status="available" if row.get("available") else "unavailable",
        price_per_hour=number_of_field(row, "price_per_hour"),
        vram_gb=number_of_field(row, "vram_gb"),
        gpu_model=text_of_field(row, "gpu_name"),
        num_gpus=_whole(row, "gpu_count"),
        location=text_of_field(row, "location"),
    )


def _rental(row: dict[str, Any]) -> pb.GPUInstance:
    shown = ("id", "contract_id", "address", "model", "lease_ends_at", "cost", "last_error")
    return pb.GPUInstance(
        id=text_of_field(row, "contract_id") or text_of_field(row, "instance_id"),
        provider=text_of_field(row, "provider"),
        status=text_of_field(row, "state"),
        price_per_hour=number_of_field(row, "price_per_hour"),
        vram_gb=number_of_field(row, "vram_gb"),
        gpu_model=text_of_field(row, "gpu_name"),
        num_gpus=_whole(row, "gpu_count"),
        metadata={name: text for name in shown if (text := text_of_field(row, name))},
    )


def _load(row: Any) -> pb.LoadInfo:
    mean_ms = number_of_field(row, "avg_response_time") * 1000
    weight = number_of_field(row, "weight") or 1.0
    return pb.LoadInfo(
        instance_id=text_of_field(row, "instance_id"),
        provider=text_of_field(row, "provider"),
        connections=_whole(row, "active_connections"),
        avg_response_time_ms=mean_ms,
        load_score=number_of_field(row, "active_connections") / weight,
    )


def _whole(row: Any, name: str) -> int:
    return min(INT32, max(0, int(number_of_field(row, name))))


def _sent(body: bytes) -> Any:
    """Return a body as the HTTP address takes it: JSON objects and lists as such, other text as text.

    Raises:
        Invalid: It is no text.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise Invalid("body must be UTF-8: JSON, or other text.", param="body") from None
    try:
        value = jsons.loads(body)
    except jsons.InvalidJson:
        return text
    return value if isinstance(value, dict | list) else text


def _received(value: dict[str, Any]) -> bytes:
    """Return the body of a proxied response as bytes."""
    body = value.get("body")
    if body is None:
        return b""
    if isinstance(body, str):
        return base64.b64decode(body) if value.get("body_encoding") == "base64" else body.encode()
    return jsons.dumps(body)
