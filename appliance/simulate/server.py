"""One port of the twin: the addresses of one service, faults before and after an answer, limits."""

import asyncio
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web

from appliance.base import jsons
from appliance.base.money import shorten
from appliance.simulate.answers import TwinAnswer, TwinRefusal, TwinRequest, TwinRoute, TwinService
from appliance.simulate.faults import KINDS, Fault, Faults, Phase
from appliance.simulate.loopback import is_loopback
from appliance.simulate.rented_engines import MARK
from appliance.simulate.twin_clock import TwinClock

MAX_BODY_BYTES = 2**20
MAX_FIELDS = 500
PIECE_BYTES = 65_536
INSTEAD = frozenset(name for name, kind in KINDS.items() if kind.phase is Phase.INSTEAD)
AFTER = frozenset(name for name, kind in KINDS.items() if kind.phase is Phase.AFTER)
PAGE = "<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>simulated</body></html>\n"
JSON = "application/json"


class TwinServer:
    """The addresses of one service on one port.

    Args:
        service: The service.
        faults: What is to go wrong.
        clock: The twin's.
        settle: Brings all services and engines up to the present time.
        control: The addresses of /_truth and the others.
    """

    def __init__(
        self,
        service: TwinService,
        faults: Faults,
        *,
        clock: TwinClock,
        settle: Callable[[], Awaitable[None]],
        control: list[web.RouteDef],
    ) -> None:
        self.service = service
        self._faults = faults
        self._clock = clock
        self._settle = settle
        self._control = control

    def application(self) -> web.Application:
        """Return all addresses of the port."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.add_routes(self._control)
        for route in self.service.routes():
            for path in {route.path, route.path.rstrip("/") or "/"}:
                app.router.add_route(route.method, path, self._serving(route))
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        app.on_response_prepare.append(self._stamp)
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if (reason := _why_foreign(request)) is not None:
            return self._error(403, "forbidden", reason)
        try:
            return await handler(request)
        except web.HTTPException as exc:  # such as a body that is too large
            error = self.service.error_body(exc.status, "simulated", exc.reason)
            return _render(TwinAnswer(error, exc.status))

    async def _stamp(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(MARK)
        if (fault := self._faults.find(self.service.name, "clock_off")) is not None:
            off_s = fault.parameters["seconds"]
            response.headers["Date"] = formatdate(self._clock.now_s() + off_s, usegmt=True)

    def _serving(self, route: TwinRoute) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            await self._settle()
            name = self.service.name
            kinds = INSTEAD if _is_later_page(request) else INSTEAD - {"page_2_fails"}
            fault = self._faults.take(name, route.name, kinds)
            if fault is not None and fault.kind != "slow":
                return await self._fail(request, fault)
            if fault is not None:
                await asyncio.sleep(fault.parameters["seconds"])
                await self._settle()
            answer = await self._answer(route, request)
            await self._settle()
            if answer.status < 400 and (late := self._faults.take(name, route.name, AFTER)) is not None:
                if "seconds" not in late.parameters:
                    return self._error(500, "server_error", "done, but a simulated fault")
                await asyncio.sleep(late.parameters["seconds"])
            if answer.stream is not None:
                return await answer.stream(request)
            if self._faults.take(name, route.name, ("wrong_types",)) is not None:
                answer.body = spoil(answer.body)
            return _render(answer)

        return serve

    async def _answer(self, route: TwinRoute, request: web.Request) -> TwinAnswer:
        try:
            if not route.is_open:
                self.service.check_key(request.headers)
            return await route.handler(await self._read(route, request))
        except TwinRefusal as exc:
            return exc.answer

    async def _read(self, route: TwinRoute, request: web.Request) -> TwinRequest:
        data = await request.read()
        value: Any = None
        is_form = request.content_type == "application/x-www-form-urlencoded"
        if is_form and not data.startswith((b"{", b"[")):  # `curl -d` calls JSON a form
            try:
                value = dict(parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
            except ValueError:
                raise self._refuse("The body is no form.") from None
        elif data:
            try:
                value = jsons.loads_utf8(data)
            except jsons.InvalidJson as exc:
                raise self._refuse(f"The body is not JSON: {str(exc)[:200]}") from None
        body = value if isinstance(value, dict) else {}
        return TwinRequest(route.name, request.match_info, request.query, body, value, data, request)

    def _refuse(self, text: str) -> TwinRefusal:
        return TwinRefusal(400, self.service.error_body(400, "invalid_args", f"simulated: {text}"))

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        """Refuse an address, or a method, that the stand-in does not have."""
        text = (
            f"{request.method[:20]} {request.path[:200]} is no address of the simulated {self.service.name}"
        )
        return self._error(404, "not_found", text)

    def _error(self, status: int, code: str, text: str) -> web.Response:
        return _render(TwinAnswer(self.service.error_body(status, code, text), status))

    async def _fail(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        """Answer what a fault says instead of what was asked for."""
        status, seconds = int(fault.parameters.get("status", 500)), fault.parameters.get("seconds", 0)
        match fault.kind:
            case "empty_body":
                return web.Response(content_type=JSON)
            case "html_page":
                return web.Response(text=PAGE, content_type="text/html")
            case "reset":
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()
            case "huge_body":
                return await _send_much(request, int(fault.parameters["bytes"]))
            case "rate_limited_text":
                headers = {"Retry-After": f"{seconds:g}"} if seconds else {}
                return web.Response(status=429, text="Too Many Requests", headers=headers)
            case "success_false":
                return _render(
                    TwinAnswer({"success": False, "error": "server_error", "msg": "simulated fault"})
                )
            case "gone_410":
                return self._error(
                    410, "deprecated_endpoint", "This endpoint is deprecated (a simulated fault)."
                )
            case "auth_error_404":
                return self._error(404, "auth_error", "Invalid user key (a simulated fault)")
            case "search_quota":
                return self._error(
                    429, "search_quota_exceeded", "Daily search quota exceeded (a simulated fault)."
                )
            case "no_such_ask":
                return self._error(
                    status, "no_such_ask", "no_such_ask: it is not available (a simulated fault)."
                )
        return self._error(status, "server_error", "a simulated fault")


def _why_foreign(request: web.Request) -> str | None:
    """Return why a request is refused: a page of another site sent it, or a foreign name led here."""
    if not is_loopback(_host_of(f"http://{request.host}")):
        return f"simulated: {shorten(request.host)} is no name of this machine"
    origin = request.headers.get("Origin")
    if origin is not None and not is_loopback(_host_of(origin)):
        return f"simulated: pages of {shorten(origin)} may not call"
    return None


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


def _is_later_page(request: web.Request) -> bool:
    page = request.query.get("page", "")
    return bool(request.query.get("after_token")) or (page.isdecimal() and len(page) < 9 and int(page) > 1)


def spoil(value: Any) -> Any:
    """Return JSON with other types: numbers and booleans as text, lists as objects, null as 0."""
    if isinstance(value, dict):
        return {name: spoil(item) for name, item in value.items()}
    if isinstance(value, list):
        return {str(number): spoil(item) for number, item in enumerate(value)}
    if value is None:
        return 0
    return value if isinstance(value, str) else f"~{value}"


def _render(answer: TwinAnswer) -> web.Response:
    if answer.text is not None:
        return web.Response(status=answer.status, text=answer.text, headers=answer.headers)
    body = jsons.dumps(answer.body)
    return web.Response(status=answer.status, body=body, headers=answer.headers, content_type=JSON)


async def _send_much(request: web.Request, count: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": JSON})
    try:
        await response.prepare(request)
        for start in range(0, count, PIECE_BYTES):
            await response.write(b" " * min(PIECE_BYTES, count - start))
        await response.write_eof()
    except ConnectionResetError:
        pass  # the client has had enough
    return response
