"""Texts that control no terminal."""

import pytest

from appliance.base.plain_text import hide_in_addresses, one_line, plain_text, public_address


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
        ("http://x/y?key=abc&z=1#a, why?a=b", "http://x/y?key=***&z=***#a, why?a=b"),
        ("http://x/?a=1,http://y/?b=2;http://z", "http://x/?a=***,http://y/?b=***;http://z"),
    ],
)
def test_addresses_are_shown_without_password_and_query(text: str, shown: str) -> None:
    assert hide_in_addresses(text) == shown


@pytest.mark.parametrize(
    "part",
    [
        "7f9c24e8a1b34d5c9e0f11223344aabb",
        "123e4567-e89b-12d3-a456-426614174000",
        "k3Jx9vQ2mZ8pL4tW",
        "sk-a1b2c3d4e5f6g7h8",
        "QxZvBnMkLpOiUyTrEw" + "qAzWsXeDcRfVtGb",
    ],
)
def test_parts_of_a_path_that_look_like_keys_are_hidden(part: str) -> None:
    assert public_address(f"https://h:80/v1/{part}/x?k=v") == "https://h:80/v1/***/x?k=***"


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:14000",
        "https://api.example/v3/openai/chat/completions",
        "http://k3Jx9vQ2mZ8pL4tW.example/v1",
        "http://h/deployments/meta-llama-3.1-70B-Instruct-AWQ-INT4",
        "http://h/qwen2.5-coder-32b-instruct-q4_k_m",
        "http://h/deployment20261130/MyVeryLongDeploymentName",
        "http://[fd00::1]:80/openai",
        "demo",
    ],
)
def test_other_addresses_are_shown_as_they_are(address: str) -> None:
    assert public_address(address) == address
