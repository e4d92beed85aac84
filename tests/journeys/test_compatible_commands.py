"""The commands of the guides that the appliance answers for, as they stand there, with curl (docs/compatibility.md).

Only addresses, keys, folders and models' files are others. What needs a container is in tests/image/test_compatible_commands.py.
"""

import asyncio
import contextlib
import json
import shlex
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from aiohttp import web
from moto.server import ThreadedMotoServer

from appliance.sidecar import parse, running, sidecar_settings
from tests.fakes.engine_server import EngineServer
from tests.fakes.file_hubs import Hub
from tests.fakes.hosted_api import KEY, MODEL_REPLY, HostedApi
from tests.fakes.lora_engines import LoraEngine
from tests.journeys.llama_servers import Llama
from tests.journeys.model_tables import Managed
from tests.journeys.running import Spawn, Start, free_port, until
from tests.tools.tiny_models import REPLY

# ---- Novita relay

RELAY_HEALTH = "curl http://localhost:14000/healthz"
RELAY_CHAT = """curl -sS -X POST http://localhost:14000/v1/chat/completions -H "Content-Type: application/json" -d '{"model":"bebas-aja","messages":[{"role":"user","content":"Halo!"}]}' | jq"""
RELAY_STREAM = """curl -N -X POST http://localhost:14000/v1/chat/completions -H "Content-Type: application/json" -d '{"model":"apa-aja","messages":[{"role":"user","content":"Jelaskan fungsi kamu."}],"stream":true}'"""

# ---- Inference Engine Proxy

PROXY_HEALTH = "curl http://localhost:8888/health"
PROXY_CHAT = r"""curl http://localhost:8888/v1/chat/completions \
  -H "Content-Type: application/json" \
  -d '{
    "model": "your-model-q4_0.gguf",
    "messages": [
      {
        "role": "system",
        "content": "You are a helpful assistant."
      },
      {
        "role": "user",
        "content": "你好，請介紹一下台灣雲林縣。"
      }
    ],
    "stream": true
  }'"""

# ---- RouterModelCustom

ROUTER_TABLE = """{
    "api": {
        "host": "0.0.0.0",
        "port": 8000
    },
    "system": {
        "idle_timeout_sec": 300,
        "llama_server_path": "/app/llama-server",
        "max_concurrent_models": 2,
        "gpu_devices": [0],
        "flash_attention": "on"
    },
    "models": {
        "qwen3-4b-chat": {
            "model_path": "/app/models/Qwen3-4B-Instruct.gguf",
            "params": {
                "n_gpu_layers": 99,
                "n_ctx": 4096
            }
        }
    }
}"""
ROUTER_CHAT = r"""curl http://localhost:8000/v1/chat/completions \
  -H "Content-Type: application/json" \
  -d '{
    "model": "qwen3-4b-chat",
    "messages": [
      {"role": "user", "content": "Hello, how are you?"}
    ]
  }'"""

# ---- Kthena runtime

RUNTIME_OPTIONS = (
    "--engine vllm --engine-base-url http://host.docker.internal:8000 --engine-metrics-path /metrics"
)
RUNTIME_METRICS = "curl -s http://localhost:9000/metrics"
LOAD_NOW = r"""curl -X POST http://localhost:9000/v1/load_lora_adapter \
  -H 'Content-Type: application/json' \
  -d '{
        "lora_name": "my-lora",
        "source": "hf://myorg/my-lora-repo",
        "output_dir": "/models/my-lora",
        "config": {"hf_token": "<token>"},
        "max_workers": 8,
        "async_download": false
      }'"""
LOAD_LATER = r"""curl -X POST http://localhost:9000/v1/load_lora_adapter \
  -H 'Content-Type: application/json' \
  -d '{
        "lora_name": "my-lora",
        "source": "s3://bucket/path/to/lora",
        "output_dir": "/models/my-lora",
        "config": {"access_key": "...", "secret_key": "...", "endpoint": "..."},
        "async_download": true
      }'"""
UNLOAD = r"""curl -X POST http://localhost:9000/v1/unload_lora_adapter \
  -H 'Content-Type: application/json' \
  -d '{"lora_name": "my-lora"}'"""
