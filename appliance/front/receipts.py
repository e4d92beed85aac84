"""The addresses of the request log: receipts of the latest requests, filtered, in pages, or as they come."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from appliance.base.clock import Clock, parse_moment_s
from appliance.base.errors import Invalid
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.engines.receipts import KEPT_RECEIPTS, ReceiptFilter, Receipts, no_receipt
from appliance.engines.stream import GeneratedStream
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.query import Query
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import HEARTBEAT, SSE_HEADERS, render_error_event, render_event

DEFAULT_LIMIT = 100
FILTERS = ("model", "key", "status", "finish", "since", "until")


class ReceiptHandlers:
    """The handlers of receipts.

    Args:
        receipts: The latest receipts.
        clock: The time that `since=10m` counts back from.
    """

    def __init__(self, receipts: Receipts, *, clock: Clock) -> None:
        self._receipts = receipts
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        read = partial(Route, ("GET",), access=Access.OPERATOR, is_open_while_draining=True)
        return [
            read("/receipts", self.receipts),
            read("/receipts/stream", self.stream, takes_ticket=True),
            read("/receipts/{id}", self.receipt),
        ]

    async def receipts(self, request: Request) -> Response:
        """List receipts of the latest requests, newest first, by model, key, status, finish or time.

        limit, before  how many (1 to 1000, else 100), and the id behind which the page begins
        model          as the client, the reply or the backend names it
        key            the first 12 digits of the SHA-256 of the caller's key, or `none`
        status         `404`, or `4xx`
        finish         done, client_left, cut_off, error
        since, until   RFC 3339, seconds since 1970, or how long ago: `10m`

        Returns:
            `{receipts: […], next, kept}`; `next` is the `before` of the next page, null on the last one.
        """
        query = Query(request.query, allowed=("limit", "before", *FILTERS))
        limit = query.number("limit", default=DEFAULT_LIMIT, low=1, high=KEPT_RECEIPTS)
        found, following = self._receipts.find(self._filter(query), limit, before=query.text("before"))
        return json_response(
            {
                "receipts": [one.as_dict() for one in found],
                "next": following or None,
                "kept": len(self._receipts),
            }
        )

    async def stream(self, request: Request) -> Response:
        """Follow receipts as server-sent events, filtered as in a list; `latest=N` sends N former ones first.

        The events are `receipt`, each with one receipt; the last one is `shutdown`.
        """
        query = Query(request.query, allowed=("latest", *FILTERS))
        latest = query.number("latest", default=0, low=0, high=KEPT_RECEIPTS)
        return Response(
            content_type=SSE_CONTENT_TYPE,
            headers=SSE_HEADERS,
            pieces=GeneratedStream(self._feed(self._filter(query), latest)),
            on_error=render_error_event,
            heartbeat=HEARTBEAT,
        )

    async def _feed(self, wanted: ReceiptFilter, latest: int) -> AsyncGenerator[bytes, None]:
        yield HEARTBEAT  # the head is sent at once, so that the client knows that it is connected
        async with aclosing(self._receipts.follow(wanted, latest=latest)) as receipts:
            async for receipt in receipts:
                yield render_event("receipt", receipt.as_dict())
        yield render_event("shutdown", {"message": "Server shutting down"})

    async def receipt(self, request: Request) -> Response:
        """Show the receipt of one request."""
        receipt = self._receipts.get(request.params["id"])
        if receipt is None:
            raise no_receipt(request.params["id"])
        return json_response(receipt.as_dict())

    def _filter(self, query: Query) -> ReceiptFilter:
        return ReceiptFilter(
            model=query.text("model"),
            key=query.text("key"),
            status=query.text("status"),
            finish=query.text("finish"),
            since_s=self._moment_s(query, "since"),
            until_s=self._moment_s(query, "until"),
        )

    def _moment_s(self, query: Query, name: str) -> float | None:
        text = query.text(name)
        if not text:
            return None
        try:
            return parse_moment_s(text, self._clock.now_s())
        except (ValueError, OverflowError):
            raise Invalid(
                f"`{name}` must be a time such as 2026-11-30T18:00:00Z, seconds since 1970, or how long ago, "
                f"such as 10m, not {text[:40]!r}.",
                param=name,
                code="invalid_value",
            ) from None
