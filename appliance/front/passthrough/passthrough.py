"""Passthrough: a request at any other address is sent unchanged to a server, and its response back.

    any path and method     to a server of the model named in JSON body or query, else of the default one
    /backends/{name}/…      to that server, without the prefix (operators)
    x-appliance-backend     the same by a header (operators)

Who may send what, and which headers change: rules.py. Connections that switch protocols: tunnel.py.
"""

import asyncio
from dataclasses import dataclass, replace
from urllib.parse import unquote

import aiohttp
from aiohttp import web

from appliance.base.errors import ApplianceError, Invalid, NotFound, TimedOut, Unavailable, UpstreamFailed
from appliance.base.http import HttpClient, iter_body
from appliance.base.wire.types import UpstreamTimeout, WireError
from appliance.engines.backends.contract import Backend, SettlesRequests
from appliance.engines.billing import RequestMeter
from appliance.engines.outcome import Finish, Outcome
from appliance.engines.receipts import attempt_rows
from appliance.engines.router import Router
from appliance.engines.slots import Slot
from appliance.engines.types import RequestOptions
from appliance.front.passthrough.forwarded import (
    WHOLE_BYTES,
    ForwardedRequest,
    decode_fields,
    read_forwarded,
    target_of,
)
from appliance.front.passthrough.rules import (
    access_of,
    client_methods,
    is_counted_elsewhere,
    is_work,
    pinned,
    request_fields,
    response_fields,
)
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.access_tickets import AccessTickets, split_ticket
from appliance.front.pipeline.errors import error_event
from appliance.front.pipeline.heads import AGENT
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.request import Request

KEPT_BYTES = 65_536  # largest error response that is kept
KEPT_IDLE_S = 2.0  # longest pause while it is read
RETRY_STATUSES = frozenset({429, 502, 503, 504})  # another server may succeed
RETRY_OTHER_KIND = frozenset({404, 405, 501})  # a server of another kind may have this address
FAILURE_STATUSES = frozenset({502, 503, 504})  # the server is not well


@dataclass(slots=True)
class KeptError:
    """An error response of a server; it is sent to the client if no other server succeeds."""

    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes


