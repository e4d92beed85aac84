"""Passthrough: what is not answered here goes to a chosen server as it came, and so does the response.

    any path and method     to a server that is up; a model named in its JSON body or query: to a server of it
    /backends/{name}/…      to that server, with the prefix taken off (operators)
    x-appliance-backend     the same by a header (operators)

Who may send what, and which headers change: rules.py. Connections that switch protocols: tunnel.py.
"""

import asyncio
from dataclasses import dataclass, replace
from urllib.parse import unquote

import aiohttp
from aiohttp import web

from appliance.base.errors import ApplianceError, NotFound, TimedOut, Unavailable, UpstreamFailed
from appliance.base.http import HttpClient, iter_body
from appliance.base.wire.types import UpstreamTimeout, WireError
from appliance.engines.backends.contract import Backend
from appliance.engines.outcome import Finish, Outcome
from appliance.engines.receipts import attempt_rows
from appliance.engines.router import Router
from appliance.engines.slots import Slot
from appliance.engines.types import RequestOptions
from appliance.front.passthrough.forwarded import ForwardedRequest, decode_fields, read_forwarded, target_of
from appliance.front.passthrough.rules import AGENT, access_of, pinned, request_fields, response_fields
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.errors import error_event
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.request import Request

KEPT_BYTES = 65_536  # of an error response that is given if no other server has a better one
KEPT_IDLE_S = 2.0  # how long such a response may pause
ELSEWHERE = frozenset({429, 502, 503, 504})  # another server may do better
OTHER_KIND = frozenset({404, 405, 501})  # a server of another kind may have such an address
UNWELL = frozenset({502, 503, 504})


@dataclass(slots=True)
class KeptError:
    """An error response of a server, kept in case that no other one does better."""

    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes


