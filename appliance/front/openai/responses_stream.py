"""Chat chunks into the event stream of the Responses API.

Every event has a rising `sequence_number`. An item is added, filled by deltas, done;
only calls whose fragments interleave are open at the same time. The input of a custom tool comes in one
delta: until its JSON is whole, it is not known which text it holds.

Source: OpenAI's API reference, "Streaming events".
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.engines.stream import Stream
from appliance.engines.upstream.reply_text import (
    read_choices,
    read_content,
    read_finish,
    read_message,
    read_reasoning,
    read_refusal,
)
from appliance.engines.upstream.tool_calls import ToolCall, ToolCalls
from appliance.front.openai.responses_objects import (
    NO_TOOLS,
    call_item,
    call_prefix,
    finish_response,
    message_item,
    new_id,
    read_logprobs,
    reasoning_item,
    refusal_part,
    text_part,
)
from appliance.front.openai.responses_tools import ClientTool
from appliance.front.pipeline.errors import OPENAI_TYPE
from appliance.front.pipeline.sse import read_events

Event = tuple[str, dict[str, Any]]  # type without `response.`, fields


class ResponsesStream:
    """The stream of one response.

    Args:
        response: From `new_response`.
        tools: The client's tools by the functions that they became.
        has_logprobs: The client asked for the tokens' probabilities.
        keep: Keeps the finished response, before the client hears that it is finished.
    """

    def __init__(
        self,
        response: dict[str, Any],
        clock: Clock,
        *,
        tools: Mapping[str, ClientTool] = NO_TOOLS,
        has_logprobs: bool = False,
        keep: Callable[[dict[str, Any]], None] = lambda response: None,
    ) -> None:
        self._response = response
        self._clock = clock
        self._tools = tools
        self._has_logprobs = has_logprobs
        self._keep = keep
        self._number = 0
        self._items: list[_Item] = []  # each at its output_index
        self._open: list[int] = []  # indexes of the items that are not done; several calls may be open
        self._calls = ToolCalls()
        self._call_indexes: dict[int, int] = {}  # a call's position → the output_index of its item

    async def pieces(self, source: Stream) -> AsyncGenerator[bytes, None]:
        """Yield the events as SSE, from response.created to response.completed or response.incomplete.

        Args:
            source: Chat chunks as SSE; it is closed with this.

        Raises:
            UpstreamFailed: The source is cut off, or it holds an error.
        """
        yield self._render(("created", {"response": self._response})) + self._render(
            ("in_progress", {"response": self._response})
        )
        finish = usage = None
        async with aclosing(read_events(source)) as events:
            async for event in events:
                usage = event.get("usage") or usage
                for choice in read_choices(event)[:1]:
                    finish = read_finish(choice) or finish
                    logprobs = read_logprobs(choice) if self._has_logprobs else []
                    if out := self._add(read_message(choice, "delta"), logprobs):
                        yield out
        out = self._close_all()
        if not self._items:
            out += self._start(_MessageItem()) + self._close_all()
        response = finish_response(
            self._response, self._output(), finish=finish, usage=usage, at_s=int(self._clock.now_s())
        )
        self._keep(response)
        yield out + self._render((response["status"], {"response": response}))

    def render_failure(self, error: ApplianceError) -> bytes:
        """Return the events of a failure inside the stream.

        `error` is the one that SDKs raise; Codex CLI reads `response.failed` alone.
        """
        kind = OPENAI_TYPE[error.kind]
        short = {"code": error.code or kind, "message": error.message}
        failure = {
            **self._response,
            "status": "failed",
            "store": False,
            "output": self._output(),
            "error": short,
        }
        fields = short | {"param": error.param}  # as in the reference, and as OpenAI sends them: in `error`
        out = self._render_as("error", fields | {"error": {"type": kind, **fields}})
        return out + self._render(("failed", {"response": failure}))

    def _add(self, delta: dict[str, Any], logprobs: list[dict[str, Any]]) -> bytes:
        """Return the events of one delta: its reasoning, its text, its refusal, its tool calls."""
        out = b""
        if reasoning := read_reasoning(delta):
            out += self._fill(_ReasoningItem, reasoning)
        if text := read_content(delta):
            out += self._fill(_MessageItem, text, logprobs)
        if refusal := read_refusal(delta):
            out += self._fill(_RefusalItem, refusal)
        fragments = delta.get("tool_calls")
        if fragments is None and delta.get("function_call") is not None:
            fragments = [{"function": delta["function_call"]}]  # of an early API
        for call, arguments in self._calls.add(fragments):
            out += self._fill_call(call, arguments)
        return out

    def _fill(
        self, kind: "type[_TextItem]", text: str, logprobs: list[dict[str, Any]] | None = None
    ) -> bytes:
        """Add text to the last item where it is open and of this kind, else to a new one."""
        out = b""
        if not (self._open and type(self._items[self._open[-1]]) is kind):
            out = self._close_all() + self._start(kind())
        item = self._items[self._open[-1]]
        if logprobs and isinstance(item, _MessageItem):
            return out + self._render_item(self._open[-1], item.fill_with(text, logprobs))
        return out + self._render_item(self._open[-1], item.fill(text))

    def _fill_call(self, call: ToolCall, arguments: str) -> bytes:
        """Add arguments to a call's item. What is whole is closed before another item starts."""
        out, index = b"", self._call_indexes.get(call.position)
        if index is None:
            for number in list(self._open):
                item = self._items[number]
                if not isinstance(item, _CallItem) or item.call.is_whole:
                    out += self._close(number)
            index = self._call_indexes[call.position] = len(self._items)
            tool = self._tools.get(call.name)
            kind = _CallItem
            if tool is not None and (tool.is_custom or tool.is_search):
                kind = _SearchItem if tool.is_search else _CustomCallItem
            out += self._start(kind(call, tool))
        if arguments and index in self._open and not isinstance(self._items[index], _CustomCallItem):
            out += self._render_item(index, self._items[index].fill(arguments))
        return out

    def _start(self, item: "_Item") -> bytes:
        """Open an item after all others."""
        index = len(self._items)
        self._items.append(item)
        self._open.append(index)
        added = self._render(("output_item.added", {"output_index": index, "item": item.added()}))
        return added + b"".join(self._render_item(index, event) for event in item.opening())

    def _close_all(self) -> bytes:
        """Close the open items in their order."""
        return b"".join(self._close(index) for index in list(self._open))

    def _close(self, index: int) -> bytes:
        """Close one open item."""
        self._open.remove(index)
        item = self._items[index]
        out = b"".join(self._render_item(index, event) for event in item.closing())
        return out + self._render(("output_item.done", {"output_index": index, "item": item.done()}))

    def _output(self) -> list[dict[str, Any]]:
        """Return the items that are done."""
        return [item.done() for index, item in enumerate(self._items) if index not in self._open]

    def _render_item(self, index: int, event: Event) -> bytes:
        """Render an event inside an item."""
        kind, fields = event
        return self._render((kind, {"item_id": self._items[index].id, "output_index": index, **fields}))

    def _render(self, event: Event) -> bytes:
        return self._render_as(f"response.{event[0]}", event[1])

    def _render_as(self, kind: str, fields: dict[str, Any]) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), jsons.dumps(data))


