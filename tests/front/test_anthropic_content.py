"""Anthropic's messages as chat messages: every kind of block, and every refusal with its path."""

from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.front.anthropic.content import UNREADABLE, to_chat_messages

CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
CHAT_CALL = {
    "id": "toolu_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
CHAT_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def result(content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more}


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "toolu_1", "content": content}


@pytest.mark.parametrize("kind", ["base64", "url", "file"])
def test_a_tools_pdf_is_left_out_and_the_model_is_told(kind: str) -> None:
    pdf = {"type": "document", "source": {"type": kind, "media_type": "application/pdf", "data": "AAAA"}}
    messages, ignored = to_chat_messages({"messages": [user([result([text("PDF file read"), pdf])])]})
    assert messages == [tool(f"PDF file read\n{UNREADABLE}")]
    assert ignored == ["document"]


def test_a_later_system_message_is_marked_in_the_users_turn() -> None:
    later = {"role": "system", "content": "Be brief."}
    messages = [
        user("Hi"),
        assistant([CALL]),
        user([result("20")]),
        later,
        assistant("Ok"),
        user("So?"),
        later,
    ]
    reminder = "<system-reminder>\nBe brief.\n</system-reminder>"
    assert to_chat_messages({"system": "Be kind.", "messages": messages})[0] == [
        {"role": "system", "content": "Be kind."},
        user("Hi"),
        {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
        tool("20"),
        user(reminder),
        assistant("Ok"),
        user(f"So?\n{reminder}"),
    ]


@pytest.mark.parametrize("change", [{"tool": {}}, {"tool": "x"}, {}, {"tool": {"definition": {"name": 1}}}])
def test_a_change_of_no_tool_is_refused_with_its_path(change: dict[str, Any]) -> None:
    message = {"role": "system", "content": [{"type": "tool_addition", **change}]}
    with pytest.raises(Invalid, match="must have a `name`") as caught:
        to_chat_messages({"messages": [user("Hi"), message]})
    assert caught.value.param == "messages.1.content.0.tool"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param([user("Hi")], [user("Hi")], id="a string"),
        pytest.param([user([text("Hi")])], [user("Hi")], id="one block of text is a string"),
        pytest.param([user([text("a"), text("b")])], [user("a\nb")], id="texts are joined"),
        pytest.param(
            [user([text("Hi", cache_control={"type": "ephemeral"})])],
            [user("Hi")],
            id="cache_control is left out",
        ),
        pytest.param(
            [user("a"), user([text("b")])], [user("a\nb")], id="messages of the user in a row are one turn"
        ),
        pytest.param(
            [user([text("Look:"), IMAGE])],
            [user([{"type": "text", "text": "Look:"}, CHAT_IMAGE])],
            id="an image in base64",
        ),
        pytest.param(
            [user([{"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}])],
            [user([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}])],
            id="an image by its URL",
        ),
        pytest.param(
            [user("a"), user([IMAGE]), user("b")],
            [user([{"type": "text", "text": "a"}, CHAT_IMAGE, {"type": "text", "text": "b"}])],
            id="a turn of text and images",
        ),
        pytest.param(
            [
                user(
                    [
                        {
                            "type": "document",
                            "source": {"type": "text", "media_type": "text/plain", "data": "x"},
                        }
                    ]
                )
            ],
            [user("x")],
            id="a document of plain text",
        ),
        pytest.param(
            [user([{"type": "document", "title": "T", "source": {"type": "text", "data": "x"}}])],
            [user("T\nx")],
            id="a document with a title",
        ),
        pytest.param(
            [user("Hi"), assistant("Ho")], [user("Hi"), assistant("Ho")], id="a reply that is a string"
        ),
        pytest.param(
            [user("Hi"), assistant([text("a"), text("b")])],
            [user("Hi"), assistant("ab")],
            id="a reply's texts are joined as they were generated",
        ),
        pytest.param([user("Hi"), assistant([])], [user("Hi"), assistant("")], id="a reply without content"),
        pytest.param(
            [user("Hi"), assistant([text("Let me see."), CALL])],
            [user("Hi"), assistant("Let me see.") | {"tool_calls": [CHAT_CALL]}],
            id="a call of a tool with text",
        ),
        pytest.param(
            [
                user("Hi"),
                assistant("a"),
                assistant([{"type": "thinking", "thinking": "Hm."}, text("b"), CALL]),
            ],
            [user("Hi"), assistant("ab") | {"reasoning_content": "Hm.", "tool_calls": [CHAT_CALL]}],
            id="messages of the assistant in a row are one turn",
        ),
        pytest.param(
            [user("Hi"), assistant([CALL]), assistant([CALL])],
            [
                user("Hi"),
                {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL, CHAT_CALL]},
            ],
            id="calls in a row",
        ),
        pytest.param(
            [user("Hi"), assistant([CALL])],
            [user("Hi"), {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]}],
            id="a call of a tool alone",
        ),
        pytest.param(
            [
                user("Hi"),
                assistant(
                    [
                        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                        {"type": "redacted_thinking", "data": "x"},
                        text("Ho"),
                    ]
                ),
            ],
            [user("Hi"), assistant("Ho") | {"reasoning_content": "Hm."}],
            id="thinking is reasoning, and encrypted thinking is left out",
        ),
        pytest.param(
            [user("Hi"), assistant([CALL]), user([result("Sunny"), text("So?")])],
            [
                user("Hi"),
                {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
                tool("Sunny"),
                user("So?"),
            ],
            id="a tool's result, then text",
        ),
        pytest.param(
            [user([text("So?"), result("Sunny")])],
            [tool("Sunny"), user("So?")],
            id="results come before everything else of their message",
        ),
        pytest.param([user([result([text("a"), text("b")])])], [tool("a\nb")], id="a result of blocks"),
        pytest.param([user([result(None)])], [tool("")], id="a result without content"),
        pytest.param([user([result("no", is_error=True)])], [tool("Error: no")], id="a result that failed"),
        pytest.param([user([result([], is_error=True)])], [tool("Error")], id="a failure without words"),
        pytest.param(
            [user([result([{"type": "tool_reference", "tool_name": "weather"}])])],
            [tool("The tool weather can be called now.")],
            id="a tool that was searched for",
        ),
        pytest.param(
            [user([result([text("Here:"), IMAGE])])],
            [
                tool("Here:"),
                user([{"type": "text", "text": "Images of the tool result toolu_1:"}, CHAT_IMAGE]),
            ],
            id="a result's images follow in the user's message",
        ),
        pytest.param(
            [user("Hi"), {"role": "system", "content": [text("Be kind.")]}, user("Ho")],
            [{"role": "system", "content": "Be kind."}, user("Hi\nHo")],
            id="a system message before the first reply",
        ),
    ],
)
def test_messages_become_chat_messages(given: list[Any], expected: list[Any]) -> None:
    assert to_chat_messages({"messages": given}) == (expected, [])


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (None, None),
        ("", None),
        ([], None),
        ("Be kind.", "Be kind."),
        ([text("a", cache_control={"type": "ephemeral"}), text("b")], "a\nb"),
        ([text("x-anthropic-billing-header: cc_version=2; cch=1"), text("b")], "b"),
    ],
)
def test_system_becomes_the_first_message(system: Any, expected: str | None) -> None:
    messages, _ = to_chat_messages({"system": system, "messages": [user("Hi")]})
    head = [] if expected is None else [{"role": "system", "content": expected}]
    assert messages == [*head, user("Hi")]


