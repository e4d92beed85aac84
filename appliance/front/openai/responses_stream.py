"""Chat chunks into the event stream of the Responses API.

Every event has a rising `sequence_number`. One item is open at a time: it is added, filled by deltas, done.

Source: OpenAI's API reference, "Streaming events".
"""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.engines.stream import Stream
from appliance.front.openai.responses_objects import (
    call_item,
    finish_response,
    message_item,
    new_id,
    reasoning_item,
    reasoning_text,
)
from appliance.front.pipeline.errors import OPENAI_TYPE
from appliance.front.pipeline.sse import read_events

Event = tuple[str, dict[str, Any]]  # type without `response.`, fields


class ResponsesStream:
    """The stream of one response.

    Args:
        response: From `new_response`.
    """

    def __init__(self, response: dict[str, Any], clock: Clock) -> None:
        self._response = response
        self._clock = clock
        self._number = 0
        self._output: list[dict[str, Any]] = []  # items that are done
        self._open: _Item | None = None

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
                for choice in (event.get("choices") or [])[:1]:
                    finish = choice.get("finish_reason") or finish
                    if out := self._add(choice.get("delta") or {}):
                        yield out
        out = self._close()
        if not self._output:
            out += self._switch_to(_MessageItem()) + self._close()
        response = finish_response(
            self._response, self._output, finish=finish, usage=usage, at_s=int(self._clock.now_s())
        )
        yield out + self._render((response["status"], {"response": response}))

    def render_failure(self, error: ApplianceError) -> bytes:
        """Return the event of a failure inside the stream."""
        failure = {
            **self._response,
            "status": "failed",
            "output": self._output,
            "error": {"code": error.code or OPENAI_TYPE[error.kind], "message": error.message},
        }
        return self._render(("failed", {"response": failure}))

    def _add(self, delta: dict[str, Any]) -> bytes:
        """Return the events of one delta: its reasoning, its text, its tool calls."""
        out = b""
        if reasoning := reasoning_text(delta):
            out += self._fill(_ReasoningItem.key, _ReasoningItem, reasoning)
        if text := delta.get("content"):
            out += self._fill(_MessageItem.key, _MessageItem, text)
        for fragment in delta.get("tool_calls") or []:
            arguments = (fragment.get("function") or {}).get("arguments") or ""
            out += self._fill(_call_key(fragment), partial(_CallItem, fragment), arguments)
        return out

    def _fill(self, key: object, make: "Callable[[], _Item]", text: str) -> bytes:
        """Add text to the open item where it has this key, else to a new one."""
        out = b"" if self._open is not None and self._open.key == key else self._switch_to(make())
        if text and self._open is not None:
            out += self._render_item(self._open.fill(text))
        return out

    def _switch_to(self, item: "_Item") -> bytes:
        """Close the open item and open `item`."""
        out = self._close()
        self._open = item
        added = ("output_item.added", {"output_index": len(self._output), "item": item.added()})
        return out + self._render(added) + b"".join(map(self._render_item, item.opening()))

    def _close(self) -> bytes:
        """Close the open item, if there is one, and append it to the output."""
        if (item := self._open) is None:
            return b""
        out = b"".join(map(self._render_item, item.closing()))
        self._open, done = None, item.done()
        out += self._render(("output_item.done", {"output_index": len(self._output), "item": done}))
        self._output.append(done)
        return out

    def _render_item(self, event: Event) -> bytes:
        """Render an event inside the open item."""
        assert self._open is not None
        kind, fields = event
        return self._render((kind, {"item_id": self._open.id, "output_index": len(self._output), **fields}))

    def _render(self, event: Event) -> bytes:
        kind = f"response.{event[0]}"
        data = {"type": kind, "sequence_number": self._number, **event[1]}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), jsons.dumps(data))


class _Item(Protocol):
    """One item while it is open. `key`: two items of the same key are one."""

    id: str

    @property
    def key(self) -> object: ...

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


class _MessageItem:
    key = "message"

    def __init__(self) -> None:
        self.id = new_id("msg")
        self._text = ""

    def added(self) -> dict[str, Any]:
        return message_item(self.id, "", status="in_progress")

    def opening(self) -> Iterator[Event]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield "content_part.added", {"content_index": 0, "part": part}

    def fill(self, text: str) -> Event:
        self._text += text
        return "output_text.delta", {"content_index": 0, "delta": text, "logprobs": []}

    def closing(self) -> Iterator[Event]:
        yield "output_text.done", {"content_index": 0, "text": self._text, "logprobs": []}
        yield "content_part.done", {"content_index": 0, "part": self.done()["content"][0]}

    def done(self) -> dict[str, Any]:
        return message_item(self.id, self._text)


class _ReasoningItem:
    key = "reasoning"

    def __init__(self) -> None:
        self.id = new_id("rs")
        self._text = ""

    def added(self) -> dict[str, Any]:
        return reasoning_item(self.id, "")

    def opening(self) -> Iterator[Event]:
        yield (
            "reasoning_summary_part.added",
            {"summary_index": 0, "part": {"type": "summary_text", "text": ""}},
        )

    def fill(self, text: str) -> Event:
        self._text += text
        return "reasoning_summary_text.delta", {"summary_index": 0, "delta": text}

    def closing(self) -> Iterator[Event]:
        yield "reasoning_summary_text.done", {"summary_index": 0, "text": self._text}
        yield "reasoning_summary_part.done", {"summary_index": 0, "part": self.done()["summary"][0]}

    def done(self) -> dict[str, Any]:
        return reasoning_item(self.id, self._text)


class _CallItem:
    """A function call, from the first fragment of chat's tool call.

    Fragments of one `index` belong together.
    """

    def __init__(self, fragment: dict[str, Any]) -> None:
        self.id = new_id("fc")
        self.key = _call_key(fragment)
        name = (fragment.get("function") or {}).get("name") or ""
        self._arguments = ""
        self._id, self._name = fragment.get("id"), name

    def added(self) -> dict[str, Any]:
        return call_item(self.id, self._call(), status="in_progress")

    def opening(self) -> Iterator[Event]:
        return iter(())

    def fill(self, text: str) -> Event:
        self._arguments += text
        return "function_call_arguments.delta", {"delta": text}

    def closing(self) -> Iterator[Event]:
        item = self.done()
        yield "function_call_arguments.done", {"name": item["name"], "arguments": item["arguments"]}

    def done(self) -> dict[str, Any]:
        return call_item(self.id, self._call())

    def _call(self) -> dict[str, Any]:
        return {"id": self._id, "function": {"name": self._name, "arguments": self._arguments}}


def _call_key(fragment: dict[str, Any]) -> object:
    return "call", fragment.get("index", 0)
