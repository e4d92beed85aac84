"""Ollama's messages, images and tool calls as OpenAI's."""

import base64
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.front.ollama.messages import detect_media_type, to_openai_messages, to_openai_tools

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n rest").decode()


def called(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def call(name: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
    return {**more, "function": {"name": name, "arguments": arguments}}


def result(**fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": "42", **fields}


def test_plain_messages_are_unchanged() -> None:
    talk = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
    ]
    assert to_openai_messages(talk) == talk
    assert to_openai_messages([{"role": "assistant", "content": None}]) == [
        {"role": "assistant", "content": ""}
    ]


def test_thinking_is_sent_as_reasoning() -> None:
    assert (
        to_openai_messages([{"role": "assistant", "content": "a", "thinking": "hm"}])[0]["reasoning_content"]
        == "hm"
    )
    assert (
        "reasoning_content"
        not in to_openai_messages([{"role": "assistant", "content": "a", "thinking": ""}])[0]
    )


# ---- images


@pytest.mark.parametrize("image", [PNG, f"data:image/png;base64,{PNG}", f"{PNG[:4]}\n{PNG[4:]}\r\n"])
def test_an_image_becomes_a_part(image: str) -> None:
    [message] = to_openai_messages([{"role": "user", "content": "look", "images": [image]}])
    assert message["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]


def test_an_image_alone_has_no_empty_text_beside_it() -> None:
    [message] = to_openai_messages([{"role": "user", "content": "", "images": [PNG, PNG]}])
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url"]


def test_images_are_added_to_existing_parts() -> None:
    [message] = to_openai_messages(
        [{"role": "user", "content": [{"type": "text", "text": "look"}], "images": [PNG]}]
    )
    assert [part["type"] for part in message["content"]] == ["text", "image_url"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"GIF87a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "application/octet-stream"),
        (b"BM\x00", "image/bmp"),
        (b"II*\x00", "image/tiff"),
        (b"MM\x00*", "image/tiff"),
        (b"\x00\x00\x00\x20ftypavif", "image/avif"),
        (b"\x00\x00\x00\x20ftypheic", "image/heic"),
        (b"\x00\x00\x00\x20ftypmp42", "application/octet-stream"),
        (b"hello", "application/octet-stream"),
    ],
)
def test_media_types_are_read_from_the_first_bytes(data: bytes, kind: str) -> None:
    assert detect_media_type(data) == kind


@pytest.mark.parametrize(
    "image", ["", "no base64!", "AAA", "data:image/png,raw", "http://127.0.0.1/x.png", 5, None, [PNG]]
)
def test_invalid_base64_is_refused_by_its_path(image: Any) -> None:
    with pytest.raises(Invalid) as caught:
        to_openai_messages(
            [{"role": "user", "content": "x"}, {"role": "user", "content": "x", "images": [PNG, image]}]
        )
    assert caught.value.param == "messages.1.images.1"


# ---- tools


def test_arguments_become_text_and_ids_stay() -> None:
    [message] = to_openai_messages(
        [called(call("add", {"a": 1, "b": "ü"}, id="x1"), call("now"), call("raw", '{"a":1}'))]
    )
    assert [jsons.loads(c["function"]["arguments"]) for c in message["tool_calls"]] == [
        {"a": 1, "b": "ü"},
        {},
        {"a": 1},
    ]
    assert [c["id"] for c in message["tool_calls"]] == ["x1", "call_0_1", "call_0_2"]
    assert {c["type"] for c in message["tool_calls"]} == {"function"}


@pytest.mark.parametrize(
    ("results", "ids"),
    [
        ([result(tool_call_id="x2"), result(tool_call_id="x1")], ["x2", "x1"]),  # by id
        ([result(tool_name="b"), result(tool_name="a")], ["x2", "x1"]),  # by name
        ([result(tool_name="a"), result(tool_name="a")], ["x1", "x3"]),  # the same name twice: in order
        ([result(), result(), result()], ["x1", "x2", "x3"]),  # by order
        ([result(tool_call_id="x1"), result()], ["x1", "x2"]),  # a call has one result
        ([result(tool_call_id="other")], ["other"]),  # the client knows better
        ([result(tool_name="c")], ["call_1_0"]),  # there is no such call
        ([result(), result(), result(), result()], ["x1", "x2", "x3", "call_4_0"]),  # one result too many
    ],
)
def test_results_are_matched_with_their_calls(results: list[dict[str, Any]], ids: list[str]) -> None:
    up = to_openai_messages([called(call("a", id="x1"), call("b", id="x2"), call("a", id="x3")), *results])
    assert [message["tool_call_id"] for message in up[1:]] == ids


def test_results_are_matched_with_calls_without_ids() -> None:
    up = to_openai_messages(
        [
            {"role": "user", "content": "x"},
            called(call("a"), call("b")),
            result(tool_name="b"),
            result(tool_name="a"),
        ]
    )
    assert [c["id"] for c in up[1]["tool_calls"]] == ["call_1_0", "call_1_1"]
    assert [(m["tool_call_id"], m["name"]) for m in up[2:]] == [("call_1_1", "b"), ("call_1_0", "a")]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "tool_calls": {}}, "messages.0.tool_calls"),
        (called("add"), "messages.0.tool_calls.0.function.name"),  # type: ignore[arg-type]
        (called({"function": {"arguments": {}}}), "messages.0.tool_calls.0.function.name"),
        (called(call("add", [1])), "messages.0.tool_calls.0.function.arguments"),
        (result(tool_name=5), "messages.0.tool_name"),
        (result(tool_call_id=[]), "messages.0.tool_call_id"),
        ({"role": "user", "content": "x", "images": "x"}, "messages.0.images"),
    ],
)
def test_an_invalid_message_is_refused_by_its_path(message: dict[str, Any], param: str) -> None:
    with pytest.raises(Invalid) as caught:
        to_openai_messages([message])
    assert caught.value.param == param


def test_a_tool_without_a_type_is_a_function() -> None:
    function = {"name": "add", "parameters": {"type": "object"}}
    from_openai_reply = {"type": "function", "function": function}
    assert to_openai_tools([{"function": function}, from_openai_reply]) == [
        from_openai_reply,
        from_openai_reply,
    ]


@pytest.mark.parametrize(
    "tool", ["add", {}, {"function": "add"}, {"function": {}}, {"function": {"name": 5}}]
)
def test_a_tool_without_a_function_is_refused(tool: Any) -> None:
    with pytest.raises(Invalid) as caught:
        to_openai_tools([{"function": {"name": "fine"}}, tool])
    assert caught.value.param == "tools.1.function.name"
