"""Settings of single models in the table: aliases, sampling, system prompt, arguments, variables, for all clients."""

import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anthropic
import ollama
import openai
import pytest
import yarl

from tests.journeys.llama_servers import HELLO
from tests.journeys.model_tables import Managed, ManagedAppliance, wrapper
from tests.journeys.running import until
from tests.tools.tiny_models import REPLY_TOKENS

LONG = "You answer in a very friendly and a very patient way, whatever is asked."
FORCED = 3
Ask = Callable[[ManagedAppliance, str], Awaitable[tuple[int, int]]]


async def by_openai(appliance: ManagedAppliance, model: str) -> tuple[int, int]:
    async with openai.AsyncOpenAI(base_url=appliance.running.v1, api_key="none", max_retries=0) as client:
        made = await client.chat.completions.create(model=model, messages=HELLO, max_completion_tokens=100)
    assert made.usage is not None
    return made.usage.prompt_tokens, made.usage.completion_tokens


async def by_responses(appliance: ManagedAppliance, model: str) -> tuple[int, int]:
    async with openai.AsyncOpenAI(base_url=appliance.running.v1, api_key="none", max_retries=0) as client:
        made = await client.responses.create(model=model, input="hello", max_output_tokens=100)
    assert made.usage is not None
    return made.usage.input_tokens, made.usage.output_tokens


async def by_ollama(appliance: ManagedAppliance, model: str) -> tuple[int, int]:
    client = ollama.AsyncClient(host=appliance.running.base_url)
    made = await client.chat(model=model, messages=HELLO, options={"num_predict": 100})
    return made.prompt_eval_count or 0, made.eval_count or 0


async def by_anthropic(appliance: ManagedAppliance, model: str) -> tuple[int, int]:
    async with anthropic.AsyncAnthropic(base_url=appliance.running.base_url, api_key="none") as client:
        made = await client.messages.create(
            model=model, max_tokens=100, messages=[{"role": "user", "content": "hello"}]
        )
    return made.usage.input_tokens, made.usage.output_tokens


@pytest.mark.parametrize("ask", [by_openai, by_responses, by_ollama, by_anthropic])
async def test_settings_apply_to_the_clients_of_every_dialect(managed: Managed, ask: Ask) -> None:
    appliance = await managed(
        "a", "b", a={"aliases": ["gpt-4"], "force": {"max_tokens": FORCED}, "system_prompt": LONG}
    )
    plain, changed = await ask(appliance, "b"), await ask(appliance, "gpt-4")
    assert plain[1] == REPLY_TOKENS
    assert changed[1] == FORCED
    assert changed[0] > plain[0] + 5
    assert appliance.running.appliance.receipts.latest(1)[0].served_model == "a"


async def test_defaults_give_way_to_the_request(managed: Managed) -> None:
    appliance = await managed("a", a={"defaults": {"max_tokens": FORCED}})
    assert (await appliance.ask("a"))[2]["usage"]["completion_tokens"] == FORCED
    assert (await by_openai(appliance, "a"))[1] == REPLY_TOKENS
    text = (await appliance.stream("a")).text
    whole = (await appliance.stream("a", max_tokens=100)).text
    assert 0 < len(text) < len(whole)


@pytest.mark.parametrize("path", ["/completion", "/completions", "/completion/", "/%63ompletion"])
async def test_forced_fields_hold_at_the_servers_own_addresses(managed: Managed, path: str) -> None:
    appliance = await managed("a", "b", a={"aliases": ["gpt-4"], "force": {"max_tokens": FORCED}})

    async def ask(model: str, **keys: object) -> tuple[int, dict]:
        url = appliance.running.base_url + path
        async with appliance.session.post(yarl.URL(url, encoded=True), **keys) as made:
            return made.status, await made.json()

    body = {"prompt": "hello", "n_predict": 100, "max_tokens": 100}
    status, answer = await ask("a", json=body | {"model": "gpt-4"})
    if path in {"/completion/", "/%63ompletion"} and status == 404:
        return  # this llama-server does not know the spelling
    assert (status, answer["tokens_predicted"]) == (200, FORCED)
    status, answer = await ask("a", data=in_pieces(json.dumps(body | {"model": "a"}).encode()))
    assert (status, answer["tokens_predicted"]) == (200, FORCED)  # chunked, without a length
    status, answer = await ask("a", json=body | {"model": "b"})
    assert (status, answer["tokens_predicted"]) == (200, REPLY_TOKENS)


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 10):
        yield body[at : at + 10]


async def test_chats_at_the_servers_own_address_get_prompt_and_fields(managed: Managed) -> None:
    settings = {"force": {"max_tokens": FORCED}, "system_prompt": LONG}
    appliance = await managed("a", "b", a=settings)
    used = {}
    for model in ("a", "b"):
        body = {"model": model, "messages": HELLO, "max_tokens": 100}
        async with appliance.session.post(
            f"{appliance.running.base_url}/chat/completions", json=body
        ) as made:
            used[model] = (await made.json())["usage"]
    assert (used["a"]["completion_tokens"], used["b"]["completion_tokens"]) == (FORCED, REPLY_TOKENS)
    assert used["a"]["prompt_tokens"] > used["b"]["prompt_tokens"] + 5


