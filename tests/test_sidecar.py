"""`appliance sidecar`: compatible flags and defaults, health, readiness of the engine, errors as `{detail}`."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.base.settings import InvalidSettings
from appliance.sidecar import SidecarOptions, parse, running, sidecar_settings
from tests.journeys.llama_servers import Llama
from tests.journeys.model_tables import Managed
from tests.journeys.running import free_port


def get(url: str, method: str = "GET") -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@contextlib.asynccontextmanager
async def beside(url: str, tmp_path: Path, **more: Any) -> AsyncIterator[str]:
    """A sidecar in this process; yields its address."""
    options = SidecarOptions("llamacpp", "127.0.0.1", 0, url, **more)
    settings, _ = sidecar_settings(
        options, {"STATE_DIR": str(tmp_path / "state"), "METRICS_CACHE_TTL_SECONDS": "0.2"}
    )
    async with running(options, settings) as addresses:
        yield f"http://{addresses[0][0]}:{addresses[0][1]}"


def test_flags_and_defaults_are_the_compatible_ones() -> None:
    assert parse(["-E", "vllm"]) == SidecarOptions(
        "vllm", "0.0.0.0", 9000, "http://localhost:8000", "/metrics", "", ""
    )
    assert parse(
        [
            "--engine",
            "sglang",
            "--host",
            "127.0.0.1",
            "--port",
            "9001",
            "--engine-base-url",
            "http://e:1/",
            "--engine-metrics-path",
            "/m",
            "--pod",
            "p-0",
            "--model",
            "qwen",
        ]
    ) == SidecarOptions("sglang", "127.0.0.1", 9001, "http://e:1", "/m", "p-0", "qwen")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "-E/--engine"),
        (["-E", "tgi"], "vllm"),
        (["-E", "vllm", "-P", "70000"], "0 to 65535"),
        (["-E", "vllm", "-M", "metrics"], "begin with /"),
    ],
    ids=["no engine", "an unknown engine names those there are", "no port", "no path"],
)
def test_a_wrong_command_line_is_refused_with_a_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_an_invalid_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="engine-base-url"):
        sidecar_settings(SidecarOptions("vllm", base_url="ftp://x"), {"STATE_DIR": str(tmp_path)})


def test_its_own_address_is_refused(tmp_path: Path) -> None:
    options = SidecarOptions("vllm", port=9000, base_url="http://localhost:9000")
    with pytest.raises(InvalidSettings, match="This is the sidecar's own address"):
        sidecar_settings(options, {"STATE_DIR": str(tmp_path)})


def test_settings_name_one_engine_and_no_other_backend(tmp_path: Path) -> None:
    settings, _ = sidecar_settings(
        SidecarOptions("vllmdisaggregated"),
        {"STATE_DIR": str(tmp_path), "NOVITA_API_KEY": "k", "BACKENDS": "http://other:1"},
    )
    assert [(one.kind, one.url) for one in settings.fleet.backends] == [("vllm", "http://localhost:8000")]
    assert not settings.engines.novita_api_key.get_secret_value()


SHARED = {
    "settings": {
        "HEARTBEAT_S": 3,
        "NOVITA_API_KEY": "sk-of-the-appliance",
        "LB_OVERFLOW": "hosted",
        "BACKENDS": "http://other:1",
        "APPLIANCE_API_KEYS": ["long-enough-key"],
    },
    "backends": [{"url": "http://llm-1:8080", "api_key_env": "NOT_SET_HERE"}],
    "pools": [{"name": "default", "overflow": "nowhere"}],
    "models": {"chat": {"model_path": "/not/here.gguf"}},
    "system": {"llama_server_path": "/not/here"},
    "adapters": [{"name": "style", "path": "/adapters/style.gguf", "base_model": "chat"}],
}


def test_the_configuration_file_is_read_but_for_other_backends(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SHARED))
    file.chmod(0o600)
    environ = {"STATE_DIR": str(tmp_path), "CONFIG_PATH": str(file)}
    settings, problems = sidecar_settings(SidecarOptions("vllm"), environ)
    assert problems == []
    assert settings.front.heartbeat_s == 3
    assert settings.front.appliance_api_keys.get_secret_value() == "long-enough-key"
    assert not settings.engines.novita_api_key.get_secret_value()
    assert [one.url for one in settings.fleet.backends] == ["http://localhost:8000"]
    assert [one.name for one in settings.adapters] == ["style"]
    assert settings.files == [file]
    own, _ = sidecar_settings(SidecarOptions("vllm"), {**environ, "HEARTBEAT_S": "4"})
    assert own.front.heartbeat_s == 4


def test_variables_of_an_environment_file_name_no_other_backend(tmp_path: Path) -> None:
    lines = tmp_path / "env"
    file = tmp_path / "config.yaml"
    file.write_text("settings: {HEARTBEAT_S: 5}\n")
    lines.write_text(f"NOVITA_API_KEY=sk-1\nLB_OVERFLOW=hosted\nCONFIG_PATH={file}\n")
    environ = {"STATE_DIR": str(tmp_path), "APPLIANCE_ENV_FILE": str(lines)}
    settings, _ = sidecar_settings(SidecarOptions("vllm"), environ)
    assert not settings.engines.novita_api_key.get_secret_value()
    assert settings.front.heartbeat_s == 5


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"settings": {"HEARTBEAT": 3}}, "settings.HEARTBEAT: "),
        ({"settings": {"HEARTBEAT_S": "soon"}}, "HEARTBEAT_S=soon"),
        ({"setings": {}}, "The key 'setings' is unknown"),
        ({"adapters": [{"name": "x"}]}, "adapters"),
        ([], "The file must hold one JSON object"),
    ],
)
def test_a_wrong_configuration_file_is_refused(tmp_path: Path, value: Any, words: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(value))
    with pytest.raises(InvalidSettings, match=re.escape(words)):
        sidecar_settings(SidecarOptions("vllm"), {"STATE_DIR": str(tmp_path), "CONFIG_PATH": str(file)})


async def test_a_changed_configuration_file_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("settings: {APPLIANCE_API_KEYS: first-long-key}\n")
    environ = {"STATE_DIR": str(tmp_path / "state"), "CONFIG_PATH": str(file), "CONFIG_WATCH": "1"}
    options = SidecarOptions("llamacpp", "127.0.0.1", 0, f"http://127.0.0.1:{free_port()}")
    settings, _ = sidecar_settings(options, environ)
    async with running(options, settings) as addresses:
        url = f"http://{addresses[0][0]}:{addresses[0][1]}/v1/lora_adapters"

        async def statuses() -> list[int]:
            return [
                await asyncio.to_thread(status_with, url, key)
                for key in ("first-long-key", "second-long-key")
            ]

        assert await statuses() == [200, 401]
        other = tmp_path / "new"
        other.write_text("settings: {APPLIANCE_API_KEYS: second-long-key}\n")
        other.replace(file)
        for _ in range(200):
            if await statuses() == [401, 200]:
                break
            await asyncio.sleep(0.05)
        assert await statuses() == [401, 200]


def status_with(url: str, key: str) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_health_does_not_depend_on_the_engine(tmp_path: Path) -> None:
    async with beside(f"http://127.0.0.1:{free_port()}", tmp_path) as url:
        assert await _get(url + "/health") == (200, {"status": "healthy", "service": "runtime"})


async def test_readiness_follows_a_real_engine(llama: Llama, tmp_path: Path) -> None:
    server = await llama()
    async with beside(server.url, tmp_path) as url:
        assert await _comes_to(url, 200)
        value: Any = {}
        for _ in range(200):  # it is asked for its models right after its health
            _, value = await _get(url + "/ready")
            if value["engine"]["models"]:
                break
            await asyncio.sleep(0.05)
        assert (value["status"], value["engine"]["kind"], value["engine"]["models"]) == (
            "ready",
            "llamacpp",
            ["tiny"],
        )
        server.kill9()
        assert await _comes_to(url, 503)
        await server.restart()
        assert await _comes_to(url, 200)


async def test_a_real_engines_metrics_have_three_names(llama: Llama, tmp_path: Path) -> None:
    server = await llama()
    async with beside(server.url, tmp_path) as url:
        page = await asyncio.to_thread(_text, url + "/metrics")
        assert "llamacpp:requests_processing 0" in page
        assert "kthena:generation_tokens_total 0" in page
        assert "engine_scrape_up 1" in page
        server.kill9()
        assert (await _get(url + "/metrics"))[0] == 502


async def test_adapters_and_downloads_have_the_compatible_addresses(tmp_path: Path) -> None:
    async with beside(f"http://127.0.0.1:{free_port()}", tmp_path) as url:
        assert (await _get(url + "/v1/lora_adapters"))[0] == 200
        assert await _get(url + "/v1/jobs") == (200, {"jobs": []})
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/download_model"):
            status, value = await _get(url + path, "POST")
            assert (status, list(value)) == (400, ["detail"]), path


async def test_errors_are_details(tmp_path: Path) -> None:
    async with beside(f"http://127.0.0.1:{free_port()}", tmp_path) as url:
        assert await _get(url + "/nothing") == (404, {"detail": "There is nothing at /nothing."})
        status, value = await _get(url + "/health", "POST")
        assert (status, list(value)) == (405, ["detail"])


def test_the_verb_serves_until_it_is_stopped(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance", "sidecar", "-E", "vllm", "-P", str(port), "-H", "127.0.0.1"],
        env={"STATE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                assert get(f"http://127.0.0.1:{port}/health")[0] == 200
                break
            assert process.poll() is None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        process.terminate()
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 0, said
        assert "stopped" in said
    finally:
        process.kill()


async def _get(url: str, method: str = "GET") -> tuple[int, Any]:
    return await asyncio.to_thread(get, url, method)


async def _comes_to(url: str, status: int) -> bool:
    for _ in range(600):
        if (await _get(url + "/ready"))[0] == status:
            return True
        await asyncio.sleep(0.05)
    return False


def _text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())


async def test_in_the_appliance_it_shows_a_server_or_a_local_model(
    managed: Managed,
) -> None:
    port = free_port()
    house = await managed("a", variables={"SIDECAR_PORT": str(port)})
    url = f"http://127.0.0.1:{port}"
    status, value = await _get(url + "/ready")
    assert (status, value["engine"]["kind"], value["engine"]["models"]) == (200, "managed", ["a"])
    assert (await _get(url + "/metrics"))[0] == 502  # nothing is loaded
    await house.chat("a")
    assert "kthena:generation_tokens_total" in await asyncio.to_thread(_text, url + "/metrics")
    row = (await _get(house.running.v1 + "/models"))[1]["data"][0]
    assert (row["n_ctx"], row["max_model_len"]) == (8192, 4096)  # of two slots
