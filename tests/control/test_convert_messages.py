"""Backends, receipts, adapters and values as messages."""

from typing import Any

import pytest
from google.protobuf import struct_pb2
from google.protobuf.json_format import ParseDict

from appliance.control.convert.backends import to_backend, to_receipt
from appliance.control.convert.lora import to_adapter, to_lora_state
from appliance.control.convert.values import from_struct, pick_fields, to_enum, to_sendable, to_timestamp
from appliance.control.v1 import control_pb2 as pb
from appliance.engines.lora.plan import Adapter
from appliance.engines.lora.status_view import AdapterRow, AdapterStatus
from appliance.engines.outcome import Finish, Outcome
from appliance.engines.receipts import Attempt, Receipt
from appliance.engines.types import BackendState, BackendStatus


def test_a_backend_leaves_out_what_is_unknown() -> None:
    message = to_backend(BackendState("a", "vllm", True, "", models=("m",), weight=2.0))
    assert (message.name, message.is_up, list(message.models), message.weight) == ("a", True, ["m"], 2.0)
    assert [message.HasField(name) for name in ("running", "waiting", "limit", "mean_s")] == [False] * 4
    known = to_backend(BackendState("a", "vllm", True, "", running=1.5, limit=0, mean_s=0.0))
    assert (known.running, known.HasField("limit"), known.HasField("mean_s")) == (1.5, True, True)


def test_a_backend_has_its_endpoints() -> None:
    row = {"url": "http://a", "rested_s": 1.5, "failed_in_a_row": 2, "last_error": "refused"}
    message = to_backend({"name": "a", "kind": "hosted", "is_up": True, "endpoints": [row]})
    (endpoint,) = message.endpoints
    assert (endpoint.url, endpoint.rested_s, endpoint.failed_in_a_row) == ("http://a", 1.5, 2)


def test_a_receipt_has_its_attempts_and_only_reported_counts() -> None:
    receipt = Receipt("r", attempts=[Attempt("http://a", Outcome.OK, 200, 1.5)])
    message = to_receipt(receipt)
    assert (message.id, message.HasField("prompt_tokens")) == ("r", False)
    (attempt,) = message.attempts
    assert (attempt.endpoint, attempt.outcome, attempt.status, attempt.ms) == ("http://a", "ok", 200, 1.5)
    receipt.prompt_tokens, receipt.model = 0, "a\ud800b"
    message = to_receipt(receipt)
    assert (message.HasField("prompt_tokens"), message.model) == (True, "a?b")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_each_outcome_of_an_attempt_has_its_value(outcome: Outcome) -> None:
    (attempt,) = to_receipt(Receipt("r", attempts=[Attempt("http://a", outcome, 502)])).attempts
    assert attempt.outcome == outcome.render(502)
    assert pb.AttemptOutcome.Name(attempt.outcome_kind) == f"ATTEMPT_OUTCOME_{outcome.name}"


@pytest.mark.parametrize("finish", list(Finish))
def test_each_finish_has_its_value(finish: Finish) -> None:
    message = to_receipt(Receipt("r", finish=finish))
    assert (message.finish, bool(message.finish_kind)) == (finish.value, True)


@pytest.mark.parametrize("source", ["usage", "timings", "events"])
def test_each_source_of_token_counts_has_its_value(source: str) -> None:
    message = to_receipt(Receipt("r", tokens_from=source))
    assert message.tokens_from == source
    assert pb.TokenSource.Name(message.tokens_from_kind) == f"TOKEN_SOURCE_{source.upper()}"


@pytest.mark.parametrize("standing", list(BackendStatus))
def test_each_standing_of_a_backend_has_its_value(standing: BackendStatus) -> None:
    message = to_backend(BackendState("a", "vllm", True, "", standing=standing.value))
    assert message.standing == standing.value
    assert pb.BackendStanding.Name(message.standing_kind) == f"BACKEND_STANDING_{standing.name}"


@pytest.mark.parametrize("word", ["closed", "open", "half_open"])
def test_each_state_of_a_breaker_has_its_value(word: str) -> None:
    message = to_backend(BackendState("a", "vllm", True, "", breaker=word))
    assert (message.breaker, pb.BreakerState.Name(message.breaker_kind)) == (
        word,
        f"BREAKER_STATE_{word.upper()}",
    )


@pytest.mark.parametrize("word", ["configured", "runtime", "persisted", "managed"])
def test_each_origin_of_a_backend_has_its_value(word: str) -> None:
    message = to_backend(BackendState("a", "vllm", True, "", origin=word))
    assert (message.origin, pb.BackendOrigin.Name(message.origin_kind)) == (
        word,
        f"BACKEND_ORIGIN_{word.upper()}",
    )


def test_an_adapter_has_its_state_on_each_backend() -> None:
    adapter = Adapter("style", "/p", "base", is_pinned=True)
    row = AdapterRow(adapter, (AdapterStatus("b", "vllm", "failed", "no room"),), is_declared=False)
    message = to_adapter(row)
    assert (message.name, message.is_pinned, message.is_declared) == ("style", True, False)
    (backend,) = message.backends
    assert (backend.state, backend.detail) == (pb.LORA_STATE_FAILED, "no room")


@pytest.mark.parametrize("word", ["loaded", "loading", "pending", "failed", "down", "unloading"])
def test_each_adapter_state_has_its_value(word: str) -> None:
    assert pb.LoraState.Name(to_lora_state(word)) == f"LORA_STATE_{word.upper()}"


@pytest.mark.parametrize(
    ("at_s", "seconds", "nanos"), [(0.0, 0, 0), (1.5, 1, 500_000_000), (-0.5, -1, 500_000_000)]
)
def test_seconds_become_a_timestamp(at_s: float, seconds: int, nanos: int) -> None:
    stamp = to_timestamp(at_s)
    assert stamp is not None
    assert (stamp.seconds, stamp.nanos) == (seconds, nanos)


def test_values_that_protobuf_cannot_carry_are_replaced() -> None:
    assert to_timestamp(None) is None
    assert to_sendable("a\udfffb") == "a?b"
    assert to_enum(pb.JobState, "JOB_STATE", "dancing") == 0
    assert pick_fields(pb.Gpu, {"mode": 3, "simulated": None}, "mode", "simulated", "reason") == {"mode": "3"}


@pytest.mark.parametrize(
    "value", [1, 1.5, 2.0**60, "a", True, None, [1, "a", [2]], {"a": {"b": 1}}, -(2**52)]
)
def test_a_struct_keeps_whole_numbers_whole(value: Any) -> None:
    struct = ParseDict({"x": value}, struct_pb2.Struct())
    assert from_struct(struct) == {"x": value}
    if value == 1:
        assert type(from_struct(struct)["x"]) is type(value)
