"""/api/pull of models on Hugging Face and /api/delete: the official client, and the lines themselves."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from appliance.base.errors import Conflict, Forbidden, NotFound, UpstreamFailed
from appliance.downloads.contract import SourceOffer
from appliance.models.table.pulled import INDEX, read_pulled
from tests.front.downloads_api import DownloadsApi, downloads_api
from tests.journeys.running import until
from tests.tools.tiny_models import cached_folder, ensure

NAME = "hf.co/ns/tiny:Q4_K_M"
SHA = "ab" * 32
OFFERED = [
    SourceOffer("tiny.Q4_K_M.gguf", 100, SHA),
    SourceOffer("tiny.Q8_0.gguf", 200, "cd" * 32),
    SourceOffer("README.md", 5),
]


@pytest.fixture(scope="session")
def gguf() -> bytes:
    """A real model's file."""
    return (ensure(cached_folder()) / "tiny-chat.gguf").read_bytes()


@pytest.fixture
async def api(tmp_path: Path, gguf: bytes) -> AsyncIterator[DownloadsApi]:
    async with downloads_api(tmp_path / "home", jobs_path=tmp_path / "jobs.json") as api:
        api.offered["hf://ns/tiny"] = OFFERED
        api.downloader.writes = {"tiny.Q4_K_M.gguf": gguf}
        yield api


def client(api: DownloadsApi) -> ollama.AsyncClient:
    return ollama.AsyncClient(host=api.base_url)


async def raw(
    api: DownloadsApi, method: str = "POST", path: str = "/api/pull", **body: Any
) -> httpx.Response:
    async with httpx.AsyncClient(base_url=api.base_url, timeout=10) as http:
        return await http.request(method, path, json=body)


async def test_a_pull_sends_ollamas_lines_and_indexes_the_model(api: DownloadsApi) -> None:
    lines = [(part.status, part.digest, part.total, part.completed) async for part in await pulled_by(api)]
    pulling = f"pulling {SHA[:12]}"
    assert lines[0] == ("pulling manifest", None, None, None)
    assert lines[-4:] == [
        (pulling, f"sha256:{SHA}", 100, 100),
        ("verifying sha256 digest", None, None, None),
        ("writing manifest", None, None, None),
        ("success", None, None, None),
    ]
    assert (pulling, f"sha256:{SHA}", 100, None) in lines
    assert (pulling, f"sha256:{SHA}", 100, 40) in lines
    (model,) = read_pulled(api.home)[0]
    assert (model.alias, model.source, model.path) == (
        NAME,
        "hf://ns/tiny",
        api.home / "hf.co/ns/tiny/Q4_K_M/tiny.Q4_K_M.gguf",
    )
    assert api.happened == [("reread",)]


async def pulled_by(api: DownloadsApi) -> AsyncIterator[Any]:
    """Pull with the official client; the stand-in makes progress with each line."""

    async def go() -> None:
        run = await api.downloader.next()
        assert (run.request.source, run.request.config, run.request.output_dir) == (
            "hf://ns/tiny",
            {"include": "tiny.Q4_K_M.gguf"},
            api.home / "hf.co/ns/tiny/Q4_K_M",
        )
        run.progress(0)
        await asyncio.sleep(0.1)
        run.progress(40)
        await asyncio.sleep(0.1)
        run.finish()

    going = asyncio.create_task(go())
    response = await client(api).pull(NAME, stream=True)

    async def parts() -> AsyncIterator[Any]:
        async for part in response:
            yield part
        await going

    return parts()


async def test_a_pull_without_a_stream_is_its_last_object(api: DownloadsApi) -> None:
    api.downloader.at_once = True
    assert (await client(api).pull(NAME)).status == "success"
    response = await raw(api, model=NAME, stream=False)
    assert (response.headers["content-type"], response.json()) == ("application/json", {"status": "success"})


