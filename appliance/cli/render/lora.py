"""LoRA adapters and their orders as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.cli.render.values import enum_word, with_note
from appliance.cli.screen import Row

if TYPE_CHECKING:
    from appliance.cli import messages as pb

HEADERS = ["NAME", "BASE MODEL", "STATE", "BACKENDS", "PATH"]


def adapter_row(adapter: pb.LoraAdapter) -> Row:
    """Return an adapter as a row; one that is loaded but not declared is marked."""
    states = [enum_word(status, "state") for status in adapter.backends]
    is_mixed = len(set(states)) > 1
    backends = ", ".join(
        f"{status.backend} {word}" if is_mixed else status.backend
        for status, word in zip(adapter.backends, states, strict=True)
    )
    state = _common_state(states) + ("" if adapter.is_declared else ", not declared")
    return [adapter.name, adapter.base_model, state, backends, adapter.path]


def _common_state(states: list[str]) -> str:
    """Return one word for the states on all backends.

    1. no backend                  → not loaded
    2. the same everywhere         → that state
    3. loaded on some              → partly loaded
    4. anything else               → pending
    """
    if not states:  # 1
        return "not loaded"
    if len(set(states)) == 1:  # 2
        return states[0]
    return "partly loaded" if "loaded" in states else "pending"  # 3, 4


def order_row(order: pb.LoraOrder) -> Row:
    """Return a pending order as a row."""
    state = enum_word(order, "phase")
    if order.error:
        state += f": {order.error}"
    elif order.total_bytes:
        state += f" {100 * order.done_bytes // order.total_bytes} %"
    return [order.name, "", state, "", order.path]


def adapter_lines(adapter: pb.LoraAdapter) -> list[str]:
    """Return the adapter's state on each backend, one line each."""
    return [
        f"  {status.backend}: {with_note(enum_word(status, 'state'), status.detail)}"
        for status in adapter.backends
    ]
