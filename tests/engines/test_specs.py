"""Backends as operators write them: what is read, and what is refused with which words; and the engines' words for too long."""

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.engines.metrics.values import BadMetrics, gauge
from appliance.engines.outcome import BreakerEffect
from appliance.engines.specs import BackendSpec, parse_backend
from appliance.engines.upstream.attempt import AttemptFailed
from appliance.engines.upstream.refusal import interpret_error, parse_context_error
from appliance.settings import load

ROOT = {"PATH": "/usr/bin:/bin"}


def read(tmp_path: Path, config: Any = None, **environ: str) -> tuple[Any, str]:
    """Give (the fleet or None, the fatal problems as text)."""
    if config is not None:
        path = tmp_path / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        environ["CONFIG_PATH"] = str(path)
    settings, problems = load(ROOT | environ)
    return settings.fleet if settings else None, "\n".join(str(p) for p in problems if p.is_fatal)


@pytest.mark.parametrize(
    ("address", "name", "url"),
    [
        ("http://llm-1:8080", "llm-1:8080", "http://llm-1:8080"),
        ("http://llm-1:8080/v1/", "llm-1:8080", "http://llm-1:8080"),
        ("llm-1:8080", "llm-1:8080", "http://llm-1:8080"),
        ("https://x.example/proxy/v1", "x.example:443", "https://x.example/proxy"),
        ("http://[::1]:9", "[::1]:9", "http://[::1]:9"),
        ("big=http://llm-1", "big", "http://llm-1"),
    ],
)
def test_addresses(tmp_path: Path, address: str, name: str, url: str) -> None:
    fleet, problems = read(tmp_path, BACKENDS=address)
    assert not problems
    assert (fleet.backends[0].name, fleet.backends[0].url) == (name, url)


@pytest.mark.parametrize(
    "address", ["ftp://x", "http://", "http://u:p@x", "http://x?y=1", "http://x:99999", "a b=http://x"]
)
def test_addresses_that_are_none(tmp_path: Path, address: str) -> None:
    fleet, problems = read(tmp_path, BACKENDS=address)
    assert fleet is None
    assert "BACKENDS" in problems


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "one JSON object"),
        ({"backend": []}, "'backend'"),
        ({"backends": {}}, "must be a list"),
        ({"backends": [{}]}, "backends[0]: url"),
        ({"backends": [{"url": "http://x", "wieght": 1}]}, "wieght"),
        ({"backends": [{"url": "http://x", "kind": "ollama"}]}, "kind"),
        ({"backends": [{"url": "http://x", "weight": 0}]}, "weight"),
        ({"backends": [{"url": "http://x", "api_key_env": "NOT_SET"}]}, "NOT_SET"),
        ({"backends": [{"url": "http://x", "api_key_file": "/nowhere/key"}]}, "api_key_file"),
        ({"backends": [{"url": "http://x", "api_key": "k", "api_key_env": "E"}]}, "one of api_key"),
        ({"backends": [{"url": "https://x", "tls": {"ca_file": "/nowhere/ca"}}]}, "/nowhere/ca"),
        ({"backends": [{"url": "https://x", "tls": {"cert_file": __file__}}]}, "must both be given"),
        ({"backends": [{"url": "http://x"}, {"url": "http://x"}]}, "Two backends"),
        ({"pools": [{"name": "default", "overflow": "moon"}]}, "does not exist"),
        (
            {"pools": [{"name": "default", "overflow": "b"}, {"name": "b", "overflow": "default"}]},
            "leads back",
        ),
        ({"pools": [{"name": "default", "strategy": "best"}]}, "strategy"),
        ({"pools": [{"name": "default", "overflow": "hosted"}]}, "NOVITA_API_KEY"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, config: Any, said: str) -> None:
    fleet, problems = read(tmp_path, config)
    assert fleet is None
    assert said in problems


def test_a_file_with_everything(tmp_path: Path) -> None:
    fleet, problems = read(
        tmp_path,
        {
            "system": {},
            "$schema": "s.json",
            "backends": [{"url": "http://x", "vram_gib": 80, "price_per_hour": 0.5, "api_key_env": "K"}],
            "pools": [{"name": "default", "strategy": "power_of_two"}],
        },
        K="sk_secret_of_x",
        BACKENDS="http://y",
    )
    assert not problems
    assert [b.name for b in fleet.backends] == ["y:80", "x:80"]
    assert fleet.backends[1].effective_weight == pytest.approx(3.6)
    assert fleet.backends[1].api_key.get_secret_value() == "sk_secret_of_x"
    assert "sk_secret_of_x" not in repr(fleet)


