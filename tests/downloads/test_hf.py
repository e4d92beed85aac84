"""hf:// sources, against a local endpoint that the official client downloads from as well."""

import asyncio
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import errors

from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TimedOut,
    UpstreamFailed,
)
from appliance.base.proxies import Proxies
from appliance.downloads.part import BLOCK_BYTES
from appliance.downloads.sources.contract import Interrupted, SourceTimeouts
from appliance.downloads.sources.hf import Hf
from tests.downloads.engines import (
    MIB,
    ProgressLog,
    download_request,
    engine,
    leftovers,
    random_bytes,
    read_folder,
)
from tests.downloads.pages import source_context
from tests.fakes.file_hubs import COMMIT, Cut, Hub, Stall, Status

FILES = {
    "config.json": b'{"a": 1}',
    "sub/tokenizer.json": random_bytes(900, 2),
    "model.gguf": random_bytes(3 * MIB + 17, 3),
    "sub/deep/shard.gguf": random_bytes(MIB, 4),
    "empty": b"",
}


async def test_a_repository_arrives_as_with_the_official_client(tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    async with Hub(dict(FILES)) as hub:
        await asyncio.to_thread(
            snapshot_download, "ns/repo", local_dir=tmp_path / "official", endpoint=hub.url, token=False
        )
        done = await engine(tmp_path, hf_endpoint=hub.url).download(
            download_request("hf://ns/repo", tmp_path / "ours")
        )
    official = {
        path: data
        for path, data in read_folder(tmp_path / "official").items()
        if not path.startswith(".cache")
    }
    assert official == FILES
    assert read_folder(tmp_path / "ours") == FILES
    assert (done.files, done.total_bytes, done.fetched_bytes) == (
        5,
        sum(map(len, FILES.values())),
        sum(map(len, FILES.values())),
    )
    assert leftovers(tmp_path / "ours") == []


async def test_bare_names_revisions_and_paths_are_understood(tmp_path: Path) -> None:
    async with Hub(dict(FILES)) as hub:
        fetcher = engine(tmp_path, hf_endpoint=hub.url)
        await fetcher.download(
            download_request("ns/repo", tmp_path / "a", {"include": "*.json,deep/", "exclude": "sub/*"})
        )
        await fetcher.download(download_request("hf://ns/repo@refs/pr/1/sub", tmp_path / "b"))
        await fetcher.download(download_request(f"ns/repo@{COMMIT}/sub/deep/shard.gguf", tmp_path / "c"))
    assert list(read_folder(tmp_path / "a")) == ["config.json"]
    assert list(read_folder(tmp_path / "b")) == ["deep/shard.gguf", "tokenizer.json"]
    assert list(read_folder(tmp_path / "c")) == ["shard.gguf"]
    entry = json.loads((tmp_path / "b" / ".download.json").read_text())["downloads"][0]
    assert (entry["asked"], entry["pinned"]) == ("hf://ns/repo@refs/pr/1/sub", f"hf://ns/repo@{COMMIT}/sub")


async def test_a_listing_in_pages_is_read_to_its_end(tmp_path: Path) -> None:
    async with Hub(dict(FILES)) as hub:
        hub.page = 2
        await engine(tmp_path, hf_endpoint=hub.url).download(download_request("ns/repo", tmp_path / "out"))
    assert read_folder(tmp_path / "out") == FILES


async def test_the_token_does_not_follow_redirects(tmp_path: Path) -> None:
    async with Hub(dict(FILES)) as hub:
        hub.token = "hf_secret_of_ours"
        with pytest.raises(NotFound, match="may not read it"):
            await engine(tmp_path, hf_endpoint=hub.url).download(
                download_request("ns/repo", tmp_path / "out")
            )
        await engine(tmp_path, hf_endpoint=hub.url, hf_auth_token=hub.token).download(
            download_request("ns/repo", tmp_path / "out")
        )
    sent = {asked.path: asked.authorization for asked in hub.asked}
    assert sent["config.json"] == "Bearer hf_secret_of_ours"
    assert sent["model.gguf"] == ""
    assert "hf_secret" not in (tmp_path / "out" / ".download.json").read_text()


async def test_only_changed_files_are_fetched_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with Hub(dict(FILES)) as hub:
        fetcher = engine(tmp_path, hf_endpoint=hub.url)
        await fetcher.download(download_request("ns/repo", out))
        again = await fetcher.download(download_request("ns/repo", out))
        assert again.fetched_bytes == 0
        (out / "config.json").write_bytes(b'{"a": 2}')
        (out / ".download.json").unlink()  # without a manifest the checksums tell
        third = await fetcher.download(download_request("ns/repo", out))
    assert third.fetched_bytes == len(FILES["config.json"])
    assert read_folder(out) == FILES


async def test_large_files_are_fetched_in_parts_by_all_workers(tmp_path: Path) -> None:
    data = random_bytes(40 * MIB)
    async with Hub({"model.gguf": data}) as hub:
        hub.drip_s = 0.001
        await engine(tmp_path, hf_endpoint=hub.url).download(
            download_request("ns/repo", tmp_path / "out", workers=4)
        )
    assert hub.most_open == 4
    assert len({asked.first for asked in hub.asked}) == 5
    assert (tmp_path / "out" / "model.gguf").read_bytes() == data


@pytest.mark.parametrize(
    "fault",
    [Status(503), Status(429, "0"), Cut(700_000), Stall(700_000)],
    ids=["503", "429", "cut", "silence"],
)
async def test_a_server_that_fails_in_the_middle_is_asked_for_the_rest(tmp_path: Path, fault: object) -> None:
    async with Hub({"model.gguf": FILES["model.gguf"]}) as hub:
        hub.faults["model.gguf"] = [fault, fault]
        await engine(tmp_path, hf_endpoint=hub.url).download(
            download_request("ns/repo", tmp_path / "out", workers=1)
        )
    assert read_folder(tmp_path / "out") == {"model.gguf": FILES["model.gguf"]}
    assert hub.sent["model.gguf"] <= len(FILES["model.gguf"]) + 2 * BLOCK_BYTES


async def test_it_gives_up_at_last_and_keeps_what_it_has(tmp_path: Path) -> None:
    async with Hub({"model.gguf": random_bytes(8 * MIB)}) as hub:
        fetcher = engine(tmp_path, hf_endpoint=hub.url)
        hub.faults["model.gguf"] = [Cut(5 * MIB), Status(502), Status(502), Status(502)]
        with pytest.raises(
            UpstreamFailed, match=r"model\.gguf: .*502; tried 3 times in a row\. What was fetched is kept"
        ):
            await fetcher.download(download_request("ns/repo", tmp_path / "out", workers=1))
        assert read_folder(tmp_path / "out") == {}
        assert [(flaw.path, flaw.kind) for flaw in await fetcher.verify(tmp_path / "out")] == [
            ("model.gguf", "partial")
        ]
        hub.faults.clear()
        done = await fetcher.repair(tmp_path / "out")
    assert done.fetched_bytes <= 3 * MIB + BLOCK_BYTES
    assert read_folder(tmp_path / "out") == {"model.gguf": hub.files["model.gguf"]}
    assert leftovers(tmp_path / "out") == []


async def test_breaking_off_at_one_place_ends_the_retries(
    tmp_path: Path,
) -> None:
    async with Hub({"model.gguf": random_bytes(4 * MIB)}) as hub:
        hub.has_ranges = False
        hub.faults["model.gguf"] = [Cut(3 * MIB)] * 50
        with pytest.raises(UpstreamFailed, match=r"tried 3 times"):
            await engine(tmp_path, hf_endpoint=hub.url).download(
                download_request("ns/repo", tmp_path / "out", workers=1)
            )
    assert len(hub.asked) <= 8


async def test_a_server_without_ranges_gives_whole_files(tmp_path: Path) -> None:
    data = random_bytes(40 * MIB)
    async with Hub({"model.gguf": data}) as hub:
        hub.has_ranges = False
        done = await engine(tmp_path, hf_endpoint=hub.url).download(
            download_request("ns/repo", tmp_path / "out")
        )
    assert (tmp_path / "out" / "model.gguf").read_bytes() == data
    assert done.total_bytes == len(data)


async def test_a_wrong_checksum_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with Hub(dict(FILES)) as hub:
        hub.sha256 = lambda path: "0" * 64  # type: ignore[method-assign]
        with pytest.raises(UpstreamFailed, match=r"Wrong checksum for (model|shard)\.gguf") as caught:
            await engine(tmp_path, hf_endpoint=hub.url).download(
                download_request("ns/repo", tmp_path / "out", workers=1)
            )
    assert caught.value.code == "checksum_mismatch"
    assert "model.gguf" not in read_folder(tmp_path / "out")


async def test_a_damaged_part_is_fetched_from_its_beginning(tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with Hub({"model.gguf": random_bytes(8 * MIB)}) as hub:
        fetcher = engine(tmp_path, hf_endpoint=hub.url)
        hub.faults["model.gguf"] = [Cut(5 * MIB), Status(403)]
        with pytest.raises(Forbidden):
            await fetcher.download(download_request("ns/repo", out, workers=1))
        part = next((out / ".download").glob("*.part"))
        part.write_bytes(b"x" * 1000 + part.read_bytes()[1000:])
        await fetcher.download(download_request("ns/repo", out))
    assert read_folder(out) == {"model.gguf": hub.files["model.gguf"]}


@pytest.mark.parametrize("status", [403, 404])
async def test_refusals_are_not_asked_again(tmp_path: Path, status: int) -> None:
    async with Hub({"model.gguf": FILES["model.gguf"]}) as hub:
        hub.faults["model.gguf"] = [Status(status)] * 5
        with pytest.raises(Forbidden if status == 403 else NotFound, match=rf"model\.gguf.*{status}"):
            await engine(tmp_path, hf_endpoint=hub.url).download(
                download_request("ns/repo", tmp_path / "out")
            )
    assert len(hub.asked) == 1


async def test_what_the_hub_refuses_is_told(tmp_path: Path) -> None:
    async with Hub(dict(FILES)) as hub:
        fetcher = engine(tmp_path, hf_endpoint=hub.url)
        with pytest.raises(NotFound, match="no revision v9"):
            await fetcher.download(download_request("ns/repo@v9", tmp_path / "out"))
        with pytest.raises(NotFound, match="ns/other"):
            await fetcher.download(download_request("ns/other", tmp_path / "out"))
        with pytest.raises(NotFound, match="has no nothing"):
            await fetcher.download(download_request("ns/repo/nothing", tmp_path / "out"))
        with pytest.raises(NotFound, match="None of the 5 files"):
            await fetcher.download(download_request("ns/repo", tmp_path / "out", {"include": "*.bin"}))
        with pytest.raises(Invalid, match="namespace/repository"):
            await fetcher.download(download_request("hf://repo", tmp_path / "out"))
        hub.is_gated = True
        with pytest.raises(Forbidden, match="terms"):
            await fetcher.download(download_request("ns/repo", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


async def test_an_unreachable_endpoint_is_retried_and_named(tmp_path: Path) -> None:
    with pytest.raises(UpstreamFailed, match=r"127\.0\.0\.1:9.* cannot be reached"):
        await engine(tmp_path, hf_endpoint="http://127.0.0.1:9").download(
            download_request("ns/repo", tmp_path / "out")
        )


async def test_progress_is_told_in_bytes_and_seldom(tmp_path: Path) -> None:
    story = ProgressLog()
    async with Hub({"model.gguf": random_bytes(12 * MIB), "config.json": b"{}"}) as hub:
        hub.drip_s = 0.02
        await engine(tmp_path, hf_endpoint=hub.url).download(
            download_request("ns/repo", tmp_path / "out", workers=2), story.append
        )
    assert story.phases() == ["listing", "verifying", "fetching", "done"]
    assert (story[-1].files, story[-1].files_done, story[-1].done_bytes, story[-1].total_bytes) == (
        2,
        2,
        12 * MIB + 2,
        12 * MIB + 2,
    )
    fetching = [told for told in story if told.phase == "fetching"]
    assert len(fetching) >= 3
    assert any(told.rate_bytes_s > 0 and told.now == ("model.gguf",) for told in fetching)
    assert [told.done_bytes for told in fetching] == sorted(told.done_bytes for told in fetching)


async def test_cancelling_leaves_parts_that_are_gone_on_with(tmp_path: Path) -> None:
    out, half = tmp_path / "out", asyncio.Event()
    async with Hub({"model.gguf": random_bytes(24 * MIB)}) as hub:
        hub.drip_s = 0.01
        fetcher = engine(tmp_path, hf_endpoint=hub.url)
        task = asyncio.ensure_future(
            fetcher.download(
                download_request("ns/repo", out),
                lambda told: half.set() if told.done_bytes > 8 * MIB else None,
            )
        )
        await asyncio.wait_for(half.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [name.rpartition(".")[2] for name in leftovers(out)] == ["json", "part"]
        hub.drip_s, before = 0.0, hub.sent["model.gguf"]
        done = await fetcher.download(download_request("ns/repo", out))
    assert done.fetched_bytes < 16 * MIB
    assert done.fetched_bytes <= hub.sent["model.gguf"] - before
    assert read_folder(out) == {"model.gguf": hub.files["model.gguf"]}


async def test_a_server_that_stays_silent_is_given_up_as_late(tmp_path: Path) -> None:
    async with Hub({"model.gguf": FILES["model.gguf"]}) as hub:
        hub.faults["model.gguf"] = [Stall(0)] * 9
        with pytest.raises(TimedOut, match=r"model\.gguf.*silent.*tried 3 times"):
            await engine(tmp_path, hf_endpoint=hub.url).download(
                download_request("ns/repo", tmp_path / "out", workers=1)
            )


async def test_a_slow_server_is_waited_for_as_long_as_it_sends(tmp_path: Path) -> None:
    async with Hub({"model.gguf": random_bytes(2 * MIB)}) as hub:
        hub.drip_s = 0.12  # longer in all than the patience with silence
        await engine(tmp_path, hf_endpoint=hub.url).download(
            download_request("ns/repo", tmp_path / "out", workers=1)
        )
    assert read_folder(tmp_path / "out") == hub.files


async def test_disk_space_is_checked_for_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    room = [3 * MIB]
    monkeypatch.setattr(
        os, "statvfs", lambda _: os.statvfs_result((*real[:1], 1, *real[2:4], room[0], *real[5:]))
    )
    async with Hub({"model.gguf": random_bytes(4 * MIB), "first": random_bytes(MIB)}) as hub:
        fetcher = engine(tmp_path, hf_endpoint=hub.url)
        with pytest.raises(Conflict, match="5,242,880 bytes are needed, 3,145,728 are free") as caught:
            await fetcher.download(download_request("ns/repo", tmp_path / "out"))
        assert (caught.value.code, hub.asked) == ("no_space", [])
        await fetcher.download(download_request("ns/repo", tmp_path / "out", {"include": "first"}))
        room[0] = 4 * MIB
        await fetcher.download(download_request("ns/repo", tmp_path / "out"))
    assert read_folder(tmp_path / "out") == hub.files


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file stands here")
    async with Hub({"config.json": b"{}"}) as hub:
        for folder, said in (
            (tmp_path / "out", "out is not a folder"),
            (Path("/proc/none"), "^/proc/none cannot be written: No such file"),
        ):
            with pytest.raises(Conflict, match=said):
                await engine(None, hf_endpoint=hub.url).download(download_request("ns/repo", folder))


# ---- what the official client's errors mean


def hf_source(*, proxy: str = "") -> Hf:
    context = source_context("ns/repo@v1", hf_endpoint="https://hub.test")
    proxies = Proxies.from_environ({"HTTPS_PROXY": proxy} if proxy else {})
    return Hf(replace(context, proxies=proxies))


def hub_error(status: int, kind: type[Exception] = errors.HfHubHTTPError) -> Exception:
    response = httpx2.Response(status, request=httpx2.Request("GET", "https://hub.test"))
    return kind("said", response=response)


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (NotFound("ours"), NotFound, "^ours$"),
        (hub_error(403, errors.GatedRepoError), Forbidden, "is gated. Accept its terms there"),
        (hub_error(404, errors.RevisionNotFoundError), NotFound, "has no revision v1"),
        (hub_error(404, errors.RepositoryNotFoundError), NotFound, "hf_token may not read it"),
        (hub_error(401), Forbidden, r"requires credentials, or other ones \(401\)"),
        (hub_error(503), Interrupted, "https://hub.test responded with 503"),
        (httpx2.ReadTimeout("slow"), TimedOut, "did not respond in time"),
        (errors.OfflineModeIsEnabled("off"), UpstreamFailed, "is not contacted: HF_HUB_OFFLINE is set"),
        (httpx2.ConnectError("refused"), Interrupted, "cannot be reached: refused"),
        (errors.HFValidationError("odd"), Invalid, "ns/repo is not a valid repository name"),
        (KeyError("sha"), UpstreamFailed, r"sent a list that cannot be read \(KeyError\)"),
    ],
)
async def test_a_clients_error_has_its_meaning(
    raised: Exception, kind: type[ApplianceError], text: str
) -> None:
    error = hf_source()._failure(raised)
    assert type(error) is kind
    with pytest.raises(kind, match=text):
        raise error


@pytest.mark.parametrize("raised", [httpx2.ProxyError("407 no"), hub_error(407)])
async def test_a_proxys_refusal_names_the_proxy(raised: Exception) -> None:
    error = hf_source(proxy="http://10.0.0.1:3128")._failure(raised)
    assert (error.code, "requires credentials (407)" in error.message) == ("proxy_refused", True)


async def test_a_listing_that_takes_too_long_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    source = hf_source()
    source._timeouts = SourceTimeouts(first_byte_s=0.01)
    done = threading.Event()
    monkeypatch.setattr(source, "_fetch_tree", lambda: done.wait(5))
    with pytest.raises(TimedOut, match="did not list the files in time"):
        await source.listing()
    done.set()
    await source.close()


@pytest.mark.parametrize("address", ["repo", "a/../b", "", "ns/repo@"])
async def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(Invalid, match="must be hf://namespace/repository"):
        Hf(source_context(address, hf_endpoint="https://hub.test"))
