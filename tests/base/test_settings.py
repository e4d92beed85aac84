"""Settings: every problem at once, secrets from files, typos found, and the generated example file."""

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, create_model

from appliance.__main__ import main
from appliance.base.settings import HIDDEN, PackageSettings, describe_allowed
from appliance.settings import described, load

ROOT = Path(__file__).parent.parent.parent


def problems(**environ: str):
    settings, found = load(environ)
    return settings, {p.variable: p for p in found}


def test_defaults_are_valid() -> None:
    settings, found = problems()
    assert settings is not None
    assert found == {}


def test_every_problem_is_named_at_once_with_range_and_remedy() -> None:
    settings, found = problems(
        PROXY_PORT="99999",
        STREAM_CHUNK_SIZE="zero",
        GPU_MODE="fake",
        NOVITA_OPENAI_ENDPOINTS="ftp://x",
        WORKER="kuzco",
        GPU_SPOOF_UUID="GPU-1",
        CONTROL_HOST="0.0.0.0",
    )
    assert settings is None
    assert found["PROXY_PORT"].allowed == "a whole number from 1 to 65535"
    assert found["GPU_MODE"].allowed == "auto, real, simulated, none"
    assert {"STREAM_CHUNK_SIZE", "NOVITA_OPENAI_ENDPOINTS", "CODE", "GPU_SPOOF_UUID"} <= set(found)
    assert all(p.remedy for p in found.values())


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GPU_SPOOF_PCI_BUS_ID", "0000:1"),
        ("GPU_SPOOF_DRIVER", "new"),
        ("GPU_SPOOF_MEMORY_TOTAL", "lots"),
        ("GPU_SPOOF_NAME", "a,b"),
        ("GPU_SIM_COUNT", "17"),
        ("GPU_SPOOF_STATE_DIR", "relative"),
        ("STREAM_DELAY_MS", "-1"),
        ("UPSTREAM_STREAMING", "maybe"),
        ("KEEPALIVE", "perhaps"),
        ("APPLIANCE_API_KEYS", "short"),
        ("NOVITA_OPENAI_ENDPOINTS", "https://user:pass@host/v1"),
        ("HEARTBEAT_S", "-1"),
        ("MAX_BODY_BYTES", "1"),
    ],
)
def test_each_bad_value_is_refused(variable: str, value: str) -> None:
    settings, found = problems(**{variable: value})
    assert settings is None
    assert list(found) == [variable]


@pytest.mark.parametrize(
    ("variable", "hint", "fatal"),
    [
        ("APPLIANCE_API_KEY", "APPLIANCE_API_KEYS", True),
        ("APPLIANCE_NONSENSE_XYZ", "appliance settings", True),
        ("NOVITA_API_KEYS", "NOVITA_API_KEY", False),
        ("STREAM_CHUNKSIZE", "STREAM_CHUNK_SIZE", False),
    ],
)
def test_typos_are_reported_with_a_suggestion(variable: str, hint: str, fatal: bool) -> None:
    settings, found = problems(**{variable: "value-000"})
    assert hint in found[variable].remedy
    assert found[variable].is_fatal is fatal
    assert (settings is None) is fatal
    assert "value-000" not in str(found[variable])


def test_foreign_variables_are_ignored() -> None:
    assert (
        problems(PATH="/bin", HOME="/x", KUBERNETES_SERVICE_HOST="1", PYTHONPATH="x", NO_COLOR="1")[1] == {}
    )