def test_an_unknown_strategy_at_start_is_round_robin_with_a_warning() -> None:
    settings, problems = load(ROOT | {"LB_STRATEGY": "best"})
    assert settings is not None
    assert any("round_robin" in str(p) for p in problems)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({}, "url"),
        ({"url": "http://x", "weight": -1}, "weight"),
        ({"url": "http://x", "api_key_env": "NOT_SET"}, "api_key"),
    ],
)
def test_a_backend_at_run_time_that_cannot_be_used(value: dict[str, Any], param: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_backend(value, {})
    assert caught.value.param == param


def test_the_key_is_in_no_representation() -> None:
    assert "sk_hidden" not in repr(BackendSpec(url="http://x", api_key="sk_hidden"))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (
            '{"error":{"code":400,"message":"request (9001 tokens) exceeds the available context size (4096 tokens), try increasing it","n_prompt_tokens":9001,'
            '"n_ctx":4096,"type":"exceed_context_size_error"}}',
            (9001, 4096),
        ),
        (
            "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens (2990 in the messages, 10 in the completion).",
            (3000, 2048),
        ),
        (
            "This model's maximum context length is 2048 tokens. However, your request has 2500 input tokens. Please reduce",
            (2500, 2048),
        ),
        (
            "This model's maximum context length is 1024 tokens. However, your prompt contains at least 1025 input tokens, which exceeds this limit even "
            "without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=1025)",
            (0, 1024),
        ),
        (
            "This model's maximum context length is 1024 tokens. However, your prompt contains 40050 characters (more than 13312 characters, which is the "
            "upper bound for 1024 input tokens). Please reduce the length of the input prompt. (parameter=input_text, value=40050)",
            (0, 1024),
        ),
        ("The input (5000 tokens) is longer than the model's context length (4096 tokens).", (5000, 4096)),
        (
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5000 tokens",
            (5000, 4096),
        ),
        (
            "This model's maximum context length is 1000 tokens. However, you requested 600 output tokens and your prompt contains 500 input tokens, for a "
            "total of 1100 tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
            (1100, 1000),
        ),
        (
            "This model's maximum context length is 1000 tokens. However, you requested 600 output tokens and your prompt contains at least 401 input "
            "tokens, for a total of at least 1001 tokens.",
            (0, 1000),
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 400. This model's maximum context length is 1000 tokens and your request has 700 input "
            "tokens (400 > 1000 - 700).",
            (1100, 1000),
        ),
        (
            "The decoder prompt (length 5951) is longer than the maximum model length of 4096. Make sure that `max_model_len` is no smaller than the "
            "number of text tokens.",
            (5951, 4096),
        ),
        (
            "The prompt (total length 25938) is too long to fit into the model (context length 4096). Make sure that",
            (25938, 4096),
        ),
        (
            "Input length (5000 tokens) exceeds the maximum allowed length (4090 tokens). Use a shorter input or enable --allow-auto-truncate.",
            (5000, 4090),
        ),
        ("The name exceeds the maximum allowed length (64 characters).", None),
        ("the request exceeds the available context size. try increasing it", (0, 0)),
        ("temperature must be positive", None),
    ],
)
def test_words_for_too_long(text: str, numbers: tuple[int, int] | None) -> None:
    assert parse_context_error(text) == numbers


@pytest.mark.parametrize(
    ("status", "text", "outcome", "counts", "kind"),
    [
        (401, "no", "key_refused", False, "upstream"),
        (403, "no", "key_refused", False, "upstream"),
        (404, "no such model", "status_404", False, "no_such_model"),
        (429, "later", "full", False, None),
        (501, "not supported", "unsupported", False, "unsupported"),
        (500, '{"error":{"message":"image input is not supported - hint"}}', "unsupported", False, "invalid"),
        (500, "oops", "status_500", True, None),
        (503, '{"error":{"message":"Loading model"}}', "loading", True, None),
        (503, "busy", "status_503", True, None),
        (302, "", "status_302", True, None),
        (400, "maximum context length is 5 tokens", "context", False, "invalid"),
    ],
)
def test_what_an_error_answer_means(
    status: int,
    text: str,
    outcome: str,
    counts: bool,
    kind: str | None,
) -> None:
    meant = interpret_error(status, {}, text, "The backend x")
    assert isinstance(meant, AttemptFailed)
    said = (
        meant.label,
        meant.outcome.breaker is BreakerEffect.FAILED,
        meant.error and meant.error.kind.value,
    )
    assert said == (outcome, counts, kind)


@pytest.mark.parametrize("status", [400, 409, 422])
def test_the_callers_own_fault_is_passed_on(status: int) -> None:
    meant = interpret_error(
        status,
        {},
        '{"error":{"message":"temperature must be positive","param":"temperature"}}',
        "The backend x",
    )
    assert isinstance(meant, Invalid)
    assert (meant.message, meant.param, meant.details["status"]) == (
        "temperature must be positive",
        "temperature",
        status,
    )


@pytest.mark.parametrize(
    ("page", "value"),
    [
        (b"# TYPE x gauge\nvllm:num_requests_running 3.0\n", 3),
        (b"vllm_num_requests_running 3\n", 3),
        (b"vllm:num_requests_running_total 3\n", 3),
        (b'vllm:num_requests_running{engine="0"} 1.0\nvllm:num_requests_running{engine="1"} 2.0\n', 3),
        (b"vllm:num_requests_running_more 3\n", None),
        (b"", None),
    ],
)
def test_gauges(page: bytes, value: float | None) -> None:
    assert gauge(page, ("vllm:num_requests_running",)) == value


@pytest.mark.parametrize(
    "page",
    [
        b"vllm:num_requests_running NaN\n",
        b"vllm:num_requests_running many\n",
        b"vllm:num_requests_running -1\n",
    ],
)
def test_gauges_that_cannot_be(page: bytes) -> None:
    with pytest.raises(BadMetrics):
        gauge(page, ("vllm:num_requests_running",))
