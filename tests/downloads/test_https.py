"""https:// and ms:// sources: which hosts may be asked, redirects, checksums, servers that tell little."""

import hashlib
import ssl
from pathlib import Path

import pytest
import trustme

from appliance.base.errors import Forbidden, Invalid, NotFound, UpstreamFailed
from tests.downloads.engines import MIB, ProgressLog, download_request, engine, random_bytes, read_folder
from tests.fakes.file_hubs import Cut, FileServer, ModelScopeHub, Status

DATA = random_bytes(3 * MIB)
SHA256 = hashlib.sha256(DATA).hexdigest()
LISTED = "127.0.0.1"


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    ca = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("127.0.0.1", "localhost").configure_cert(server)
    ca.configure_trust(client)
    return server, client


async def test_a_file_is_compared_with_its_checksum(tmp_path: Path, tls: tuple) -> None:
    async with FileServer({"m/model v1.gguf": DATA}, ssl_context=tls[0]) as server:
        fetcher = engine(tmp_path, ssl_context=tls[1], download_allowed_hosts=LISTED)
        await fetcher.download(
            download_request(
                f"{server.url}/m/model%20v1.gguf?key=verysecret",
                tmp_path / "out",
                {"checksum": f"sha256:{SHA256}"},
            )
        )
        with pytest.raises(UpstreamFailed, match="checksum"):
            await fetcher.download(
                download_request(f"{server.url}/m/model%20v1.gguf", tmp_path / "two", {"checksum": "0" * 64})
            )
        with pytest.raises(Invalid, match="must be sha256:"):
            await fetcher.download(
                download_request(
                    f"{server.url}/m/model%20v1.gguf", tmp_path / "two", {"checksum": "sha256:xyz"}
                )
            )
    assert read_folder(tmp_path / "out") == {"model v1.gguf": DATA}
    assert read_folder(tmp_path / "two") == {}
    assert "verysecret" not in (tmp_path / "out" / ".download.json").read_text()


async def test_a_file_that_changed_at_its_source_is_not_tried_again(tmp_path: Path, tls: tuple) -> None:
    async with FileServer({"model.gguf": DATA}, ssl_context=tls[0]) as server:
        server.faults["model.gguf"] = [Status(412)] * 6
        fetcher = engine(tmp_path, ssl_context=tls[1], download_allowed_hosts=LISTED, download_max_workers=1)
        with pytest.raises(UpstreamFailed, match="changed at its source"):
            await fetcher.download(download_request(f"{server.url}/model.gguf", tmp_path / "out"))
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "server",
    [FileServer(tells_length=False), FileServer(has_ranges=False), FileServer(tells_ranges=False)],
    ids=["no length", "no ranges", "ranges not told"],
)
async def test_servers_that_tell_little_are_good_enough(
    tmp_path: Path, tls: tuple, server: FileServer
) -> None:
    server.files, server.ssl_context = {"model.gguf": DATA}, tls[0]
    async with server:
        # The request for its headers and the first fetch:
        server.faults["model.gguf"] = [Cut(MIB) for _ in range(2)]
        await engine(tmp_path, ssl_context=tls[1], download_allowed_hosts=LISTED).download(
            download_request(f"{server.url}/model.gguf", tmp_path / "out")
        )
    assert read_folder(tmp_path / "out") == {"model.gguf": DATA}


async def test_a_cut_body_without_length_fails_its_checksum(tmp_path: Path, tls: tuple) -> None:
    async with FileServer({"model.gguf": DATA[:1000]}, tells_length=False, ssl_context=tls[0]) as server:
        with pytest.raises(UpstreamFailed, match="checksum"):
            await engine(tmp_path, ssl_context=tls[1], download_allowed_hosts=LISTED).download(
                download_request(f"{server.url}/model.gguf", tmp_path / "out", {"checksum": SHA256})
            )


async def test_hosts_and_addresses_must_be_listed(tmp_path: Path, tls: tuple) -> None:
    async with FileServer({"f": DATA}, ssl_context=tls[0]) as server:
        by_name = server.url.replace("127.0.0.1", "localhost")
        for hosts, url in [
            ("", server.url),
            ("example.com", server.url),
            ("*", server.url),
            ("localhost", by_name),
            ("*", by_name),
            ("localhost,10.0.0.0/8", by_name),
            ("*", server.url.replace("127.0.0.1", "[::1]")),
            ("*", server.url.replace("127.0.0.1", "[::ffff:127.0.0.1]")),
            ("*", server.url.replace("127.0.0.1", "2130706433")),
            ("*", "https://169.254.169.254/latest"),
        ]:
            with pytest.raises(
                Forbidden,
                match=r"DOWNLOAD_ALLOWED_HOSTS|not a canonical",
            ):
                await engine(tmp_path, ssl_context=tls[1], download_allowed_hosts=hosts).download(
                    download_request(f"{url}/f", tmp_path / "out")
                )
        assert server.asked == []
        for hosts, url in [
            ("localhost,127.0.0.1", by_name),
            ("*,127.0.0.0/8", by_name),
            ("127.0.0.0/8", server.url),
        ]:
            await engine(tmp_path, ssl_context=tls[1], download_allowed_hosts=hosts).download(
                download_request(f"{url}/f", tmp_path / "out")
            )
    assert read_folder(tmp_path / "out") == {"f": DATA}


