"""A context holds a conversation; a foreign one is refused."""

from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.front.ollama.context import pack_context, unpack_context

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße 🎉\nzweite Zeile"}]


@pytest.mark.parametrize("reply", ["", "a", "ab", "abc", "日本語 👩‍👩‍👧"])
def test_a_packed_context_is_unpacked(reply: str) -> None:
    assert unpack_context(pack_context(TALK, reply)) == [*TALK, {"role": "assistant", "content": reply}]


def test_the_numbers_fit_into_32_bits() -> None:
    assert all(0 <= number < 2**24 for number in pack_context(TALK, "answer"))


def test_images_are_left_out_and_their_text_stays() -> None:
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    assert unpack_context(pack_context([{"role": "user", "content": parts}], "a cat"))[0] == {
        "role": "user",
        "content": "what is this?",
    }


WHOLE = pack_context(TALK, "x")


def holding(text: bytes) -> list[int]:
    """Return a context with the marker and other JSON in it."""
    return [WHOLE[0], *(int.from_bytes(text[at : at + 3], "big") for at in range(0, len(text), 3))]


@pytest.mark.parametrize(
    "context",
    [
        [1, 2, 3],
        ["a"],
        WHOLE[:1],
        WHOLE[1:],
        WHOLE[:-2],
        [*WHOLE, -1],
        [*WHOLE, 2**24],
        [*WHOLE, 1.5],
        holding(b"[1]"),
        holding(b'{"user":"hi"}  '),
        holding(b'[["tool","hi"]]'),
        holding(b'[["user",5]] '),
        holding(b'[[["user"],"x"]]  '),
    ],
)
def test_a_foreign_context_is_refused(context: list[Any]) -> None:
    with pytest.raises(Invalid) as caught:
        unpack_context(context)
    assert caught.value.param == "context"
