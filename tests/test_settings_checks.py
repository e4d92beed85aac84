"""Checks that concern settings of several packages."""

import json
from pathlib import Path

import pytest

from appliance.settings import load

OPEN = {"PROXY_HOST": "0.0.0.0"}
KEY = {"APPLIANCE_API_KEYS": "long-enough-key"}


def found(environ: dict[str, str]) -> dict[str, str]:
    """The problems of an environment, by variable."""
    return {problem.variable: str(problem) for problem in load(environ)[1]}


@pytest.mark.parametrize(
    ("environ", "variable", "text"),
    [
        ({"CONTROL_PORT": "14000"}, "CONTROL_PORT", "PROXY_PORT is 14000, too. Change one of them."),
        ({"STATUS_PORT": "14000"}, "STATUS_PORT", "allowed: another port than PROXY_PORT"),
        ({"STATUS_PORT": "50051"}, "STATUS_PORT", "allowed: another port than CONTROL_PORT"),
        ({"SIDECAR_PORT": "14000"}, "SIDECAR_PORT", "allowed: another port than PROXY_PORT"),
        ({"SIDECAR_PORT": "50051"}, "SIDECAR_PORT", "allowed: another port than CONTROL_PORT"),
        (
            {"SIDECAR_PORT": "9000", "STATUS_PORT": "9000"},
            "SIDECAR_PORT",
            "allowed: another port than STATUS_PORT",
        ),
    ],
)
def test_one_port_is_not_for_two_interfaces(environ: dict[str, str], variable: str, text: str) -> None:
    assert load(environ)[0] is None
    assert text in found(environ)[variable]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"CONTROL_PORT": "14000", "CONTROL": "0"},
        {"SIDECAR_PORT": "50051", "CONTROL": "0"},
        {"SIDECAR_PORT": "9000", "STATUS_PORT": "8001"},
        {"PROXY_HOST": "localhost"},
        OPEN | KEY,
        {"SIDECAR_PORT": "9000", "SIDECAR_HOST": "0.0.0.0"} | KEY,
        {"SIDECAR_HOST": "0.0.0.0"},  # without its port nothing listens there
        {"STATUS_HOST": "0.0.0.0"},
    ],
)
def test_nothing_is_wrong_with(environ: dict[str, str]) -> None:
    assert found(environ) == {}


@pytest.mark.parametrize(
    ("environ", "variable", "text"),
    [
        (OPEN, "PROXY_HOST", "Port 14000 is open: every client that reaches it can use the models"),
        (
            {"SIDECAR_PORT": "9000", "SIDECAR_HOST": "::"},
            "SIDECAR_HOST",
            "Port 9000 is open without a key: every client that reaches it can read the engine's metrics.",
        ),
        (
            {"STATUS_PORT": "8001", "STATUS_HOST": "10.0.0.1"} | KEY,
            "STATUS_HOST",
            "Port 8001 is open: every client that reaches it sees which models there are",
        ),
        (
            {"WORKER_COMMAND": "sleep 1"},
            "CONTROL_TOKEN",
            "A worker runs beside a control API without a token",
        ),
        ({"LB_STRATEGY": "magic"}, "LB_STRATEGY", "There is no such strategy; round_robin is used. Known: "),
    ],
)
def test_a_warning_does_not_stop_the_start(environ: dict[str, str], variable: str, text: str) -> None:
    assert load(environ)[0] is not None
    assert text in found(environ)[variable]


@pytest.mark.parametrize(
    "environ",
    [
        {"WORKER_COMMAND": "sleep 1", "CONTROL_TOKEN": "a-long-token-of-many-characters"},
        {"WORKER_COMMAND": "sleep 1", "CONTROL": "0"},
        {"WORKER_COMMAND": "sleep 1", "CONTROL_PORT": "0"},
    ],
)
def test_a_worker_may_run_beside_a_closed_control_api(environ: dict[str, str]) -> None:
    assert "CONTROL_TOKEN" not in found(environ)


HOSTED = {"NOVITA_API_KEY": "sk-1"}
CONFIG = {"backends": [{"url": "http://llm-1", "models": ["tiny", "large"]}]}


@pytest.mark.parametrize(
    ("name", "more", "config", "is_named"),
    [
        ("tiny", {}, CONFIG, False),
        ("tiny:latest", {}, CONFIG, False),
        ("short", {"MODEL_ALIASES": "short=tiny"}, CONFIG, False),
        ("typo", {}, CONFIG, True),
        ("typo", {"BACKENDS": "http://llm-2"}, CONFIG, False),  # it lists its models itself
        ("typo", HOSTED, CONFIG, False),  # the hosted API answers any name
        ("typo", HOSTED | {"MODEL_STRICT": "1"}, CONFIG, True),
        ("llama3.2-3b-instruct", HOSTED | {"MODEL_STRICT": "1"}, CONFIG, False),
        ("typo", {}, {"models": {"chat": {"model_path": "/m/chat.gguf"}}}, True),
        ("chat", {}, {"models": {"chat": {"model_path": "/m/chat.gguf"}}}, False),
        ("typo", {}, None, False),  # the demo engine answers any name
        ("typo", HOSTED, None, False),
    ],
)
def test_a_default_model_that_no_configured_one_is_called_is_named(
    tmp_path: Path, name: str, more: dict[str, str], config: dict[str, object] | None, is_named: bool
) -> None:
    environ = {"DEFAULT_MODEL": name, "STATE_DIR": str(tmp_path), "LLAMA_SERVER_PATH": "/bin/true"} | more
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
        environ["CONFIG_PATH"] = str(tmp_path / "config.json")
    assert load(environ)[0] is not None
    text = found(environ).get("DEFAULT_MODEL", "")
    assert ("requests that name no model get 404 until one has it. Configured: " in text) == is_named


@pytest.mark.parametrize(
    ("aliases", "named"),
    [
        ("tiny:latest=large", "tiny:latest"),
        ("short=tiny,short:latest=large", "short:latest"),
        ("chat:latest=tiny", "chat:latest"),
        ("nick:latest=tiny", "nick:latest"),
        ("tiny:latest=tiny,chat:latest=chat,nick:latest=chat", ""),
        ("other:latest=tiny", ""),
    ],
)
def test_an_alias_that_ollama_takes_for_another_model_is_named(
    tmp_path: Path, aliases: str, named: str
) -> None:
    file = tmp_path / "config.json"
    models = {"chat": {"command": "/bin/true ${PORT}", "aliases": ["nick"]}}
    file.write_text(json.dumps({**CONFIG, "models": models}))
    environ = {"STATE_DIR": str(tmp_path), "CONFIG_PATH": str(file), "MODEL_ALIASES": aliases}
    assert load(environ)[0] is not None
    text = found(environ).get("MODEL_ALIASES", "")
    assert text.startswith(f"MODEL_ALIASES={named}: Ollama's clients take ") if named else text == ""


def test_all_wrong_entries_of_model_aliases_are_told_at_once(tmp_path: Path) -> None:
    environ = {"STATE_DIR": str(tmp_path), "MODEL_ALIASES": "=a,b=,c=d,e"}
    assert load(environ)[0] is None
    assert "A name or a model is missing in '=a', 'b=': write" in found(environ)["MODEL_ALIASES"]
