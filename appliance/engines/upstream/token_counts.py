"""Counts of tokens as engines report them; what is no count is 0. Pure."""

from typing import Any

MAX_COUNT = 2**53  # larger numbers are none: JSON readers would round them
# Where the tokens that were written to a prompt cache stand, the first one counts.
WRITTEN = ("cache_write_tokens", "cache_creation_tokens")


def read_count(value: Any) -> int:
    """Return a number of tokens; 0 where it is none, as a text, a truth value, or a negative number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_COUNT
    return value if is_count else 0


def read_cache_counts(usage: dict[str, Any]) -> tuple[int, int]:
    """Return how many prompt tokens were read from a prompt cache, and how many were written to it.

    Args:
        usage: OpenAI's; hosted APIs of other makers have Anthropic's `cache_creation_input_tokens` in it.
    """
    given = usage.get("prompt_tokens_details")
    details = given if isinstance(given, dict) else {}
    written = (details.get(name) for name in WRITTEN)
    found = (read_count(value) for value in (*written, usage.get("cache_creation_input_tokens")))
    return read_count(details.get("cached_tokens")), next((count for count in found if count), 0)
