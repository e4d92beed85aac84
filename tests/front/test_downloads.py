"""Downloads over HTTP: /v1/download_model and the jobs behind it, on the main port and on the sidecar's."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TimedOut,
    UpstreamFailed,
)
from appliance.downloads.contract import FileFault
from tests.front.downloads_api import DownloadsApi, downloads_api
from tests.front.feeds import Event, events_of
from tests.journeys.running import until

SECRET = "hf_verysecrettokenvalue"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[DownloadsApi]:
    async with downloads_api(tmp_path / "home") as api:
        yield api


@pytest.fixture
async def http(api: DownloadsApi) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=api.base_url, timeout=10) as client:
        yield client


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[tuple[DownloadsApi, httpx.AsyncClient]]:
    async with (
        downloads_api(tmp_path / "home", is_sidecar=True) as api,
        httpx.AsyncClient(base_url=api.base_url, timeout=10) as client,
    ):
        yield api, client


def asking(client: httpx.AsyncClient, **body: Any) -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(
        client.post("/v1/download_model", json={"source": "ns/repo", "output_dir": "a", **body})
    )


# ---- downloading


async def test_a_download_is_answered_when_it_is_complete(
    api: DownloadsApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    responding = asking(http, max_workers=3, config={"hf_token": SECRET, "revision": "v1"})
    run = await api.downloader.next()
    assert (run.request.source, run.request.output_dir, run.request.max_workers) == (
        "hf://ns/repo",
        tmp_path / "home" / "a",
        3,
    )
    assert run.request.config == {"hf_token": SECRET, "revision": "v1"}
    run.finish()
    response = await responding
    body = response.json()
    assert response.status_code == 200
    assert body.pop("job").startswith("job_")
    assert body == {
        "status": "completed",
        "message": f"hf://ns/repo is in {tmp_path}/home/a.",
        "source": "hf://ns/repo",
        "output_dir": f"{tmp_path}/home/a",
        "files": 2,
        "bytes": 100,
    }


async def test_an_asynchronous_download_is_answered_at_once(
    api: DownloadsApi, http: httpx.AsyncClient
) -> None:
    response = await asking(http, async_download=True, config='{"hf_token": "' + SECRET + '"}')
    body = response.json()
    assert (response.status_code, body["status"], body["source"]) == (202, "started", "hf://ns/repo")
    assert {"message", "output_dir", "job"} <= set(body)
    run = await api.downloader.next()
    assert run.request.config == {"hf_token": SECRET}
    run.progress(25)
    job = (await http.get(f"/v1/jobs/{body['job']}")).json()
    assert (job["id"], job["state"], job["progress"]["percent"], job["progress"]["now"]) == (
        body["job"],
        "running",
        25.0,
        ["a.bin"],
    )
    assert (await http.get("/v1/jobs")).json() == {"jobs": [job]}
    run.finish()
    assert await until(lambda: api.jobs.get(body["job"]).state == "completed")


REFUSALS = [
    ({"source": None}, 400, "source"),
    ({"source": ""}, 400, "source"),
    ({"output_dir": None}, 400, "output_dir"),
    ({"output_dir": ""}, 400, "output_dir"),
    ({"source": 3}, 400, "source"),
    ({"output_dir": ["a"]}, 400, "output_dir"),
    ({"max_workers": "8"}, 400, "max_workers"),
    ({"max_workers": 0}, 400, "max_workers"),
    ({"async_download": "yes"}, 400, "async_download"),
    ({"config": [1]}, 400, "config"),
    ({"config": "{" + SECRET}, 400, "config"),
    ({"config": {"x": {"y": SECRET}}}, 400, "config.x"),
    ({"source": f"s3://a:{SECRET}@b/c"}, 400, "source"),
    ({"output_dir": "/etc"}, 403, "output_dir"),
    ({"output_dir": "../b"}, 403, "output_dir"),
]


@pytest.mark.parametrize(("change", "status", "param"), REFUSALS)
async def test_an_invalid_request_is_refused_in_both_shapes(
    api: DownloadsApi,
    http: httpx.AsyncClient,
    sidecar: tuple[DownloadsApi, httpx.AsyncClient],
    change: dict[str, Any],
    status: int,
    param: str,
) -> None:
    response = await asking(http, **change)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    beside = await asking(sidecar[1], **change)
    assert (beside.status_code, beside.json()) == (
        status,
        {"detail": response.json()["error"]["message"].replace(str(api.home), str(sidecar[0].home))},
    )
    assert SECRET not in response.text + beside.text
    assert api.downloader.runs + sidecar[0].downloader.runs == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{"])
@pytest.mark.parametrize("path", ["download_model", "downloads/verify", "downloads/repair"])
async def test_a_body_that_is_not_an_object_is_refused(
    http: httpx.AsyncClient, sidecar: tuple[DownloadsApi, httpx.AsyncClient], body: bytes, path: str
) -> None:
    response = await http.post(f"/v1/{path}", content=body)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert (await sidecar[1].post(f"/v1/{path}", content=body)).json() == {
        "detail": response.json()["error"]["message"]
    }


FAILURES = [
    (Forbidden("f.bin: 403 from there."), 403),
    (NotFound("There is no such repository."), 404),
    (Conflict("f.bin: no space left."), 409),
    (Invalid("There is no such scheme."), 400),
    (UpstreamFailed("f.bin: wrong checksum."), 502),
    (TimedOut("f.bin: silence."), 504),
    (ZeroDivisionError("oops"), 500),
]


@pytest.mark.parametrize(("error", "status"), FAILURES)
async def test_a_failed_download_is_500_on_the_sidecars_port(
    api: DownloadsApi,
    http: httpx.AsyncClient,
    sidecar: tuple[DownloadsApi, httpx.AsyncClient],
    error: Exception,
    status: int,
) -> None:
    api.downloader.at_once = sidecar[0].downloader.at_once = error
    response, beside = await asking(http), await asking(sidecar[1])
    said = error.message if isinstance(error, ApplianceError) else "The download failed inside the appliance"
    assert (response.status_code, response.json()["error"]["message"].startswith(said)) == (status, True)
    assert beside.status_code == 500
    assert list(beside.json()) == ["detail"]
    assert beside.json()["detail"].startswith(f"Download failed: {said}")


async def test_a_lost_caller_cancels_only_its_own_download(
    api: DownloadsApi, http: httpx.AsyncClient
) -> None:
    first, second = asking(http), asking(http)
    run = await api.downloader.next()
    assert await until(lambda: api.jobs.all() != [] and api.jobs.holder_count(api.jobs.all()[0].id) == 2)
    first.cancel()
    assert await until(lambda: api.jobs.holder_count(api.jobs.all()[0].id) == 1)
    assert not run.was_cancelled
    run.finish()
    assert (await second).status_code == 200
    third = asking(http)
    run = await api.downloader.next()
    third.cancel()
    assert await until(lambda: run.was_cancelled)
    assert await until(lambda: api.jobs.all()[0].state == "cancelled")


async def test_the_same_download_with_other_settings_is_a_conflict(
    api: DownloadsApi, http: httpx.AsyncClient
) -> None:
    await asking(http, async_download=True)
    response = await asking(http, config={"revision": "v2"})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "download_runs")


async def test_operators_only(tmp_path: Path) -> None:
    async with (
        downloads_api(tmp_path, APPLIANCE_API_KEYS="client-key", OPERATOR_API_KEYS="operator-key") as api,
        httpx.AsyncClient(base_url=api.base_url) as client,
    ):
        asked = [
            ("POST", "/v1/download_model"),
            ("GET", "/v1/jobs"),
            ("GET", "/v1/jobs/x"),
            ("DELETE", "/v1/jobs/x"),
            ("GET", "/v1/jobs/x/stream"),
            ("POST", "/v1/downloads/verify"),
            ("POST", "/v1/downloads/repair"),
        ]
        for method, path in asked:
            assert (await client.request(method, path)).status_code == 401
            assert (
                await client.request(method, path, headers={"X-API-Key": "client-key"})
            ).status_code == 403
        assert (await client.get("/v1/jobs", headers={"X-API-Key": "operator-key"})).json() == {"jobs": []}


# ---- jobs


async def test_delete_cancels_a_job_and_ends_the_wait_for_it(
    api: DownloadsApi, http: httpx.AsyncClient
) -> None:
    responding = asking(http)
    run = await api.downloader.next()
    job_id = api.jobs.all()[0].id
    cancelled = await http.delete(f"/v1/jobs/{job_id}")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert run.was_cancelled
    assert ((await responding).status_code, (await responding).json()["error"]["code"]) == (
        409,
        "download_cancelled",
    )
    assert (await http.delete(f"/v1/jobs/{job_id}")).json()["state"] == "cancelled"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/jobs/x"), ("DELETE", "/v1/jobs/x"), ("GET", "/v1/jobs/x/stream")]
)
async def test_an_unknown_job_is_not_found(
    http: httpx.AsyncClient, sidecar: tuple[DownloadsApi, httpx.AsyncClient], method: str, path: str
) -> None:
    response = await http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "no_such_job")
    beside = await sidecar[1].request(method, path)
    assert (beside.status_code, beside.json()) == (404, {"detail": response.json()["error"]["message"]})


async def test_another_method_is_refused(http: httpx.AsyncClient) -> None:
    for method, path in (
        ("GET", "/v1/download_model"),
        ("POST", "/v1/jobs"),
        ("PUT", "/v1/jobs/x"),
        ("GET", "/v1/downloads/verify"),
    ):
        assert (await http.request(method, path)).status_code == 405, path


@asynccontextmanager
async def following(client: httpx.AsyncClient, job_id: str) -> AsyncIterator[AsyncIterator[Event]]:
    """Follow a job with a real client of server-sent events, and by hand: there are no other bytes."""
    async with client.stream("GET", f"/v1/jobs/{job_id}/stream") as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield events_of(response)


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "interrupted"])
async def test_the_feed_sends_progress_and_then_the_final_state(
    api: DownloadsApi, http: httpx.AsyncClient, end: str
) -> None:
    job_id = (await asking(http, async_download=True)).json()["job"]
    run = await api.downloader.next()
    async with following(http, job_id) as events:
        name, job = await asyncio.wait_for(anext(events), 5)
        assert (name, job["state"], job["id"]) == ("progress", "running", job_id)
        run.progress(60)
        name, job = await asyncio.wait_for(anext(events), 5)
        assert (name, job["progress"]["done_bytes"], job["progress"]["rate_bytes_s"]) == (
            "progress",
            60,
            12.5,
        )
        match end:
            case "completed":
                run.finish()
            case "failed":
                run.fail(NotFound("It went away."))
            case "cancelled":
                await http.delete(f"/v1/jobs/{job_id}")
            case _:
                await api.jobs.close()
        rest = [event async for event in events]
        assert (rest[-1][0], rest[-1][1]["state"], rest[-1][1]["error"]) == (
            end,
            end,
            "It went away." if end == "failed" else None,
        )
    async with following(http, job_id) as events:
        assert [name async for name, _ in events] == [end]


async def test_a_follower_that_leaves_changes_nothing(api: DownloadsApi, http: httpx.AsyncClient) -> None:
    job_id = (await asking(http, async_download=True)).json()["job"]
    run = await api.downloader.next()
    async with following(http, job_id) as events:
        await anext(events)
    run.finish()
    assert await until(lambda: api.jobs.get(job_id).state == "completed")


# ---- folders


async def test_a_folder_is_verified(api: DownloadsApi, http: httpx.AsyncClient, tmp_path: Path) -> None:
    response = await http.post("/v1/downloads/verify", json={"output_dir": "a"})
    assert response.json() == {"output_dir": f"{tmp_path}/home/a", "ok": True, "flaws": []}
    api.downloader.flaws = [FileFault("x.bin", "checksum", "sha256 differs")]
    response = await http.post("/v1/downloads/verify", json={"output_dir": "a"})
    assert (response.json()["ok"], response.json()["flaws"]) == (
        False,
        [{"path": "x.bin", "kind": "checksum", "detail": "sha256 differs"}],
    )
    api.downloader.refuses = NotFound("Nothing was downloaded to it.")
    assert (await http.post("/v1/downloads/verify", json={"output_dir": "a"})).status_code == 404


async def test_a_folder_is_repaired_as_a_job(
    api: DownloadsApi, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    responding = asyncio.create_task(
        http.post("/v1/downloads/repair", json={"output_dir": "a", "config": {"hf_token": SECRET}})
    )
    run = await api.downloader.next()
    assert (run.request.output_dir, run.request.config) == (tmp_path / "home" / "a", {"hf_token": SECRET})
    (job,) = (await http.get("/v1/jobs")).json()["jobs"]
    assert (job["kind"], job["source"], job["state"]) == ("repair", "", "running")
    run.finish()
    body = (await responding).json()
    assert body == {
        "status": "completed",
        "message": f"{tmp_path}/home/a is complete.",
        "output_dir": f"{tmp_path}/home/a",
        "job": job["id"],
        "files": 2,
        "bytes": 100,
    }
    started = await http.post("/v1/downloads/repair", json={"output_dir": "a", "async_download": True})
    assert (started.status_code, started.json()["status"]) == (202, "started")


@pytest.mark.parametrize("path", ["/v1/downloads/verify", "/v1/downloads/repair"])
async def test_folders_that_are_forbidden_or_missing_are_refused(
    api: DownloadsApi, http: httpx.AsyncClient, path: str
) -> None:
    for folder, status in ((None, 400), ("", 400), (3, 400), ("/etc", 403), ("..", 403)):
        assert (await http.post(path, json={"output_dir": folder})).status_code == status
    await asking(http, async_download=True)
    response = await http.post(path, json={"output_dir": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "download_runs")


async def test_a_repair_that_fails_on_the_sidecar(sidecar: tuple[DownloadsApi, httpx.AsyncClient]) -> None:
    api, client = sidecar
    api.downloader.at_once = NotFound("Nothing was downloaded to it.")
    response = await client.post("/v1/downloads/repair", json={"output_dir": "a"})
    assert (response.status_code, response.json()) == (
        500,
        {"detail": "Repair failed: Nothing was downloaded to it."},
    )


# ---- credentials


@pytest.mark.parametrize("is_sidecar", [False, True])
async def test_no_address_shows_credentials(tmp_path: Path, is_sidecar: bool) -> None:
    path = tmp_path / "jobs.json"
    async with (
        downloads_api(tmp_path / "home", is_sidecar=is_sidecar, jobs_path=path) as api,
        httpx.AsyncClient(base_url=api.base_url, timeout=10) as client,
    ):
        seen = []
        for key in ("hf_token", "ms_token", "access_key", "secret_key", "unheard_of"):
            api.downloader.at_once = Forbidden(f"file.bin: {key}={SECRET} was refused with {SECRET}.")
            for config in ({key: SECRET}, json.dumps({key: SECRET})):
                response = await client.post(
                    "/v1/download_model",
                    json={"source": f"https://host/f?sig={SECRET}", "output_dir": key, "config": config},
                )
                assert response.status_code in {403, 500}
                assert "[secret]" in response.text
                job_id = (await client.get("/v1/jobs")).json()["jobs"][0]["id"]
                feed = await client.get(f"/v1/jobs/{job_id}/stream")
                assert b"event: failed" in feed.content
                responses = [
                    response,
                    feed,
                    await client.get(f"/v1/jobs/{job_id}"),
                    await client.delete(f"/v1/jobs/{job_id}"),
                ]
                seen += [one.text + repr(one.headers) for one in responses]
        listed = await client.get("/v1/jobs")
        assert len(listed.json()["jobs"]) == 10
        receipts = await client.get("/receipts")  # on the main port
        assert SECRET not in "".join(seen) + listed.text + receipts.text + path.read_text()
