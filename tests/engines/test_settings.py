"""Settings of the engines that are refused, with the words that say why."""

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
