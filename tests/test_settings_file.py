"""The section `settings` of the configuration file: what may stand in it, what wins, and what is told."""

import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from appliance.base import jsons
from appliance.base.config_file import parse_config
from appliance.config_schema import build_config_schema
from appliance.settings import described, effective_environ, load, setting_fields

ROOT = Path(__file__).parent.parent

KEY = "sk-novita-0123456789"


def read(tmp_path: Path, content: Any, mode: int = 0o600, **environ: str) -> tuple[Any, str]:
    path = tmp_path / ("config.yaml" if isinstance(content, str) else "config.json")
    path.write_text(content if isinstance(content, str) else jsons.dumps_text(content))
    path.chmod(mode)
    settings, problems = load({"CONFIG_PATH": str(path), **environ})
    return settings, "\n".join(map(str, problems))


def test_settings_of_every_kind_are_read(tmp_path: Path) -> None:
    text = """
settings:
  LOG_LEVEL: debug
  PROXY_PORT: 15000
  HEARTBEAT_S: 2.5
  ACCESS_LOG: false
  MODEL_STRICT: on
  CORS_ORIGINS: [https://a.example, https://b.example]
  NOVITA_OPENAI_ENDPOINTS: [https://a.example/v1, https://b.example/v1]
  BACKENDS: http://llm-1:8080,two=http://llm-2:8080
  APPLIANCE_API_KEYS: [first-long-key, second-long-key]
  DEFAULT_MODEL:
"""
    settings, problems = read(tmp_path, text)
    assert problems == ""
    assert (settings.general.log_level, settings.front.proxy_port) == ("debug", 15000)
    assert (settings.front.heartbeat_s, settings.front.access_log) == (2.5, False)
    assert settings.engines.model_strict
    assert settings.front.cors_origins == ["https://a.example", "https://b.example"]
    assert settings.engines.novita_openai_endpoints == ["https://a.example/v1", "https://b.example/v1"]
    assert [spec.name for spec in settings.fleet.backends] == ["llm-1:8080", "two"]
    assert settings.front.appliance_api_keys.get_secret_value() == "first-long-key,second-long-key"
    rows = {row.variable: row for row in described(settings, settings.environ)}
    assert (rows["HEARTBEAT_S"].is_set, rows["HEARTBEAT_S"].value) == (True, "2.5")
    assert not rows["DEFAULT_MODEL"].is_set


def test_environment_wins_then_its_file_then_the_configuration(tmp_path: Path) -> None:
    lines = tmp_path / "lines.env"
    lines.write_text("HEARTBEAT_S=2\nLOG_LEVEL=error\n")
    file = {"settings": {"HEARTBEAT_S": 1, "LOG_LEVEL": "debug", "MAX_CONNECTIONS": 7, "ACCESS_LOG": False}}
    settings, problems = read(tmp_path, file, APPLIANCE_ENV_FILE=str(lines), HEARTBEAT_S="3", ACCESS_LOG="")
    assert problems == ""
    assert (settings.front.heartbeat_s, settings.general.log_level) == (3, "error")
    assert (settings.front.max_connections, settings.front.access_log) == (7, False)


def test_path_of_the_file_may_stand_in_the_file_of_the_environment(tmp_path: Path) -> None:
    config, lines = tmp_path / "c.yaml", tmp_path / "lines.env"
    config.write_text("settings: {HEARTBEAT_S: 4}")
    lines.write_text(f"CONFIG_PATH={config}\n")
    settings, _ = load({"APPLIANCE_ENV_FILE": str(lines)})
    assert settings is not None
    assert settings.front.heartbeat_s == 4


