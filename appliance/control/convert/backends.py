"""Backends and receipts as messages."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from appliance.control.convert.values import pick_fields, to_enum, to_sendable, to_timestamp
from appliance.control.v1 import control_pb2 as pb
from appliance.engines.receipts import Attempt, Receipt, ReceiptFilter
from appliance.engines.types import BackendState

BACKEND_FIELDS = (
    "name",
    "kind",
    "is_up",
    "detail",
    "models",
    "in_flight",
    "url",
    "pool",
    "standing",
    "running",
    "waiting",
    "limit",
    "weight",
    "context_tokens",
    "chosen_total",
    "mean_s",
    "breaker",
    "origin",
)
RECEIPT_FIELDS = (
    "id",
    "route",
    "model",
    "public_model",
    "served_model",
    "backend",
    "endpoint",
    "reason",
    "streamed",
    "queue_ms",
    "upstream_ms",
    "total_ms",
    "prompt_tokens",
    "completion_tokens",
    "tokens_from",
    "first_token_ms",
    "last_token_ms",
    "error",
    "status",
    "key",
    "pool",
    "overflow",
)


def to_backend(state: BackendState | Mapping[str, Any]) -> pb.Backend:
    """Return a backend's state as a message."""
    values = asdict(state) if isinstance(state, BackendState) else state
    endpoints = [
        pb.Endpoint(**pick_fields(pb.Endpoint, row, "url", "rested_s", "failed_in_a_row", "last_error"))
        for row in values.get("endpoints", ())
    ]
    return pb.Backend(
        endpoints=endpoints,
        standing_kind=to_enum(pb.BackendStanding, "BACKEND_STANDING", str(values.get("standing", ""))),
        breaker_kind=to_enum(pb.BreakerState, "BREAKER_STATE", str(values.get("breaker", ""))),
        origin_kind=to_enum(pb.BackendOrigin, "BACKEND_ORIGIN", str(values.get("origin", ""))),
        **pick_fields(pb.Backend, values, *BACKEND_FIELDS),
    )


def to_receipt(receipt: Receipt) -> pb.Receipt:
    """Return a receipt as a message; counts that were not reported stay absent."""
    values = {name: value for name in RECEIPT_FIELDS if (value := getattr(receipt, name)) is not None}
    values = {name: to_sendable(value) if isinstance(value, str) else value for name, value in values.items()}
    return pb.Receipt(
        at=to_timestamp(receipt.at_s),
        attempts=[_to_attempt(one) for one in receipt.attempts],
        finish=receipt.finish_label,
        tokens_from_kind=to_enum(pb.TokenSource, "TOKEN_SOURCE", receipt.tokens_from),
        finish_kind=to_enum(pb.RequestFinish, "REQUEST_FINISH", receipt.finish_label),
        **values,
    )


def to_filter(message: pb.ReceiptFilter) -> ReceiptFilter:
    """Return what receipts have to fulfil; raises Invalid for values that no receipt has."""
    word = pb.RequestFinish.Name(message.finish) if message.finish in pb.RequestFinish.values() else ""
    return ReceiptFilter(
        model=message.model,
        key=message.key,
        status=message.status,
        finish=word.removeprefix("REQUEST_FINISH_").lower() if message.finish else "",
        since_s=_seconds(message.since) if message.HasField("since") else None,
        until_s=_seconds(message.until) if message.HasField("until") else None,
    )


def _seconds(moment: Timestamp) -> float:
    return moment.seconds + moment.nanos / 1e9


def _to_attempt(attempt: Attempt) -> pb.Attempt:
    return pb.Attempt(
        endpoint=attempt.endpoint,
        outcome=attempt.label,
        outcome_kind=to_enum(pb.AttemptOutcome, "ATTEMPT_OUTCOME", attempt.outcome.name),
        status=attempt.status,
        ms=attempt.ms,
        note=to_sendable(attempt.note),
    )
