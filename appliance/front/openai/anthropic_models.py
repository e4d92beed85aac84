"""The list of models for clients of Anthropic's API, which has the same address with other fields. Pure.

Source: Anthropic's API reference, "Models"; the types of its official Python SDK 2.14.
"""

from typing import Any

from appliance.base.clock import format_rfc3339

ANTHROPIC_VERSION = "anthropic-version"  # the header that all of Anthropic's clients send


def anthropic_list(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all models in one page.

    Args:
        rows: OpenAI's: `id`, `created`, `max_model_len` or `n_ctx` where the context is known.
    """
    data = [anthropic_model(row) for row in rows]
    return {
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def anthropic_model(row: dict[str, Any]) -> dict[str, Any]:
    """Return one model, from OpenAI's row of it."""
    model = {
        "type": "model",
        "id": row["id"],
        "display_name": row["id"],
        "created_at": format_rfc3339(row["created"]),
        "lifecycle": "active",
    }
    context_tokens = row.get("n_ctx") or row.get("max_model_len")
    return model | ({"max_input_tokens": context_tokens} if context_tokens else {})
