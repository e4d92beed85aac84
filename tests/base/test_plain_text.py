"""Texts that control no terminal."""

import pytest

from appliance.base.plain_text import one_line, plain_text, without_userinfo


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("as it is", "as it is"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b(Bplain\x1b=", "plain"),
        ("cut \x1b", "cut "),
        ("cut \x1b[31", "cut 31"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_escape_sequences_are_removed(text: str, plain: str) -> None:
    assert plain_text(text) == plain


def test_one_line_escapes_what_does_not_print() -> None:
    assert one_line("a\r\nb\x00\u2028") == r"a\r\nb\x00\u2028"
    assert one_line("a b") == "a b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:p@x/y", "http://***@x/y"),
        ("a=HTTPS://u@x, redis://:p@y", "a=HTTPS://***@x, redis://***@y"),
        ("http://x/a@b", "http://x/a@b"),
        ("someone@example.org", "someone@example.org"),
    ],
)
def test_addresses_are_shown_without_a_password(text: str, shown: str) -> None:
    assert without_userinfo(text) == shown
