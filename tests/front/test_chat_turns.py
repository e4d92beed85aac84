"""Conversations as chat templates take them: one system message, then user and assistant in turns."""

from collections.abc import Callable
from typing import Any

import pytest

from appliance.front.pipeline.chat_turns import ChatTurns

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "1"}
Add = Callable[[ChatTurns], None]


def system(text: str) -> Add:
    return lambda turns: turns.add_system(text)


def user(content: Any) -> Add:
    return lambda turns: turns.add_user(content)


def reply(text: str = "", **more: Any) -> Add:
    return lambda turns: turns.add_reply(text, **more)


def other(message: dict[str, Any]) -> Add:
    return lambda turns: turns.add(message)


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([system(""), user("a")], [said("user", "a")], id="an empty system message"),
        pytest.param(
            [system("a"), user("b"), system("c")],
            [said("system", "a\n\nc"), said("user", "b")],
            id="system messages before the first reply",
        ),
        pytest.param([user("a"), user(""), user("b")], [said("user", "a+b")], id="the user twice in a row"),
        pytest.param([user("")], [said("user", "")], id="an empty message"),
        pytest.param(
            [user("a"), user([IMAGE]), user("b")],
            [said("user", [text("a"), IMAGE, text("b")])],
            id="texts and images",
        ),
        pytest.param(
            [user("a"), reply("b"), system("c"), user("d")],
            [
                said("user", "a"),
                said("assistant", "b"),
                said("user", "<system-reminder>\nc\n</system-reminder>+d"),
            ],
            id="a system message after a reply",
        ),
        pytest.param(
            [reply("a", reasoning="x"), reply("b", reasoning="y"), reply(calls=[CALL]), other(RESULT)],
            [said("assistant", "a-b", reasoning_content="xy", tool_calls=[CALL]), RESULT],
            id="pieces of one reply",
        ),
        pytest.param([reply(calls=[CALL])], [said("assistant", None, tool_calls=[CALL])], id="only a call"),
        pytest.param([reply()], [said("assistant", "")], id="an empty reply"),
        pytest.param(
            [other(said("assistant", [IMAGE])), system("a")],
            [said("assistant", [IMAGE]), said("user", "<system-reminder>\na\n</system-reminder>")],
            id="a reply in parts",
        ),
    ],
)
def test_messages_become_turns(given: list[Add], expected: list[dict[str, Any]]) -> None:
    turns = ChatTurns(between="+", between_replies="-")
    for add in given:
        add(turns)
    assert turns.finish() == expected


def test_many_messages_of_one_role_take_no_time() -> None:
    turns = ChatTurns(between="+", between_replies="-")
    for _ in range(200_000):  # joined one by one, this would copy gigabytes
        turns.add_user("a")
        turns.add_system("b")
    for _ in range(200_000):
        turns.add_reply("c")
    assert [len(message["content"]) for message in turns.finish()] == [599_998, 399_999, 399_999]
