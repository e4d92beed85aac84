"""Opens requests to targets. Every address is checked where it is connected to, redirects as well."""

from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver

from appliance.base.errors import Forbidden, UpstreamFailed
from appliance.base.http import HttpClient, iter_body
from appliance.base.ssrf import CallTarget, TargetPolicy, refused
from appliance.base.wire.types import UpstreamTimeout, WireError
from appliance.market.proxy.exchange import Outbound
from appliance.market.proxy.fields import Fields, fields_down, for_another_host

MAX_DOWN_BYTES: Final = 33_554_432
MAX_REDIRECTS: Final = 3
CONNECT_S: Final = 10.0
MOVED: Final = (301, 302, 303, 307, 308)


class ReceivedAnswer:
    """An answer of a target (see OpenAnswer)."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Fields = fields_down(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers
        )

    async def pieces(self) -> AsyncIterator[bytes]:
        """Iterate over the body (see OpenAnswer)."""
        size = 0
        try:
            async for piece in iter_body(self._response, idle_s=None):
                size += len(piece)
                if size > MAX_DOWN_BYTES:
                    raise UpstreamFailed(
                        f"The target's answer has more than {MAX_DOWN_BYTES} bytes, which is the most "
                        "that is passed on.",
                        code="target_answer_too_large",
                    )
                yield piece
        except WireError:
            raise UpstreamFailed("The target broke off its answer.", code="target_failed") from None

    async def read(self) -> bytes:
        """Return the whole body (see OpenAnswer)."""
        return b"".join([piece async for piece in self.pieces()])

    def close(self) -> None:
        """Close the connection."""
        self._response.close()


class TargetSender:
    """Sends requests, each on a connection of its own (see Sender).

    Args:
        resolver: Looks names up; None = the system does.
    """

    def __init__(self, *, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver
        self._clients: dict[TargetPolicy, HttpClient] = {}

    async def open(self, outbound: Outbound, policy: TargetPolicy) -> ReceivedAnswer:
        """Send a request, and follow as many redirects as it allows (see Sender).

        1. 303, and 301 or 302 of a POST    → a GET without a body
        2. to another origin                → without credentials
        3. from https to http, or too many  → refused
        """
        method, target, headers, body = outbound.method, outbound.target, outbound.headers, outbound.body
        left = outbound.redirects
        while True:
            response = await self._open(method, target, headers, body, policy)
            where = response.headers.get("Location")
            if not outbound.redirects or response.status not in MOVED or not where:
                return ReceivedAnswer(response)
            response.close()
            if not left:
                raise UpstreamFailed(
                    f"The target redirects more than {MAX_REDIRECTS} times.", code="too_many_redirects"
                )
            left -= 1
            following = policy.check(urljoin(target.url, where))
            if target.scheme == "https" and following.scheme == "http":  # 3
                raise refused("It redirects from https to http.")
            if response.status == 303 or (response.status in (301, 302) and method == "POST"):  # 1
                method, body = "GET", None
                headers = [(name, value) for name, value in headers if name.lower() != "content-type"]
            if following.origin != target.origin:  # 2
                headers = for_another_host(headers)
            target = following

    async def _open(
        self, method: str, target: CallTarget, headers: Fields, body: bytes | None, policy: TargetPolicy
    ) -> aiohttp.ClientResponse:
        try:
            return await self._client(policy).open(
                method,
                target.url,
                headers=headers,
                body=body,
                is_repeatable=False,
                connect_s=CONNECT_S,
                first_byte_s=None,
            )
        except Forbidden:
            raise refused() from None  # without what the name resolved to
        except UpstreamTimeout:
            raise UpstreamFailed("The target sent no answer in time.", code="target_failed") from None
        except WireError as error:
            text = "The target sent no valid answer." if error.was_sent else "The target cannot be reached."
            raise UpstreamFailed(
                text, code="target_failed" if error.was_sent else "target_unreachable"
            ) from None
        except (ValueError, aiohttp.ClientError):
            raise UpstreamFailed("The target cannot be asked this.", code="target_failed") from None

    def _client(self, policy: TargetPolicy) -> HttpClient:
        client = self._clients.get(policy)
        if client is None:
            client = HttpClient(refusal_reason=policy.refusal_reason, resolver=self._resolver)
            self._clients[policy] = client
        return client

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.close()
