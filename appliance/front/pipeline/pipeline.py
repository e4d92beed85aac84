"""What happens to every request, whichever server took it: id, access, the handler, errors in dialect, receipt, metrics, log.

The servers (lane, aiohttp) call `open`, then `handle`, then `close` when the last byte has gone or the client has left.
"""

import asyncio
import os
import re
from collections.abc import Callable

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Internal, TooLarge, Unavailable
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.engines.outcome import Finish
from appliance.engines.receipts import Receipt, Receipts
from appliance.front.pipeline.access import Access, Keys
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.errors import error_body, error_headers, status_of
from appliance.front.pipeline.options import parse_options
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.settings import FrontSettings

log = get_logger("front")
_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestPipeline:
    """One per door; `apply` takes new settings while requests run."""

    def __init__(
        self,
        settings: FrontSettings,
        *,
        receipts: Receipts,
        metrics: Metrics,
        access_log: AccessLog,
        clock: Clock,
        is_draining: Callable[[], bool],
    ) -> None:
        self.receipts = receipts
        self.metrics = metrics
        self.access_log = access_log
        self._clock = clock
        self._is_draining = is_draining
        self.in_flight = 0
        self._start = os.urandom(8).hex()
        self._count = 0
        self.apply(settings)

    def apply(self, settings: FrontSettings) -> None:
        """Take settings that may change while running: keys, CORS, the log."""
        self.settings = settings
        self.keys = Keys(settings)
        self._any_origin = "*" in settings.cors_origins

    def new_receipt(self, route: str, wanted_id: str = "") -> Receipt:
        """Begin a receipt; the caller's own id is kept when it is a plain one of up to 128 characters."""
        is_good = bool(wanted_id) and _GOOD_ID.fullmatch(wanted_id) is not None
        if not is_good:
            self._count += 1  # unique in this process by the counter, among processes by the random start
            wanted_id = f"req_{self._start}{self._count:08x}"
        return Receipt(wanted_id, self._clock.now_s(), route)

    def open(
        self,
        route: Route | None,
        *,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        peer: str,
        query: str = "",
        params: dict[str, str] | None = None,
    ) -> Request:
        """Begin a request: it counts as in flight until `close`."""
        receipt = self.new_receipt(route.path if route else "other", headers.get("x-request-id", ""))
        self.in_flight += 1
        return Request(
            method,
            path,
            headers,
            body,
            peer,
            receipt.id,
            receipt,
            receipt.route,
            query,
            params or {},
            self._clock.monotonic_s(),
        )

    async def handle(self, route: Route, call: Request) -> Response:
        """Give the answer to a call; every failure becomes an answer in the route's dialect."""
        try:
            self.admit(route.access, call, is_open_while_draining=route.is_open_while_draining)
            answer = await route.handler(call)
        except ApplianceError as error:
            answer = self.error_response(error, route.dialect, call.receipt)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            answer = self.error_response(self.internal_error(error, call), route.dialect, call.receipt)
        call.receipt.status = answer.status
        answer.headers = [*answer.headers, *self.response_headers(call)]
        return answer

    def admit(self, access: Access, call: Request, *, is_open_while_draining: bool = False) -> None:
        """Let a call in, and read its wishes.

        Raises  Unauthenticated · Forbidden · Unavailable: draining · TooLarge · Invalid: a header has a value that is not known
        """
        self.keys.check(access, call.headers, call.peer)
        if self._is_draining() and not is_open_while_draining:
            raise Unavailable(
                "The appliance is being drained and takes no new requests.", code="draining", retry_after_s=5
            )
        if len(call.body) > self.settings.max_body_bytes:
            raise too_large(self.settings.max_body_bytes)
        call.options = parse_options(
            call.headers, call.peer, must_stay_local=self.keys.must_stay_local(call.headers)
        )
        if call.options.pin:  # whoever chooses the server goes round the balance: operators only
            self.keys.check(Access.OPERATOR, call.headers, call.peer)

    def error_response(self, error: ApplianceError, dialect: str, receipt: Receipt | None = None) -> Response:
        """Render an error as an answer, and note it in the receipt."""
        if receipt is not None:
            receipt.error = f"{error.kind.value}: {error.message}"
        return Response(status_of(error), error_body(error, dialect), headers=error_headers(error))

    def internal_error(self, error: Exception, call: Request) -> ApplianceError:
        """Log a mistake of ours in full, and say little about it outside."""
        log.error("unhandled", id=call.id, path=call.path, error=repr(error), exc_info=error)
        return Internal(f"Something failed inside the appliance; its log has the details under {call.id}.")

    def response_headers(self, call: Request) -> list[tuple[str, str]]:
        """Give the headers that every answer carries: the id, the receipt in short, CORS."""
        receipt = call.receipt
        headers = [("x-request-id", receipt.id)]
        if receipt.backend:
            headers += [
                ("x-appliance-receipt", _clean(receipt.render_header())),
                ("Server-Timing", receipt.render_server_timing()),
            ]
        origin = call.headers.get("origin")
        if origin is not None:
            headers += self.cors_headers(origin)
        return headers

    def cors_headers(self, origin: str) -> list[tuple[str, str]]:
        """Give the CORS headers for a page of `origin`; none when it may not call."""
        if not self._any_origin and origin not in self.settings.cors_origins:
            return [("Vary", "Origin")] if self.settings.cors_origins else []
        return [
            ("Access-Control-Allow-Origin", "*" if self._any_origin else origin),
            ("Vary", "Origin"),
            (
                "Access-Control-Expose-Headers",
                "x-request-id, x-appliance-receipt, Server-Timing, Retry-After",
            ),
        ]

    def now_s(self) -> float:
        return self._clock.monotonic_s()

    def mark_first_byte(self, call: Request) -> None:
        """The answer's first byte goes out now."""
        call.first_byte_s = self._clock.monotonic_s()

    def close(self, call: Request, *, finish: Finish, sent_bytes: int, events: int = 0) -> None:
        """End a request, once.

        Takes   finish: done | client_left | cut_off | error; events: pieces of a stream
        """
        self.in_flight -= 1
        receipt = call.receipt
        now = self._clock.monotonic_s()
        took_s = now - call.began_s
        receipt.total_ms = took_s * 1000
        receipt.finish = receipt.finish or finish
        if finish is Finish.CLIENT_LEFT and not receipt.status:
            receipt.status = 499
        if call.method == "POST":  # pollers of health and metrics would push the receipts that matter out
            self.receipts.add(receipt)
        requests, seconds, first = self.metrics.request_children(receipt.route, receipt.status)
        requests.inc()
        seconds.observe(took_s)
        if call.first_byte_s:
            first.observe(call.first_byte_s - call.began_s)
        self.count_engine(receipt, events)
        if self.settings.access_log:
            self.access_log.write(
                receipt, method=call.method, path=call.path, peer=call.peer, sent_bytes=sent_bytes
            )

    def count_engine(self, receipt: Receipt, events: int) -> None:
        """Count tokens and stream events for the backend that answered."""
        if not receipt.backend:
            return
        tokens_in, tokens_out, streamed = self.metrics.engine_children(receipt.backend)
        if receipt.prompt_tokens:
            tokens_in.inc(receipt.prompt_tokens)
        if receipt.completion_tokens:
            tokens_out.inc(receipt.completion_tokens)
        if events:
            streamed.inc(events)


def too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The request's body is larger than {limit_bytes} bytes (MAX_BODY_BYTES).")


def _clean(value: str) -> str:
    """Keep a header value on one line and in Latin-1, whatever a model was called."""
    if value.isascii() and value.isprintable():
        return value
    return value.encode("ascii", "replace").decode().replace("\r", " ").replace("\n", " ")
