"""Transparent passage: a request that this door does not answer itself goes to a chosen server as it came, and so does the answer.

    any path and method     to a server that is up; one whose JSON body or query names a model, to a server of that model
    /backends/{name}/…      to that server, with the prefix taken off (operators)
    x-appliance-backend     the same by a header (operators)

Who may send what, and which headers change on the way: passage_rules.py. Connections that switch protocols: tunnel.py.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, unquote

import aiohttp
from aiohttp import web

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Invalid, NotFound, TimedOut, Unavailable, UpstreamFailed
from appliance.base.http import HttpClient, iter_body
from appliance.base.wire.types import UpstreamTimeout, WireError
from appliance.engines.outcome import Finish, Outcome
from appliance.engines.receipts import attempt_rows
from appliance.engines.router import Router
from appliance.engines.slots import Slot
from appliance.engines.types import RequestOptions
from appliance.front.passthrough.rules import (
    SAFE,
    access_of,
    answer_fields,
    is_work,
    pinned,
    request_fields,
)
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.errors import error_event
from appliance.front.pipeline.pipeline import RequestPipeline, too_large
from appliance.front.pipeline.request import Request

WHOLE_BYTES = (
    1_048_576  # a body up to this is read first: it can name a model, and be sent again to another server
)
KEPT_BYTES = 65_536  # of an error answer that is given if nobody else has a better one
ELSEWHERE = frozenset({429, 502, 503, 504})  # another server may do better
OTHER_KIND = frozenset({404, 405, 501})  # a server of another kind may have such an address


@dataclass(slots=True)
class PassthroughRequest:
    """A request as it is to be sent.

    target   path and query, percent-encoded, as they came; body: bytes, or None = it is streamed from the client, or there is none
    """

    method: str
    target: str
    path: str
    fields: list[tuple[str, str]]
    body: bytes | None
    is_streamed: bool
    model: str
    options: RequestOptions
    is_work: bool
    is_repeatable: bool

    @property
    def is_pinned(self) -> bool:
        return bool(self.options.pin)


@dataclass(slots=True)
class KeptError:
    """An error answer of a server, kept in case that no other one does better."""

    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes


class Upload:
    """A body on its way through: counted, and never without limit."""

    def __init__(self, request: web.Request, *, limit_bytes: int, patience_s: float) -> None:
        self._request = request
        self._limit_bytes = limit_bytes
        self._patience_s = patience_s
        self.has_begun = False
        self.error: ApplianceError | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        self.has_begun = True
        size = 0
        while True:
            try:
                piece = await asyncio.wait_for(self._request.content.readany(), self._patience_s)
            except TimeoutError:
                self.error = TimedOut(
                    "The request's body did not arrive in time (BODY_TIMEOUT_S).",
                    code="body_timeout",
                    details={"status": 408},
                )
                raise self.error from None
            except (web.HTTPException, ValueError) as exc:
                self.error = Invalid(f"The request's body cannot be read: {exc}.")
                raise self.error from None
            if not piece:
                return
            size += len(piece)
            if size > self._limit_bytes:
                self.error = too_large(self._limit_bytes)
                raise self.error
            yield piece


class Passthrough:
    """Serves what aiohttp's part of the door has no address for."""

    def __init__(self, router: Router, pipeline: RequestPipeline) -> None:
        self.router = router
        self._desk = pipeline
        self.http = HttpClient()

    def takes(self, path: str) -> bool:
        """Whether there is anybody to pass to, and the operator lets things pass."""
        return self._desk.settings.passthrough and path.startswith("/") and self.router.has_servers()

    async def close(self) -> None:
        await self.http.close()

    # ---- before anything is sent

    def admit(self, call: Request, target: str) -> tuple[str, RequestOptions]:
        """Check who asks, before a body is read.

        Gives   (the target for the server, the wishes with the server's name in them if it is pinned)
        Raises  Unauthenticated · Forbidden · Unavailable: draining · Invalid: a header · NotFound: no such server
        """
        path = target.partition("?")[0]
        access, name = access_of(call.method, path), ""
        if (found := pinned(target)) is not None:
            access, name, target = Access.OPERATOR, unquote(found[0]), found[1]
        self._desk.admit(access, call)
        options = replace(call.options, pin=name) if name else call.options
        if options.pin and options.pin not in self.router.server_names():
            raise NotFound(
                f"There is no backend {options.pin[:200]!r} that can be reached directly. Known: "
                f"{', '.join(self.router.server_names())}.",
                code="no_such_backend",
            )
        return target, options

    async def read(
        self, request: web.Request, call: Request, target: str, options: RequestOptions
    ) -> PassthroughRequest:
        """Take the request in, its body only where it is small.

        Raises  TooLarge · TimedOut: the body did not come · Invalid: it cannot be read
        """
        settings, path = self._desk.settings, target.partition("?")[0]
        if (request.content_length or 0) > settings.max_body_bytes:
            raise too_large(settings.max_body_bytes)
        has_body = request.body_exists
        is_streamed = has_body and not 0 < (request.content_length or 0) <= WHOLE_BYTES
        body = None
        if has_body and not is_streamed:
            upload = Upload(request, limit_bytes=settings.max_body_bytes, patience_s=settings.body_timeout_s)
            body = b"".join([piece async for piece in upload.pieces()])
        does_work = is_work(call.method, path)
        model = model_of(body, target)
        if not (does_work and not options.pin) and not self.router.is_managed(model):
            model = ""  # a question that any server can answer; one about a model of the table is for that model's own
        fields = [
            (name.decode("utf-8", "replace"), value.decode("utf-8", "replace"))
            for name, value in request.raw_headers
        ]
        return PassthroughRequest(
            call.method,
            target,
            path,
            fields,
            body,
            is_streamed,
            model,
            options,
            does_work,
            not is_streamed and not options.pin and (does_work or call.method in SAFE),
        )

    # ---- sending

    async def serve(self, request: web.Request, call: Request) -> tuple[web.StreamResponse, Finish, int]:
        """Pass a request on and its answer back.

        Gives   (response, finish, bytes)
        Raises  ApplianceError: nothing was answered yet · ConnectionResetError, CancelledError: the client left
        """
        target, options = self.admit(call, target_of(request))
        sent = await self.read(request, call, target, options)
        settings = self._desk.settings
        upload = (
            Upload(request, limit_bytes=settings.max_body_bytes, patience_s=settings.body_timeout_s)
            if sent.is_streamed
            else None
        )
        answer = await self._answer(request, call, sent, upload)
        if isinstance(answer, KeptError):
            return await self._give_kept(request, call, answer)
        slot, far = answer
        try:
            return await self._relay(request, call, slot, far, upload)
        except BaseException:
            slot.release(Outcome.CLIENT_LEFT)
            raise
        finally:
            far.close()

    async def _answer(
        self, request: web.Request, call: Request, sent: PassthroughRequest, upload: Upload | None
    ) -> KeptError | tuple[Slot, aiohttp.ClientResponse]:
        """Find a server that answers.

        1. it was not reached                         → another one, at no cost
        2. nothing of its answer came                 → another one, if doing it twice does no harm and the retry budget lasts
        3. it is full, or not well (429, 502-504)     → the same; if there is no other, its answer is given
        4. it has no such address                     → one of another kind
        5. it answers                                 → that
        """
        tried: set[str] = set()
        kept: KeptError | None = None
        while True:
            try:
                slot = await self.router.lease(
                    receipt=call.receipt,
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
                far = await self._open(request, call, sent, slot, upload)
            except WireError as exc:
                slot.release(Outcome.of_phase(exc.phase), note=str(exc))
                if upload is not None and upload.error is not None:
                    raise upload.error from None
                tried.add(slot.backend.name)
                is_unsent = not exc.was_sent and not (upload is not None and upload.has_begun)
                others = set(self.router.server_names()) - tried
                if (
                    sent.is_pinned
                    or not others
                    or not (is_unsent or (sent.is_repeatable and self.router.may_retry_elsewhere(exc.phase)))
                ):
                    if kept is not None:
                        return kept
                    raise self._told(call, exc) from exc
                continue  # 1, 2
            except BaseException:
                slot.release(Outcome.CLIENT_LEFT)
                raise
            call.receipt.upstream_ms = (self._desk.now_s() - call.began_s) * 1000 - call.receipt.queue_ms
            passed_over = self._passed_over(sent, far.status, slot, tried)
            if passed_over is None:  # 5
                return slot, far
            try:
                kept = await self._keep(far)
            finally:
                far.close()
                slot.release(outcome_of(far.status), status=far.status)
            tried |= passed_over  # 3, 4

    def _passed_over(
        self, sent: PassthroughRequest, status: int, slot: Slot, tried: set[str]
    ) -> set[str] | None:
        """Give the servers that are not to be asked any more after an answer of `status`; None = give this answer."""
        if not sent.is_repeatable:
            return None
        over: set[str] = set()
        if status in ELSEWHERE:
            over = {slot.backend.name}
        elif status in OTHER_KIND:
            kind = slot.backend.kind  # type: ignore[attr-defined]
            over = {b.name for b in self.router.backends() if b.kind == kind}
        if not over or not set(self.router.server_names()) - tried - over:
            return None
        if status in ELSEWHERE and status != 429 and not self.router.may_retry_elsewhere(f"status_{status}"):
            return None
        return over

    async def _open(
        self,
        request: web.Request,
        call: Request,
        sent: PassthroughRequest,
        slot: Slot,
        upload: Upload | None,
    ) -> aiohttp.ClientResponse:
        limits = self.router.settings
        return await self.http.open(
            sent.method,
            slot.url.rstrip("/") + sent.target,
            ssl_context=slot.ssl,
            is_repeatable=sent.is_repeatable,
            headers=request_fields(
                sent.fields,
                peer=call.peer,
                scheme="http",
                host=call.headers.get("host", ""),
                request_id=call.id,
                own=slot.headers.items(),
            ),
            body=upload.pieces() if upload is not None else sent.body,
            connect_s=limits.upstream_connect_timeout_s,
            first_byte_s=None if upload is not None else limits.backend_timeout_seconds,
        )

    async def _keep(self, far: aiohttp.ClientResponse) -> KeptError | None:
        """Keep an error answer; None where it is too large or does not come."""
        body = b""
        try:
            async for piece in iter_body(far, idle_s=2.0):
                body += piece
                if len(body) > KEPT_BYTES:
                    return None
        except WireError:
            return None
        return KeptError(far.status, far.reason or "", answer_fields(texts(far.raw_headers)), body)

    def _told(self, call: Request, failure: WireError) -> ApplianceError:
        details = {"attempts": attempt_rows(call.receipt.attempts)}
        if isinstance(failure, UpstreamTimeout) and failure.was_sent:
            return TimedOut(f"{call.receipt.backend} did not answer in time.", details=details)
        if not failure.was_sent:
            return Unavailable(
                f"No backend available: {call.receipt.backend} could not be reached.",
                code="no_backend",
                retry_after_s=2,
                details=details,
            )
        return UpstreamFailed(f"{call.receipt.backend} did not answer: {failure}.", details=details)

    # ---- the way back

    async def _relay(
        self,
        request: web.Request,
        call: Request,
        slot: Slot,
        far: aiohttp.ClientResponse,
        upload: Upload | None,
    ) -> tuple[web.StreamResponse, Finish, int]:
        """Write the answer as it comes; what breaks off upstream breaks off here too, so that nobody takes a part for the whole."""
        if far.status == 401:  # it speaks of the operator's key; a client would take it for its own
            slot.release(Outcome.KEY_REFUSED, status=401)
            raise UpstreamFailed(
                f"The backend {slot.backend.name} refuses the key that the appliance has for it. Set its `api_key`.",
                code="upstream_key_refused",
            )
        call.receipt.status = far.status
        fields = answer_fields(texts(far.raw_headers))
        response = self._response(call, far.status, far.reason or "", fields)
        is_events = far.content_type == "text/event-stream"
        sent = 0
        await response.prepare(request)
        self._desk.mark_first_byte(call)
        try:
            async for piece in iter_body(far, idle_s=self.router.settings.upstream_idle_timeout_s):
                async with asyncio.timeout(self._desk.settings.write_timeout_s):
                    await response.write(piece)
                sent += len(piece)
        except WireError as exc:
            failure = (
                upload.error
                if upload is not None and upload.error is not None
                else UpstreamFailed(
                    f"{slot.backend.name} broke off its answer: {exc}", code="upstream_cut_off"
                )
            )
            slot.release(Outcome.CUT_OFF, status=far.status, note=str(exc))
            call.receipt.error = f"{failure.kind.value}: {failure.message}"
            if is_events:
                await response.write(error_event(failure, "openai"))
                await response.write_eof()
            elif request.transport is not None:
                request.transport.abort()
            return response, Finish.CUT_OFF, sent
        except TimeoutError:  # the client does not read
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the client stopped reading") from None
        slot.release(outcome_of(far.status), status=far.status)
        await response.write_eof()
        return response, Finish.DONE, sent

    async def _give_kept(
        self, request: web.Request, call: Request, kept: KeptError
    ) -> tuple[web.StreamResponse, Finish, int]:
        call.receipt.status = kept.status
        response = self._response(call, kept.status, kept.reason, kept.fields)
        await response.prepare(request)
        self._desk.mark_first_byte(call)
        await response.write(kept.body)
        await response.write_eof()
        return response, Finish.DONE, len(kept.body)

    def _response(
        self, call: Request, status: int, reason: str, fields: list[tuple[str, str]]
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=status, reason=reason)
        response.headers["Server"] = "inference-appliance"
        for name, value in [*fields, *self._desk.response_headers(call)]:
            response.headers.add(name, value)
        return response


def target_of(request: web.Request) -> str:
    """Give path and query as they came; of a request in absolute form (RFC 9112, 3.2.2) what follows the host.

    Raises  Invalid: neither a path nor an absolute form
    """
    raw = request.raw_path
    if "://" in raw.partition("/")[0] + raw[:12] and not raw.startswith("/"):
        rest = raw.split("://", 1)[1]
        raw = "/" + rest.partition("/")[2]
    if not raw.startswith("/"):
        raise Invalid("The address must be a path that begins with /.", code="invalid_address")
    return raw.partition("#")[0]


def model_of(body: bytes | None, target: str) -> str:
    """Give the model that a request names, in its JSON body or in its query; "" = none."""
    if body and body.lstrip()[:1] == b"{":
        try:
            value = jsons.loads(body)
        except jsons.InvalidJson:
            value = None
        model = value.get("model") if isinstance(value, dict) else None
        if isinstance(model, str):
            return model
    return parse_qs(target.partition("?")[2]).get("model", [""])[0]


def texts(fields: Collection[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in fields]


def outcome_of(status: int) -> Outcome:
    """Say what an answer's status means for the server: most of them that it is well."""
    if status == 429:
        return Outcome.FULL
    return Outcome.STATUS if status in {502, 503, 504} else Outcome.PASSED
