"""OpenAI's Responses API, on top of chat completions: whole or as event streams. Nothing is stored.

What cannot be used here is left out and named in the header `x-appliance-ignored`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from appliance.base.clock import Clock
from appliance.base.errors import NotFound
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.engines.router import Router
from appliance.engines.stream import GeneratedStream
from appliance.engines.types import EngineRequest, Operation
from appliance.engines.upstream.reply_text import read_choices, read_finish, read_message
from appliance.front.openai.responses_objects import (
    finish_response,
    new_response,
    output_items,
    read_logprobs,
)
from appliance.front.openai.responses_request import ChatRequest, to_chat
from appliance.front.openai.responses_stream import ResponsesStream
from appliance.front.pipeline.body import OPENAI_TYPES, check_types, read_object
from appliance.front.pipeline.ignored import ignored_headers
from appliance.front.pipeline.late import respond_or_heartbeat
from appliance.front.pipeline.replies import parse_reply
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import HEARTBEAT, SSE_HEADERS

TYPES = {
    **OPENAI_TYPES,
    "max_output_tokens": int,
    "tools": list,
    "text": dict,
    "reasoning": dict,
    "instructions": str,
    "metadata": dict,
    "include": list,
    "store": bool,
    "previous_response_id": str,
    "background": bool,
}


class ResponsesHandlers:
    """The handlers of `/v1/responses`.

    Args:
        heartbeat_s: Returns the seconds after which a waiting stream gets headers and heartbeats; 0 = never.
    """

    def __init__(
        self, router: Router, *, clock: Clock, heartbeat_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._router = router
        self._clock = clock
        self._heartbeat_s = heartbeat_s

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("POST",), "/v1/responses", self.create, is_hot=True),
            Route(("GET", "DELETE"), "/v1/responses/{id}", self.refuse_stored),
            Route(("POST",), "/v1/responses/{id}/cancel", self.refuse_stored),
            Route(("GET",), "/v1/responses/{id}/input_items", self.refuse_stored),
        ]

    async def create(self, request: Request) -> Response:
        """Create a response, whole or as a stream of events; it is not stored."""
        payload = read_object(request.body)
        check_types(payload, TYPES)
        chat = to_chat(payload)
        body = chat.body
        model = payload.get("model") or ""
        card = self._router.resolve(model)
        body["model"] = model or card.id
        is_stream = bool(payload.get("stream"))
        if is_stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        engine_request = EngineRequest(
            Operation.CHAT, body, None, model, is_stream, request.receipt, request.options
        )
        response = new_response(payload, model=card.id, at_s=int(self._clock.now_s()))
        if is_stream:
            stream = ResponsesStream(
                response, self._clock, tools=chat.tools.by_function, has_logprobs=chat.has_logprobs
            )
            return await self._answer_stream(engine_request, stream, chat)
        return await self._answer_whole(engine_request, response, chat)

    async def refuse_stored(self, request: Request) -> Response:
        """Refuse: responses are not stored here."""
        raise NotFound(
            f"There is no response {request.params['id']!r}: responses are not stored.", param="id"
        )

    async def _answer_whole(
        self, engine_request: EngineRequest, response: dict[str, Any], chat: ChatRequest
    ) -> Response:
        reply = await self._router.answer(engine_request)
        if reply.status >= 400:
            return Response(reply.status, reply.body or b"", reply.content_type)
        value = parse_reply(reply)
        choices = read_choices(value)
        choice = choices[0] if choices else {}
        finished = finish_response(
            response,
            output_items(
                read_message(choice, "message"),
                chat.tools.by_function,
                read_logprobs(choice) if chat.has_logprobs else None,
            ),
            finish=read_finish(choice),
            usage=value.get("usage"),
            at_s=int(self._clock.now_s()),
        )
        return replace(json_response(finished), headers=ignored_headers(chat.ignored))

    async def _answer_stream(
        self, engine_request: EngineRequest, stream: ResponsesStream, chat: ChatRequest
    ) -> Response:
        form = Response(
            content_type=SSE_CONTENT_TYPE,
            headers=[*SSE_HEADERS, *ignored_headers(chat.ignored)],
            on_error=stream.render_failure,
            heartbeat=HEARTBEAT,
        )
        return await respond_or_heartbeat(
            self._start_stream(engine_request, stream, form),
            form,
            heartbeat_s=self._heartbeat_s(),
            late_headers=engine_request.status_headers,
        )

    async def _start_stream(
        self, engine_request: EngineRequest, stream: ResponsesStream, form: Response
    ) -> Response:
        reply = await self._router.answer(engine_request)
        if reply.events is None:
            return Response(reply.status, reply.body or b"", reply.content_type)
        return replace(form, pieces=GeneratedStream(stream.pieces(reply.events), reply.events))
