"""The proxy: reads what a user wants, sends it within its time and limits, notes what was done."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeVar

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Invalid, NotFound
from appliance.base.inline import in_task
from appliance.base.logs import get_logger
from appliance.base.ssrf import CallTarget, TargetPolicy
from appliance.base.time_limit import time_limit_exceeded
from appliance.market.proxy.exchange import OpenAnswer, ProxyAnswer, ProxyCall, Sender, Speak
from appliance.market.proxy.fields import Fields, fields_up
from appliance.market.proxy.http import open_http, speak_http
from appliance.market.proxy.mcp import speak_mcp
from appliance.market.proxy.openinference import speak_openinference
from appliance.market.proxy.order import ProxyOrder
from appliance.market.proxy.shares import UserShares

log = get_logger("proxy")
OWN_SCHEME: Final = "gpu://"
T = TypeVar("T")
SPEAKERS: Final[Mapping[str, Speak]] = {
    "http": speak_http,
    "https": speak_http,
    "mcp": speak_mcp,
    "openinference": speak_openinference,
}


@dataclass(frozen=True, slots=True)
class InstanceAddress:
    """Where an instance of a user answers.

    Attributes:
        url: Its base address, http or https.
        headers: What its callers have to send, such as its key.
    """

    url: str
    headers: Fields = field(default_factory=list, repr=False)


class OwnInstances(Protocol):
    """Knows the instances that users rent."""

    async def address_of(self, user_id: str, provider: str, name: str) -> InstanceAddress:
        """Return where an instance answers.

        Raises:
            NotFound: This user has none of that name.
            Conflict: It does not run.
        """
        ...


@dataclass(frozen=True, slots=True)
class ProxyCaller:
    """Who asks.

    Attributes:
        user_id: Of the user.
        peer: From where.
        keys: The credentials that were sent to us: they do not go up.
    """

    user_id: str
    peer: str = ""
    keys: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class ProxyNote:
    """What was done, for the audit; `host` as it was written, never what it resolved to."""

    caller: ProxyCaller
    protocol: str
    host: str
    status: int
    size_bytes: int
    error: str = ""


class GpuProxy:
    """Sends requests of users to targets.

    Args:
        sender: Opens them.
        policy: What may be called.
        max_s: Longest time of one request (PROXY_MAX_S).
        clock: The time.
        note: Takes what was done; returns at once, raises nothing.
        shares: How much one user has.
        instances: The instances of users; None = nothing is rented here.
    """

    def __init__(
        self,
        sender: Sender,
        policy: TargetPolicy,
        *,
        max_s: float,
        clock: Clock,
        note: Callable[[ProxyNote], None],
        shares: UserShares | None = None,
        instances: OwnInstances | None = None,
    ) -> None:
        self._sender = sender
        self._policy = policy
        self._max_s = max_s
        self._clock = clock
        self._note = note
        self._shares = shares or UserShares(clock)
        self._instances = instances

    async def answer(
        self, order: ProxyOrder, caller: ProxyCaller, *, time_limit_s: float | None = None
    ) -> dict[str, Any]:
        """Send a request, and wait for its whole answer.

        Args:
            order: What is to be sent.
            caller: Who asks.
            time_limit_s: Of X-Timelimit; None = none. The least of all limits counts.

        Returns:
            `{status_code, headers, body, body_encoding?, outputs?, duration, duration_ms}`; the duration in
            nanoseconds.

        Raises:
            Invalid, Forbidden, TooLarge, UpstreamFailed: What the protocols raise.
            Exhausted: The user's share is used up.
            TimedOut: The time is over.
        """
        began_s = self._clock.monotonic_s()

        async def speak(call: ProxyCall) -> ProxyAnswer:
            return await SPEAKERS[order.protocol](call)

        run = _ProxyRun(self, order, caller)
        try:
            got = await self._within(self._limit_s(order, time_limit_s), run.do(speak))
            run.status, run.size_bytes = got.status, got.size_bytes
        except BaseException as error:
            run.failed(error)
            raise
        finally:
            run.end()
        took_s = self._clock.monotonic_s() - began_s
        return {
            "status_code": got.status,
            "headers": got.headers,
            **got.fields,
            "duration": round(took_s * 1e9),
            "duration_ms": round(took_s * 1000, 3),
        }

    async def stream(
        self, order: ProxyOrder, caller: ProxyCaller, *, time_limit_s: float | None = None
    ) -> "ProxyStream":
        """Send a request, and return its answer as it arrives. Close it in any case. Raises: as `answer`."""
        limit_s = self._limit_s(order, time_limit_s)
        until_s = self._clock.monotonic_s() + limit_s
        run = _ProxyRun(self, order, caller)
        try:
            opened = await self._within(limit_s, run.do(open_http))
        except BaseException as error:
            run.failed(error)
            run.end()
            raise
        run.status = opened.status
        return ProxyStream(opened, run, lambda: until_s - self._clock.monotonic_s())

    def _limit_s(self, order: ProxyOrder, time_limit_s: float | None) -> float:
        return min(one for one in (self._max_s, order.timeout_s, time_limit_s) if one is not None)

    @staticmethod
    async def _within(seconds: float, work: Awaitable[T]) -> T:
        await in_task()
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise time_limit_exceeded() from None

    async def call(self, order: ProxyOrder, caller: ProxyCaller) -> ProxyCall:
        """Check an order's target, and return what a protocol is to do."""
        headers = fields_up(order.headers, own_keys=caller.keys)
        if not order.target_url.startswith(OWN_SCHEME):
            return ProxyCall(order, self._policy.check(order.target_url), headers, self._policy, self._sender)
        address, rest = await self._own_address(order.target_url, caller.user_id)
        # The user's own instance: GPU_PROXY_ALLOW is about other hosts. Its address comes from a market, so
        # it is checked as any other.
        policy = replace(self._policy, hosts=())
        target = policy.check(address.url.rstrip("/") + rest)
        if order.protocol in ("http", "https"):
            order = replace(order, protocol="https" if target.scheme == "https" else "http")
        known = {name.lower() for name, _ in address.headers}
        kept = [(name, value) for name, value in headers if name.lower() not in known]
        return ProxyCall(order, target, [*kept, *address.headers], policy, self._sender)

    async def _own_address(self, url: str, user_id: str) -> tuple[InstanceAddress, str]:
        provider, _, rest = url.removeprefix(OWN_SCHEME).partition("/")
        name, slash, path = rest.partition("/")
        if not provider or not name:
            raise Invalid(
                "`target_url` of an own instance must be gpu://<provider>/<id>, with or without a path.",
                param="target_url",
                code="invalid_target",
            )
        if self._instances is None:
            raise NotFound("You have no instance of that name.", code="no_such_instance")
        return await self._instances.address_of(user_id, provider, name), slash + path

    async def close(self) -> None:
        """Close every connection."""
        await self._sender.close()

    def begin(self, caller: ProxyCaller) -> None:
        """Take a place of the user's share."""
        self._shares.begin(caller.user_id)

    def end(self, note: ProxyNote) -> None:
        """Give the place back, and note what was done."""
        self._shares.end(note.caller.user_id, note.size_bytes)
        try:
            self._note(note)
        except Exception as error:
            log.error("proxy_not_noted", error=repr(error))


