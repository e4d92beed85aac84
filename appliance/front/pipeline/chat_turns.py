"""A conversation as chat templates take it: one system message, first; then user and assistant in turns.

Clients of the other dialects send more than that: Codex CLI several developer messages, and two of the user
in a row; Claude Code a system message after the user's. Templates of many models refuse these. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ChatMessage = dict[str, Any]


@dataclass(slots=True)
class _Reply:
    """The assistant's message that is open; the pieces are joined once."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def message(self, between: str) -> ChatMessage:
        """Return it as a chat message."""
        text = between.join(self.texts)
        message: ChatMessage = {"role": "assistant", "content": text if text or not self.calls else None}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        return message


class ChatTurns:
    """Messages that are added one by one.

    Args:
        between: Between texts of the user that become one message.
        between_replies: Between texts of the assistant that become one message.
    """

    def __init__(self, *, between: str, between_replies: str) -> None:
        self._between = between
        self._between_replies = between_replies
        self._system: list[str] = []
        self._messages: list[ChatMessage] = []  # without the open turn, and without the system's
        self._user: list[Any] = []  # the user's open turn: texts and arrays of parts
        self._reply: _Reply | None = None
        self._has_reply = False

    def add_system(self, text: str) -> None:
        """Add a system message.

        1. before the first reply → part of the one at the beginning
        2. later                  → in the user's turn, marked as what it is: a change at the beginning would
                                    void what an engine has in its cache
        """
        if text and self._has_reply:  # 2
            self.add_user(f"<system-reminder>\n{text}\n</system-reminder>")
        elif text:  # 1
            self._system.append(text)

    def add_user(self, content: Any) -> None:
        """Add to the user's turn: a text, or chat's parts of content."""
        self._close_reply()
        self._user.append(content)

    def add_reply(self, text: str = "", *, reasoning: str = "", calls: Sequence[dict[str, Any]] = ()) -> None:
        """Add to the assistant's turn: its text, its reasoning, its calls as chat has them."""
        self._close_user()
        self._has_reply = True
        reply = self._reply = self._reply or _Reply()
        reply.texts += [text] if text else []
        reply.reasoning += [reasoning] if reasoning else []
        reply.calls += calls

    def add(self, message: ChatMessage) -> None:
        """Add a message of another role, or of a form that joins no other."""
        self._close_user()
        self._close_reply()
        self._has_reply = self._has_reply or message["role"] == "assistant"
        self._messages.append(message)

    def finish(self) -> list[ChatMessage]:
        """Return the messages."""
        self._close_user()
        self._close_reply()
        if not self._system:
            return self._messages
        return [{"role": "system", "content": "\n\n".join(self._system)}, *self._messages]

    def _close_user(self) -> None:
        contents = [content for content in self._user if content]
        if all(isinstance(content, str) for content in contents):
            content: Any = self._between.join(contents)
        else:
            content = []
            for one in contents:
                content += [{"type": "text", "text": one}] if isinstance(one, str) else one
        if self._user:
            self._messages.append({"role": "user", "content": content})
            self._user = []

    def _close_reply(self) -> None:
        if self._reply is not None:
            self._messages.append(self._reply.message(self._between_replies))
            self._reply = None