async def test_every_line_is_one_object_and_none_has_other_keys(api: DownloadsApi) -> None:
    api.downloader.at_once = True
    response = await raw(api, name=NAME)
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(text) for text in response.text.splitlines()]
    assert response.text.endswith("\n")
    assert [line["status"] for line in lines if not line["status"].startswith("pulling ")] == [
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert all(set(line) <= {"status", "digest", "total", "completed"} for line in lines)


async def test_a_file_without_a_digest_gets_one_of_its_name(api: DownloadsApi) -> None:
    api.offered["hf://ns/tiny"] = [SourceOffer("tiny.Q4_K_M.gguf", 100)]
    api.downloader.at_once = True
    lines = [part async for part in await client(api).pull(NAME, stream=True)]
    assert lines[-4].digest == "sha256:" + hashlib.sha256(b"hf://ns/tiny/tiny.Q4_K_M.gguf").hexdigest()


FINDING = [
    (NotFound("ns/tiny does not exist."), 404, "pull model manifest: ns/tiny does not exist."),
    (Forbidden("ns/tiny is gated."), 403, "pull model manifest: ns/tiny is gated."),
    (UpstreamFailed("The hub cannot be reached."), 502, "pull model manifest: The hub cannot be reached."),
    (
        [SourceOffer("model.safetensors", 5)],
        400,
        "pull model manifest: Repository is not GGUF or is not compatible with llama.cpp",
    ),
    (
        [SourceOffer("tiny.Q2_K.gguf", 5)],
        404,
        "pull model manifest: The specified tag is not available in the repository: Q4_K_M. It has tiny.Q2_K.",
    ),
]


@pytest.mark.parametrize(("offered", "status", "text"), FINDING)
async def test_a_missing_repository_has_ollamas_error(
    api: DownloadsApi, offered: Any, status: int, text: str
) -> None:
    api.offered["hf://ns/tiny"] = offered
    with pytest.raises(ollama.ResponseError) as caught:
        await client(api).pull(NAME)
    assert (caught.value.status_code, caught.value.error) == (status, text)
    response = await raw(api, model=NAME)
    assert (response.status_code, [json.loads(line) for line in response.text.splitlines()]) == (
        200,
        [{"status": "pulling manifest"}, {"error": text}],
    )
    with pytest.raises(ollama.ResponseError, match="pull model manifest"):
        [part async for part in await client(api).pull(NAME, stream=True)]
    assert api.downloader.runs == []


async def test_a_failed_download_is_the_last_line(api: DownloadsApi) -> None:
    api.downloader.at_once = Conflict("tiny.Q4_K_M.gguf: there is no space left.")
    lines = [json.loads(text) for text in (await raw(api, model=NAME)).text.splitlines()]
    assert lines[-1] == {"error": "tiny.Q4_K_M.gguf: there is no space left."}
    with pytest.raises(ollama.ResponseError) as caught:
        await client(api).pull(NAME)
    assert caught.value.status_code == 409
    assert read_pulled(api.home) == ([], "")


@pytest.mark.parametrize("data", [b"", b"no model at all", b"GGUF"])
async def test_a_pulled_file_that_is_not_a_model_is_refused(api: DownloadsApi, data: bytes) -> None:
    api.downloader.at_once, api.downloader.writes = True, {"tiny.Q4_K_M.gguf": data}
    with pytest.raises(ollama.ResponseError, match="is not a GGUF model") as caught:
        await client(api).pull(NAME)
    assert caught.value.status_code == 400
    assert (read_pulled(api.home), api.happened) == (([], ""), [])


@pytest.mark.parametrize("name", ["hf.co/ns", "hf.co/ns/a/b", "hf.co/../x"])
async def test_an_invalid_name_is_refused_first(api: DownloadsApi, name: str) -> None:
    for is_stream in (True, False):
        response = await raw(api, model=name, stream=is_stream)
        assert (response.status_code, response.json()) == (400, {"error": "invalid model name"})


async def test_other_names_are_answered_as_before(api: DownloadsApi) -> None:
    response = await raw(api, model="llama3")
    assert [json.loads(text)["status"] for text in response.text.splitlines()] == [
        "pulling llama3",
        "verifying sha256",
        "writing manifest",
        "success",
    ]


async def test_a_lost_client_cancels_a_pull_unless_another_waits(api: DownloadsApi) -> None:
    async def pull() -> None:
        async for _ in await client(api).pull(NAME, stream=True):
            pass

    first, second = asyncio.create_task(pull()), asyncio.create_task(client(api).pull(NAME))
    run = await api.downloader.next()
    job = api.jobs.all()[0]
    assert await until(lambda: api.jobs.holder_count(job.id) >= 2)
    first.cancel()
    assert await until(lambda: api.jobs.holder_count(job.id) < 3)
    await asyncio.sleep(0.05)
    assert not run.was_cancelled
    second.cancel()
    assert await until(lambda: run.was_cancelled)
    assert await until(lambda: api.jobs.get(job.id).state == "cancelled")


async def test_operators_only(tmp_path: Path) -> None:
    async with downloads_api(
        tmp_path, APPLIANCE_API_KEYS="client-key", OPERATOR_API_KEYS="operator-key"
    ) as api:
        api.offered["hf://ns/tiny"] = NotFound("no")
        for key, status in (("client-key", 403), ("operator-key", 404)):
            known = ollama.AsyncClient(host=api.base_url, headers={"Authorization": f"Bearer {key}"})
            for call in (known.pull(NAME), known.delete(NAME)):
                with pytest.raises(ollama.ResponseError) as caught:
                    await call
                assert caught.value.status_code == status


async def test_a_pull_taken_up_after_a_restart_ends_in_the_index(tmp_path: Path, gguf: bytes) -> None:
    home, jobs_path = tmp_path / "home", tmp_path / "jobs.json"
    async with downloads_api(home, jobs_path=jobs_path) as api:
        api.offered["hf://ns/tiny"] = OFFERED
        pulling = asyncio.create_task(client(api).pull(NAME))
        await api.downloader.next()
        await api.jobs.close()
        with pytest.raises(ollama.ResponseError, match="continues after the next start"):
            await pulling
    async with downloads_api(home, jobs_path=jobs_path) as api:
        api.downloader.writes = {"tiny.Q4_K_M.gguf": gguf}
        (await api.downloader.next()).finish()
        assert await until(lambda: api.happened == [("reread",)])
        assert [one.alias for one in read_pulled(home)[0]] == [NAME]


# ---- delete


async def test_a_pulled_model_is_ejected_then_deleted(api: DownloadsApi) -> None:
    api.downloader.at_once = True
    await client(api).pull(NAME)
    path = read_pulled(api.home)[0][0].path
    assert path.is_file()
    api.happened.clear()
    assert (await client(api).delete(NAME)).status == "success"
    assert api.happened == [("eject", NAME), ("reread",)]
    assert read_pulled(api.home) == ([], "")
    assert [one.name for one in api.home.iterdir()] == [INDEX]


async def test_what_was_not_pulled_cannot_be_deleted(api: DownloadsApi) -> None:
    for name, status, text in (
        ("llama3", 404, "model 'llama3' not found"),
        (NAME, 404, f"model '{NAME}' not found"),
        ("", 400, "model is required"),
    ):
        response = await raw(api, "DELETE", "/api/delete", model=name)
        assert (response.status_code, response.json()) == (status, {"error": text})
    response = await raw(api, path="/api/copy", source="a", destination="b")
    assert response.status_code == 501


async def test_a_model_that_is_being_pulled_again_is_not_deleted(api: DownloadsApi) -> None:
    api.downloader.at_once = True
    await client(api).pull(NAME)
    await api.downloader.next()
    api.downloader.at_once = False
    pulling = asyncio.create_task(client(api).pull(NAME))
    run = await api.downloader.next()
    with pytest.raises(ollama.ResponseError) as caught:
        await client(api).delete(NAME)
    assert caught.value.status_code == 409
    run.finish()
    await pulling
