"""Estimates of a prompt's tokens."""

from typing import Any

import pytest

from appliance.front.pipeline.token_estimate import estimate_tokens


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": ""}]}, 4),
        ({"messages": [{"role": "user", "content": "x" * 35}]}, 14),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, 9),
        ({"messages": [{"role": "user", "content": "é" * 7}]}, 8),
        ({"messages": [{"role": "assistant", "content": None, "reasoning_content": "x" * 7}]}, 6),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}]}, 8),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}
                ]
            },
            1005,
        ),
        ({"messages": [{"role": "user", "content": ""}], "tools": [{"name": "a"}]}, 8),
    ],
)
def test_every_part_of_a_prompt_counts(body: dict[str, Any], tokens: int) -> None:
    assert estimate_tokens(body) == tokens
