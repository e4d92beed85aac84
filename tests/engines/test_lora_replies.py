"""What an engine's refusal means to the operator."""

import pytest

from appliance.base.errors import Kind
from appliance.engines.dialects.contract import LoraReply
from appliance.engines.lora.replies import invalid_reply_error, refusal_error


@pytest.mark.parametrize(
    ("outcome", "status", "kind", "code"),
    [
        ("off", 404, Kind.CONFLICT, "lora_not_enabled"),  # 1
        ("unknown", 404, Kind.NOT_FOUND, "no_such_adapter"),  # 2
        ("already", 400, Kind.CONFLICT, "adapter_exists"),  # 3
        ("refused", 404, Kind.NOT_FOUND, "adapter_not_found"),  # 4
        ("refused", 400, Kind.INVALID, "adapter_refused"),  # 5
        ("refused", 200, Kind.INVALID, "adapter_refused"),
        ("refused", 500, Kind.UPSTREAM, "adapter_refused"),  # 6
    ],
)
def test_each_refusal_has_its_kind_and_code(outcome, status, kind, code) -> None:
    error = refusal_error(LoraReply(outcome, status, "no free slot"), "e0", "style")
    assert (error.kind, error.code) == (kind, code)
    assert error.details["engine_status"] == status
    assert error.details["engine_text"] == "no free slot"
    assert error.details.get("status") == (400 if (outcome, status) == ("refused", 400) else None)
    assert "no free slot" in error.message
    assert "e0" in error.message


def test_the_remedy_and_the_reply_are_in_the_text() -> None:
    reply = LoraReply("off", 404, "Not Found", remedy="Start it with --enable-lora.")
    assert refusal_error(reply, "e0", "style").message == (
        "The backend e0 was started without loading adapters at run time. Start it with --enable-lora. "
        "Its reply (HTTP 404): Not Found"
    )


def test_long_replies_are_cut() -> None:
    assert len(refusal_error(LoraReply("refused", 500, "x" * 9000), "e0", "style").message) < 600


def test_a_reply_that_makes_no_sense_is_the_engines_fault() -> None:
    error = invalid_reply_error(ValueError("no JSON"), "e0")
    assert (error.kind, error.message) == (Kind.UPSTREAM, "The command to the backend e0 failed: no JSON")
