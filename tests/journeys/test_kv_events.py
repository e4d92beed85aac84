"""The index of an engine's blocks, by the sidecar as a process and inside the appliance."""

import asyncio
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from appliance.base.settings import InvalidSettings
from appliance.engines.settings import EngineSettings
from appliance.settings import load_or_raise
from appliance.storage.settings import StorageSettings
from tests.fakes.engine_server import EngineServer
from tests.fakes.kv_publisher import Publisher, block_hash, publisher
from tests.journeys.running import Start, free_port, until
from tests.redis_server import RedisServer, redis_server

__all__ = ["publisher", "redis_server"]


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[object]:
    """Start `appliance sidecar` with flags and variables; it ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*flags: str, **variables: str) -> subprocess.Popen[bytes]:
        log = (tmp_path / "sidecar.log").open("ab")
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "appliance", "sidecar", "-H", "127.0.0.1", *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    "PATH": os.environ["PATH"],
                    "STATE_DIR": str(tmp_path / "state"),
                    "LOG_FORMAT": "json",
                    "METRICS_CACHE_TTL_SECONDS": "0.2",
                    **variables,
                },
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, 30)


@pytest.mark.parametrize("kind", ["vllm", "auto"])
async def test_the_sidecar_indexes_what_its_engine_has(
    kind: str,
    sidecar,
    publisher: Publisher,
    redis_server: RedisServer,
    tmp_path: Path,
) -> None:
    """Also of a detected kind; Redis is restarted, and the sidecar stops in order."""
    port = free_port()
    async with EngineServer("vllm") as engine:
        process = sidecar(
            "-E",
            kind,
            "-B",
            engine.url,
            "-P",
            str(port),
            "-I",
            "pod-0",
            "-N",
            "qwen",
            VLLM_ZMQ_ENDPOINT=f"tcp://127.0.0.1:{publisher.port}",
            REDIS_HOST="127.0.0.1",
            REDIS_PORT=f"tcp://10.0.0.7:{redis_server.port}",
        )
        await publisher.has_subscribers()
        publisher.store(1, 2)
        assert await until(lambda: len(redis_server.keys()) == 4, seconds=20)
        redis_server.stop()
        publisher.store(3)
        publisher.send(["BlockRemoved", [1]])
        assert await until(lambda: '"down"' in (tmp_path / "sidecar.log").read_text(), seconds=20)
        redis_server.start()
        wanted = {
            f"{prefix}@{number}"
            for prefix, numbers in (
                ("matrix:kv:block:qwen", map(block_hash, (2, 3))),
                ("vllm:kv:block:pod-0", (2, 3)),
            )
            for number in numbers
        }
        assert await until(lambda: redis_server.keys() == wanted, seconds=40)
        text = await asyncio.to_thread(page, port)
        assert "engine_kv_blocks 2\n" in text
        assert 'engine_kv_events_total{event="BlockStored"} 2\n' in text
        assert "vllm:num_requests_running" in text
        process.terminate()
        assert await ended(process) == 0
    assert redis_server.keys() == set()
    log = (tmp_path / "sidecar.log").read_text()
    assert log.count('"kv_events_on"') == 1
    assert "Traceback" not in log


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_with_tls_only_a_trusted_redis_is_written(
    is_trusted: bool, sidecar, publisher: Publisher, tmp_path: Path
) -> None:
    redis_server = RedisServer(tmp_path, authority=trustme.CA(), password="of-the-index")
    redis_server.start()
    try:
        async with EngineServer("vllm") as engine:
            sidecar(
                "-E",
                "vllm",
                "-B",
                engine.url,
                "-P",
                str(free_port()),
                "-I",
                "pod-0",
                "-N",
                "qwen",
                REDIS_HOST="127.0.0.1",
                REDIS_TLS="1",
                VLLM_ZMQ_ENDPOINT=f"tcp://127.0.0.1:{publisher.port}",
                REDIS_PORT=str(redis_server.tls_port),
                REDIS_PASSWORD="of-the-index",
                **({"SSL_CERT_FILE": str(tmp_path / "authority.pem")} if is_trusted else {}),
            )
            await publisher.has_subscribers()
            publisher.store(1)
            if is_trusted:
                assert await until(lambda: len(redis_server.keys()) == 2, seconds=20)
            else:
                assert await until(
                    lambda: "certificate verify failed" in (tmp_path / "sidecar.log").read_text(), seconds=20
                )
                assert redis_server.keys() == set()
            assert "of-the-index" not in (tmp_path / "sidecar.log").read_text()
    finally:
        redis_server.stop()


async def test_the_sidecar_serves_without_redis_and_publisher(sidecar, tmp_path: Path) -> None:
    port = free_port()
    async with EngineServer("sglang") as engine:
        process = sidecar(
            "-E",
            "sglang",
            "-B",
            engine.url,
            "-P",
            str(port),
            "-I",
            "pod-0",
            "-N",
            "qwen",
            SGLANG_ZMQ_ENDPOINT=f"tcp://127.0.0.1:{free_port()}",
        )
        assert await until(lambda: '"kv_events_on"' in (tmp_path / "sidecar.log").read_text(), seconds=20)
        assert "engine_kv_events_connected 0\n" in await asyncio.to_thread(page, port)
        process.terminate()
        assert await ended(process) == 0


@pytest.mark.parametrize(
    "flags",
    [["-I", "pod-0"], ["-N", "qwen"], ["-I", "pod-0", "-N", "qwen"]],
    ids=["no model", "no pod", "switched off"],
)
async def test_events_are_not_followed_without_pod_or_model(flags: list[str], sidecar) -> None:
    port = free_port()
    async with EngineServer("vllm") as engine:
        sidecar(
            "-E",
            "vllm",
            "-B",
            engine.url,
            "-P",
            str(port),
            *flags,
            **({"KV_EVENTS": "0"} if len(flags) == 4 else {}),
        )
        text = ""
        for _ in range(200):
            try:
                text = await asyncio.to_thread(page, port)
                break
            except OSError:
                await asyncio.sleep(0.1)
        assert "engine_scrape_up 1" in text
        assert "engine_kv_e" not in text


async def test_the_appliance_follows_the_sidecars_backend(
    start: Start, publisher: Publisher, redis_server: RedisServer
) -> None:
    port = free_port()
    async with EngineServer("vllm") as engine:
        await start(
            BACKENDS=engine.url,
            SIDECAR_PORT=str(port),
            SIDECAR_MODEL="qwen",
            POD_NAME="pod-7",
            VLLM_ZMQ_TOPIC_FILTER="*",
            VLLM_ZMQ_ENDPOINT=f"tcp://127.0.0.1:{publisher.port}",
            REDIS_HOST="127.0.0.1",
            REDIS_PORT=str(redis_server.port),
        )
        await publisher.has_subscribers()
        publisher.send(["BlockStored", [b"\x00\x11"], None, [4, 4], 2, None], topic=b"any")
        wanted = {f"matrix:kv:block:qwen@{block_hash(4)}", "vllm:kv:block:pod-7@0x0011"}
        assert await until(lambda: redis_server.keys() == wanted, seconds=20)
        assert "engine_kv_blocks 1\n" in await asyncio.to_thread(page, port)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VLLM_ZMQ_ENDPOINT", "localhost:5557"),
        ("VLLM_ZMQ_ENDPOINT", "tcp://*:5557"),
        ("SGLANG_ZMQ_ENDPOINT", "tcp://host"),
        ("REDIS_PORT", "tcp://10.0.0.7"),
        ("REDIS_PORT", "70000"),
        ("REDIS_DB", "-1"),
        ("KV_EVENTS_MAX_BLOCKS", "0"),
    ],
)
def test_an_invalid_setting_is_named(variable: str, value: str) -> None:
    with pytest.raises(InvalidSettings, match=variable):
        load_or_raise({variable: value})


@pytest.mark.parametrize(
    "endpoint", ["tcp://localhost:5557", "tcp://[::1]:5557", "ipc:///run/kv.sock", "tcp://engine.ns.svc:5557"]
)
def test_endpoints_of_every_kind_are_accepted(endpoint: str) -> None:
    assert EngineSettings.from_env({"VLLM_ZMQ_ENDPOINT": endpoint}).vllm_zmq_endpoint == endpoint


def test_the_redis_password_is_secret_and_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("of-the-index\n")
    settings = StorageSettings.from_env({"REDIS_PASSWORD_FILE": str(tmp_path / "password")})
    assert settings.redis_password.get_secret_value() == "of-the-index"
    assert "of-the-index" not in repr(settings)


def test_libraries_for_events_are_imported_only_when_needed() -> None:
    code = "import appliance.app, appliance.sidecar, sys; print([name for name in ('zmq', 'redis', 'msgpack') if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
