"""Logs: JSON lines, and no secret in any of them."""

import io
import json
import subprocess
import sys

import pytest

from appliance.base import logs
from appliance.base.clock import FakeClock
from appliance.base.logs import SECRETS, get_logger, hide_words
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


@pytest.mark.parametrize(
    "prose",
    [
        "token: whatever",
        "Unexpected token: something else was expected",
        "the eos token: 128009 is not in the vocabulary",
        "EOS token        = 128009 '<|eot_id|>'",
        "secret: known to both sides",
        "password: required",
        "authorization: missing",
        "invalid token: '<|im_end|>'",
        "api key: none is needed here",
        "a token = a piece of a word",
    ],
)
def test_prose_stays_as_it_is(prose: str) -> None:
    assert SECRETS.redact(prose) == prose


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("token: abc123def456", "token: [secret]"),
        ("Authorization: Basic dXNlcjpwYXNz0", "Authorization: Basic [secret]"),
        ("X-Api-Key: 0a1b2c3d4e", "X-Api-Key: [secret]"),
        ('{"token":"whatever","a":1}', '{"token":"[secret]","a":1}'),
        ("{'password': 'whatever'}", "{'password': '[secret]'}"),
        ("/path?token=whatever&a=1", "/path?token=[secret]&a=1"),
        ("PASSWORD=whatever", "PASSWORD=[secret]"),
        ("secret: 'hunter2x'", "secret: '[secret]'"),
    ],
)
def test_what_looks_like_a_secret_is_redacted(text: str, redacted: str) -> None:
    assert SECRETS.redact(text) == redacted


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("form", ["console", "auto", "json"])
def test_colours_go_to_the_terminal_and_never_into_copies(form: str) -> None:
    out, copies = Terminal(), []
    logs.configure(level="info", form=form, stream=out, on_line=copies.append)
    get_logger("t").warning("event", text="\x1b[31mred")
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        get_logger("t").exception("failed")
    assert ("\x1b[" in out.getvalue()) == (form != "json")
    assert not any("\x1b" in line or "\n" in line for line in copies)
    assert "event" in copies[0]
    assert any("boom" in line for line in copies)


def test_structlog_is_loaded_without_rich_which_can_be_imported_afterwards() -> None:
    code = (
        "import sys, appliance.base.logs; print('rich' in sys.modules); import rich.console, structlog;"
        "print('rich.console' in sys.modules, structlog.dev.rich)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\nTrue None\n"


def test_a_stream_that_is_no_terminal_gets_no_colours() -> None:
    out = io.StringIO()
    logs.configure(level="info", form="console", stream=out)
    get_logger("t").warning("event")
    assert "\x1b" not in out.getvalue()


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


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["llama-server", "--api-key", "abc"], ["llama-server", "--api-key", "[secret]"]),
        (["x", "--api-key=abc", "--port", "80"], ["x", "--api-key=[secret]", "--port", "80"]),
        (["docker", "run", "-e", "HF_TOKEN=hf_1"], ["docker", "run", "-e", "HF_TOKEN=[secret]"]),
        (
            ["x", "--api-key", "${env.KEY}", "--hf-token=$T"],
            ["x", "--api-key", "${env.KEY}", "--hf-token=$T"],
        ),
        (
            ["x", "--max-tokens", "512", "--password", "512"],
            ["x", "--max-tokens", "512", "--password", "[secret]"],
        ),
        (["x", "--api-key", "--verbose"], ["x", "--api-key", "--verbose"]),
        (["x", "--api-key"], ["x", "--api-key"]),
        (["sh", "-c", "serve --api-key abc --port 80"], ["sh", "-c", "serve --api-key [secret] --port 80"]),
        (["x", "--proxy", "http://me:word@p:1"], ["x", "--proxy", "http://[secret]@p:1"]),
        (
            ["x", "--header", "Authorization: Bearer abcdef123"],
            ["x", "--header", "Authorization: Bearer [secret]"],
        ),
        (["x", "--note", "a sk-abcdef123 b"], ["x", "--note", "a [secret] b"]),
        (
            ["x", "--api-key-file", "/run/key", "--ctx-size", "4"],
            ["x", "--api-key-file", "/run/key", "--ctx-size", "4"],
        ),
    ],
)
def test_a_command_line_is_shown_without_its_secrets(words: list[str], shown: list[str]) -> None:
    assert hide_words(words) == shown
