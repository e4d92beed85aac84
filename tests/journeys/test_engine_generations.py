"""Every generation of vLLM and SGLang behind the appliance: detected, counted, balanced, and understood.

The engines are stand-ins that speak the published pages (tests/fakes/engine_generations.py); a real vLLM is
in test_vllm.py.
"""

import json
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from tests.fakes.engine_generations import GENERATIONS, PROMPT, EngineGeneration, Generation
from tests.fakes.engine_server import EngineServer
from tests.journeys.running import until
from tests.journeys.test_backends import QUICK, ask, backend, named

every_generation = pytest.mark.parametrize("generation", GENERATIONS, ids=[g.name for g in GENERATIONS])


@pytest.fixture
async def engine(generation: Generation):
    async with EngineGeneration(generation) as server:
        yield server


@every_generation
async def test_it_is_detected_and_its_numbers_are_read(
    start, engine: EngineGeneration, generation: Generation
) -> None:
    engine.others, engine.queued = 5, 1
    running = await start(BACKENDS=f"e0={engine.url}", **QUICK)
    router = running.appliance.router
    assert router.state("e0").kind == generation.kind
    if generation.metrics:
        assert await until(lambda: router.state("e0").running == 5)
        assert (router.state("e0").waiting, router.state("e0").metrics) == (1, "ok")
    else:
        assert await until(lambda: router.state("e0").standing == "ready")
        assert router.state("e0").running is None
    assert router.state("e0").context_tokens == 4096
    status, _, value = await ask(running)
    assert (status, value["choices"][0]["message"]["content"]) == (200, "Standing in.")


@every_generation
async def test_its_models_and_adapters_are_merged_with_the_others(
    start, engine: EngineGeneration, generation: Generation
) -> None:
    async with EngineServer("llamacpp", models=("other",)) as other:
        running = await start(BACKENDS=f"e0={engine.url},e1={other.url}", **QUICK)
        rows = {row["id"]: row for row in (await ask(running, path="/v1/models", method="GET"))[2]["data"]}
        assert set(rows) == {"tiny", "other", "tiny-lora", *(["sql-lora"] if generation.adapter else [])}
        for name in ("sql-lora", generation.adapter) if generation.adapter else ():
            assert (
                rows["sql-lora"]["parent"],
                rows["sql-lora"]["max_model_len"],
                rows["tiny"]["max_model_len"],
            ) == ("tiny", 4096, 4096)
            status, headers, value = await ask(
                running, {"model": name, "messages": [{"role": "user", "content": "x"}]}
            )
            assert (status, backend(headers), value["model"], engine.asked[-1]["model"]) == (
                200,
                "e0",
                "sql-lora",
                generation.adapter,
            )
        assert (await ask(running, {"model": "tiny:nobody", "messages": [{"role": "user", "content": "x"}]}))[
            0
        ] == 404


@every_generation
async def test_a_prompt_too_long_is_refused_with_the_numbers(
    start, engine: EngineGeneration, generation: Generation
) -> None:
    running = await start(BACKENDS=f"e0={engine.url}", **QUICK)
    engine.faults = ["context"]
    status, _, value = await ask(running)
    error = value["error"]
    assert (status, error["code"], error["type"]) == (400, "context_length_exceeded", "invalid_request_error")
    assert "4096 tokens" in error["message"]
    assert (str(PROMPT) in error["message"]) is generation.numbers
    assert "40961" not in error["message"]


@every_generation
async def test_a_server_with_more_context_takes_longer_prompts(
    start, engine: EngineGeneration, generation: Generation
) -> None:
    async with EngineServer("llamacpp", context=65_536) as large:
        running = await start(BACKENDS=f"e0={engine.url},e1={large.url}", LB_STRATEGY="round_robin", **QUICK)
        engine.faults = ["context"] * 4
        answers = [await ask(running) for _ in range(4)]
        assert {(status, backend(headers)) for status, headers, _ in answers} == {(200, "e1")}


@every_generation
@pytest.mark.parametrize("fault", ["status_429", "status_503"])
async def test_when_it_is_full_another_one_answers(
    start, engine: EngineGeneration, generation: Generation, fault: str
) -> None:
    async with EngineServer("llamacpp") as other:
        running = await start(BACKENDS=f"e0={engine.url},e1={other.url}", LB_STRATEGY="round_robin", **QUICK)
        engine.faults = [fault] * 2
        answers = [await ask(running) for _ in range(4)]
        assert {status for status, _, _ in answers} == {200}
        assert "e1" in {backend(headers) for _, headers, _ in answers}


async def test_all_of_them_share_one_pool(start) -> None:
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(EngineGeneration(generation)) for generation in GENERATIONS
        ]
        running = await start(BACKENDS=named(servers), **QUICK)  # type: ignore[arg-type]
        answers = [await ask(running) for _ in range(4 * len(servers))]
        assert {status for status, _, _ in answers} == {200}
        assert set(Counter(backend(headers) for _, headers, _ in answers).values()) == {4}


async def test_adapters_that_a_server_does_not_list_can_be_named(start, tmp_path) -> None:
    """SGLang of 2024 has adapters without telling of them."""
    generation = next(g for g in GENERATIONS if g.name == "sglang 2024")
    async with EngineGeneration(generation) as engine:
        config = tmp_path / "backends.json"
        config.write_text(
            json.dumps({"backends": [{"url": engine.url, "name": "e0", "models": ["tiny", "tiny:sql-lora"]}]})
        )
        running = await start(CONFIG_PATH=str(config), **QUICK)
        for name in ("tiny:sql-lora", "tiny"):
            status, _, value = await ask(
                running, {"model": name, "messages": [{"role": "user", "content": "x"}]}
            )
            assert (status, value["model"], engine.asked[-1]["model"]) == (200, name, name)
