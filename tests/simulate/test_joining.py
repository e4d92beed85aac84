"""A rented engine joins an appliance as a real one would: by its kind, with its key, with its model."""

from pathlib import Path

import aiohttp
import pytest

from appliance.simulate.twin import Twin
from tests.journeys.running import Start
from tests.simulate.calls import Calls

CONFIG = "backends:\n  - {{name: rented, url: '{url}', kind: {kind}, api_key: instance-key}}\n"
CHAT = {"model": "some/model", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("vllm", {}),
        (
            "llamacpp",
            {
                "image": "ghcr.io/ggml-org/llama.cpp:server-cuda",
                "args": ["-m", "some/model"],
                "env": {"-p 8000:8000": "1", "LLAMA_API_KEY": "instance-key"},
            },
        ),
        ("auto", {}),
    ],
)
async def test_a_rented_engine_serves_behind_an_appliance(
    call: Calls, twin: Twin, start: Start, tmp_path: Path, kind: str, order: dict
) -> None:
    await call.rent(**order)
    await twin.advance(30)
    url = twin.truth()["services"]["vast"]["instances"][0]["engines"][0]
    config = tmp_path / "models.yaml"
    config.write_text(CONFIG.format(url=url, kind=kind))
    running = await start(CONFIG_PATH=str(config))
    options = {"timeout": aiohttp.ClientTimeout(total=10)}
    models = await call("", "GET", f"{running.v1}/models", **options)
    assert [row["id"] for row in models.json["data"]] == ["some/model"]
    reply = await call("", "POST", f"{running.v1}/chat/completions", CHAT, **options)
    assert reply.status == 200, reply.data
    assert reply.json["choices"][0]["message"]["content"] == "[demo engine] You said: hello"
    assert reply.headers["x-appliance-receipt"].startswith("backend=rented")
    stream = await call("", "POST", f"{running.v1}/chat/completions", {**CHAT, "stream": True}, **options)
    assert stream.data.endswith(b"data: [DONE]\n\n")
