"""Chat chunks as the event stream of Anthropic's Messages API.

One content block is open at a time, and each has the next index. Text of a block that cannot be open yet (an
engine may mix the fragments of several tool calls) waits until the blocks before it are closed.

Source: Anthropic's API reference, "Streaming messages".
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from appliance.engines.stream import Stream
from appliance.engines.upstream.reply_text import (
    invalid_reply,
    read_choices,
    read_content,
    read_finish,
    read_message,
    read_reasoning,
    read_refusal,
)
from appliance.engines.upstream.tool_calls import ToolCall, ToolCalls
from appliance.front.anthropic.response import new_id, stop_of, usage_object
from appliance.front.pipeline.sse import read_events, render_event

PING = render_event("ping", {"type": "ping"})
TEXT, THINKING = "text", "thinking"


class MessagesStream:
    """The stream of one message.

    Args:
        message: From `new_message`.
        shows_thinking: Reasoning becomes a block; else it is left out.
    """

    def __init__(self, message: dict[str, Any], *, shows_thinking: bool = True) -> None:
        self._message = message
        self._shows_thinking = shows_thinking
        self._index = 0  # of the block that is open, or that is the next one
        self._blocks: list[_Block] = []  # the open one, and those that wait
        self._calls = ToolCalls()
        self._call_blocks: dict[int, _Block] = {}  # by the call's position, also those that are closed
        self._usage: Any = None

    async def pieces(self, source: Stream) -> AsyncGenerator[bytes, None]:
        """Yield the events as SSE, from message_start to message_stop.

        Args:
            source: Chat chunks as SSE; it is closed with this.

        Raises:
            UpstreamFailed: The source is cut off, it holds an error, or a field has a wrong type.
        """
        finish: str | None = None
        last: dict[str, Any] = {}
        has_begun = False
        async with aclosing(read_events(source)) as events:
            async for event in events:
                self._usage = event.get("usage") or self._usage
                out = b"" if has_begun else self._begin()
                has_begun = True
                for choice in read_choices(event)[:1]:
                    out += self._add(read_message(choice, "delta"))
                    if (reason := read_finish(choice)) is not None:
                        finish, last = reason, choice
                if out:
                    yield out
        reason, sequence = stop_of(finish, last, has_calls=bool(self._calls.calls))
        ending = {"delta": {"stop_reason": reason, "stop_sequence": sequence}}
        yield b"".join(
            [
                b"" if has_begun else self._begin(),
                self._close_all(),
                _render("message_delta", ending | {"usage": usage_object(self._usage)}),
                _render("message_stop", {}),
            ]
        )

    def _begin(self) -> bytes:
        return _render("message_start", {"message": self._message | {"usage": usage_object(self._usage)}})

    def _add(self, delta: dict[str, Any]) -> bytes:
        """Return the events of one delta: its reasoning, its text, its tool calls."""
        if self._shows_thinking and (reasoning := read_reasoning(delta)):
            self._text_block(THINKING).waiting.append(reasoning)
        if text := read_content(delta) + read_refusal(delta):
            self._text_block(TEXT).waiting.append(text)
        fragments = delta.get("tool_calls")
        if fragments is None and delta.get("function_call") is not None:
            fragments = [{"function": delta["function_call"]}]  # of an early API
        for call, arguments in self._calls.add(fragments):
            self._add_arguments(call, arguments)
        return self._send()

    def _text_block(self, kind: str) -> "_Block":
        """Return the last block where it is of this kind, else a new one."""
        if not self._blocks or self._blocks[-1].kind != kind:
            self._blocks.append(_Block(kind))
        return self._blocks[-1]

    def _add_arguments(self, call: ToolCall, text: str) -> None:
        """Add arguments to the block of a call, or to a new one.

        Raises:
            UpstreamFailed: The block is closed: its arguments were whole.
        """
        block = self._call_blocks.get(call.position)
        if block is None:
            block = self._call_blocks[call.position] = _Block("tool_use", call)
            self._blocks.append(block)
        if not block.is_closed:
            block.waiting.append(text)
        elif text.strip():
            raise invalid_reply("it adds to a tool call that was complete")

    def _send(self) -> bytes:
        """Return what can be sent now: of the first block, and of those behind blocks that are complete."""
        out = b""
        while len(self._blocks) > 1 and self._blocks[0].is_complete:
            out += self._close_first()
        return out + (self._send_first() if self._blocks and self._blocks[0].has_name else b"")

    def _send_first(self) -> bytes:
        """Open the first block where it is not open, and send what waits in it."""
        block = self._blocks[0]
        out = b""
        if not block.is_open:
            block.is_open = True
            out = _render(
                "content_block_start", {"index": self._index, "content_block": block.render_empty()}
            )
        text = "".join(block.waiting)
        block.waiting.clear()
        return out + (self._render_delta(block.render_delta(text)) if text else b"")

    def _close_first(self) -> bytes:
        out = self._send_first()
        block = self._blocks.pop(0)
        block.is_closed = True
        if block.kind == THINKING:  # Anthropic's own streams end thinking so
            out += self._render_delta({"type": "signature_delta", "signature": ""})
        out += _render("content_block_stop", {"index": self._index})
        self._index += 1
        return out

    def _close_all(self) -> bytes:
        out = b""
        while self._blocks:
            out += self._close_first()
        return out

    def _render_delta(self, delta: dict[str, Any]) -> bytes:
        return _render("content_block_delta", {"index": self._index, "delta": delta})


class _Block:
    """One content block.

    kind      text, thinking or tool_use
    call      of a tool_use
    waiting   text that is not sent yet
    """

    def __init__(self, kind: str, call: ToolCall | None = None) -> None:
        self.kind = kind
        self.call = call
        self.waiting: list[str] = []
        self.is_open = self.is_closed = False

    @property
    def is_complete(self) -> bool:
        """Whether another block may follow: a tool call's arguments must be whole."""
        return self.call is None or self.call.is_whole

    @property
    def has_name(self) -> bool:
        """Whether the block can begin: a tool call's name must have come."""
        return self.call is None or bool(self.call.name)

    def render_empty(self) -> dict[str, Any]:
        """Return the block as it begins."""
        if self.call is not None:
            call_id = self.call.id or new_id("toolu")
            return {"type": "tool_use", "id": call_id, "name": self.call.name, "input": {}}
        empty = {"type": self.kind, self.kind: ""}
        return empty | {"signature": ""} if self.kind == THINKING else empty

    def render_delta(self, text: str) -> dict[str, Any]:
        """Return more of the block's text as a delta."""
        if self.call is not None:
            return {"type": "input_json_delta", "partial_json": text}
        return {"type": f"{self.kind}_delta", self.kind: text}


def _render(kind: str, fields: dict[str, Any]) -> bytes:
    return render_event(kind, {"type": kind, **fields})
