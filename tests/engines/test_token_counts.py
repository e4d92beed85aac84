"""Counts of tokens as engines report them, of any type and sign."""

from typing import Any

import pytest

from appliance.engines.upstream.token_counts import count_text_bytes, read_cache_counts, read_count


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (5, 5),
        (5.0, 5),
        (0, 0),
        (-5, 0),
        (5.5, 0),
        (True, 0),
        ("5", 0),
        (None, 0),
        ([5], 0),
        ({"a": 5}, 0),
        (2**53, 0),
        (2**70, 0),
        (1e300, 0),
    ],
)
def test_what_is_no_count_is_0(value: Any, count: int) -> None:
    assert read_count(value) == count


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({}, (0, 0)),
        ({"prompt_tokens_details": None}, (0, 0)),
        ({"prompt_tokens_details": [1]}, (0, 0)),
        ({"prompt_tokens_details": {"cached_tokens": 4}}, (4, 0)),
        ({"prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5}}, (4, 5)),
        ({"prompt_tokens_details": {"cache_write_tokens": None, "cache_creation_tokens": 6}}, (0, 6)),
        ({"prompt_tokens_details": {"cache_write_tokens": -5}}, (0, 0)),
        ({"cache_creation_input_tokens": 7}, (0, 7)),
    ],
)
def test_counts_of_the_prompt_cache(usage: dict[str, Any], counts: tuple[int, int]) -> None:
    assert read_cache_counts(usage) == counts


@pytest.mark.parametrize(
    ("body", "n_bytes"),
    [
        (b"{}", 0),
        (b"[]", 0),
        (b'{"choices": 5}', 0),
        (b'{"choices": [null, 7, {}]}', 0),
        (b'{"choices": [{"text": "h\xc3\xa9"}, {"text": "two"}]}', 6),
        (b'{"choices": [{"message": {"role": "assistant", "content": "one", "reasoning": "two"}}]}', 6),
        (b'{"choices": [{"message": {"content": [{"type": "text", "text": "one"}]}}]}', 3),
        (
            b'{"choices": [{"message": {"content": null, "tool_calls": [{"id": "c1", "type": "function", '
            b'"function": {"name": "f", "arguments": "{}"}}]}}]}',
            3,
        ),
    ],
)
def test_the_text_of_a_whole_response_is_counted(body: bytes, n_bytes: int) -> None:
    assert count_text_bytes(body) == n_bytes