DOWNLOAD_NOW = r"""curl -X POST http://localhost:9000/v1/download_model \
  -H 'Content-Type: application/json' \
  -d '{
        "source": "hf://mistralai/Mistral-7B-Instruct-v0.3",
        "output_dir": "/models/mistral",
        "config": {"hf_token": "<token>"},
        "max_workers": 8
      }'"""
DOWNLOAD_LATER = r"""curl -X POST http://localhost:9000/v1/download_model \
  -H 'Content-Type: application/json' \
  -d '{
        "source": "s3://bucket/path/to/model",
        "output_dir": "/models/modelA",
        "config": {"access_key": "...", "secret_key": "...", "endpoint": "..."},
        "async_download": true
      }'"""
BUCKET = '"access_key": "...", "secret_key": "...", "endpoint": "..."'


async def run(command: str, **others: str) -> str:
    """Run a command in a shell; return what it prints. `others`: what is put in the place of what, by a name."""
    for was_and_is in others.values():
        was, _, now = was_and_is.partition(" → ")
        assert was in command, (was, command)
        command = command.replace(was, now)
    if shutil.which("jq") is None:
        command = command.removesuffix(" | jq")
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(shell.communicate(), 60)
    assert shell.returncode == 0, err.decode()
    return out.decode()


async def ask(command: str, **others: str) -> Any:
    """Run a command; return its answer's JSON."""
    return json.loads(await run(command, **others))


def text_of(stream: str) -> str:
    """Return the text of a stream of chat chunks, which must be whole."""
    *events, last = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data:")]
    assert last == "[DONE]"
    choices = [json.loads(event)["choices"] for event in events]
    return "".join(choice[0]["delta"].get("content") or "" for choice in choices if choice)


async def test_commands_of_novita_relay(start: Start, hosted: HostedApi) -> None:
    relay = await start(
        NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url, CODE="YOUR_INFERENCE_CODE"
    )
    place = f"http://localhost:14000 → {relay.base_url}"
    health = await ask(RELAY_HEALTH, place=place)
    assert health["ok"] is True
    assert set(health) >= {"public_model", "upstream_base", "aliases", "novita_endpoints"}
    chat = await ask(RELAY_CHAT, place=place)
    assert chat["choices"][0]["message"]["content"] == MODEL_REPLY
    assert (
        chat["model"] == health["public_model"]
    )  # whatever name was asked for; the hosted API's own goes up
    assert [record.body["model"] for record in hosted.records] == [health["upstream_base"]]
    assert text_of(await run(RELAY_STREAM, place=place)) == MODEL_REPLY


async def test_commands_of_inference_engine_proxy(start: Start, llama: Llama) -> None:
    """The variables are those of its .env; the servers are real."""
    one, two = await llama(), await llama()
    urls = [one.url, two.url]
    proxy = await start(
        BACKENDS=",".join(urls),
        MODEL_DIR="/path/to/your/models",
        MODEL="your-model-q4_0.gguf",
        PORT="8888",
        METRICS_CACHE_TTL_SECONDS="3",
        BACKEND_TIMEOUT_SECONDS="300",
        MAX_ALLOWED_REQUEST_QUEUE="6",
        MAX_ALLOWED_DEFERRED="3",
    )
    place = f"http://localhost:8888 → {proxy.base_url}"
    health = await ask(PROXY_HEALTH, place=place)
    assert health["status"] == "ok"
    assert sorted(health["available_backends"]) == sorted(urls)
    assert (health["total_backends"], len(health["details"])) == (2, 2)
    assert isinstance(health["timestamp"], float)
    model = f"your-model-q4_0.gguf → {one.get('/v1/models')['data'][0]['id']}"
    assert text_of(await run(PROXY_CHAT, place=place, model=model)) == REPLY