def test_secret_of_the_environment_wins_in_either_form(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(KEY)
    in_file = {"settings": {"NOVITA_API_KEY_FILE": str(secret)}}
    settings, problems = read(tmp_path, in_file, mode=0o644)
    assert (problems, settings.engines.novita_api_key.get_secret_value()) == ("", KEY)
    settings, problems = read(tmp_path, in_file, NOVITA_API_KEY="other")
    assert (problems, settings.engines.novita_api_key.get_secret_value()) == ("", "other")
    settings, problems = read(
        tmp_path, {"settings": {"NOVITA_API_KEY": "x"}}, NOVITA_API_KEY_FILE=str(secret)
    )
    assert (problems, settings.engines.novita_api_key.get_secret_value()) == ("", KEY)


def test_port_of_the_platform_wins_over_the_file(tmp_path: Path) -> None:
    settings, _ = read(tmp_path, {"settings": {"PROXY_PORT": 15000}}, PORT="15001")
    assert settings.front.proxy_port == 15001


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            [],
            "settings: allowed: a JSON or YAML file with `settings`, `models`, `backends` or `adapters`. It must",
        ),
        ({"LOG_LEVLE": "debug"}, "settings.LOG_LEVLE: allowed"),
        ({"LOG_LEVLE": "debug"}, "There is no such variable. Did you mean LOG_LEVEL?"),
        ({"log_level": "debug"}, "Did you mean LOG_LEVEL?"),
        ({"LOG_LEVEL_FILE": "x"}, "There is no such variable."),
        ({"CONFIG_PATH": "x"}, "Set it in the environment: it is needed before this file is read."),
        ({"LOG_LEVEL": {"a": 1}}, "settings.LOG_LEVEL"),
        ({"CORS_ORIGINS": ["a", ["b"]]}, "The value must be a text, a number, true or false, or a list"),
        ({"CORS_ORIGINS": ["a,b"]}, "settings.CORS_ORIGINS"),
        ({"PROXY_PORT": 99999}, "PROXY_PORT=99999: allowed: a whole number from 1 to 65535"),
        ({"ACCESS_LOG": "perhaps"}, "ACCESS_LOG=perhaps: allowed: 0 or 1"),
    ],
)
def test_what_is_wrong_in_the_section_is_told(tmp_path: Path, settings: Any, said: str) -> None:
    found, problems = read(tmp_path, {"settings": settings})
    assert found is None
    assert said in problems


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("setings: {}", "The key 'setings' is unknown. Did you mean settings?"),
        (
            "backends: [{url: 'http://a', wieght: 1}]",
            "backends[0]: wieght: unknown key. Did you mean weight?",
        ),
        ("backends: [{url: 'http://a', tls: {verfy: 1}}]", "tls.verfy: unknown key. Did you mean verify?"),
        ("models:\n  a: {model_pth: a.gguf}", "models.a.model_pth"),
        ("settings: {LOG_LEVEL: debug\n", "The file is not YAML"),
    ],
)
def test_unknown_keys_and_broken_files_are_told(tmp_path: Path, content: str, said: str) -> None:
    found, problems = read(tmp_path, content)
    assert found is None
    assert said in problems


def test_secrets_in_a_file_that_others_may_read_are_a_warning(tmp_path: Path) -> None:
    content = {
        "settings": {"NOVITA_API_KEY": KEY, "LOG_LEVEL": "info"},
        "backends": [{"url": "http://a"}, {"url": "http://b", "api_key": "k"}],
    }
    settings, problems = read(tmp_path, content, mode=0o644)
    assert settings is not None
    assert "holds secrets (settings.NOVITA_API_KEY, backends[1].api_key)" in problems
    assert "`chmod o-r` it" in problems
    assert KEY not in problems
    assert read(tmp_path, content, mode=0o640)[1] == ""


API = {"host": "0.0.0.0", "port": 8000, "cors_origins": ["http://localhost:3000", "https://a.example"]}


def listening(settings: Any) -> tuple[str, int, list[str]]:
    front = settings.front
    return front.proxy_host, front.proxy_port, front.cors_origins


