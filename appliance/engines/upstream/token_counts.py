"""Counts of tokens as engines report them; what is no count is 0. Pure."""

from typing import Any

from appliance.base import jsons

MAX_COUNT = 2**53  # larger numbers are none: JSON readers would round them
NO_TEXT = {"role", "type", "id"}  # fields of a message and its calls
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


def count_text_bytes(body: bytes) -> int:
    """Return how many bytes of text a whole response has, for an engine that tells no usage.

    Args:
        body: Of OpenAI's shape: all texts of the messages of its choices, UTF-8, roles and kinds left out.
    """
    value = jsons.loads(body)
    found = value.get("choices") if isinstance(value, dict) else None
    choices = found if isinstance(found, list) else []
    pending = [choice.get("message") or choice.get("text") for choice in choices if isinstance(choice, dict)]
    total = 0
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            total += len(one.encode())
        elif isinstance(one, list):
            pending += one
        elif isinstance(one, dict):
            pending += (text for name, text in one.items() if name not in NO_TEXT)
    return total