def test_blocks_of_server_tools_are_left_out_and_named() -> None:
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    messages, ignored = to_chat_messages({"messages": [user("Hi"), assistant([search, found, text("Ho")])]})
    assert messages == [user("Hi"), assistant("Ho")]
    assert ignored == ["server_tool_use", "web_search_tool_result"]


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({}, "messages", "is required"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "Hi"}, "messages", "is required: an array"),
        ({"messages": ["Hi"]}, "messages.0", "must be an object, not a string"),
        ({"messages": [{"content": "Hi"}]}, "messages.0.role", '"user" or "assistant"'),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", '"user" or "assistant"'),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "a string or an array of content blocks"),
        ({"messages": [user(5)]}, "messages.0.content", "not an integer"),
        ({"messages": [user([])]}, "messages.0.content", "at least one content block"),
        ({"messages": [user(["Hi"])]}, "messages.0.content.0", "must be an object, not a string"),
        ({"messages": [user([{"text": "Hi"}])]}, "messages.0.content.0.type", "must be a string"),
        ({"messages": [user([{"type": 5}])]}, "messages.0.content.0.type", "must be a string"),
        ({"messages": [user([{"type": "video"}])]}, "messages.0.content.0.type", "'video' is not supported"),
        ({"messages": [user([{"type": "text"}])]}, "messages.0.content.0.text", "is required"),
        ({"messages": [user([text(5)])]}, "messages.0.content.0.text", "must be a string, not an integer"),
        ({"messages": [user([{"type": "image"}])]}, "messages.0.content.0.source", "must be an object"),
        (
            {"messages": [user([{"type": "image", "source": {"type": "file", "file_id": "f"}}])]},
            "messages.0.content.0.source.type",
            '\'file\' is not supported: use "base64" or "url"',
        ),
        (
            {"messages": [user([{"type": "image", "source": {"type": "base64", "data": "AAAA"}}])]},
            "messages.0.content.0.source.media_type",
            "is required",
        ),
        (
            {"messages": [user([{"type": "image", "source": {"type": "url"}}])]},
            "messages.0.content.0.source.url",
            "is required",
        ),
        ({"messages": [user([{"type": "document"}])]}, "messages.0.content.0.source", "must be an object"),
        (
            {"messages": [user([{"type": "document", "source": {"type": "base64", "data": "AAAA"}}])]},
            "messages.0.content.0.source.type",
            "no PDF is read",
        ),
        (
            {"messages": [user([{"type": "document", "source": {"type": "text"}}])]},
            "messages.0.content.0.source.data",
            "is required",
        ),
        (
            {"messages": [user([{"type": "tool_result"}])]},
            "messages.0.content.0.tool_use_id",
            "is required",
        ),
        ({"messages": [user([result(5)])]}, "messages.0.content.0.content", "must be a string or an array"),
        (
            {"messages": [user([result([{"type": "search_result"}])])]},
            "messages.0.content.0.content.0.type",
            "'search_result' is not supported",
        ),
        (
            {"messages": [assistant([{"type": "tool_use", "id": "t", "name": "n"}])]},
            "messages.0.content.0.input",
            "must be an object, not null",
        ),
        (
            {"messages": [assistant([{"type": "tool_use", "id": "t", "input": {}}])]},
            "messages.0.content.0.name",
            "is required",
        ),
        (
            {"messages": [assistant([{"type": "tool_use", "name": "n", "input": {}}])]},
            "messages.0.content.0.id",
            "is required",
        ),
        ({"messages": [assistant([IMAGE])]}, "messages.0.content.0.type", "'image' is not supported"),
        (
            {"messages": [assistant([{"type": "thinking"}])]},
            "messages.0.content.0.thinking",
            "is required",
        ),
        ({"messages": [user("Hi")], "system": 5}, "system", "must be a string or an array"),
        ({"messages": [user("Hi")], "system": [IMAGE]}, "system.0.type", "'image' is not supported"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(asked: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        to_chat_messages(asked)
    assert caught.value.param == param
    assert said in caught.value.message
    assert f"`{param}`" in caught.value.message