class Passthrough:
    """Serves what the HTTP server has no address for."""

    def __init__(self, router: Router, pipeline: RequestPipeline) -> None:
        self.router = router
        self._pipeline = pipeline
        self._http = HttpClient()

    def accepts(self, path: str) -> bool:
        """Whether there is a server to pass to, and the operator lets requests pass (PASSTHROUGH)."""
        return (
            self._pipeline.settings.passthrough and path.startswith("/") and self.router.direct.has_servers()
        )

    async def close(self) -> None:
        """Close the connections to the servers."""
        await self._http.close()

    # ---- before anything is sent

    def admit(self, request: Request, target: str) -> tuple[str, RequestOptions]:
        """Check who asks, before a body is read.

        Returns:
            (the target for the server, the options with the server's name in them if one is chosen)

        Raises:
            Unauthenticated, Forbidden, Unavailable, Invalid: As `RequestPipeline.admit` does.
            NotFound: There is no such server.
        """
        access, name = access_of(request.method, target.partition("?")[0]), ""
        if (found := pinned(target)) is not None:
            access, name, target = Access.OPERATOR, unquote(found[0]), found[1]
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
        """Pass a request on and its response back; how it ended is noted in the request.

        Raises:
            ApplianceError: Nothing was answered yet.
            ConnectionResetError, CancelledError: The client left.
        """
        target, options = self.admit(request, target_of(web_request))
        sent = await read_forwarded(web_request, request, target, options, self._pipeline.settings)
        if not (sent.is_work and not options.pin) and not self.router.direct.is_managed(sent.model):
            # Any server can answer it; one about a model of the table is for that model's own.
            sent.model = ""
        answer = await self._find(sent)
        if isinstance(answer, KeptError):
            return await self._send_kept(sent, answer)
        slot, upstream = answer
        try:
            return await self._relay(sent, slot, upstream)
        except BaseException:
            slot.release(Outcome.CLIENT_LEFT)
            raise
        finally:
            upstream.close()

    async def _find(self, sent: ForwardedRequest) -> KeptError | tuple[Slot[Backend], aiohttp.ClientResponse]:
        """Find a server that answers.

        1. it was not reached                       → another one, at no cost
        2. nothing of its response came             → another one, if repeating is safe and the budget lasts
        3. it is full, or not well (429, 502-504)   → the same; if there is no other, its response is given
        4. it has no such address                   → one of another kind
        5. it answers                               → that
        """
        receipt = sent.origin.receipt
        tried: set[str] = set()
        kept: KeptError | None = None
        while True:
            try:
                slot = await self.router.direct.lease(
                    receipt=receipt,
                    model=sent.model,
                    exclude=tried,
                    options=sent.options,
                    is_uncounted=not sent.is_work,
                )
            except ApplianceError:
                if kept is not None:
                    return kept
                raise
            try:
                upstream = await self._open(sent, slot)
            except WireError as exc:  # 1, 2
                slot.release(Outcome.of_phase(exc.phase), note=str(exc))
                if sent.upload is not None and sent.upload.error is not None:
                    raise sent.upload.error from None
                tried.add(slot.backend.name)
                if self._may_try_another(sent, exc, tried):
                    continue
                if kept is not None:
                    return kept
                raise self._unanswered(sent.origin, exc) from exc
            except BaseException:
                slot.release(Outcome.CLIENT_LEFT)
                raise
            receipt.upstream_ms = (self._pipeline.now_s() - sent.origin.began_s) * 1000 - receipt.queue_ms
            passed_over = self._passed_over(sent, upstream.status, slot, tried)
            if passed_over is None:  # 5
                return slot, upstream
            try:
                kept = await self._keep(upstream)
            finally:
                upstream.close()
                slot.release(outcome_of(upstream.status), status=upstream.status)
            tried |= passed_over  # 3, 4

    def _may_try_another(self, sent: ForwardedRequest, failure: WireError, tried: set[str]) -> bool:
        """Whether a request that got no response may go to another server."""
        if sent.options.pin or not set(self.router.direct.server_names()) - tried:
            return False
        is_unsent = not failure.was_sent and not sent.has_begun_upload
        return is_unsent or (sent.is_repeatable and self.router.direct.may_retry(failure.phase))

    def _passed_over(
        self, sent: ForwardedRequest, status: int, slot: Slot[Backend], tried: set[str]
    ) -> set[str] | None:
        """Return the servers not to be asked any more after this status; None = give this response."""
        if not sent.is_repeatable:
            return None
        over: set[str] = set()
        if status in ELSEWHERE:
            over = {slot.backend.name}
        elif status in OTHER_KIND:
            kind = slot.backend.kind
            over = {b.name for b in self.router.backends() if b.kind == kind}
        if not over or not set(self.router.direct.server_names()) - tried - over:
            return None
        if status in UNWELL and not self.router.direct.may_retry(f"status_{status}"):
            return None
        return over

    async def _open(self, sent: ForwardedRequest, slot: Slot[Backend]) -> aiohttp.ClientResponse:
        limits, origin = self.router.settings, sent.origin
        fields = request_fields(
            sent.fields,
            peer=origin.peer,
            scheme="http",
            host=origin.headers.get("host", ""),
            request_id=origin.id,
            own=slot.headers.items(),
        )
        return await self._http.open(
            origin.method,
            slot.url.rstrip("/") + sent.target,
            ssl_context=slot.ssl,
            is_repeatable=sent.is_repeatable,
            headers=fields,
            body=sent.upload.pieces() if sent.upload is not None else sent.body,
            connect_s=limits.upstream_connect_timeout_s,
            first_byte_s=None if sent.upload is not None else limits.backend_timeout_seconds,
        )

    async def _keep(self, upstream: aiohttp.ClientResponse) -> KeptError | None:
        """Keep an error response; None where it is too large or does not come."""
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
        """Say that no server answered.

        1. the last one took too long   2. it was not reached   3. it broke off before its response
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
        return UpstreamFailed(f"{backend} did not answer: {failure}.", details=details)  # 3

    # ---- the way back

    async def _relay(
        self, sent: ForwardedRequest, slot: Slot[Backend], upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """Write the response as it comes.

        1. it refuses our key         → an error: a client would take it for a refusal of its own key
        2. it ends                    → done
        3. it breaks off              → cut off here too, so that a part is not taken for the whole; a stream
                                        of events ends with an error
        4. the client does not read   → given up
        """
        if upstream.status == 401:  # 1
            slot.release(Outcome.KEY_REFUSED, status=401)
            raise UpstreamFailed(
                f"The backend {slot.backend.name} refuses the appliance's key for it. Set its `api_key`.",
                code="upstream_key_refused",
            )
        origin, web_request = sent.origin, sent.web_request
        origin.receipt.status = upstream.status
        fields = response_fields(decode_fields(upstream.raw_headers))
        response = self._response(origin, upstream.status, upstream.reason or "", fields)
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
            failure = self._cut_off(sent, slot, exc)
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

    def _cut_off(self, sent: ForwardedRequest, slot: Slot[Backend], failure: WireError) -> ApplianceError:
        """Note that a response broke off, through the client's own body or the server; return the error."""
        error: ApplianceError
        if sent.upload is not None and sent.upload.error is not None:
            error = sent.upload.error
        else:
            message = f"{slot.backend.name} broke off its response: {failure}"
            error = UpstreamFailed(message, code="upstream_cut_off")
        sent.origin.receipt.error = f"{error.kind.value}: {error.message}"
        return error

    async def _send_kept(self, sent: ForwardedRequest, kept: KeptError) -> web.StreamResponse:
        origin = sent.origin
        origin.receipt.status = kept.status
        response = self._response(origin, kept.status, kept.reason, kept.fields)
        await response.prepare(sent.web_request)
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


def outcome_of(status: int) -> Outcome:
    """Name what a response's status means for the server: most of them that it is well."""
    if status == 429:
        return Outcome.FULL
    return Outcome.STATUS if status in UNWELL else Outcome.PASSED
