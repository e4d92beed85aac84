"""The steps that every request passes, whichever interface has read it.

    with pipeline.request(...) as request:                 id; counted as in flight
        response = await pipeline.respond(route, request)  actor · access · limits · hold · options, handler;
                                                           errors become responses in the caller's dialect
        ...                                                the server sends it, and records how it ended
    at exit, in every case                                 settlement · receipt · metrics · log line: once,
                                                           and without an await

The fast connection, aiohttp, the tunnel and gRPC's Chat all use it, so requests are accounted in one place.
"""

import os
import re
from dataclasses import replace

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Internal, TooLarge, Unavailable
from appliance.base.inline import in_task
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.watch import Watched
from appliance.engines.outcome import Finish
from appliance.engines.receipts import Receipt, Receipts
from appliance.engines.stream import Stream
from appliance.front.pipeline.access import Access, AccountGate, CallerNotInMemory, Keys, KeyTokens, key_name
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.encoding import decode_body
from appliance.front.pipeline.errors import error_body, error_headers, status_of
from appliance.front.pipeline.options import parse_options
from appliance.front.pipeline.request import KnownCaller, Request
from appliance.front.pipeline.response import Response, render_fields, split_fields
from appliance.front.pipeline.route import Route
from appliance.front.settings import FrontSettings

