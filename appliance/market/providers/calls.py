"""HTTP calls at a market: bounded in time and size, never redirected, repeated only where it is harmless."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.base.http import HttpClient, iter_body
from appliance.base.logs import get_logger
from appliance.base.reach import HostPolicy
from appliance.base.wire.types import Unreachable
from appliance.market.types import MarketRefused, MarketUnknown

log = get_logger("market")

MAX_BODY_BYTES: Final = 16 * 2**20
CONNECT_S: Final = 10.0
TRIES: Final = 3
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0
BUSY: Final = frozenset((429, 502, 503, 504))

Pause = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class MarketReply:
    """What a market answered, whole.

    Attributes:
        value: The parsed JSON; None where it is no JSON.
        is_json: Whether it is JSON.
        retry_after_s: What Retry-After says, 0 to 60; None = nothing.
    """

    status: int
    data: bytes
    value: Any = None
    is_json: bool = False
    retry_after_s: float | None = None


def read_reply(status: int, data: bytes, retry_after: str = "", *, now_s: float = 0.0) -> MarketReply:
    """Parse an answer; one that is not JSON is no failure here.

    Args:
        status: Of HTTP.
        data: The body.
        retry_after: The header, seconds or a date.
        now_s: For a date.
    """
    try:
        value, is_json = jsons.loads_utf8(data), True
    except (jsons.InvalidJson, RecursionError):
        value, is_json = None, False
    return MarketReply(status, data, value, is_json, _seconds(retry_after, now_s))


def _seconds(text: str, now_s: float) -> float | None:
    text = text.strip()
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return min(float(text), LONGEST_PAUSE_S)
    try:
        return min(max(0.0, parsedate_to_datetime(text).timestamp() - now_s), LONGEST_PAUSE_S)
    except (ValueError, TypeError, OverflowError):
        return None


class MarketCalls:
    """Calls at one market.

    Args:
        name: Of the market, for error texts.
        url: Where its API is.
        headers: With the key; sent there and nowhere else.
        clock: The time.
        timeout_s: Longest time for one call, its repetitions included.
        intervals: Endpoint → the least seconds between two calls there.
        pause: Waits so many seconds.
    """

    def __init__(
        self,
        name: str,
        url: str,
        headers: Mapping[str, str],
        *,
        clock: Clock,
        timeout_s: float,
        intervals: Mapping[str, float],
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._name = name
        self._url = url.rstrip("/")
        self._headers = dict(headers)
        self._clock = clock
        self._timeout_s = timeout_s
        self._intervals = dict(intervals)
        self._pause = pause
        self._free_at: dict[str, float] = {}  # endpoint → when it may be called next, monotonic
        self._http = HttpClient()
        self._public = HttpClient(refusal_reason=HostPolicy(names=None).refusal_reason)

    async def send(
        self,
        endpoint: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        is_repeatable: bool,
        url: str | None = None,
    ) -> MarketReply:
        """Send a request and read its answer whole, whatever its status.

        Args:
            endpoint: Whose interval counts.
            method: Upper case.
            path: Below the API's address.
            query: Not encoded yet.
            body: JSON; None = none.
            is_repeatable: It changes nothing: it may be sent again after a failure.
            url: Another address of the API, instead of the usual one.

        Raises:
            MarketUnknown: There is no whole answer in time.
            MarketRefused: It is not repeatable, and was certainly not sent.
        """
        where = f"{url or self._url}{path}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else jsons.dumps(body)
        tries = TRIES if is_repeatable else 1
        try:
            async with asyncio.timeout(self._timeout_s):
                for number in range(tries):
                    await self._wait_turn(endpoint, is_repeatable)
                    try:
                        reply = await self._once(
                            self._http, method, where, self._headers, data, is_repeatable
                        )
                    except MarketUnknown:
                        if number + 1 == tries:
                            raise
                        await self._pause(FIRST_PAUSE_S * 2**number)
                        continue
                    if reply.status == 429:
                        self._hold(endpoint, reply.retry_after_s)
                    if reply.status not in BUSY or number + 1 == tries or _is_quota(reply):
                        return reply
                    await self._pause(FIRST_PAUSE_S * 2**number)
        except TimeoutError:
            raise self.unknown(f"no answer within {self._timeout_s:g} s ({endpoint})") from None
        raise AssertionError("a try returns or raises")

    async def fetch(self, url: str) -> MarketReply | None:
        """Read a file that the market names, without the key; None = it is not there yet.

        Raises:
            MarketUnknown: It cannot be read, or is at an address that is not public.
        """
        is_own = urlsplit(url)[:2] == urlsplit(self._url)[:2]
        if not is_own and not url.startswith("https://"):
            raise self.unknown("it named a file at an address that is not https")
        http = self._http if is_own else self._public
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._once(http, "GET", _plain_url(url), {"Accept": "*/*"}, None, True)
        except TimeoutError:
            raise self.unknown(f"no file within {self._timeout_s:g} s") from None
        if reply.status in (403, 404):
            return None
        if reply.status != 200:
            raise self.unknown(f"status {reply.status} for a file")
        return reply

    def unknown(
        self, why: str, *, code: str | None = None, retry_after_s: float | None = None
    ) -> MarketUnknown:
        """Return the error that says that nothing is known."""
        return MarketUnknown(
            f"{self._name} gave no reliable answer: {why}.", code=code, retry_after_s=retry_after_s
        )

    async def wait(self, seconds: float) -> None:
        """Wait between two looks."""
        await self._pause(seconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()
        await self._public.close()

    async def _wait_turn(self, endpoint: str, is_repeatable: bool) -> None:
        """Keep the least interval between two calls at one endpoint.

        Raises:
            MarketRefused: An order would wait for so long that its time could end while it is sent.
        """
        now = self._clock.monotonic_s()
        at = max(now, self._free_at.get(endpoint, now))
        if not is_repeatable and at - now > self._timeout_s / 2:
            raise MarketRefused(
                f"{self._name} takes no more orders at the moment. Nothing was created; try again later.",
                code="market_rate_limited",
                retry_after_s=at - now,
            )
        self._free_at[endpoint] = at + self._intervals.get(endpoint, 0.0)
        if at > now:
            await self._pause(at - now)

    def _hold(self, endpoint: str, seconds: float | None) -> None:
        """Call an endpoint no more for a while."""
        least = self._clock.monotonic_s() + (2.0 if seconds is None else seconds)
        self._free_at[endpoint] = max(least, self._free_at.get(endpoint, least))

    async def _once(
        self,
        http: HttpClient,
        method: str,
        url: str,
        headers: Mapping[str, str],
        data: bytes | None,
        is_repeatable: bool,
    ) -> MarketReply:
        sent = [*headers.items()]
        if data is not None:
            sent.append(("Content-Type", "application/json"))
        try:
            response = await http.open(
                method,
                url,
                headers=sent,
                body=data,
                is_repeatable=is_repeatable,
                connect_s=min(CONNECT_S, self._timeout_s),
                first_byte_s=self._timeout_s,
            )
            try:
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise self.unknown("its answer is packed, which was not asked for")
                whole = bytearray()
                async for piece in iter_body(response, idle_s=self._timeout_s):
                    whole += piece
                    if len(whole) > MAX_BODY_BYTES:
                        raise self.unknown(f"its answer is longer than {MAX_BODY_BYTES} bytes")
                retry_after = response.headers.get("Retry-After", "")
                return read_reply(response.status, bytes(whole), retry_after, now_s=self._clock.now_s())
            finally:
                response.close()
        except MarketUnknown:
            raise
        except Unreachable as exc:
            if not is_repeatable:  # no byte of it was sent
                raise MarketRefused(
                    f"{self._name} cannot be reached: {exc.message[:300]}. Nothing was created.",
                    code="market_unreachable",
                ) from None
            raise self.unknown(f"{exc.message[:300]}") from None
        except ApplianceError as exc:
            raise self.unknown(f"{exc.message[:300]}") from None
        except (OSError, ValueError) as exc:  # such as an address that no client can use
            raise self.unknown(f"{type(exc).__name__}") from None


def _is_quota(reply: MarketReply) -> bool:
    return isinstance(reply.value, dict) and reply.value.get("error") == "search_quota_exceeded"


def _plain_url(url: str) -> str:
    """Return an address with all that is not ASCII percent-encoded."""
    return quote(url[:8000], safe="/:?#[]@!$&'()*+,;=%~-._")
