"""Anthropic's Messages API: whole messages, event streams, and the count of a prompt's tokens.

Requests are translated in request.py and content.py, replies in response.py and stream.py. What cannot be
used here is left out and named in the header `x-appliance-ignored`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.engines.router import Router
from appliance.engines.stream import GeneratedStream, start_stream
from appliance.engines.types import EngineReply, EngineRequest, NativeOptions, Operation
from appliance.engines.upstream.spelling import template_fields
from appliance.front.anthropic.request import MessagesRequest, to_chat
from appliance.front.anthropic.response import new_message, to_message
from appliance.front.anthropic.stream import PING, MessagesStream
from appliance.front.pipeline.body import read_object
from appliance.front.pipeline.errors import error_event
from appliance.front.pipeline.ignored import ignored_headers
from appliance.front.pipeline.late import respond_or_heartbeat
from appliance.front.pipeline.replies import parse_error_reply, parse_reply
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import SSE_HEADERS
from appliance.front.pipeline.token_estimate import ESTIMATE, estimate_tokens

DIALECT = "anthropic"
Headers = list[tuple[str, str]]


class AnthropicHandlers:
    """The handlers of `/v1/messages`.

    Args:
        heartbeat_s: Returns the seconds after which a waiting stream gets headers and pings; 0 = never.
    """

    def __init__(self, router: Router, *, heartbeat_s: Callable[[], float] = lambda: 0.0) -> None:
        self._router = router
        self._heartbeat_s = heartbeat_s

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("POST",), "/v1/messages", self.create, dialect=DIALECT, is_hot=True),
            Route(("POST",), "/v1/messages/count_tokens", self.count_tokens, dialect=DIALECT, is_hot=True),
        ]

    async def create(self, request: Request) -> Response:
        """Answer a conversation with a message, whole or as a stream of events."""
        payload = read_object(request.body)
        translated = to_chat(payload)
        is_stream = payload.get("stream") is True
        if is_stream:
            translated.body |= {"stream": True, "stream_options": {"include_usage": True}}
        engine_request = self._engine_request(request, payload, translated, is_stream=is_stream)
        if is_stream:
            return await self._answer_stream(request, engine_request, translated)
        value = parse_reply(await self._ask(engine_request))
        message = to_message(
            value, model=engine_request.public_model, shows_thinking=translated.shows_thinking
        )
        return replace(json_response(message), headers=_headers(request, translated, engine_request))

    async def count_tokens(self, request: Request) -> Response:
        """Count the tokens of a prompt, by the model's engine; estimated where it cannot count them.

        Returns:
            `{"input_tokens"}`, with the header `x-appliance-estimate: 1` where it is an estimate.
        """
        payload = read_object(request.body)
        translated = to_chat(payload, needs_max_tokens=False)
        if translated.thinks is not None:  # a template may differ by it; only engines with templates count
            translated.body["chat_template_kwargs"] = template_fields(translated.thinks)
        engine_request = self._engine_request(request, payload, translated, is_stream=False)
        tokens = await self._router.count_tokens(engine_request)
        headers = _headers(request, translated)
        if tokens is None:
            tokens = estimate_tokens(translated.body)
            headers.append((ESTIMATE, "1"))
        return replace(json_response({"input_tokens": tokens}), headers=headers)

    async def _answer_stream(
        self, request: Request, engine_request: EngineRequest, translated: MessagesRequest
    ) -> Response:
        form = Response(
            content_type=SSE_CONTENT_TYPE,
            headers=[*SSE_HEADERS, *_headers(request, translated)],
            on_error=partial(error_event, dialect=DIALECT, request_id=request.id),
            heartbeat=PING,
        )
        return await respond_or_heartbeat(
            self._start_stream(request, engine_request, translated, form),
            form,
            heartbeat_s=self._heartbeat_s(),
            late_headers=engine_request.status_headers,
        )

    async def _start_stream(
        self, request: Request, engine_request: EngineRequest, translated: MessagesRequest, form: Response
    ) -> Response:
        """Ask the engines; a failure before the first event becomes a status, not an event."""
        reply = await self._ask(engine_request)
        assert reply.events is not None
        message = new_message(engine_request.public_model)
        stream = MessagesStream(message, shows_thinking=translated.shows_thinking)
        pieces = GeneratedStream(stream.pieces(reply.events), reply.events)
        headers = [*SSE_HEADERS, *_headers(request, translated, engine_request)]
        return replace(form, headers=headers, pieces=await start_stream(pieces))

    async def _ask(self, engine_request: EngineRequest) -> EngineReply:
        """Ask the engines; raise their error where they return one."""
        reply = await self._router.answer(engine_request)
        if reply.status >= 400:
            raise parse_error_reply(reply.status, reply.body or b"")
        return reply

    def _engine_request(
        self, request: Request, payload: dict[str, Any], translated: MessagesRequest, *, is_stream: bool
    ) -> EngineRequest:
        model = payload.get("model") or ""
        translated.body["model"] = model or self._router.resolve("").id
        made = EngineRequest(
            Operation.CHAT, translated.body, None, model, is_stream, request.receipt, request.options
        )
        if translated.thinks is not None:
            made.native = NativeOptions({}, translated.thinks)
        return made


def _headers(request: Request, translated: MessagesRequest, answered: EngineRequest | None = None) -> Headers:
    """Return the headers of a response: the id under Anthropic's name, and what was left out.

    Args:
        answered: The request to the engines; None = none has answered it yet.
    """
    native = answered.native if answered is not None else None
    left_out = ["thinking"] if native is not None and native.ignored else []
    return [("request-id", request.id), *ignored_headers([*translated.ignored, *left_out])]