class _Item(Protocol):
    """One item."""

    id: str

    def added(self) -> dict[str, Any]:
        """Return the item as it is added, without content."""

    def opening(self) -> Iterator[Event]:
        """Yield what follows `output_item.added`."""

    def fill(self, text: str) -> Event:
        """Take more text; return its event."""

    def closing(self) -> Iterator[Event]:
        """Yield what precedes `output_item.done`."""

    def done(self) -> dict[str, Any]:
        """Return the item, complete."""


class _TextItem:
    """An item that is text; the pieces are joined once."""

    prefix: str

    def __init__(self) -> None:
        self.id = new_id(self.prefix)
        self._pieces: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    @property
    def _text(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def added(self) -> dict[str, Any]:
        return message_item(self.id, "", status="in_progress")

    def opening(self) -> Iterator[Event]:
        yield "content_part.added", {"content_index": 0, "part": text_part("")}

    def fill(self, text: str) -> Event:
        self._pieces.append(text)
        return "output_text.delta", {"content_index": 0, "delta": text, "logprobs": []}

    def closing(self) -> Iterator[Event]:
        yield "output_text.done", {"content_index": 0, "text": self._text, "logprobs": self._logprobs}
        yield "content_part.done", {"content_index": 0, "part": text_part(self._text, self._logprobs)}

    def done(self) -> dict[str, Any]:
        return message_item(self.id, self._text, logprobs=self._logprobs)


class _MessageItem(_TextItem):
    prefix = "msg"

    def fill_with(self, text: str, logprobs: list[dict[str, Any]]) -> Event:
        """Take more text with the probabilities of its tokens."""
        self._logprobs += logprobs
        kind, fields = self.fill(text)
        return kind, {**fields, "logprobs": logprobs}


class _RefusalItem(_TextItem):
    prefix = "msg"

    def opening(self) -> Iterator[Event]:
        yield "content_part.added", {"content_index": 0, "part": refusal_part("")}

    def fill(self, text: str) -> Event:
        self._pieces.append(text)
        return "refusal.delta", {"content_index": 0, "delta": text}

    def closing(self) -> Iterator[Event]:
        yield "refusal.done", {"content_index": 0, "refusal": self._text}
        yield "content_part.done", {"content_index": 0, "part": refusal_part(self._text)}

    def done(self) -> dict[str, Any]:
        return message_item(self.id, self._text, is_refusal=True)


class _ReasoningItem(_TextItem):
    prefix = "rs"

    def added(self) -> dict[str, Any]:
        return reasoning_item(self.id, "")

    def opening(self) -> Iterator[Event]:
        yield (
            "reasoning_summary_part.added",
            {"summary_index": 0, "part": {"type": "summary_text", "text": ""}},
        )

    def fill(self, text: str) -> Event:
        self._pieces.append(text)
        return "reasoning_summary_text.delta", {"summary_index": 0, "delta": text}

    def closing(self) -> Iterator[Event]:
        yield "reasoning_summary_text.done", {"summary_index": 0, "text": self._text}
        yield "reasoning_summary_part.done", {"summary_index": 0, "part": self.done()["summary"][0]}

    def done(self) -> dict[str, Any]:
        return reasoning_item(self.id, self._text)


class _CallItem:
    """A function call, whose fragments engines/upstream/tool_calls.py puts together."""

    def __init__(self, call: ToolCall, tool: ClientTool | None) -> None:
        self.id = new_id(call_prefix(tool))
        self.call = call
        self.tool = tool

    def added(self) -> dict[str, Any]:
        named = {"id": self.call.id, "function": {"name": self.call.name, "arguments": ""}}
        return call_item(self.id, named, self.tool, status="in_progress")

    def opening(self) -> Iterator[Event]:
        return iter(())

    def fill(self, text: str) -> Event:
        return "function_call_arguments.delta", {"delta": text}

    def closing(self) -> Iterator[Event]:
        done = self.done()
        yield "function_call_arguments.done", {"name": done["name"], "arguments": done["arguments"]}

    def done(self) -> dict[str, Any]:
        return call_item(self.id, self.call.render(), self.tool)


class _CustomCallItem(_CallItem):
    """A call of a custom tool; its input is known when its arguments are whole."""

    def closing(self) -> Iterator[Event]:
        text = self.done()["input"]
        if text:
            yield "custom_tool_call_input.delta", {"delta": text}
        yield "custom_tool_call_input.done", {"input": text}


class _SearchItem(_CustomCallItem):
    """The client's search for tools, which has no events of its own."""

    def closing(self) -> Iterator[Event]:
        return iter(())