async def test_redirects_lead_only_to_listed_https_hosts(tmp_path: Path, tls: tuple) -> None:
    from aiohttp import web

    class Redirecting(FileServer):
        there = ""

        def routes(self) -> list[web.RouteDef]:
            return [web.get("/go", self._go), *super().routes()]

        async def _go(self, request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": self.there})

    async with Redirecting({"f": DATA}, ssl_context=tls[0]) as server, FileServer({"f": DATA}) as plain:
        fetcher = engine(tmp_path, ssl_context=tls[1], download_allowed_hosts=LISTED)
        server.there = "/f"
        await fetcher.download(download_request(f"{server.url}/go", tmp_path / "out"))
        server.there = server.url.replace("127.0.0.1", "localhost") + "/f"
        with pytest.raises(Forbidden, match="localhost"):
            await fetcher.download(download_request(f"{server.url}/go", tmp_path / "out2"))
        server.there = f"{plain.url}/f"
        with pytest.raises(Forbidden, match="from https to http"):
            await fetcher.download(download_request(f"{server.url}/go", tmp_path / "out2"))
        server.there = "/go"
        with pytest.raises(UpstreamFailed, match="redirects more than"):
            await fetcher.download(download_request(f"{server.url}/go", tmp_path / "out2"))
    assert read_folder(tmp_path / "out") == {"go": DATA}


async def test_credentials_in_an_address_are_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="contains credentials") as caught:
        await engine(tmp_path, download_allowed_hosts="*").download(
            download_request("https://me:mypassword@example.com/f", tmp_path / "out")
        )
    assert "mypassword" not in str(caught.value)
    with pytest.raises(Invalid, match="one file"):
        await engine(tmp_path, download_allowed_hosts="*").download(
            download_request("https://example.com/", tmp_path / "out")
        )


async def test_a_new_version_is_not_joined_to_an_old_part(tmp_path: Path, tls: tuple) -> None:
    async with FileServer({"f": random_bytes(6 * MIB, 1)}, ssl_context=tls[0]) as server:
        fetcher = engine(tmp_path, ssl_context=tls[1], download_allowed_hosts=LISTED)
        server.faults["f"] = [Cut(0), *[Cut(3 * MIB), Cut(0), Cut(0), Cut(0)]]
        with pytest.raises(UpstreamFailed, match="kept"):
            await fetcher.download(download_request(f"{server.url}/f", tmp_path / "out", workers=1))
        server.files["f"], server.etags["f"] = random_bytes(6 * MIB, 2), "another"
        done = await fetcher.download(download_request(f"{server.url}/f", tmp_path / "out"))
    assert done.fetched_bytes == 6 * MIB
    assert read_folder(tmp_path / "out") == {"f": server.files["f"]}


async def test_modelscope_is_fetched_by_its_own_api(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "sub/model.gguf": DATA}
    async with ModelScopeHub(files) as hub:
        hub.token = "ms-our-token"
        fetcher = engine(None, is_trusted=True)
        config = {"ms_endpoint": hub.url, "ms_token": "ms-our-token"}
        hub.faults["sub/model.gguf"] = [Cut(MIB)]
        await fetcher.download(download_request("ms://ns/repo", tmp_path / "out", config))
        await fetcher.download(download_request("ms://ns/repo@master/sub", tmp_path / "sub", config))
        with pytest.raises(Forbidden, match="ms_token"):
            await fetcher.download(
                download_request("ms://ns/repo", tmp_path / "no", {"ms_endpoint": hub.url})
            )
        with pytest.raises(NotFound):
            await fetcher.download(download_request("ms://ns/repo@v9", tmp_path / "no", config))
        with pytest.raises(Invalid, match="ms://"):
            await fetcher.download(download_request("ms://repo", tmp_path / "no", config))
    assert read_folder(tmp_path / "out") == files
    assert read_folder(tmp_path / "sub") == {"model.gguf": DATA}


@pytest.mark.parametrize("tells_length", [True, False])
async def test_parts_that_cannot_be_resumed_are_not_counted(
    tmp_path: Path, tls: tuple, tells_length: bool
) -> None:
    """Without ranges, what an earlier run left is fetched again, so it does not count as done."""
    server = FileServer({"model.gguf": DATA}, has_ranges=False, tells_length=tells_length, ssl_context=tls[0])
    fetcher = engine(tmp_path, ssl_context=tls[1], download_allowed_hosts=LISTED)
    log = ProgressLog()
    async with server:
        request = download_request(f"{server.url}/model.gguf", tmp_path / "out")
        server.faults["model.gguf"] = [Cut(2 * MIB) for _ in range(8)]
        with pytest.raises(UpstreamFailed):
            await fetcher.download(request)
        server.faults["model.gguf"] = []
        found = await fetcher.download(request, log.append)
    assert (found.total_bytes, found.fetched_bytes) == (len(DATA), len(DATA))
    assert max(progress.done_bytes for progress in log) == len(DATA)
