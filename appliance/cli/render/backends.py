"""Backends and receipts as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from appliance.cli.render.values import Pairs, duration, optional, timestamp
from appliance.cli.screen import Row

if TYPE_CHECKING:
    from appliance.cli import messages as pb

BACKEND_HEADERS = ["NAME", "KIND", "STATE", "IN FLIGHT", "MODELS", "ENDPOINT", "NOTE"]
RECEIPT_HEADERS = ["AT", "ID", "ROUTE", "MODEL", "STATUS", "FINISH", "MS", "TOKENS"]


def backend_pairs(backend: pb.Backend) -> Pairs:
    """Return all that is known of one backend as names and values."""
    return [
        ("name", backend.name),
        ("kind", backend.kind),
        ("state", backend.standing),
        ("note", backend.detail),
        ("url", backend.url),
        ("pool", backend.pool),
        ("models", ", ".join(backend.models)),
        ("in flight", str(backend.in_flight)),
        ("limit", optional(backend, "limit", "{:g}")),
        ("engine running", optional(backend, "running", "{:g}")),
        ("engine waiting", optional(backend, "waiting", "{:g}")),
        ("weight", f"{backend.weight:g}"),
        ("context", str(backend.context_tokens or "")),
        ("chosen", str(backend.chosen_total)),
        ("mean time", optional(backend, "mean_s", "{:.3f} s")),
        ("breaker", backend.breaker),
        ("origin", backend.origin),
    ]


def backend_rows(backends: Iterable[pb.Backend]) -> list[Row]:
    """Return one row per endpoint, and one for a backend without endpoints."""
    rows: list[Row] = []
    for b in backends:
        state = b.standing or ("up" if b.is_up else "down")
        head = [b.name, b.kind, state, str(b.in_flight), ", ".join(b.models)]
        if len(b.endpoints) > 1:
            rows += [[*head, e.url, _endpoint_note(e)] for e in b.endpoints]
        else:
            url, note = (b.endpoints[0].url, _endpoint_note(b.endpoints[0])) if b.endpoints else (b.url, "")
            rows.append([*head, url, note or b.detail])
    return rows


def _endpoint_note(endpoint: pb.Endpoint) -> str:
    retry = f"retry in {duration(endpoint.rested_s)}" if endpoint.rested_s else ""
    return "; ".join(filter(None, (retry, endpoint.last_error)))


def receipt_row(receipt: pb.Receipt) -> Row:
    """Return one request as a row."""
    tokens = [optional(receipt, name) for name in ("prompt_tokens", "completion_tokens")]
    return [
        timestamp(receipt.at),
        receipt.id,
        receipt.route,
        receipt.model,
        str(receipt.status),
        receipt.finish,
        f"{receipt.total_ms:.0f}",
        "+".join(token or "?" for token in tokens) if any(tokens) else "",
    ]


def receipt_pairs(receipt: pb.Receipt) -> Pairs:
    """Return one request as names and values, with its attempts."""
    rows = [
        ("id", receipt.id),
        ("at", timestamp(receipt.at)),
        ("route", receipt.route),
        ("model", receipt.model),
        ("public model", receipt.public_model),
        ("served model", receipt.served_model),
        ("backend", receipt.backend),
        ("endpoint", receipt.endpoint),
        ("reason", receipt.reason),
        ("pool", receipt.pool),
        ("overflow", receipt.overflow),
        ("key", receipt.key),
        ("streamed", "yes" if receipt.streamed else "no"),
        ("queue ms", f"{receipt.queue_ms:.1f}"),
        ("upstream ms", f"{receipt.upstream_ms:.1f}"),
        ("total ms", f"{receipt.total_ms:.1f}"),
        ("prompt tokens", optional(receipt, "prompt_tokens")),
        ("completion tokens", optional(receipt, "completion_tokens")),
        ("tokens from", receipt.tokens_from),
        ("first token ms", optional(receipt, "first_token_ms", "{:.1f}")),
        ("last token ms", optional(receipt, "last_token_ms", "{:.1f}")),
        ("finish", receipt.finish),
        ("status", str(receipt.status)),
        ("error", receipt.error),
    ]
    for number, attempt in enumerate(receipt.attempts, 1):
        outcome = attempt.outcome + optional(attempt, "status", " {}")
        text = f"{attempt.endpoint}: {outcome}, {attempt.ms:.1f} ms {attempt.note}"
        rows.append((f"attempt {number}", text.strip()))
    return rows
