"""LoRA adapters on servers that the operator runs: stand-ins of SGLang and vLLM, and a real llama-server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.lora_engines import LoraEngine
from tests.journeys.llama_servers import HELLO, Llama
from tests.journeys.running import Running, until
from tests.journeys.test_backends import ask, backend
from tests.journeys.test_lora_models import listed, load, say, unload
from tests.tools.tiny_models import LORA_REPLY, REPLY

QUICK = {
    "METRICS_CACHE_TTL_SECONDS": "0.2",
    "SLOW_START_S": "0",
    "BACKEND_STARTUP_GRACE_S": "0",
    "QUEUE_TIMEOUT_S": "10",
    "LORA_ALLOWED_DIRS": "/adapters",
}
BASE, STYLE = "The base model.", "The adapter style."
Engines = Callable[..., Awaitable[list[LoraEngine]]]


@pytest.fixture
async def engines() -> AsyncIterator[Engines]:
    """Start engines: `await engines("vllm", "sglang")`."""
    async with AsyncExitStack() as stack:

        async def begin(*kinds: str, **how: Any) -> list[LoraEngine]:
            return [await stack.enter_async_context(LoraEngine(kind, **how)) for kind in kinds]

        yield begin


def behind(servers: list[LoraEngine], **variables: str) -> dict[str, str]:
    return (
        QUICK | {"BACKENDS": ",".join(f"e{n}={server.url}" for n, server in enumerate(servers))} | variables
    )


def states(row: dict[str, Any]) -> dict[str, str]:
    return {one["backend"]: one["state"] for one in row["backends"]}


async def converged(running: Running, wanted: dict[str, str], name: str = "style") -> bool:
    for _ in range(200):
        rows = await listed(running)
        if name in rows and states(rows[name]) == wanted:
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize("kind", ["vllm", "vllm 2024", "sglang", "sglang 2024"])
async def test_an_adapter_is_loaded_on_every_backend_used_and_unloaded(
    start, engines: Engines, kind: str
) -> None:
    servers = await engines(kind, kind)
    running = await start(**behind(servers, LB_STRATEGY="round_robin"))
    assert await say(running, "style") == (200, BASE)  # any name means the only model, until it is an adapter
    status, value = await load(running, "/adapters/style")
    assert (status, value["lora_name"], value["base_model"], {one["state"] for one in value["backends"]}) == (
        200,
        "style",
        "tiny",
        {"loaded"},
    )
    assert [server.adapters for server in servers] == [{"style": "/adapters/style"}] * 2
    answers = [await ask(running, {"model": "style", "messages": HELLO}) for _ in range(4)]
    assert {(value["choices"][0]["message"]["content"], value["model"]) for _, _, value in answers} == {
        (STYLE, "style")
    }
    assert {backend(headers) for _, headers, _ in answers} == {"e0", "e1"}
    assert await say(running, "tiny") == (200, BASE)
    status, value = await unload(running)
    assert (status, [server.adapters for server in servers]) == (200, [{}, {}])
    assert await say(running, "style") == (404, "model_not_found")
    assert (await unload(running))[0] == 404
    assert sum(server.missing for server in servers) == 0


@pytest.mark.parametrize("kind", ["vllm", "sglang", "sglang 2024"])
async def test_requests_never_miss_the_adapter_while_engines_restart(
    start, engines: Engines, kind: str
) -> None:
    """Each of three engines is killed and restarted in turn without its adapters, while requests go on."""
    servers = await engines(kind, kind, kind)
    running = await start(**behind(servers))
    assert (await load(running, "/adapters/style"))[0] == 200
    answers: list[tuple[int, str]] = []
    is_over = asyncio.Event()

    async def go_on(name: str) -> None:
        while not is_over.is_set():
            answers.append(await say(running, name))
            await asyncio.sleep(0.005)

    asking = [asyncio.create_task(go_on(name)) for name in ("style", "tiny", "style")]
    for server in servers:
        await server.stop()
        await asyncio.sleep(0.3)
        server.adapters.clear()
        server.load_s = 0.3  # requests come while it is loading
        await server.start()
        assert await converged(running, {"e0": "loaded", "e1": "loaded", "e2": "loaded"})
    is_over.set()
    await asyncio.gather(*asking)
    assert {status for status, _ in answers} == {200}
    assert {text for _, text in answers} == {BASE, STYLE}
    assert [server.adapters for server in servers] == [{"style": "/adapters/style"}] * 3
    assert sum(server.missing for server in servers) == 0


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_requests_wait_for_the_only_engine_to_load_it_again(start, engines: Engines, kind: str) -> None:
    (server,) = await engines(kind)
    running = await start(**behind([server]))
    assert (await load(running, "/adapters/style"))[0] == 200
    await server.stop()
    assert await until(lambda: running.appliance.router.state("e0").standing == "down")
    status, _, value = await ask(running, {"model": "style", "messages": HELLO})
    assert (status, value["error"]["code"]) == (503, "adapter_not_loaded")  # there is no backend to wait for
    server.adapters.clear()
    server.load_s = 0.5
    await server.start()
    assert await until(lambda: running.appliance.router.state("e0").standing == "ready")
    assert set(await asyncio.gather(*(say(running, "style") for _ in range(8)))) == {(200, STYLE)}
    assert server.missing == 0


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_a_loss_before_the_next_probe_costs_the_request_only_time(
    start, engines: Engines, kind: str
) -> None:
    servers = await engines(kind, kind)
    running = await start(**behind(servers, METRICS_CACHE_TTL_SECONDS="30", LB_STRATEGY="round_robin"))
    assert (await load(running, "/adapters/style"))[0] == 200
    for server in servers:
        server.adapters.clear()
    assert {await say(running, "style") for _ in range(4)} == {(200, STYLE)}
    assert 1 <= sum(server.missing for server in servers) <= 2  # the engines said so, and no client saw it
    assert await until(lambda: all(server.adapters for server in servers))


async def test_a_load_that_one_of_three_refuses_is_rolled_back(start, engines: Engines) -> None:
    servers = await engines("vllm", "sglang", "vllm")
    servers[2].refuses = (404, "Loading lora style failed: No adapter found for /adapters/style")
    running = await start(**behind(servers))
    status, value = await load(running, "/adapters/style")
    assert (status, value["error"]["code"]) == (404, "adapter_not_found")
    assert "e2" in value["error"]["message"]
    assert "No adapter found" in value["error"]["message"]
    assert [server.adapters for server in servers] == [{}, {}, {}]
    assert [server.commands for server in servers][:2] == [["load", "unload"]] * 2
    assert await listed(running) == {}
    assert await say(running, "style") == (404, "model_not_found")


async def test_a_partial_load_is_enough_and_the_rest_follows(start, engines: Engines) -> None:
    servers = await engines("vllm", "vllm")
    servers[1].refuses = (500, "out of adapter slots")
    running = await start(**behind(servers))
    status, value = await load(running, "/adapters/style", partial=True)
    assert (status, list(value["failed"])) == (200, ["e1"])
    assert states((await listed(running))["style"]) == {"e0": "loaded", "e1": "failed"}
    for _ in range(4):
        status, headers, value = await ask(running, {"model": "style", "messages": HELLO})
        assert (status, backend(headers), value["choices"][0]["message"]["content"]) == (200, "e0", STYLE)
    servers[1].refuses = None
    assert await converged(running, {"e0": "loaded", "e1": "loaded"})
    assert sum(server.missing for server in servers) == 0


async def test_an_unload_that_one_refuses_leaves_it_everywhere(start, engines: Engines) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(**behind(servers))
    await load(running, "/adapters/style")
    servers[1].refuses = (500, "busy")
    status, value = await unload(running)
    assert (status, value["error"]["code"]) == (502, "adapter_refused")
    assert [server.adapters for server in servers] == [{"style": "/adapters/style"}] * 2
    assert {await say(running, "style") for _ in range(4)} == {(200, STYLE)}
    status, value = await unload(running, partial=True)
    assert (status, states(value)) == (200, {"e1": "unloading"})
    assert await say(running, "style") == (404, "model_not_found")
    servers[1].refuses = None
    assert await until(lambda: servers[1].adapters == {}, seconds=10)
    assert sum(server.missing for server in servers) == 0


async def test_a_backend_that_was_down_unloads_it_when_it_is_back(start, engines: Engines) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(**behind(servers))
    await load(running, "/adapters/style")
    await servers[1].stop()  # not restarted: it keeps what it has
    assert await until(lambda: running.appliance.router.state("e1").standing == "down")
    status, value = await unload(running)
    assert (status, states(value)) == (200, {"e1": "unloading"})
    again = await start(**behind(servers))
    await servers[1].start()
    assert await until(lambda: servers[1].adapters == {}, seconds=10)
    assert await until(lambda: again.appliance.adapters.table.declared == {})
    assert (await say(again, "style"))[0] == 404


async def test_new_backends_and_restarts_get_what_is_declared(start, engines: Engines) -> None:
    servers = await engines("vllm", "sglang")
    running = await start(**behind(servers[:1]))
    await load(running, "/adapters/style", base_model="tiny")
    running.appliance.fleet.add({"name": "e1", "url": servers[1].url})
    assert await converged(running, {"e0": "loaded", "e1": "loaded"})
    assert servers[1].adapters == {"style": "/adapters/style"}
    for server in servers:
        server.adapters.clear()
    again = await start(**behind(servers))
    assert await converged(again, {"e0": "loaded", "e1": "loaded"})
    assert await say(again, "style") == (200, STYLE)


async def test_only_the_named_backend_gets_it(start, engines: Engines) -> None:
    servers = await engines("vllm", "vllm")
    running = await start(**behind(servers))
    assert (await load(running, "/adapters/style", backend="e1"))[0] == 200
    assert [server.adapters for server in servers] == [{}, {"style": "/adapters/style"}]
    assert {backend((await ask(running, {"model": "style", "messages": HELLO}))[1]) for _ in range(3)} == {
        "e1"
    }
    assert (await load(running, "/adapters/x", "x", backend="unknown"))[0] == 404


@pytest.mark.parametrize(
    ("kind", "words"), [("vllm", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"), ("sglang", "--enable-lora")]
)
async def test_an_engine_without_lora_is_named_with_its_remedy(
    start, engines: Engines, kind: str, words: str
) -> None:
    servers = await engines(kind, can_load=False)
    running = await start(**behind(servers))
    status, value = await load(running, "/adapters/style")
    assert (status, value["error"]["code"]) == (409, "lora_not_enabled")
    assert words in value["error"]["message"]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_adapters_that_an_engine_has_already_are_adopted(start, engines: Engines, kind: str) -> None:
    (server,) = await engines(kind)
    server.adapters["style"] = "/adapters/style"
    server.adapters["other"] = "/elsewhere/other"
    running = await start(**behind([server]))
    rows = await listed(running)
    assert {name: (row["declared"], row["path"], row["base_model"]) for name, row in rows.items()} == {
        "style": (False, "/adapters/style", "tiny"),
        "other": (False, "/elsewhere/other", "tiny"),
    }
    assert (await load(running, "/adapters/style"))[0] == 200
    status, value = await load(running, "/adapters/other", "other")
    assert (status, value["error"]["code"]) == (409, "adapter_exists")
    assert (await unload(running, "other"))[0] == 200  # it need not be declared
    status, value = await unload(running, "unknown")
    assert (status, value["error"]["code"]) == (404, "no_such_adapter")
    assert server.adapters == {"style": "/adapters/style"}


async def test_without_a_backend_nothing_is_declared(start, engines: Engines) -> None:
    (server,) = await engines("vllm")
    running = await start(**behind([server]))
    await server.stop()
    assert await until(lambda: running.appliance.router.state("e0").standing == "down")
    status, value = await load(running, "/adapters/style")
    assert (status, value["error"]["code"]) == (503, "no_backend")
    assert await listed(running) == {}
    openai = await start(**QUICK)
    assert (await load(openai, "/adapters/style"))[0] == 404


async def test_a_declared_name_is_not_served_by_a_hosted_api(start, engines: Engines, hosted) -> None:
    """With a hosted API behind it and MODEL_STRICT=0, any other unknown name goes there."""
    (server,) = await engines("vllm")
    running = await start(
        **behind([server], NOVITA_API_KEY="key-of-a-test", NOVITA_OPENAI_ENDPOINTS=hosted.base_url)
    )
    await load(running, "/adapters/style")
    await server.stop()
    assert await until(lambda: running.appliance.router.state("e0").standing == "down")
    assert await say(running, "style") == (503, "adapter_not_loaded")
    assert await say(running, "style:latest") == (503, "adapter_not_loaded")


# ---- llama-server, for real


async def test_a_foreign_llama_server_has_what_it_was_started_with(
    start, llama: Llama, tiny_models: Path
) -> None:
    server = await llama(lora=True)
    running = await start(**QUICK | {"BACKENDS": f"l={server.url}", "LORA_ALLOWED_DIRS": str(tiny_models)})
    status, value = await load(running, tiny_models / "new.gguf", "new")
    assert (status, value["error"]["code"]) == (409, "lora_not_enabled")
    assert "--lora-scaled" in value["error"]["message"]
    status, value = await load(running, tiny_models / "tiny-lora.gguf", "style")
    assert status == 200
    assert [await say(running, name) for name in ("style", "tiny-lora", "tiny")] == [
        (200, LORA_REPLY),
        (200, LORA_REPLY),
        (200, REPLY),
    ]
    assert (await unload(running))[0] == 200
    assert await say(running, "style") == (404, "model_not_found")
    assert await say(running, "tiny-lora") == (200, LORA_REPLY)
    status, value = await unload(running, "tiny-lora")
    assert (status, value["error"]["code"]) == (
        409,
        "lora_not_enabled",
    )  # not declared, and it cannot be unloaded
    assert (await unload(running, "unknown"))[0] == 404
    assert (await load(running, tiny_models / "tiny-lora.gguf", "tiny-lora"))[0] == 200
    assert (await unload(running, "tiny-lora"))[0] == 200
    assert await say(running, "tiny-lora") == (200, LORA_REPLY)


async def test_a_llama_server_without_its_adapter_does_not_answer(
    start, llama: Llama, tiny_models: Path
) -> None:
    """It would: it ignores an id that it does not have. Probed or not, declared or not."""
    first = await llama(lora=True)
    running = await start(
        **QUICK
        | {
            "BACKENDS": f"l={first.url}",
            "LORA_ALLOWED_DIRS": str(tiny_models),
            "METRICS_CACHE_TTL_SECONDS": "30",
            "QUEUE_TIMEOUT_S": "1",
        }
    )
    await load(running, tiny_models / "tiny-lora.gguf", "style")
    assert await say(running, "style") == (200, LORA_REPLY)
    first.kill9()
    bare = await llama(port=first.port)
    for name in ("style", "tiny-lora"):
        status, said = await say(running, name)
        assert (status, said) in {
            (503, "adapter_not_loaded"),
            (404, "model_not_found"),
            (503, "no_backend"),
        }, (name, status, said)
    assert await until(lambda: running.appliance.router.state("l").standing == "ready")
    assert await say(running, "tiny") == (200, REPLY)
    assert await say(running, "style") == (503, "adapter_not_loaded")
    bare.kill9()
    await llama(port=first.port, lora=True)
    assert await until(
        lambda: running.appliance.router.state("l").models == ("tiny", "tiny-lora", "style"), seconds=15
    )
    assert await say(running, "style") == (200, LORA_REPLY)