def test_the_table_and_commands_of_router_model_custom(
    spawn: Spawn, llama_binary: str, tiny_models: Path, tmp_path: Path
) -> None:
    """Its config.json, with other paths and another port, says where the appliance listens."""
    port = free_port()
    table = ROUTER_TABLE.replace("/app/llama-server", llama_binary)
    table = table.replace("/app/models/Qwen3-4B-Instruct.gguf", str(tiny_models / "tiny-chat.gguf"))
    (tmp_path / "config.json").write_text(table.replace("8000", str(port)))
    house = spawn(wait=False, CONFIG_PATH=str(tmp_path / "config.json"), PROXY_PORT="", APPLIANCE_API_KEYS="")

    async def commands() -> None:
        place = f"http://localhost:8000 → http://localhost:{port}"
        for _ in range(200):
            with contextlib.suppress(AssertionError):
                await run(f"curl -fsS http://localhost:{port}/healthz")
                break
            await asyncio.sleep(0.1)
        chat = await ask(ROUTER_CHAT, place=place)
        assert chat["choices"][0]["message"]["content"] == REPLY
        listed = await ask(f"curl -s http://localhost:{port}/v1/models")
        assert [row["id"] for row in listed["data"]] == ["qwen3-4b-chat"]

    asyncio.run(commands())
    assert f'"0.0.0.0:{port}"' in house.text()


ROUTER_ADDRESSES = {
    "/health": {"status", "checks"},
    "/vram": {"gpu_info", "models", "loaded_models_count", "can_load_more", "status"},
    "/v1/health/models": {"qwen3-4b-chat"},
    "/v1/queue/stats": {"summary", "per_model"},
    "/v1/telemetry/summary": {
        "total_requests",
        "successful",
        "failed",
        "success_rate",
        "response_time_stats",
        "per_model",
    },
    "/v1/models/qwen3-4b-chat/status": {"model", "status", "port"},
    "/v1/models/failed": {"failed_models"},
    "/v1/models/status": {"server", "models", "summary"},
    "/v1/models/status/qwen3-4b-chat": {"alias", "status", "port"},
    "/v1/models/status/file": {"server", "models"},
}


async def test_addresses_of_router_model_custom(managed: Managed) -> None:
    """Each address of its list, after one chat."""
    house = await managed("qwen3-4b-chat")
    base = house.running.base_url
    await ask(ROUTER_CHAT, place=f"http://localhost:8000 → {base}")
    for path, keys in ROUTER_ADDRESSES.items():
        assert set(await ask(f"curl -fsS {base}{path}")) >= keys, path
    states = (await ask(f"curl -s {base}/v1/models/status"))["models"]
    assert states["qwen3-4b-chat"]["status"] in ("ready", "loaded")
    page = await run(f"curl -s {base}/metrics")
    assert "router_requests_total" in page
    body = """-H 'Content-Type: application/json' -d '{"model": "qwen3-4b-chat"}'"""
    ejected = await ask(f"curl -s -X POST {base}/v1/models/eject {body}")
    assert (ejected["status"], ejected["model_ejected"]) == ("success", "qwen3-4b-chat")
    reset = await ask(f"curl -s -X POST {base}/v1/models/qwen3-4b-chat/reset")
    assert set(reset) >= {"status", "model", "message"}
    stream = await run(f"curl -sN --max-time 1 {base}/v1/models/status/stream || true")
    assert stream.startswith("event: full_status\ndata: {")


async def test_an_event_source_follows_models_as_there(managed: Managed) -> None:
    """What the frontend of its guide listens for."""
    house = await managed("qwen3-4b-chat")
    base = house.running.base_url
    following = asyncio.create_task(run(f"curl -sN --max-time 3 {base}/v1/models/status/stream || true"))
    await until(lambda: house.running.appliance.pipeline.in_flight > 0, seconds=2)
    await ask(ROUTER_CHAT, place=f"http://localhost:8000 → {base}")
    events = [block.split("\n") for block in (await following).strip().split("\n\n")]
    assert [kind.removeprefix("event: ") for kind, *_ in events][:1] == ["full_status"]
    updates = [
        json.loads(data.removeprefix("data: ")) for kind, data in events if kind == "event: model_update"
    ]
    assert {update["alias"] for update in updates} == {"qwen3-4b-chat"}
    assert updates[-1]["status"] in ("ready", "loaded")


