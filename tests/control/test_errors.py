"""Errors as gRPC statuses: codes, and details that programs can read."""

import grpc
import pytest
from google.rpc import error_details_pb2

from appliance.base.errors import Exhausted, Invalid, Kind, UpstreamFailed
from appliance.control.errors import (
    GRPC_CODE,
    HTTP_OF_CODE,
    RolledBack,
    code_of,
    error_of_reply,
    http_status_of,
    rich_status,
)
from appliance.engines.types import EngineReply


def test_every_kind_has_a_code_and_every_code_a_status() -> None:
    assert set(GRPC_CODE) == set(Kind)
    assert set(GRPC_CODE.values()) | {grpc.StatusCode.ABORTED} <= set(HTTP_OF_CODE)


def test_details_have_reason_field_and_retry_delay() -> None:
    status = rich_status(
        Exhausted("Full.", param="n", retry_after_s=0.0015, details={"attempts": [{"url": "u"}]}),
        request_id="r1",
    )
    info, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    for box, message in zip(status.details, (info, bad, retry), strict=True):
        assert box.Unpack(message)
    assert (status.code, status.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "Full.")
    assert (info.domain, info.reason) == ("appliance", "RATE_LIMIT_EXCEEDED")
    assert dict(info.metadata) == {"kind": "exhausted", "request_id": "r1", "attempts": '[{"url":"u"}]'}
    assert bad.field_violations[0].field == "n"
    assert retry.retry_delay.ToMilliseconds() == 2


def test_a_bare_error_carries_no_empty_details() -> None:
    assert len(rich_status(Invalid("No.")).details) == 1


def test_details_stay_small_enough_for_trailers() -> None:
    attempts = [{"url": "u" * 200, "error": "e" * 800}] * 50
    violations = [("V" * 50, "d" * 5000)] * 50
    status = rich_status(
        UpstreamFailed("m" * 100_000, details={"attempts": attempts, "violations": violations})
    )
    assert status.ByteSize() < 6144  # in base64 that stays under the 8 KiB that peers take


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (418, grpc.StatusCode.INVALID_ARGUMENT),
        (403, grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_an_upstreams_own_status_counts_where_it_is_known(status: int, code: grpc.StatusCode) -> None:
    error = Invalid("No.", details={"status": status})
    assert code_of(error) is code
    assert http_status_of(error) == status


def test_a_roll_back_is_aborted() -> None:
    assert code_of(RolledBack("x")) is grpc.StatusCode.ABORTED
    assert http_status_of(RolledBack("x")) == 409


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"m"}}', "m"),
        (b'{"error":"plain"}', "plain"),
        (b"<html>", "The upstream responded with status 400."),
        (b"[]", "The upstream responded with status 400."),
        (None, "The upstream responded with status 400."),
    ],
)
def test_an_error_reply_of_any_shape_has_a_message(body: bytes | None, message: str) -> None:
    assert error_of_reply(EngineReply(status=400, body=body)).message == message
