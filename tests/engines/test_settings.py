"""Settings of the engines that are refused, with the words that say why."""

import json
from pathlib import Path

import pytest

from appliance.settings import load


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("VLLM_ZMQ_ENDPOINT", "http://x:1", "is not an address such as tcp://localhost:5557"),
        ("SGLANG_ZMQ_ENDPOINT", "tcp://x", "is not an address such as tcp://localhost:5557"),
        ("LORA_ALLOWED_DIRS", "adapters", "is not an absolute path"),
        ("LORA_ALLOWED_DIRS", "/a/../b", "is not an absolute path"),
        ("LORA_ALLOWED_DIRS", "/", "is not an absolute path"),
        ("NOVITA_OPENAI_ENDPOINTS", "ftp://x", "is not an http(s) address"),
        ("NOVITA_OPENAI_ENDPOINTS", "https://u:p@x", "must not hold credentials"),
        ("NOVITA_OPENAI_ENDPOINTS", ";", "at least one address"),
        ("NOVITA_API_KEY", "key-1\nX-Other: 1", "A key is one word of printable"),
        ("NOVITA_API_KEY", "key-é", "A key is one word"),
        ("APPLIANCE_API_KEYS", ",", "It holds no key, only separators"),
        ("OPERATOR_API_KEYS", " ,, ", "It holds no key, only separators"),
        ("LB_ENABLED", "perhaps", ""),
        ("QUEUE_LIMIT", "-1", ""),
        ("BREAKER_FAILURES", "0", ""),
    ],
)
def test_values_that_are_refused(variable: str, value: str, message: str) -> None:
    settings, problems = load({"PATH": "/usr/bin:/bin", variable: value})
    fatal = [str(problem) for problem in problems if problem.is_fatal]
    assert settings is None
    assert len(fatal) == 1
    assert fatal[0].startswith(f"{variable}=")
    assert message in fatal[0]


def test_password_in_an_endpoint_is_not_shown() -> None:
    _, problems = load({"PATH": "/usr/bin:/bin", "NOVITA_OPENAI_ENDPOINTS": "https://user:pass-word@x"})
    assert problems
    assert "pass-word" not in "".join(map(str, problems))


def test_range_of_ports_without_a_port_is_refused() -> None:
    settings, problems = load(
        {"PATH": "/usr/bin:/bin", "MODEL_FIRST_PORT": "9000", "MODEL_LAST_PORT": "8999"}
    )
    assert settings is None
    assert str(problems[0]).startswith("MODEL_LAST_PORT: 8999 is below MODEL_FIRST_PORT")


@pytest.mark.parametrize(
    "row", [{"api_key": "canary-1\nX: y"}, {"api_key_env": "TWO_KEYS"}, {"api_key": "canary-1 canary-2"}]
)
def test_key_of_a_backend_that_cannot_be_sent_is_refused(tmp_path: Path, row: dict[str, str]) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"backends": [{"url": "http://host", **row}]}))
    settings, problems = load({"CONFIG_PATH": str(path), "TWO_KEYS": "canary-1\ncanary-2"})
    assert settings is None
    assert "backends[0]: a key is one word of printable ASCII characters" in str(problems[0])
    assert "canary" not in str(problems[0])