class _ProxyRun:
    """One request: its place among those of the user, and how it ended."""

    def __init__(self, proxy: GpuProxy, order: ProxyOrder, caller: ProxyCaller) -> None:
        proxy.begin(caller)
        self._proxy = proxy
        self._order = order
        self._caller = caller
        self._target: CallTarget | None = None
        self._has_ended = False
        self.status = 0
        self.size_bytes = 0
        self.error = ""

    async def do(self, act: Callable[[ProxyCall], Awaitable[T]]) -> T:
        """Check the target, and send the request."""
        call = await self._proxy.call(self._order, self._caller)
        self._target = call.target
        return await act(call)

    def failed(self, error: BaseException) -> None:
        """Note why there is no answer."""
        self.error = (error.code or error.kind.value) if isinstance(error, ApplianceError) else "left"

    def end(self) -> None:
        """End it, once."""
        if self._has_ended:
            return
        self._has_ended = True
        host = self._target.host if self._target is not None else ""
        note = ProxyNote(self._caller, self._order.protocol, host, self.status, self.size_bytes, self.error)
        self._proxy.end(note)


class ProxyStream:
    """A target's answer as it arrives.

    Attributes:
        status: Of the target.
        headers: Those that come down.
    """

    def __init__(self, opened: OpenAnswer, run: _ProxyRun, left_s: Callable[[], float]) -> None:
        self._opened = opened
        self._pieces: AsyncIterator[bytes] = opened.pieces()
        self._run = run
        self._left_s = left_s
        self.status = opened.status
        self.headers = opened.headers

    async def next_piece(self) -> bytes:
        """Return the next piece; b"" = it has ended.

        Raises:
            TimedOut: The time is over.
            UpstreamFailed: The target broke off, or sends too much.
        """
        await in_task()
        try:
            async with asyncio.timeout(max(0.0, self._left_s())):
                piece = await anext(self._pieces, b"")
        except TimeoutError:
            error = time_limit_exceeded()
            self._run.failed(error)
            raise error from None
        except ApplianceError as error:
            self._run.failed(error)
            raise
        self._run.size_bytes += len(piece)
        return piece

    def close(self) -> None:
        """Close the connection, and note what was done; again, nothing happens."""
        self._opened.close()
        self._run.end()