def test_the_section_api_says_where_it_listens(tmp_path: Path) -> None:
    settings, problems = read(tmp_path, {"api": API}, APPLIANCE_API_KEYS="a-long-key")
    assert problems == ""
    assert listening(settings) == ("0.0.0.0", 8000, ["http://localhost:3000", "https://a.example"])
    assert listening(read(tmp_path, {"api": {"port": 8000}})[0]) == ("127.0.0.1", 8000, [])
    assert listening(read(tmp_path, {"api": {"host": "", "cors_origins": []}})[0]) == ("127.0.0.1", 14000, [])
    assert f"It is set in {tmp_path}/config.json." in read(tmp_path, {"api": API})[1]  # that the port is open


def test_variables_win_over_the_section_api_and_it_is_told(tmp_path: Path) -> None:
    variables = {"PROXY_HOST": "127.0.0.1", "PROXY_PORT": "15000", "CORS_ORIGINS": "https://b.example"}
    said = [
        f"CONFIG_PATH={tmp_path}/config.json: api.{key}: {variable} wins. Remove one of the two."
        for key, variable in (
            ("host", "PROXY_HOST=127.0.0.1"),
            ("port", "PROXY_PORT=15000"),
            ("cors_origins", "CORS_ORIGINS=https://b.example"),
        )
    ]
    settings, problems = read(tmp_path, {"api": API}, **variables)
    assert listening(settings) == ("127.0.0.1", 15000, ["https://b.example"])
    assert problems.splitlines() == said
    in_file, problems = read(tmp_path, {"api": API, "settings": variables})
    assert (listening(in_file), problems.splitlines()) == (listening(settings), said)
    of_platform, _ = read(tmp_path, {"api": {"port": 8000}}, PORT="15001")
    assert of_platform.front.proxy_port == 15001
    same = {"api": {"host": "::1", "port": 15000}}
    assert read(tmp_path, same, PROXY_HOST="::1", PROXY_PORT="15000")[1] == ""


@pytest.mark.parametrize(
    ("api", "said"),
    [
        ({"port": 80}, "api.port"),
        ({"port": "many"}, "api.port"),
        ({"host": 1}, "api.host"),
        ({"cors_origins": "http://a"}, "api.cors_origins"),
        ({"prot": 8000}, "Did you mean port?"),
        ([], "api"),
    ],
)
def test_wrong_values_of_the_section_api_are_refused(tmp_path: Path, api: Any, said: str) -> None:
    settings, problems = read(tmp_path, {"api": api})
    assert settings is None
    assert said in problems


def test_problem_of_a_setting_says_that_the_file_sets_it(tmp_path: Path) -> None:
    wrong = {"settings": {"HEARTBEAT_S": "soon"}}
    assert read(tmp_path, wrong)[1].endswith(f"to use 10.0. It is set in {tmp_path}/config.json.")
    assert read(tmp_path, wrong, HEARTBEAT_S="late")[1].endswith("to use 10.0.")


def test_proxies_may_stand_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("settings: {HTTPS_PROXY: 'http://proxy:3128', NO_PROXY: [a, b]}")
    environ, problems = effective_environ({"CONFIG_PATH": str(path)})
    assert problems == []
    assert (environ["HTTPS_PROXY"], environ["NO_PROXY"]) == ("http://proxy:3128", "a,b")


# ---- the page and the schema


def example() -> str:
    page = (ROOT / "docs" / "config-file.md").read_text()
    return page.split("```yaml\n")[1].split("```")[0]


def test_example_of_the_page_is_read_as_it_stands(tmp_path: Path) -> None:
    """Without the files that it names: the environment names others, and wins."""
    settings, problems = read(
        tmp_path,
        example(),
        LLAMA_SERVER_PATH=sys.executable,
        BASE_MODELS_PATH=str(tmp_path),
        NOVITA_API_KEY=KEY,
    )
    assert problems.splitlines() == [
        f"CONFIG_PATH=models.small.model_path: Model file not found: {tmp_path}/"
        "small.Q4_K_M.gguf. The model cannot be loaded until it exists."
    ]
    assert (settings.front.proxy_port, settings.engines.default_model) == (14010, "small")
    assert settings.catalogue.models["small"].aliases == ("gpt-4o-mini",)
    assert [spec.name for spec in settings.fleet.backends] == ["llm-1"]
    assert [adapter.name for adapter in settings.adapters] == ["style"]


