"""Official clients with a base URL that is not quite right: served where it is plain, else told the right one."""

import httpx
import ollama
import openai
import pytest

from tests.fakes.mirror import QUICK, Mirror
from tests.journeys.running import Running, Start

HELLO = [{"role": "user", "content": "Hello"}]
KEY = "client-key-123456"


@pytest.mark.parametrize("base", ["//v1", "/v1//", "/v1"])
async def test_openais_client_is_served_whatever_the_slashes(anyone: Running, base: str) -> None:
    api = openai.AsyncOpenAI(base_url=anyone.base_url + base, api_key=KEY, max_retries=0)
    assert (await api.chat.completions.create(model="m", messages=HELLO)).choices[0].message.content
    assert (await api.models.list()).data


async def test_trailing_slashes_are_served_at_every_interface(anyone: Running) -> None:
    async with httpx.AsyncClient(base_url=anyone.base_url) as http:
        chat = await http.post("/api/chat/", json={"messages": HELLO, "stream": False})
        listed = await http.get("/v1/models/")
        wrong = await http.get("/v1/chat/completions/")
    assert (chat.status_code, chat.json()["done"]) == (200, True)
    assert (listed.status_code, listed.json()["object"]) == (200, "list")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "OPTIONS, POST")


@pytest.mark.parametrize(("base", "path"), [("", "/chat/completions"), ("/v1/v1", "/v1/v1/chat/completions")])
async def test_openais_client_is_told_the_right_address(anyone: Running, base: str, path: str) -> None:
    api = openai.AsyncOpenAI(base_url=anyone.base_url + base, api_key=KEY, max_retries=0)
    with pytest.raises(openai.NotFoundError) as error:
        await api.chat.completions.create(model="m", messages=HELLO)
    assert error.value.message.count(f"There is nothing at {path}. Did you mean /v1/chat/completions?")


async def test_ollamas_client_is_told_the_right_address(anyone: Running) -> None:
    with pytest.raises(ollama.ResponseError) as error:
        await ollama.AsyncClient(host=anyone.base_url + "/v1").chat(model="m", messages=HELLO)
    assert (error.value.status_code, error.value.error) == (
        404,
        "There is nothing at /v1/api/chat. Did you mean /api/chat?",
    )


async def test_a_joined_base_url_does_not_reach_an_engine(start: Start) -> None:
    async with Mirror("llamacpp") as server:
        running = await start(BACKENDS=f"one={server.url}", **QUICK)
        async with httpx.AsyncClient(base_url=running.base_url) as http:
            for path in ("/v1/v1/chat/completions", "/v1/api/chat"):
                response = await http.post(path, json={"messages": HELLO})
                assert (response.status_code, "Did you mean" in response.text) == (404, True)
            other = await http.post(running.base_url + "//tokenize", json={"content": "a"})
            assert other.status_code == 200
    assert [seen for seen in server.seen if "/v1/" in str(seen)] == []