log = get_logger("front")
REFUSES = frozenset({"draining", "stopping"})  # states of the appliance in which no new request is taken
CLIENT_LEFT = 499
EXPOSED_HEADERS = "x-request-id, x-appliance-receipt, Server-Timing, Retry-After"
_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestPipeline:
    """The steps that every request passes; one pipeline for all interfaces.

    Attributes:
        in_flight: Requests that have begun and are not settled.
        views: Those of them that only look at the appliance (status, metrics, feeds).
        accounts: Knows the users; None = there are no accounts, and the keys of the settings decide.
    """

    def __init__(
        self,
        settings: FrontSettings,
        *,
        receipts: Receipts,
        metrics: Metrics,
        access_log: AccessLog,
        clock: Clock,
        state: Watched[str],
    ) -> None:
        self.receipts = receipts
        self.metrics = metrics
        self.access_log = access_log
        self.now_s = clock.monotonic_s
        self._clock = clock
        self._state = state
        self.accounts: AccountGate | None = None
        self._key_tokens: KeyTokens | None = None
        self._exposed_headers = EXPOSED_HEADERS
        self.in_flight = 0
        self.views = 0
        self._start = os.urandom(8).hex()
        self._count = 0
        self.apply(settings)

    def apply(self, settings: FrontSettings) -> None:
        """Apply settings that a reload may change: keys, CORS, the access log, limits."""
        self.settings = settings
        self.keys = Keys(settings, self._key_tokens)
        if self.accounts is not None:
            self.accounts.apply(settings)
        self._any_origin = "*" in settings.cors_origins

    def use_accounts(self, accounts: AccountGate) -> None:
        """Let users be admitted, too; before the first request."""
        self.accounts = accounts
        self._exposed_headers = ", ".join((EXPOSED_HEADERS, *accounts.exposed_headers))
        accounts.apply(self.settings)

    def use_key_tokens(self, tokens: KeyTokens) -> None:
        """Let tokens stand for keys; before the first request."""
        self._key_tokens = tokens
        self.keys = Keys(self.settings, tokens)

    @property
    def answering(self) -> int:
        """Requests in flight, without those that only look at the appliance."""
        return self.in_flight - self.views

    def heartbeat_s(self) -> float:
        """Return the seconds between heartbeats to streaming clients that wait; 0 = none."""
        return self.settings.heartbeat_s

    # ---- begin

    def request(
        self,
        route: str,
        *,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        peer: str,
        query: str = "",
        params: dict[str, str] | None = None,
        known_caller: KnownCaller | None = None,
    ) -> Request:
        """Make a request, with its id and receipt. Entering it counts it as in flight, leaving it settles it.

        Args:
            route: The label in metrics and receipts.
            headers: By lower-case name; an `x-request-id` of 1-128 letters, digits, `.`, `_`, `-` is kept.
            query: The raw query string.
            params: Parts of the path by name; None = none.
            known_caller: Of the caller; None = it is to be decided (see `admit`).
        """
        began_s = self.now_s()
        receipt = self._new_receipt(route, headers.get("x-request-id", ""), began_s)
        return Request(
            method,
            path,
            headers,
            body,
            peer,
            receipt.id,
            receipt,
            route,
            query,
            params or {},
            began_s,
            lifecycle=self,
            known_caller=known_caller,
        )

    def guarded_request(self, route: str) -> Request:
        """Make a request of an interface that checks access and writes the log line itself (gRPC)."""
        request = self.request(route, method="POST", path=route, headers={}, body=b"", peer="")
        request.has_log_line = False
        return request

    def _new_receipt(self, route: str, wanted_id: str, began_s: float) -> Receipt:
        if not wanted_id or _GOOD_ID.fullmatch(wanted_id) is None:
            self._count += 1  # unique in this process by the counter, among processes by the random start
            wanted_id = f"req_{self._start}{self._count:08x}"
        return Receipt(wanted_id, self._clock.now_s(), route, began_s=began_s)

    # ---- admit

    def check_access(
        self, access: Access, headers: dict[str, str], peer: str, *, scope: str = "inference"
    ) -> None:
        """Check whether a caller may call an address, without a request.

        Raises:
            Unauthenticated, Forbidden, Unavailable: As `admit`.
        """
        if self.accounts is None:
            self.keys.check(access, headers, peer)
        else:
            self.accounts.admit(access, headers, peer, scope=scope)

    def may_see_details(self, headers: dict[str, str], peer: str) -> bool:
        """Whether a caller sees a public address's details: with any key; without keys, no foreign page."""
        if self.accounts is None:
            return self.keys.may_see_details(headers, peer)
        return self.accounts.knows(headers)

    async def look_up(
        self, access: Access, headers: dict[str, str], peer: str, *, scope: str = "inference"
    ) -> None:
        """Look up a caller who is not in memory, and check the access.

        Raises:
            Unauthenticated, Forbidden, Unavailable: As `admit`.
        """
        try:
            self.check_access(access, headers, peer, scope=scope)
        except CallerNotInMemory:
            assert self.accounts is not None
            await in_task()
            await self.accounts.look_up(headers)
            self.check_access(access, headers, peer, scope=scope)

    def admit(
        self,
        access: Access,
        request: Request,
        *,
        scope: str = "inference",
        is_open_while_draining: bool = False,
    ) -> None:
        """Admit a request.

        1. actor     who calls
        2. access    whether this caller may call this address
        3. limits    the appliance's state, the size of the body
        4. options   how it is routed, and who pays; only operators may choose a backend

        Where the connection has sent the same head before, 2 and 4 are known: keys and options are in it.
        What a request may spend is held where its model and its size are known: by `options.billing`.

        Raises:
            Unauthenticated: No key, or one that is not known.
            Forbidden: The caller's key does not open this address.
            CallerNotInMemory: The caller has to be looked up first, see `look_up`.
            Unavailable: The appliance takes no new requests.
            TooLarge: The body is larger than MAX_BODY_BYTES.
            Invalid: A header has a value that is not allowed.
        """
        if self.accounts is not None:
            return self._admit_account(
                self.accounts, access, request, scope=scope, is_open_while_draining=is_open_while_draining
            )
        keys, known_caller = self.keys, request.known_caller
        is_known = known_caller is not None and known_caller.keys is keys
        if not is_known:  # 1, 2
            request.receipt.key = key_name(request.headers)
            keys.check(access, request.headers, request.peer)
        self.check_limits(request, is_open_while_draining=is_open_while_draining)  # 3
        if is_known and known_caller is not None:  # 4
            request.options = known_caller.options
            request.receipt.key = known_caller.key
            return
        must_stay = keys.must_stay_local(request.headers)
        request.options = parse_options(request.headers, request.peer, must_stay_local=must_stay)
        if request.options.pin:
            keys.check(Access.OPERATOR, request.headers, request.peer)
        if known_caller is not None:
            known_caller.keys, known_caller.options = keys, request.options
            known_caller.key = request.receipt.key

    def _admit_account(
        self,
        accounts: AccountGate,
        access: Access,
        request: Request,
        *,
        scope: str,
        is_open_while_draining: bool,
    ) -> None:
        """Admit a request where there are accounts, in the same steps; keys are valid now, or refused."""
        request.has_receipt = scope == "inference"
        headers, peer, known_caller = request.headers, request.peer, request.known_caller
        actor = accounts.admit_again(known_caller.keys) if known_caller is not None else None
        is_known = actor is not None
        if actor is None:
            actor = accounts.admit(access, headers, peer, scope=scope)  # 1, 2
        request.actor = actor
        self.check_limits(request, is_open_while_draining=is_open_while_draining)  # 3
        if known_caller is not None and (is_known or known_caller.keys is actor):  # 4
            request.options = known_caller.options
            request.receipt.key = known_caller.key
            return
        request.receipt.key = accounts.name_of(actor, headers)
        options = parse_options(headers, peer, must_stay_local=actor.stay_local)
        billing = accounts.billing_of(actor, peer=peer)
        request.options = replace(options, flow=actor.flow or options.flow, billing=billing)
        if options.pin:
            accounts.admit(Access.OPERATOR, headers, peer)
        if known_caller is not None:
            known_caller.keys = accounts.key_of(actor, headers) or actor
            known_caller.options = request.options
            known_caller.key = request.receipt.key

    def admit_guarded(self, request: Request) -> None:
        """Admit a request whose interface has checked access: limits, as in `admit`."""
        self.check_limits(request)

    def check_limits(self, request: Request, *, is_open_while_draining: bool = False) -> None:
        """Check the appliance's state and the size of the body.

        Raises:
            Unavailable: The appliance takes no new requests.
            TooLarge: The body is larger than MAX_BODY_BYTES.
        """
        if self._state.value in REFUSES and not is_open_while_draining:
            raise Unavailable(
                "The appliance is draining and takes no new requests.", code="draining", retry_after_s=5
            )
        if len(request.body) > self.settings.max_body_bytes:
            raise too_large(self.settings.max_body_bytes)

    # ---- respond

    async def respond(self, route: Route, request: Request) -> Response:
        """Admit a request and call its handler; every failure becomes a response in the route's dialect.

        The headers that every response carries are not in it yet: see `response_headers`, `header_lines`.

        Raises:
            CancelledError: The client left, or the server stops.
        """
        try:
            try:
                self.admit(
                    route.access,
                    request,
                    scope=route.scope,
                    is_open_while_draining=route.is_open_while_draining,
                )
            except CallerNotInMemory:
                await self.look_up(route.access, request.headers, request.peer, scope=route.scope)
                self.admit(
                    route.access,
                    request,
                    scope=route.scope,
                    is_open_while_draining=route.is_open_while_draining,
                )
            if "content-encoding" in request.headers:
                request.body = await decode_body(
                    request.body, request.headers["content-encoding"], self.settings.max_body_bytes
                )
            response = await route.handler(request)
        except Exception as error:
            response = self.error_response(
                self.to_appliance_error(error, request), route.dialect, request.receipt
            )
            forget_frames(error)
        request.receipt.status = response.status
        return response

    async def add_headers(self, response: Response, request: Request) -> None:
        """Add the headers that every response carries; if that fails, its stream is closed."""
        try:
            response.headers = [*response.headers, *self.response_headers(request)]
        except Exception:
            if response.pieces is not None:
                await close_stream(response.pieces, request)
            raise

    def to_appliance_error(self, error: Exception, request: Request) -> ApplianceError:
        """Return an error that may be shown: an unexpected exception is logged, and its text is not shown."""
        if isinstance(error, ApplianceError):
            return error
        log.error("unhandled", id=request.id, path=request.path, error=repr(error), exc_info=error)
        return Internal(f"Something failed inside the appliance; its log has the details under {request.id}.")

    def error_response(self, error: ApplianceError, dialect: str, receipt: Receipt | None = None) -> Response:
        """Render an error as a response of the dialect, and record it in the receipt."""
        headers, request_id = error_headers(error), ""
        if receipt is not None:
            receipt.error = f"{error.kind.value}: {error.message}"
            request_id = receipt.id
            if dialect == "anthropic":
                headers.append(("request-id", request_id))  # where its clients look for it
        return Response(status_of(error), error_body(error, dialect, request_id), headers=headers)

    def fail_stream(self, error: Exception, request: Request) -> ApplianceError:
        """Record that a stream failed; return the error to render as its last piece."""
        failure = self.to_appliance_error(error, request)
        request.receipt.error = f"{failure.kind.value}: {failure.message}"
        request.finish = Finish.CUT_OFF if request.first_byte_s else Finish.ERROR
        return failure

    def response_headers(self, request: Request) -> list[tuple[str, str]]:
        """Return the headers that every response carries: the id, the receipt in short, CORS."""
        receipt = request.receipt
        headers = [("x-request-id", receipt.id), *split_fields(receipt.header_lines)]
        if receipt.backend:
            short, timing = receipt.render_headers()
            headers += [("x-appliance-receipt", _clean(short)), ("Server-Timing", timing)]
        origin = request.headers.get("origin")
        if origin is not None:
            headers += self.cors_headers(origin)
        return headers

    def header_lines(self, request: Request) -> str:
        """Return the same headers as lines."""
        receipt = request.receipt
        if not receipt.backend or "origin" in request.headers:
            return render_fields(self.response_headers(request))
        short, timing = receipt.render_headers()
        return (
            f"x-request-id: {receipt.id}\r\n{receipt.header_lines}x-appliance-receipt: {_clean(short)}\r\n"
            f"Server-Timing: {timing}\r\n"
        )

    def cors_headers(self, origin: str) -> list[tuple[str, str]]:
        """Return the CORS headers for a page of `origin`; at most `Vary` where it may not call."""
        if not self._any_origin and origin not in self.settings.cors_origins:
            return [("Vary", "Origin")] if self.settings.cors_origins else []
        return [
            ("Access-Control-Allow-Origin", "*" if self._any_origin else origin),
            ("Vary", "Origin"),
            ("Access-Control-Expose-Headers", self._exposed_headers),
        ]

    def mark_first_byte(self, request: Request) -> None:
        """Record that the response's first byte is sent now."""
        request.first_byte_s = self.now_s()

    # ---- settle

    def settle(self, request: Request) -> None:
        """Account for a request that has ended: receipt, metrics, log line.

        Called once, when the request's context exits. It does not await, so it also completes when the
        client has left or the server stops. A step that fails is logged, and the others are done: a fault in
        the accounts never keeps a connection from its next request. What a request costs is settled where it
        is answered (engines/dispatch.py).
        """
        self.in_flight -= 1
        receipt = request.receipt
        receipt.total_ms = (self.now_s() - request.began_s) * 1000
        receipt.finish = request.finish
        if not receipt.status and request.finish is Finish.CLIENT_LEFT:
            receipt.status = CLIENT_LEFT
        for step in (self._keep, self._measure, self._log):
            try:
                step(request)
            except Exception as error:
                log.error("not_settled", id=request.id, error=repr(error), exc_info=error)

    def _keep(self, request: Request) -> None:
        """Keep the receipt of a POST; those of polled addresses and of logins would evict others."""
        if request.method == "POST" and request.has_receipt:
            self.receipts.add(request.receipt)

    def _log(self, request: Request) -> None:
        """Write the line of the access log."""
        if request.has_log_line and self.settings.access_log:
            self.access_log.write(
                request.receipt,
                method=request.method,
                path=request.path,
                peer=request.peer,
                sent_bytes=request.sent_bytes,
            )

    def _measure(self, request: Request) -> None:
        """Count the request; and tokens, events and times of tokens for what answered."""
        receipt = request.receipt
        took_s = receipt.total_ms / 1000
        requests, seconds, first = self.metrics.request_children(receipt.route, receipt.status)
        requests.inc()
        seconds.observe(took_s)
        if request.first_byte_s:
            first.observe(request.first_byte_s - request.began_s)
        if not receipt.backend or not receipt.public_model:
            return
        tokens_in, tokens_out, streamed, first_token, between = self.metrics.engine_children(
            receipt.public_model, receipt.backend
        )
        completion = receipt.completion_tokens
        if receipt.prompt_tokens:
            tokens_in.inc(receipt.prompt_tokens)
        if completion:
            tokens_out.inc(completion)
        if request.events:
            streamed.inc(request.events)
        if receipt.first_token_ms is not None:
            first_token.observe(receipt.first_token_ms / 1000)
            if completion and completion > 1 and receipt.last_token_ms is not None:
                between.observe((receipt.last_token_ms - receipt.first_token_ms) / 1000 / (completion - 1))


async def close_stream(stream: Stream, request: Request) -> None:
    """Close the stream of a response; a failure is logged, since what was sent of it stays as it is."""
    try:
        await stream.aclose()
    except Exception as error:
        log.error("not_closed", id=request.id, error=repr(error), exc_info=error)


def too_large(limit_bytes: int) -> TooLarge:
    """Return the error for a body beyond MAX_BODY_BYTES."""
    return TooLarge(f"The request body is larger than {limit_bytes} bytes (MAX_BODY_BYTES).")


def stopped() -> Unavailable:
    """Return the error for a response that the grace period of a stop did not suffice for."""
    return Unavailable(
        "The appliance stops, and its grace period (SHUTDOWN_GRACE_S) is over: the response is not complete.",
        code="stopped",
    )


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error that has been answered, and of those that led to it.

    A frame that holds the error it raised is a cycle: it would keep the request's body until the garbage
    collector runs, which is rare here.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        pending += [one.__cause__, one.__context__]


def _clean(value: str) -> str:
    """Make a header value one line of ASCII; model names may hold anything."""
    if value.isascii() and value.isprintable():
        return value
    return value.encode("ascii", "replace").decode().replace("\r", " ").replace("\n", " ")