class Passthrough:
    """Serves requests at addresses that the HTTP server does not have."""

    def __init__(
        self, router: Router, pipeline: RequestPipeline, *, tickets: AccessTickets | None = None
    ) -> None:
        self.router = router
        self._pipeline = pipeline
        self._tickets = tickets
        self._http = HttpClient()

    def accepts(self, path: str) -> bool:
        """Whether requests at `path` are passed on: PASSTHROUGH is on, and there is a server."""
        return (
            self._pipeline.settings.passthrough and path.startswith("/") and self.router.direct.has_servers()
        )

    async def close(self) -> None:
        """Close the connections to the servers."""
        await self._http.close()

    # ---- before anything is sent

    def access_at(self, path: str) -> Access:
        """Return who may open a connection at `path` that switches protocols."""
        return Access.OPERATOR if pinned(path) is not None else access_of("GET", path)

    async def admit(
        self, request: Request, target: str, *, takes_ticket: bool = False
    ) -> tuple[str, RequestOptions]:
        """Check who calls, before a body is read. A ticket in the query is never handed on.

        Args:
            request: Its path is not decoded where it may have a ticket.
            target: Path and query, as they were sent.
            takes_ticket: A ticket stands for the key.

        Returns:
            (the target for the server; the options, with the server's name where one is chosen)

        Raises:
            Unauthenticated, Forbidden, Unavailable, Invalid: As `RequestPipeline.admit` does.
            NotFound: There is no such server.
        """
        ticket, target = split_ticket(target)
        if ticket and takes_ticket and self._tickets is not None:
            self._tickets.admit(request, ticket, request.path)
        access, name = access_of(request.method, target.partition("?")[0]), ""
        if (found := pinned(target)) is not None:
            access, name, target = Access.OPERATOR, unquote(found[0]), found[1]
        await self._pipeline.look_up(access, request.headers, request.peer)
        self._pipeline.admit(access, request)
        options = replace(request.options, pin=name) if name else request.options
        known = self.router.direct.server_names()
        if options.pin and options.pin not in known:
            name = options.pin[:200]
            text = f"There is no backend {name!r} that can be reached directly. Known: {', '.join(known)}."
            raise NotFound(text, code="no_such_backend")
        return target, options

    # ---- sending

    async def serve(self, web_request: web.Request, request: Request) -> web.StreamResponse:
        """Pass a request on and its response back; record in the request how it ended.

        Raises:
            ApplianceError: It failed before anything was sent to the client.
            ConnectionResetError, CancelledError: The client left.
        """
        target, options = await self.admit(request, target_of(web_request))
        forwarded = await read_forwarded(web_request, request, target, options, self._pipeline.settings)
        forwarded.model = self.model_for(request, target, options, forwarded.model)
        self._check_form(forwarded)
        try:
            return await self._answer(forwarded)
        finally:
            if forwarded.upload is not None:
                await forwarded.upload.wait_released()

    def model_for(self, request: Request, target: str, options: RequestOptions, named: str) -> str:
        """Return the model whose servers a request goes to; "" = the default one.

        1. a server is pinned             → a model counts only if it runs here: it decides which process
        2. work                           → the named one, whether it is there or not
        3. other addresses                → the named one if it is there, of an adapter its base: such an
                                            address may have a field `model` that means something else
        4. an unknown address without it  → refused, where several models run here and nothing else

        Raises:
            NotFound: Case 4.
        """
        path = target.partition("?")[0]
        if options.pin:  # 1
            return named if self.router.direct.is_managed(named) else ""
        if is_work(request.method, path):  # 2
            return named
        card = self.router.find_card(named) if named else None  # 3
        if card is not None:
            return card.parent or named
        if not client_methods(path) and self.router.direct.needs_model():  # 4
            raise NotFound(
                f"There is nothing at {path[:200]}. For an address of llama-server's own, name the model "
                "that it is about, in `model` of the body or of the query."
            )
        return ""

    def _check_form(self, forwarded: ForwardedRequest) -> None:
        """Refuse a form that may name its model too late to be read, where there are several.

        Raises:
            Invalid: That is so.
        """
        is_unknown = forwarded.is_form_cut and not forwarded.model and not forwarded.options.pin
        if is_unknown and len(self.router.cards()) > 1:
            raise Invalid(
                f"The form does not name its model in its first {WHOLE_BYTES >> 20} MiB. Put the field "
                "`model` before the file, or name the model in the query (?model=).",
                param="model",
                code="missing_required_parameter",
            )

    async def _answer(self, forwarded: ForwardedRequest) -> web.StreamResponse:
        """Find a server that answers, and send its response; who pays for work pays one price for it."""
        billing = forwarded.options.billing
        if billing is None or not forwarded.is_work:
            return await self._answer_metered(forwarded, None)
        model = self.router.resolve(forwarded.model).id  # never by another of its names
        path = forwarded.target.partition("?")[0]
        meter = await billing.begin_flat(
            model, forwarded.origin.receipt, is_counted_elsewhere=is_counted_elsewhere(path)
        )
        try:
            return await self._answer_metered(forwarded, meter)
        finally:
            meter.close()

    async def _answer_metered(
        self, forwarded: ForwardedRequest, meter: RequestMeter | None
    ) -> web.StreamResponse:
        """Find a server that answers, and send its response.

        Args:
            meter: Is told of what is answered; None = it is not paid for.
        """
        found = await self._find(forwarded)
        if isinstance(found, KeptError):
            return await self._send_kept(forwarded, found)
        slot, upstream = found
        try:
            if meter is not None and upstream.status < 400:
                meter.begin_attempt(slot.backend.name, forwarded.model, is_remote=slot.backend.is_remote)
                meter.took(1, 1)  # its answer has begun: a client that leaves now has had it
            response = await self._relay(forwarded, slot, upstream)
            if meter is not None:
                meter.end_attempt(Outcome.PASSED, None)
            return response
        except BaseException:
            slot.release(Outcome.CLIENT_LEFT)
            raise
        finally:
            upstream.close()

    async def _find(
        self, forwarded: ForwardedRequest
    ) -> KeptError | tuple[Slot[Backend], aiohttp.ClientResponse]:
        """Find a server that answers.

        1. not reached                      → the next one; this does not use the retry budget
        2. no response                      → the next one, if a repeat is safe and the retry budget allows it
        3. full or not well (429, 502-504)  → as in 2; without a next one its response is sent
        4. it does not have the address     → one of another kind that is ready now
        5. any other response               → that one
        """
        receipt = forwarded.origin.receipt
        tried: set[str] = set()
        kept: KeptError | None = None
        is_any = False
        while True:
            try:
                slot = await self.router.direct.lease(
                    receipt=receipt,
                    model=forwarded.model,
                    exclude=tried,
                    options=forwarded.options,
                    is_uncounted=not forwarded.is_work,
                    is_any=is_any,
                    may_wait=not is_any,
                )
            except ApplianceError:
                if kept is not None:
                    return kept
                raise
            try:
                upstream = await self._open(forwarded, slot)
            except WireError as exc:  # 1, 2
                slot.release(Outcome.of_phase(exc.phase), note=str(exc))
                if forwarded.upload is not None and forwarded.upload.error is not None:
                    raise forwarded.upload.error from None
                tried.add(slot.backend.name)
                if self._may_try_another(forwarded, exc, tried):
                    continue
                if kept is not None:
                    return kept
                raise self._unanswered(forwarded.origin, exc) from exc
            except ApplianceError:
                slot.release(Outcome.REFUSED)
                raise
            except BaseException:
                slot.release(Outcome.CLIENT_LEFT)
                raise
            receipt.upstream_ms = (
                self._pipeline.now_s() - forwarded.origin.began_s
            ) * 1000 - receipt.queue_ms
            passed_over = self._passed_over(forwarded, upstream.status, slot, tried)
            if passed_over is None:  # 5
                return slot, upstream
            try:
                kept = await self._keep(upstream)
            finally:
                upstream.close()
                slot.release(outcome_of(upstream.status), status=upstream.status)
            tried |= passed_over  # 3, 4
            is_any = is_any or upstream.status in RETRY_OTHER_KIND

    def _may_try_another(self, forwarded: ForwardedRequest, failure: WireError, tried: set[str]) -> bool:
        """Whether a request that got no response may go to another server."""
        if forwarded.options.pin or not set(self.router.direct.server_names()) - tried:
            return False
        is_unsent = not failure.was_sent and not forwarded.has_begun_upload
        return is_unsent or (forwarded.is_repeatable and self.router.direct.may_retry(failure.phase))

    def _passed_over(
        self, forwarded: ForwardedRequest, status: int, slot: Slot[Backend], tried: set[str]
    ) -> set[str] | None:
        """Return the servers to exclude after this status; None = send this response to the client."""
        if not forwarded.is_repeatable:
            return None
        over: set[str] = set()
        if status in RETRY_STATUSES:
            over = {slot.backend.name}
        elif status in RETRY_OTHER_KIND:
            kind = slot.backend.kind
            over = {b.name for b in self.router.backends() if b.kind == kind}
        if not over or not set(self.router.direct.server_names()) - tried - over:
            return None
        if status in FAILURE_STATUSES and not self.router.direct.may_retry(f"status_{status}"):
            return None
        return over

    async def _open(self, forwarded: ForwardedRequest, slot: Slot[Backend]) -> aiohttp.ClientResponse:
        limits, origin = self.router.settings, forwarded.origin
        if isinstance(slot.backend, SettlesRequests) and (found := slot.backend.passthrough_settings(slot)):
            forwarded = forwarded.settled(*found)
        body, sent_fields = forwarded.with_model(name_at_server(slot.backend, forwarded.model))
        fields = request_fields(
            sent_fields,
            peer=origin.peer,
            scheme="http",
            host=origin.headers.get("host", ""),
            request_id=origin.id,
            own=slot.headers.items(),
        )
        return await self._http.open(
            origin.method,
            slot.url.rstrip("/") + forwarded.target,
            ssl_context=slot.ssl,
            is_repeatable=forwarded.is_repeatable,
            headers=fields,
            body=body,
            connect_s=limits.upstream_connect_timeout_s,
            first_byte_s=None if forwarded.upload is not None else limits.backend_timeout_seconds,
        )

    async def _keep(self, upstream: aiohttp.ClientResponse) -> KeptError | None:
        """Read an error response to keep it; None where it is too large or does not arrive."""
        body = b""
        try:
            async for piece in iter_body(upstream, idle_s=KEPT_IDLE_S):
                body += piece
                if len(body) > KEPT_BYTES:
                    return None
        except WireError:
            return None
        fields = response_fields(decode_fields(upstream.raw_headers))
        return KeptError(upstream.status, upstream.reason or "", fields, body)

    def _unanswered(self, request: Request, failure: WireError) -> ApplianceError:
        """Return the error of a request that no server answered, by how the last attempt failed.

        1. timeout   2. not reached   3. the connection broke before a response
        """
        backend = request.receipt.backend
        details = {"attempts": attempt_rows(request.receipt.attempts)}
        if isinstance(failure, UpstreamTimeout) and failure.was_sent:  # 1
            return TimedOut(f"{backend} did not answer in time.", details=details)
        if not failure.was_sent:  # 2
            return Unavailable(
                f"No backend available: {backend} could not be reached.",
                code="no_backend",
                retry_after_s=2,
                details=details,
            )
        cause = (details["attempts"][-1].get("error") if details["attempts"] else "") or failure
        return UpstreamFailed(f"{backend} did not answer: {cause}.", details=details)  # 3

    # ---- the response

    async def _relay(
        self, forwarded: ForwardedRequest, slot: Slot[Backend], upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """Write the response while it arrives.

        1. it refuses the appliance's key   → an error: a client would think that its own key is refused
        2. it ends                          → done
        3. it breaks off                    → the client's connection is cut, so that it does not take a part
                                              for the whole; a stream of events ends with an error event
        4. the client does not read         → the connection is cut
        """
        if upstream.status == 401:  # 1
            slot.release(Outcome.KEY_REFUSED, status=401)
            raise UpstreamFailed(
                f"The backend {slot.backend.name} refuses the appliance's key for it. Set its `api_key`.",
                code="upstream_key_refused",
            )
        origin, web_request = forwarded.origin, forwarded.web_request
        origin.receipt.status = upstream.status
        fields = response_fields(decode_fields(upstream.raw_headers))
        response = self._response(origin, upstream.status, upstream.reason or "", fields)
        if not web_request.content.at_eof():
            response.force_close()  # and say so: the connection is closed after half a request
        await response.prepare(web_request)
        self._pipeline.mark_first_byte(origin)
        sent_bytes = 0
        try:
            async for piece in iter_body(upstream, idle_s=self.router.settings.upstream_idle_timeout_s):
                async with asyncio.timeout(self._pipeline.settings.write_timeout_s):
                    await response.write(piece)
                sent_bytes += len(piece)
        except WireError as exc:  # 3
            slot.release(Outcome.CUT_OFF, status=upstream.status, note=str(exc))
            failure = self._cut_off(forwarded, slot, exc)
            if upstream.content_type == "text/event-stream":
                await response.write(error_event(failure, "openai"))
                await response.write_eof()
            elif web_request.transport is not None:
                web_request.transport.abort()
            origin.finish, origin.sent_bytes = Finish.CUT_OFF, sent_bytes
            return response
        except TimeoutError:  # 4
            if web_request.transport is not None:
                web_request.transport.abort()
            raise ConnectionResetError("the client stopped reading") from None
        slot.release(outcome_of(upstream.status), status=upstream.status)  # 2
        await response.write_eof()
        origin.finish, origin.sent_bytes = Finish.DONE, sent_bytes
        return response

    def _cut_off(
        self, forwarded: ForwardedRequest, slot: Slot[Backend], failure: WireError
    ) -> ApplianceError:
        """Record that a response broke off, by the client's upload or by the server; return the error."""
        error: ApplianceError
        if forwarded.upload is not None and forwarded.upload.error is not None:
            error = forwarded.upload.error
        else:
            message = f"{slot.backend.name} broke off its response: {failure}"
            error = UpstreamFailed(message, code="upstream_cut_off")
        forwarded.origin.receipt.error = f"{error.kind.value}: {error.message}"
        return error

    async def _send_kept(self, forwarded: ForwardedRequest, kept: KeptError) -> web.StreamResponse:
        origin = forwarded.origin
        origin.receipt.status = kept.status
        response = self._response(origin, kept.status, kept.reason, kept.fields)
        if not forwarded.web_request.content.at_eof():
            response.force_close()
        await response.prepare(forwarded.web_request)
        self._pipeline.mark_first_byte(origin)
        await response.write(kept.body)
        await response.write_eof()
        origin.finish, origin.sent_bytes = Finish.DONE, len(kept.body)
        return response

    def _response(
        self, request: Request, status: int, reason: str, fields: list[tuple[str, str]]
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=status, reason=reason)
        response.headers["Server"] = AGENT
        for name, value in [*fields, *self._pipeline.response_headers(request)]:
            response.headers.add(name, value)
        return response


def name_at_server(backend: Backend, model: str) -> str:
    """Return what a model is called by the engine that runs it here; "" = as it was sent."""
    served = backend.find_model(model) if backend.is_managed and model else None
    return served.upstream if served is not None and served.upstream != model else ""


def outcome_of(status: int) -> Outcome:
    """Return what a response's status says about the server; most of them say that it is well."""
    if status == 429:
        return Outcome.FULL
    return Outcome.STATUS if status in FAILURE_STATUSES else Outcome.PASSED
