"""What is known of an engine besides its metrics page."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineExtras:
    """What the page does not show.

    Attributes:
        kv_usage: Share of the KV cache in use, 0 to 1 (llama-server: computed from its slots); None =
            unknown.
        adapters: Names of the loaded LoRA adapters; None = unknown.
        max_adapters: How many can be loaded; 0 = unknown.
        now_s: Seconds since 1970.
    """

    kv_usage: float | None = None
    adapters: tuple[str, ...] | None = None
    max_adapters: int = 0
    now_s: float = 0.0


NO_EXTRAS = EngineExtras()


def compute_kv_usage(slots: object) -> float | None:
    """Compute the share of llama-server's KV cache in use: tokens of running requests by all context.

    Args:
        slots: The parsed JSON of /slots.

    Returns:
        0 to 1; None = this build does not show it.
    """
    if not isinstance(slots, list) or not slots:
        return None
    context_tokens = used_tokens = 0.0
    for slot in slots:
        if not isinstance(slot, dict) or not isinstance(slot.get("n_ctx"), int):
            return None
        if "is_processing" not in slot:
            return None
        context_tokens += slot["n_ctx"]
        if slot["is_processing"]:
            tokens = slot.get("n_prompt_tokens")
            if not isinstance(tokens, int):
                return None
            used_tokens += tokens
    return min(1.0, used_tokens / context_tokens) if context_tokens else None
