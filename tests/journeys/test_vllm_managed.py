"""A real vLLM that the model manager starts by a command of the table, beside a llama-server (`make test-vllm`).

Both have the same tiny model, and there is one place for both.
"""

import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from appliance.models.runner.proc import MARK, marked_with
from tests.journeys.llama_servers import HELLO
from tests.journeys.model_tables import Managed, ManagedAppliance, runs
from tests.journeys.test_vllm import SMALL, find_vllm
from tests.tools.tiny_models import REPLY, REPLY_TOKENS

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(420),
]  # each load takes half a minute, or longer beside other work
LIMIT = aiohttp.ClientTimeout(total=240)
FORCED = 3


def vllm_row(tiny_models: Path, folder: Path, **keys: Any) -> dict[str, Any]:
    """Give a row of the table for a vLLM."""
    words = [find_vllm(), "serve", str(tiny_models / "tiny-hf"), "--served-model-name", "org/tiny"]
    words += ["--host", "127.0.0.1", "--port", "${PORT}", "--enforce-eager", "--max-model-len", str(SMALL)]
    return {
        "command": words,
        "engine_kind": "vllm",
        "served_model": "org/tiny",
        "ready_timeout_sec": 240,
        "context_tokens": SMALL,
        "max_concurrency": 4,
        "env": {
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        },
    } | keys


async def say(appliance: ManagedAppliance, model: str, **more: Any) -> dict[str, Any]:
    """Ask a model, which may have to be loaded first."""
    url, body = (
        f"{appliance.running.base_url}/v1/chat/completions",
        {"model": model, "messages": HELLO} | more,
    )
    async with appliance.session.post(url, json=body, timeout=LIMIT) as response:
        value = await response.json()
        assert response.status == 200, value
        return value


async def test_it_is_loaded_asked_and_swapped_against_a_llama_server(
    managed: Managed, tiny_models: Path, tmp_path: Path
) -> None:
    row = vllm_row(tiny_models, tmp_path, force={"max_tokens": FORCED})
    appliance = await managed("file", "vllm", vllm=row, max_concurrent_models=1)
    first = await say(appliance, "file")
    assert first["choices"][0]["message"]["content"] == REPLY
    file_pid = appliance.pid("file")

    # loaded by a request: the llama-server has gone, the answer is vLLM's, cut as the table says
    value = await say(appliance, "vllm", max_tokens=100, temperature=0)
    assert not runs(file_pid)
    assert appliance.statuses() == {"file": "off", "vllm": "ready"}
    assert (value["model"], value["usage"]["completion_tokens"]) == ("vllm", FORCED)
    text = value["choices"][0]["message"]["content"]
    assert text
    assert REPLY.startswith(text)
    pid = appliance.pid("vllm")
    view = appliance.manager.model("vllm")
    assert (view.slots, view.context_tokens) == (4, SMALL)
    assert view.runners[0].log_path is not None
    assert "vLLM" in view.runners[0].log_path.read_text(errors="replace")

    # asked in other ways: a stream, at its own addresses, by Ollama's API
    result = await appliance.stream("vllm", 100)
    assert (result.end, text.startswith(result.text) or result.text.startswith(text)) == ("done", True)
    base_url, session = appliance.running.base_url, appliance.session
    async with session.post(
        f"{base_url}/invocations", json={"model": "vllm", "prompt": "hello", "max_tokens": 100}, timeout=LIMIT
    ) as response:
        assert (await response.json())["usage"]["completion_tokens"] == FORCED
    async with session.post(
        f"{base_url}/tokenize", json={"model": "vllm", "prompt": "hello"}, timeout=LIMIT
    ) as response:
        assert (response.status, (await response.json())["count"] > 0) == (200, True)
    async with session.post(
        f"{base_url}/api/generate", json={"model": "vllm", "prompt": "hello", "raw": True, "stream": False}
    ) as response:
        assert (await response.json())["eval_count"] == FORCED
    # and away again, with all processes that it started
    marks = marked_with(MARK, _mark_of(pid))
    assert len(marks) > 1
    last = await say(appliance, "file", max_tokens=100)
    assert last["usage"]["completion_tokens"] == REPLY_TOKENS
    assert appliance.statuses() == {"file": "ready", "vllm": "off"}
    assert not [one for one in marks if runs(one)]
    counts = appliance.manager.counts()
    assert (counts.crashes, counts.by_model) == (0, {"file": 2, "vllm": 1})


async def test_one_that_cannot_start_says_why(managed: Managed, tiny_models: Path, tmp_path: Path) -> None:
    row = vllm_row(tiny_models, tmp_path)
    row["command"] = [*row["command"], "--no-such-option"]
    appliance = await managed("vllm", vllm=row, model_load_max_retries=0)
    url, body = f"{appliance.running.base_url}/v1/chat/completions", {"model": "vllm", "messages": HELLO}
    async with appliance.session.post(url, json=body, timeout=LIMIT) as response:
        value = await response.json()
    assert (response.status, value["error"]["code"]) == (503, "model_failed")
    assert "no-such-option" in value["error"]["message"]


def _mark_of(pid: int) -> str:
    """Give the mark that a process was started with."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (found,) = [word for word in words if word.startswith(f"{MARK}=".encode())]
    return os.fsdecode(found.partition(b"=")[2])