def test_secrets_come_from_a_file_or_the_variable_not_both(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk_from_file_000\n")
    settings, _ = problems(NOVITA_API_KEY_FILE=str(tmp_path / "key"))
    assert settings.engines.novita_api_key.get_secret_value() == "sk_from_file_000"
    assert (
        "NOVITA_API_KEY_FILE" in problems(NOVITA_API_KEY_FILE=str(tmp_path / "key"), NOVITA_API_KEY="sk_x")[1]
    )
    assert (
        "cannot be read"
        in problems(NOVITA_API_KEY_FILE=str(tmp_path / "none"))[1]["NOVITA_API_KEY_FILE"].remedy
    )
    (tmp_path / "key").write_text("")
    assert "empty" in problems(NOVITA_API_KEY_FILE=str(tmp_path / "key"))[1]["NOVITA_API_KEY_FILE"].remedy


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "allowed: a file that holds the secret. The file is empty. Write the secret into it."),
        (
            b"\xff",
            "allowed: a readable text file. It cannot be read: not a text file. Mount the secret there",
        ),
        (None, "allowed: a readable text file. It cannot be read: No such file or directory."),
    ],
)
def test_unusable_secret_file_is_reported(tmp_path: Path, content: bytes | None, text: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    settings, found = problems(NOVITA_API_KEY_FILE=str(tmp_path / "key"))
    assert settings is None
    assert text in str(found["NOVITA_API_KEY_FILE"])
    both = problems(NOVITA_API_KEY_FILE=str(tmp_path / "key"), NOVITA_API_KEY="sk_000000")[1]
    assert "Both are set; unset one of them." in str(both["NOVITA_API_KEY_FILE"])


@pytest.mark.parametrize(
    ("annotation", "options", "text"),
    [
        (int, {"ge": 1, "le": 5}, "a whole number from 1 to 5"),
        (int, {"ge": 1}, "a whole number of at least 1"),
        (float, {"gt": 0}, "a number above 0"),
        (float, {"gt": 0, "le": 2}, "a number from above 0 to 2"),
        (float, {}, "a number"),
        (bool, {}, "0 or 1"),
        (Literal["a", "b"], {}, "a, b"),
        (list[str], {}, "a list"),
        (str, {}, "text"),
        (str, {"json_schema_extra": {"allowed": "a colour"}}, "a colour"),
    ],
)
def test_allowed_values_are_described(annotation: Any, options: dict[str, Any], text: str) -> None:
    model = create_model("Some", __base__=PackageSettings, field=(annotation, Field(..., **options)))
    assert describe_allowed(model.model_fields["field"]) == text


def test_secrets_are_hidden_in_problems_and_descriptions() -> None:
    _, found = problems(APPLIANCE_API_KEYS="tiny-1")
    assert "tiny-1" not in str(found["APPLIANCE_API_KEYS"])
    settings, _ = load({"NOVITA_API_KEY": "sk_secret_000000"})
    rows = {r.variable: r for r in described(settings, {"NOVITA_API_KEY": "sk_secret_000000"})}
    assert rows["NOVITA_API_KEY"].value == HIDDEN


def test_open_access_is_warned_of() -> None:
    settings, found = problems(PROXY_HOST="0.0.0.0")
    assert settings is not None
    assert "every client that reaches it" in found["PROXY_HOST"].remedy
    assert problems(PROXY_HOST="0.0.0.0", APPLIANCE_API_KEYS="long-enough-key")[1] == {}


def test_a_worker_beside_an_open_control_api_is_warned_of() -> None:
    settings, found = problems(WORKER_COMMAND="true")
    assert settings is not None
    assert "send the hosted key elsewhere" in found["CONTROL_TOKEN"].remedy
    assert problems(WORKER_COMMAND="true", CONTROL_TOKEN="token-0123456789")[1] == {}
    assert problems(WORKER_COMMAND="true", CONTROL="0")[1] == {}


def test_environment_wins_over_the_environment_file(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# comment\nexport STREAM_CHUNK_SIZE='7'\nSTREAM_DELAY_MS=5\n")
    settings, _ = problems(APPLIANCE_ENV_FILE=str(path), STREAM_DELAY_MS="9")
    assert (settings.engines.stream_chunk_size, settings.engines.stream_delay_ms) == (7, 9)
    path.write_text("no equals sign\n")
    assert "Line 1" in problems(APPLIANCE_ENV_FILE=str(path))[1]["APPLIANCE_ENV_FILE"].remedy


def test_model_table_is_read_with_the_settings(tmp_path: Path) -> None:
    config, program = (
        tmp_path / "config.json",
        {"LLAMA_SERVER_PATH": sys.executable, "CONFIG_PATH": str(tmp_path / "config.json")},
    )
    (tmp_path / "a.gguf").touch()
    config.write_text(
        '{"$schema": "x", "backends": [], "models": {"a": {"model_path": "a.gguf"}, '
        '"b": {"model_path": "b.gguf"}}}'
    )
    settings, found = load(program)
    assert set(settings.catalogue.models) == {"a", "b"}
    assert [(p.is_fatal, p.value) for p in found] == [(False, "models.b.model_path")]
    config.write_text('{"oops": 1, "models": {"a": {"model_path": "a.bin"}}, "system": {"cpu_threads": 0}}')
    settings, found = load({**program, "PROXY_PORT": "99999"})
    assert settings is None
    assert [p.variable for p in found] == ["PROXY_PORT", "CONFIG_PATH", "CONFIG_PATH", "CONFIG_PATH"]
    for said in ("oops", "models.a.model_path", "system.cpu_threads"):
        assert any(said in str(p) for p in found)
    config.write_text("{")
    assert len(load(program)[1]) == 1


def test_models_without_llama_server_stop_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("LLAMA_SERVER_PATH", "/no/such")
    assert main(["check"]) == 0  # no models, no program needed
    (tmp_path / "a.gguf").touch()
    for verb in (["check"], ["serve"], ["models", "check"]):
        assert main(verb) == 78
        assert (
            "error: LLAMA_SERVER_PATH=/no/such: allowed: a program. llama-server not found: /no/such"
            in capsys.readouterr().err
        )


def test_example_file_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "etc" / "appliance.env.example").read_text()
    lines = [
        line[1:] for line in text.splitlines() if line.startswith("#") and "=" in line and line[1:2].isupper()
    ]
    path = tmp_path / "env"
    path.write_text("\n".join(line for line in lines if not line.startswith("APPLIANCE_ENV_FILE")))
    settings, found = problems(APPLIANCE_ENV_FILE=str(path))
    assert settings is not None, found


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["version"], 0, "0."),
        (["--help"], 0, "healthcheck"),
        ([], 2, ""),
        (["nonsense"], 2, ""),
        (["check", "more"], 2, ""),
        (["settings"], 0, "STREAM_CHUNK_SIZE"),
        (["settings", "--json"], 0, '"variable"'),
        (["settings", "--what"], 2, ""),
    ],
)
def test_the_verbs(capsys: pytest.CaptureFixture[str], words: list[str], code: int, text: str) -> None:
    assert main(words) == code
    assert text in capsys.readouterr().out


def test_check_exits_with_78(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PROXY_PORT", "x")
    monkeypatch.setenv("STREAM_CHUNK_SIZE", "-3")
    assert main(["check"]) == 78
    err = capsys.readouterr().err
    assert "PROXY_PORT=x" in err
    assert "STREAM_CHUNK_SIZE=-3" in err
    assert main(["serve"]) == 78


def test_port_is_used_without_proxy_port() -> None:
    """For compatibility, see docs/compatibility.md; many hosting services set it."""
    for environ, port in (
        ({"PORT": "8888"}, 8888),
        ({"PORT": "8888", "PROXY_PORT": "9999"}, 9999),
        ({"PORT": ""}, 14000),
    ):
        settings, _ = load(environ)
        assert settings is not None
        assert settings.front.proxy_port == port
    settings, problems = load({"PORT": "eighty"})
    assert settings is None
    assert [p.variable for p in problems if p.is_fatal] == ["PORT"]
