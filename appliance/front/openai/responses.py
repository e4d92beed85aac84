"""OpenAI's Responses API at the door, on top of chat completions: whole replies and the event stream with rising numbers."""

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, NotFound
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.engines.router import Router
from appliance.engines.stream import GeneratedStream
from appliance.engines.types import EngineReply, EngineRequest, Operation
from appliance.front.openai import responses_translate as translate
from appliance.front.openai.handlers import HEARTBEAT, SSE_HEADERS
from appliance.front.pipeline.body import OPENAI_TYPES, check_types, read_object
from appliance.front.pipeline.errors import OPENAI_TYPE
from appliance.front.pipeline.late import respond_or_heartbeat
from appliance.front.pipeline.replies import parse_reply
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import read_events

TYPES = {
    **OPENAI_TYPES,
    "max_output_tokens": int,
    "tools": list,
    "text": dict,
    "reasoning": dict,
    "instructions": str,
    "metadata": dict,
}


class ResponsesHandlers:
    """The handlers of `/v1/responses`. A backend that speaks this API itself would be asked in `create`, before translating."""

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
            Route(("GET", "DELETE"), "/v1/responses/{id}", self.stored),
            Route(("POST",), "/v1/responses/{id}/cancel", self.stored),
            Route(("GET",), "/v1/responses/{id}/input_items", self.stored),
        ]

    async def create(self, request: Request) -> Response:
        """POST /v1/responses."""
        ask = read_object(request.body)
        check_types(ask, TYPES)
        body = translate.chat_body(ask)
        model = ask.get("model") or ""
        card = self._router.resolve(model)
        body["model"] = model or card.id
        is_stream = bool(ask.get("stream"))
        if is_stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        engine_request = EngineRequest(
            Operation.CHAT, body, None, model, is_stream, request.receipt, request.options
        )
        shell = translate.shell_of(ask, response_id=_id("resp"), model=card.id, at_s=int(self._clock.now_s()))
        if is_stream:
            stream = _Stream(shell, self._clock)
            form = Response(
                content_type=SSE_CONTENT_TYPE,
                headers=list(SSE_HEADERS),
                on_error=stream.failed,
                heartbeat=HEARTBEAT,
            )
            return await respond_or_heartbeat(
                self._stream(engine_request, stream, form),
                form,
                heartbeat_s=self._heartbeat_s(),
                late_headers=engine_request.status_headers,
            )
        reply = await self._router.answer(engine_request)
        if reply.status >= 400:
            return Response(reply.status, reply.body or b"", reply.content_type)
        return json_response(self._whole(shell, parse_reply(reply)))

    async def _stream(self, engine_request: EngineRequest, stream: "_Stream", form: Response) -> Response:
        reply = await self._router.answer(engine_request)
        if reply.events is None:
            return Response(reply.status, reply.body or b"", reply.content_type)
        return replace(form, pieces=GeneratedStream(stream.pieces(reply), reply.events))

    async def stored(self, request: Request) -> Response:
        """Whatever asks for a stored response."""
        raise NotFound(
            f"There is no response {request.params['id']!r}: responses are not stored here.", param="id"
        )

    def _whole(self, shell: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
        choice = (value.get("choices") or [{}])[0]
        message = choice.get("message") or {}
        output = []
        thinking = message.get("reasoning_content") or message.get("reasoning")
        if thinking:
            output.append(translate.reasoning_item(_id("rs"), thinking))
        if message.get("content") or not message.get("tool_calls"):
            output.append(translate.message_item(_id("msg"), message.get("content") or ""))
        output += [translate.call_item(_id("fc"), c) for c in message.get("tool_calls") or []]
        return translate.ended(
            shell,
            output,
            finish=choice.get("finish_reason"),
            usage=value.get("usage"),
            at_s=int(self._clock.now_s()),
        )


class _Stream:
    """Turns chat chunks into the Responses event stream. One item is open at a time; each is opened, filled and closed."""

    def __init__(self, shell: dict[str, Any], clock: Clock) -> None:
        self._shell = shell
        self._clock = clock
        self._number = 0
        self._output: list[dict[str, Any]] = []  # finished items
        self._open = ""  # kind of the open item: reasoning | message | call
        self._item_id = ""
        self._text = ""
        self._call: dict[str, Any] = {}
        self._call_index: int | None = None

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), jsons.dumps(data))

    async def pieces(self, reply: EngineReply) -> AsyncGenerator[bytes, None]:
        """Give the stream's events, from response.created to response.completed (or .incomplete)."""
        assert reply.events is not None
        yield self._event("response.created", response=self._shell) + self._event(
            "response.in_progress", response=self._shell
        )
        finish = usage = None
        async with aclosing(read_events(reply.events)) as events:
            async for event in events:
                usage = event.get("usage") or usage
                for choice in (event.get("choices") or [])[:1]:
                    finish = choice.get("finish_reason") or finish
                    if out := self._delta(choice.get("delta") or {}):
                        yield out
        out = self._close()
        if not self._output:
            out += self._begin("message") + self._close()
        done = translate.ended(
            self._shell, self._output, finish=finish, usage=usage, at_s=int(self._clock.now_s())
        )
        yield out + self._event(f"response.{done['status']}", response=done)

    def failed(self, error: ApplianceError) -> bytes:
        """Render a failure inside the stream."""
        failure = {
            **self._shell,
            "status": "failed",
            "output": self._output,
            "error": {"code": error.code or OPENAI_TYPE[error.kind], "message": error.message},
        }
        return self._event("response.failed", response=failure)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        out = b""
        thinking = delta.get("reasoning_content") or delta.get("reasoning")
        if thinking:
            out += self._begin("reasoning")
            self._text += thinking
            out += self._event(
                "response.reasoning_summary_text.delta",
                item_id=self._item_id,
                output_index=len(self._output),
                summary_index=0,
                delta=thinking,
            )
        if delta.get("content"):
            out += self._begin("message")
            self._text += delta["content"]
            out += self._event(
                "response.output_text.delta",
                item_id=self._item_id,
                output_index=len(self._output),
                content_index=0,
                delta=delta["content"],
                logprobs=[],
            )
        for fragment in delta.get("tool_calls") or []:
            out += self._call_delta(fragment)
        return out

    def _call_delta(self, fragment: dict[str, Any]) -> bytes:
        function = fragment.get("function") or {}
        out = b""
        if self._open != "call" or fragment.get("index", 0) != self._call_index:
            self._call = {
                "id": fragment.get("id"),
                "function": {"name": function.get("name") or "", "arguments": ""},
            }
            out = self._close()
            self._call_index = fragment.get("index", 0)
            out += self._begin("call")
        arguments = function.get("arguments") or ""
        if arguments:
            self._call["function"]["arguments"] += arguments
            out += self._event(
                "response.function_call_arguments.delta",
                item_id=self._item_id,
                output_index=len(self._output),
                delta=arguments,
            )
        return out

    def _begin(self, kind: str) -> bytes:
        """Open an item of `kind`, closing another one first; nothing if it is open."""
        if self._open == kind:
            return b""
        out = self._close()
        self._open, self._text = kind, ""
        index = len(self._output)
        if kind == "message":
            self._item_id = _id("msg")
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            out += self._event(
                "response.output_item.added",
                output_index=index,
                item=translate.message_item(self._item_id, "", status="in_progress"),
            )
            return out + self._event(
                "response.content_part.added",
                item_id=self._item_id,
                output_index=index,
                content_index=0,
                part=part,
            )
        if kind == "reasoning":
            self._item_id = _id("rs")
            out += self._event(
                "response.output_item.added",
                output_index=index,
                item=translate.reasoning_item(self._item_id, ""),
            )
            return out + self._event(
                "response.reasoning_summary_part.added",
                item_id=self._item_id,
                output_index=index,
                summary_index=0,
                part={"type": "summary_text", "text": ""},
            )
        self._item_id = _id("fc")
        return out + self._event(
            "response.output_item.added",
            output_index=index,
            item=translate.call_item(self._item_id, self._call, status="in_progress"),
        )

    def _close(self) -> bytes:
        """Close the open item and keep it for the final response."""
        kind, self._open = self._open, ""
        if not kind:
            return b""
        index, where = len(self._output), {"item_id": self._item_id, "output_index": len(self._output)}
        if kind == "message":
            item = translate.message_item(self._item_id, self._text)
            out = self._event(
                "response.output_text.done", **where, content_index=0, text=self._text, logprobs=[]
            )
            out += self._event(
                "response.content_part.done", **where, content_index=0, part=item["content"][0]
            )
        elif kind == "reasoning":
            item = translate.reasoning_item(self._item_id, self._text)
            out = self._event(
                "response.reasoning_summary_text.done", **where, summary_index=0, text=self._text
            )
            out += self._event(
                "response.reasoning_summary_part.done", **where, summary_index=0, part=item["summary"][0]
            )
        else:
            item = translate.call_item(self._item_id, self._call)
            out = self._event(
                "response.function_call_arguments.done",
                **where,
                name=item["name"],
                arguments=item["arguments"],
            )
            self._call_index = None
        self._output.append(item)
        return out + self._event("response.output_item.done", output_index=index, item=item)


def _id(prefix: str) -> str:
    return f"{prefix}_{os.urandom(16).hex()}"
