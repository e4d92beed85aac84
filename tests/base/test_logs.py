"""Logs: JSON lines, and no secret in any of them."""

import io
import json

import pytest

from appliance.base import logs
from appliance.base.clock import FakeClock
from appliance.base.logs import SECRETS, get_logger
from appliance.engines.receipts import Receipt
from appliance.front.pipeline.access_log import AccessLog

SECRET = "sk_leaky_0123456789"


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    SECRETS.learn([SECRET, "plain-word-secret"])
    logs.configure(level="info", form="json", stream=stream)
    return stream


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f"text {SECRET} text",
        {"a": [SECRET]},
        [SECRET, ("x", SECRET)],
        ValueError(SECRET),
        "Authorization: Bearer abcdef1234567",
        "api_key=abcdef123456",
        {"deep": {"er": SECRET}},
        "sk-proj-abcdefgh12345",
        "plain-word-secret",
        b"bytes " + SECRET.encode(),
    ],
)
def test_secrets_are_redacted_everywhere(out: io.StringIO, value: object) -> None:
    get_logger("t").info("event", value=value)
    try:
        raise RuntimeError(value)
    except RuntimeError:
        get_logger("t").exception("failed")
    text = out.getvalue()
    for leak in (SECRET, "abcdef123456", "abcdefgh12345", "plain-word-secret"):
        assert leak not in text
    assert all(json.loads(line) for line in text.splitlines())


def test_our_own_sentence_about_keys_is_no_secret() -> None:
    sentence = "No API key. Send it as `Authorization: Bearer KEY`."
    assert SECRETS.redact(sentence) == sentence
    assert SECRETS.redact("Authorization: Bearer KEY-abc123") == "Authorization: Bearer [secret]"


def test_client_cannot_write_a_secret_into_the_access_log() -> None:
    stream = io.StringIO()
    SECRETS.learn([SECRET])
    log = AccessLog(clock=FakeClock(), stream=stream)
    receipt = Receipt("id", model=SECRET, error=f"upstream said {SECRET}", status=200)
    log.write(receipt, method="POST", path=f"/v1/{SECRET}\n", peer="::1", sent_bytes=5)
    log.flush()
    assert SECRET not in stream.getvalue()
    line = json.loads(stream.getvalue())
    assert (line["status"], line["ts"]) == (200, "2027-01-15T08:00:00.000Z")