def problems_by_schema(text: str) -> list[str]:
    schema = build_config_schema()
    checker = jsonschema.Draft202012Validator(schema)
    checker.check_schema(schema)
    value = parse_config(text.encode(), ".yaml")
    return [f"{list(error.path)}: {error.message}" for error in checker.iter_errors(value)]


def test_schema_takes_the_example_and_refuses_what_is_wrong() -> None:
    assert problems_by_schema(example()) == []
    assert problems_by_schema("settings: {NOVITA_API_KEY_FILE: /x, ACCESS_LOG: off, CORS_ORIGINS: a}") == []
    for wrong in (
        "settings: {LOG_LEVLE: info}",
        "settings: {LOG_LEVEL: loud}",
        "settings: {PROXY_PORT: 99999}",
        "settings: {CONFIG_PATH: /x}",
        "backends: [{url: 'http://a', wieght: 1}]",
        "adapters: [{name: a, path: /a}]",
        "models: {a: {model_path: a.gguf, force: {stream: true}}}",
        "setings: {}",
    ):
        assert len(problems_by_schema(wrong)) == 1, wrong


def test_schema_has_every_setting() -> None:
    rows = build_config_schema()["properties"]["settings"]["properties"]
    assert set(setting_fields()) - set(rows) == {"CONFIG_PATH", "APPLIANCE_ENV_FILE"}


@pytest.mark.parametrize(
    "content",
    [
        {"models": {"a": {"env": {"T": "canary-1"}}}},
        {
            "models": {
                "a": {"model_path": "a.gguf", "pin": True, "idle_timeout_sec": 5, "env": {"T": "canary-1"}}
            }
        },
        {"models": {"a": {"command": "serve --api-key canary-1 ${PORT}", "extra_args": ["--x"]}}},
        {"models": {"a": {"model_path": "a.gguf", "env": {"T": ["canary-1"]}}}},
        {"models": [{"api_key": "canary-1"}]},
        {"backends": [{"url": "ftp://user:canary-1@host"}]},
        {"backends": [{"url": "http://user:canary-1@host"}]},
        {"backends": [{"url": "http://host", "api_key": ["canary-1"]}]},
        {"settings": {"BACKENDS": "http://user:canary-1@host,ftp://user:canary-1@host"}},
        {"settings": {"NOVITA_API_KEY": "k", "NOVITA_OPENAI_ENDPOINTS": "http://user:canary-1@host"}},
        {"settings": {"APPLIANCE_API_KEYS": {"canary-1": "canary-1"}}},
    ],
)
def test_no_problem_shows_what_may_be_a_secret(tmp_path: Path, content: Any) -> None:
    found, problems = read(tmp_path, content)
    assert found is None
    assert problems
    assert "canary-1" not in problems


def test_problem_is_one_line_that_controls_no_terminal(tmp_path: Path) -> None:
    found, problems = read(tmp_path, {"settings": {"PROXY_PORT": "\x1b]0;title\x07\x1b[31m80\nerror: x"}})
    assert found is None
    assert "PROXY_PORT=80\\nerror: x: allowed: a whole number" in problems
    assert "\x1b" not in problems


def test_key_of_a_json_object_that_is_there_twice_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"settings": {"LOG_LEVEL": "info", "LOG_LEVEL": "debug"}}')
    found, problems = load({"CONFIG_PATH": str(path), "STATE_DIR": str(tmp_path)})
    assert found is not None
    assert found.general.log_level == "debug"
    assert "The key 'LOG_LEVEL' is there twice in one object" in str(problems[0])