@contextlib.asynccontextmanager
async def runtime(engine: EngineServer, folder: Path, **variables: str) -> AsyncIterator[str]:
    """The sidecar with the options of the guide, beside a stand-in for vLLM; yields its address."""
    words = RUNTIME_OPTIONS.replace("http://host.docker.internal:8000", engine.url)
    options = parse([*shlex.split(words), "--host", "127.0.0.1", "--port", "0"])
    environ = {
        "STATE_DIR": str(folder / "state"),
        "DOWNLOAD_ALLOWED_DIRS": str(folder / "models"),
        **variables,
    }
    settings, _ = sidecar_settings(options, environ)
    async with running(options, settings) as addresses:
        yield f"http://127.0.0.1:{addresses[0][1]}"


@pytest.fixture
def bucket_of_adapters() -> Any:
    """The bucket that the guide names, on a real S3 server (moto); yields its endpoint."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    )
    client.create_bucket(Bucket="bucket")
    files = ("path/to/lora/adapter_model.safetensors", "path/to/model/model.safetensors")
    for name in files:
        client.put_object(Bucket="bucket", Key=name, Body=b"weights")
    yield url
    for name in files:
        client.delete_object(Bucket="bucket", Key=name)
    client.delete_bucket(Bucket="bucket")
    client.close()
    server.stop()


async def test_commands_of_kthena_runtime(tmp_path: Path, bucket_of_adapters: str) -> None:
    files = {"config.json": b"{}", "adapter_model.safetensors": b"weights"}
    models, folder = tmp_path / "models", "/models/"
    models.mkdir()
    async with (
        LoraEngine("vllm") as engine,
        Hub(files) as hub,
        runtime(engine, tmp_path, HF_ENDPOINT=hub.url, DOWNLOAD_ALLOWED_HOSTS="127.0.0.1") as url,
    ):
        hub.token = "<token>"  # it is refused without
        place = {"place": f"http://localhost:9000 → {url}"}
        both = place | {"folder": f"{folder} → {models}/"}
        bucket = both | {
            "bucket": f"{BUCKET} → " + BUCKET.replace("...", "key", 2).replace("...", bucket_of_adapters)
        }
        assert await ask(f"curl -s {url}/health") == {"status": "healthy", "service": "runtime"}
        page = await run(RUNTIME_METRICS, **place)
        assert "vllm:num_requests_waiting" in page
        assert "kthena:num_requests_waiting" in page

        await run(LOAD_NOW, **both, repository="myorg/my-lora-repo → ns/repo")
        assert engine.adapters == {"my-lora": str(models / "my-lora")}
        assert (models / "my-lora" / "config.json").read_bytes() == b"{}"
        await run(UNLOAD, **place)
        assert engine.adapters == {}

        later = await ask(LOAD_LATER, **bucket, other="/my-lora → /other-lora")
        assert (later["status"], later["lora_name"]) == ("started", "my-lora")
        assert await until(lambda: engine.adapters == {"my-lora": str(models / "other-lora")}, seconds=20)

        done = await ask(DOWNLOAD_NOW, **both, repository="mistralai/Mistral-7B-Instruct-v0.3 → ns/repo")
        assert (done["status"], done["output_dir"]) == ("completed", str(models / "mistral"))
        assert (models / "mistral" / "config.json").is_file()
        begun = await ask(DOWNLOAD_LATER, **bucket)
        assert begun["status"] == "started"
        fetched = models / "modelA" / "model.safetensors"
        assert await until(lambda: fetched.is_file() and fetched.read_bytes() == b"weights", seconds=20)


class SilentEngine(LoraEngine):
    """A vLLM whose metrics page takes longer than anyone waits."""

    async def _metrics(self) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()


async def test_the_runtimes_variable_limits_requests_to_the_engine(tmp_path: Path) -> None:
    async with (
        SilentEngine("vllm") as engine,
        runtime(engine, tmp_path, REQUEST_TIMEOUT="0.5") as url,
    ):
        page = await ask(f"curl -s --max-time 20 -w '' {url}/metrics")
        assert list(page) == ["detail"]
        assert "0.5 s" in page["detail"]