@pytest.mark.parametrize("body", [b"n_predict=100", b"[1]", gzip.compress(b'{"prompt": "hello"}', mtime=0)])
async def test_bodies_that_cannot_be_changed_are_refused(managed: Managed, body: bytes) -> None:
    appliance = await managed("a", a={"force": {"max_tokens": FORCED}})
    async with appliance.session.post(f"{appliance.running.base_url}/completion", data=body) as made:
        answer = await made.json()
        assert (made.status, answer["error"]["code"]) == (400, "invalid_json")
        assert "Requests for the model 'a' get settings of the operator" in answer["error"]["message"]
    assert (await appliance.ask("a"))[0] == 200


async def test_defaults_hold_for_raw_prompts_of_ollamas_clients(managed: Managed) -> None:
    appliance = await managed("a", a={"defaults": {"max_tokens": FORCED}})
    client = ollama.AsyncClient(host=appliance.running.base_url)
    made = await client.generate(model="a", prompt="hello", raw=True)
    assert made.eval_count == FORCED
    made = await client.generate(model="a", prompt="hello", raw=True, options={"num_predict": 5})
    assert made.eval_count == 5


async def test_aliases_are_listed_and_steer_the_manager(managed: Managed) -> None:
    appliance = await managed("a", "b", a={"aliases": ["gpt-4"]})
    base, session = appliance.running.base_url, appliance.session

    async def get(path: str, **keys: object) -> dict:
        async with session.get(base + path, **keys) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    rows = {row["id"]: row for row in (await get("/v1/models"))["data"]}
    assert list(rows) == ["a", "gpt-4", "b"] or set(rows) == {"a", "b", "gpt-4"}
    assert rows["a"]["aliases"] == ["gpt-4"]
    assert (rows["gpt-4"]["alias_of"], rows["gpt-4"]["n_ctx"]) == ("a", rows["a"]["n_ctx"])
    assert (await get("/v1/models/gpt-4"))["id"] == "gpt-4"
    tags = {row["name"]: row for row in (await get("/api/tags"))["models"]}
    assert set(tags) == {"a", "b", "gpt-4"}
    assert tags["gpt-4"]["digest"] == tags["a"]["digest"]
    anthropic_rows = (await get("/v1/models", headers={"anthropic-version": "2023-06-01"}))["data"]
    assert {row["id"] for row in anthropic_rows} == {"a", "b", "gpt-4"}
    async with session.post(base + "/v1/models/gpt-4/load") as response:
        assert (response.status, appliance.status("a")) == (200, "ready")
    assert await get("/v1/models/gpt-4/status") == await get("/v1/models/a/status")
    assert [model.model async for model in _loaded(appliance)] == ["a"]
    async with session.post(base + "/v1/models/eject", json={"model": "gpt-4"}) as response:
        assert (response.status, appliance.status("a")) == (200, "off")


async def _loaded(appliance: ManagedAppliance):
    for model in (await ollama.AsyncClient(host=appliance.running.base_url).ps()).models:
        yield model


async def test_arguments_and_variables_reach_the_server(
    managed: Managed, llama_binary: str, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    binary = wrapper(tmp_path, llama_binary, f'echo "$HOUSE $*" > {seen}')
    appliance = await managed(
        "a", binary=binary, a={"extra_args": ["--threads-batch", 1, "--no-warmup"], "env": {"HOUSE": "blue"}}
    )
    await appliance.chat("a")
    words = seen.read_text().split()
    assert words[0] == "blue"
    assert words[-3:] == ["--threads-batch", "1", "--no-warmup"]


async def test_ollama_clients_are_shown_the_sampling(managed: Managed) -> None:
    sampling = {"defaults": {"temperature": 0.5, "max_tokens": 9, "stop": ["x"]}, "force": {"top_k": 3}}
    appliance = await managed("a", a=sampling | {"aliases": ["b"], "system_prompt": "not shown"})
    shown = await ollama.AsyncClient(host=appliance.running.base_url).show("b")
    rows = dict(line.split() for line in (shown.parameters or "").splitlines())
    assert (rows["temperature"], rows["num_predict"], rows["top_k"]) == ("0.5", "9", "3")
    assert "not shown" not in shown.model_dump_json()


async def test_unknown_argument_fails_the_load_with_its_reason(managed: Managed) -> None:
    appliance = await managed("a", "b", a={"extra_args": ["--no-warmupp"]})
    status, _, answer = await appliance.ask("a")
    assert (status, answer["error"]["code"]) == (503, "model_failed")
    assert "`extra_args` has --no-warmupp" in answer["error"]["message"]
    assert "did you mean --no-warmup?" in answer["error"]["message"]
    assert (await appliance.ask("b"))[0] == 200


async def test_preload_pin_and_idle_timeout_of_a_model(managed: Managed) -> None:
    appliance = await managed(
        "a",
        "b",
        "c",
        max_concurrent_models=2,
        a={"preload": True, "pin": True},
        b={"idle_timeout_sec": 1},
    )
    assert await until(lambda: appliance.status("a") == "ready")
    await appliance.chat("b")
    assert await until(lambda: appliance.status("b") == "off", seconds=10)
    await appliance.chat("b")
    await appliance.chat("c")
    assert appliance.status("a") == "ready"


async def test_change_of_request_settings_keeps_the_running_server(managed: Managed) -> None:
    appliance = await managed("a", "b")
    await appliance.chat("a")
    pid = appliance.pid("a")
    result = await appliance.change(a={"aliases": ["x"], "force": {"max_tokens": FORCED}, "preload": True})
    assert result.applied
    assert (await by_openai(appliance, "x"))[1] == FORCED
    assert appliance.pid("a") == pid
    await appliance.change(b={"preload": True})
    assert await until(lambda: appliance.status("b") == "ready")
