"""Chat chunks as the event stream of Anthropic's Messages API.

One content block is open at a time, and each has the next index. Fragments of a block that cannot be open
yet (an engine may mix the fragments of several tool calls) wait until the blocks before it are closed.

Source: Anthropic's API reference, "Streaming messages".
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from appliance.base import jsons
from appliance.base.errors import UpstreamFailed
from appliance.engines.stream import Stream
from appliance.front.anthropic.response import (
    arguments_text,
    first_choice,
    new_id,
    reasoning_text,
    stop_of,
    usage_object,
)
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
        self._closed = 0  # blocks that are closed: the index of the one that is open
        self._blocks: list[_Block] = []  # the open one, and those that wait
        self._calls: list[_Block] = []  # every tool call, also those that are closed
        self._usage: Any = None

    async def pieces(self, source: Stream) -> AsyncGenerator[bytes, None]:
        """Yield the events as SSE, from message_start to message_stop.

        Args:
            source: Chat chunks as SSE; it is closed with this.

        Raises:
            UpstreamFailed: The source is cut off, or it holds an error.
        """
        finish: Any = None
        last: dict[str, Any] = {}
        has_begun = False
        async with aclosing(read_events(source)) as events:
            async for event in events:
                self._usage = event.get("usage") or self._usage
                out = b""
                if not has_begun:
                    out, has_begun = self._begin(), True
                choice = first_choice(event)
                if choice is not None:
                    delta = choice.get("delta")
                    out += self._add(delta if isinstance(delta, dict) else {})
                    if choice.get("finish_reason"):
                        finish, last = choice["finish_reason"], choice
                if out:
                    yield out
        reason, sequence = stop_of(finish, last, has_calls=bool(self._calls))
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
        out = b""
        reasoning = reasoning_text(delta) if self._shows_thinking else ""
        if reasoning:
            out += self._fill(self._block_of(THINKING), reasoning)
        if text := delta.get("content") or delta.get("refusal"):
            out += self._fill(self._block_of(TEXT), str(text))
        for fragment in delta.get("tool_calls") or []:
            if isinstance(fragment, dict):
                given = fragment.get("function")
                function = given if isinstance(given, dict) else {}
                out += self._fill(self._call_of(fragment, function), arguments_text(function))
        return out

    def _block_of(self, kind: str) -> "_Block":
        """Return the last block where it is of this kind, or a new one."""
        if self._blocks and self._blocks[-1].kind == kind:
            return self._blocks[-1]
        empty: dict[str, Any] = {"type": kind, kind: ""} | ({"signature": ""} if kind == THINKING else {})
        block = _Block(kind, empty, None)
        self._blocks.append(block)
        return block

    def _call_of(self, fragment: dict[str, Any], function: dict[str, Any]) -> "_Block":
        """Return the tool call that a fragment belongs to.

        1. it has an index              → the call of that index, or a new one
        2. it has an id or a name       → a new one
        3. neither                      → the last one
        """
        index = fragment.get("index")
        if index is not None:  # 1
            found = next((block for block in self._calls if block.call_index == index), None)
            if found is not None:
                return found
        elif self._calls and not fragment.get("id") and not function.get("name"):  # 3
            return self._calls[-1]
        empty: dict[str, Any] = {
            "type": "tool_use",
            "id": fragment.get("id") or new_id("toolu"),
            "name": function.get("name") or "",
            "input": {},
        }
        block = _Block("tool_use", empty, index)  # 1, 2
        self._calls.append(block)
        self._blocks.append(block)
        return block

    def _fill(self, block: "_Block", text: str) -> bytes:
        """Add text to a block; return what can be sent now.

        Raises:
            UpstreamFailed: The block is closed: its tool call was complete.
        """
        if block.is_closed:
            if text.strip():
                raise UpstreamFailed(
                    "The engine added to a tool call that was complete.", code="upstream_rubbish"
                )
            return b""
        block.waiting += text
        out = b""
        while len(self._blocks) > 1 and self._blocks[0].is_complete():
            out += self._close_first()
        return out + self._send_first()

    def _send_first(self) -> bytes:
        """Open the first block where it is not open, and send what waits in it."""
        block = self._blocks[0]
        out = b""
        if not block.is_open:
            block.is_open = True
            out = _render("content_block_start", {"index": self._closed, "content_block": block.empty})
        if block.waiting:
            out += self._render_delta(block.delta())
        return out

    def _close_first(self) -> bytes:
        out = self._send_first()
        block = self._blocks.pop(0)
        block.is_closed = True
        if block.kind == THINKING:  # official clients wait for it
            out += self._render_delta({"type": "signature_delta", "signature": ""})
        out += _render("content_block_stop", {"index": self._closed})
        self._closed += 1
        return out

    def _close_all(self) -> bytes:
        out = b""
        while self._blocks:
            out += self._close_first()
        return out

    def _render_delta(self, delta: dict[str, Any]) -> bytes:
        return _render("content_block_delta", {"index": self._closed, "delta": delta})


class _Block:
    """One content block.

    kind         text, thinking or tool_use
    empty        the block as it begins
    call_index   of a tool call: its index among chat's tool calls; None = the engine sent none
    waiting      text that is not sent yet
    """

    def __init__(self, kind: str, empty: dict[str, Any], call_index: Any) -> None:
        self.kind = kind
        self.empty = empty
        self.call_index = call_index
        self.waiting = ""
        self.is_open = self.is_closed = False
        self._sent = ""  # of a tool call: its arguments so far

    def is_complete(self) -> bool:
        """Whether another block may follow: a tool call's arguments must be whole JSON."""
        if self.kind != "tool_use":
            return True
        try:
            jsons.loads(self._sent + self.waiting)
        except jsons.InvalidJson:
            return False
        return True

    def delta(self) -> dict[str, Any]:
        """Return what waits as a delta; nothing waits then."""
        text, self.waiting = self.waiting, ""
        if self.kind == TEXT:
            return {"type": "text_delta", "text": text}
        if self.kind == THINKING:
            return {"type": "thinking_delta", "thinking": text}
        self._sent += text
        return {"type": "input_json_delta", "partial_json": text}


def _render(kind: str, fields: dict[str, Any]) -> bytes:
    return render_event(kind, {"type": kind, **fields})
