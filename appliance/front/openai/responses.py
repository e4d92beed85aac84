"""OpenAI's Responses API, on top of chat completions: whole or as event streams.

Responses are kept for a while in memory (responses_store.py), unless the request says `store: false`. What
cannot be used here is left out and named in the header `x-appliance-ignored`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from appliance.base.clock import Clock
from appliance.base.errors import Invalid
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.engines.router import Router
from appliance.engines.stream import GeneratedStream
from appliance.engines.types import EngineRequest, ModelCard, Operation
from appliance.engines.upstream.reply_text import read_choices, read_finish, read_message
from appliance.front.openai.responses_items import item_list
from appliance.front.openai.responses_objects import (
    finish_response,
    new_response,
    output_items,
    read_logprobs,
)
from appliance.front.openai.responses_request import ChatRequest, to_chat
from appliance.front.openai.responses_store import DEFAULT_KEEP_S, ResponseStore
from appliance.front.openai.responses_stream import ResponsesStream
from appliance.front.pipeline.body import OPENAI_TYPES, check_types, read_object
from appliance.front.pipeline.ignored import ignored_headers
from appliance.front.pipeline.late import respond_or_heartbeat
from appliance.front.pipeline.replies import parse_reply
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import HEARTBEAT, SSE_HEADERS
from appliance.front.pipeline.token_estimate import ESTIMATE, estimate_tokens

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
MAX_PAGE = 100  # items


class ResponsesHandlers:
    """The handlers of `/v1/responses`.

    Args:
        keep_s: Seconds for which responses are kept; 0 = not at all.
        heartbeat_s: Returns the seconds after which a waiting stream gets headers and heartbeats; 0 = never.
    """

    def __init__(
        self,
        router: Router,
        *,
        clock: Clock,
        keep_s: float = DEFAULT_KEEP_S,
        heartbeat_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._router = router
        self.store = ResponseStore(clock=clock, keep_s=keep_s)
        self._clock = clock
        self._heartbeat_s = heartbeat_s

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("POST",), "/v1/responses", self.create, is_hot=True),
            Route(("POST",), "/v1/responses/input_tokens", self.count_tokens, is_hot=True),
            Route(("GET",), "/v1/responses/{id}", self.retrieve),
            Route(("DELETE",), "/v1/responses/{id}", self.delete),
            Route(("POST",), "/v1/responses/{id}/cancel", self.cancel),
            Route(("GET",), "/v1/responses/{id}/input_items", self.list_input_items),
        ]

    async def create(self, request: Request) -> Response:
        """Create a response, whole or as a stream of events; it is kept unless `store` is false."""
        payload = read_object(request.body)
        chat, items = self._read(request, payload)
        is_stream = bool(payload.get("stream"))
        if is_stream:
            chat.body |= {"stream": True, "stream_options": {"include_usage": True}}
        engine_request, card = self._engine_request(request, payload, chat, is_stream=is_stream)
        is_kept = self.store.is_on and payload.get("store") is not False
        response = new_response(payload, model=card.id, at_s=int(self._clock.now_s()), is_kept=is_kept)

        def keep(finished: dict[str, Any]) -> None:
            if is_kept:
                self.store.keep(request.options.flow, finished, items)

        if is_stream:
            stream = ResponsesStream(
                response, self._clock, tools=chat.tools.by_function, has_logprobs=chat.has_logprobs, keep=keep
            )
            return await self._answer_stream(engine_request, stream, chat)
        return await self._answer_whole(engine_request, response, chat, keep)

    async def count_tokens(self, request: Request) -> Response:
        """Count the tokens of a prompt, by the model's engine; estimated where it cannot count them.

        Returns:
            `{"object", "input_tokens"}`, with the header `x-appliance-estimate: 1` where it is an estimate.
        """
        payload = read_object(request.body)
        chat, _ = self._read(request, payload)
        engine_request, _ = self._engine_request(request, payload, chat, is_stream=False)
        tokens = await self._router.count_tokens(engine_request)
        headers = ignored_headers(chat.ignored)
        if tokens is None:
            tokens = estimate_tokens(chat.body)
            headers.append((ESTIMATE, "1"))
        counted = {"object": "response.input_tokens", "input_tokens": tokens}
        return replace(json_response(counted), headers=headers)

    async def retrieve(self, request: Request) -> Response:
        """Return a kept response."""
        if _query(request, "stream", "false") != "false":
            raise Invalid(
                "`stream` is not supported here: a kept response has no events. Ask without it.",
                param="stream",
                code="not_supported",
            )
        return json_response(self.store.find(request.options.flow, request.params["id"]))

    async def delete(self, request: Request) -> Response:
        """Delete a kept response."""
        response_id = request.params["id"]
        self.store.delete(request.options.flow, response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """Refuse: no response is made in the background."""
        self.store.find(request.options.flow, request.params["id"])
        raise Invalid(
            "Only responses with `background: true` can be cancelled; none is made in the background here.",
            param="id",
            code="not_supported",
        )

    async def list_input_items(self, request: Request) -> Response:
        """List what a kept response answered; `limit` (1 to 100), `order` (asc, desc), `after`."""
        items = self.store.input_items(request.options.flow, request.params["id"])
        limit, order = _query(request, "limit", "20"), _query(request, "order", "desc")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MAX_PAGE):
            raise Invalid(
                f"`limit` must be a number from 1 to {MAX_PAGE}.", param="limit", code="invalid_value"
            )
        if order not in ("asc", "desc"):
            raise Invalid("`order` must be asc or desc.", param="order", code="invalid_value")
        if order == "desc":
            items.reverse()
        if after := _query(request, "after", ""):
            ids = [item["id"] for item in items]
            if after not in ids:
                raise Invalid(
                    f"`after` must be the id of an item, not {after[:80]!r}.",
                    param="after",
                    code="invalid_value",
                )
            items = items[ids.index(after) + 1 :]
        page = items[: int(limit)]
        return json_response(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": len(items) > len(page),
            }
        )

    def _read(self, request: Request, payload: dict[str, Any]) -> tuple[ChatRequest, list[dict[str, Any]]]:
        """Return (the chat request, the items of `input` with references resolved).

        Raises:
            Invalid: A field is invalid.
            NotFound: A response or an item that it refers to is not kept for this caller.
        """
        check_types(payload, TYPES)
        owner = request.options.flow
        items = self.store.resolve(owner, item_list(payload.get("input")))
        previous = payload.get("previous_response_id")
        former = self.store.conversation(owner, previous) if previous else []
        return to_chat(payload, items, former), items

    def _engine_request(
        self, request: Request, payload: dict[str, Any], chat: ChatRequest, *, is_stream: bool
    ) -> tuple[EngineRequest, ModelCard]:
        model = payload.get("model") or ""
        card = self._router.resolve(model)
        chat.body["model"] = model or card.id
        engine_request = EngineRequest(
            Operation.CHAT, chat.body, None, model, is_stream, request.receipt, request.options
        )
        return engine_request, card

    async def _answer_whole(
        self,
        engine_request: EngineRequest,
        response: dict[str, Any],
        chat: ChatRequest,
        keep: Callable[[dict[str, Any]], None],
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
        keep(finished)
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


def _query(request: Request, name: str, default: str) -> str:
    """Return a query parameter."""
    return parse_qs(request.query).get(name, [default])[0]
