"""Downloads of all sources through the environment's proxies: a real one, which resolves names that only it knows."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from appliance.base.errors import Forbidden, UpstreamFailed
from tests.downloads.engines import MIB, download_request, engine, random_bytes, read_folder
from tests.fakes.file_hubs import FileServer, Hub, ModelScopeHub
from tests.fakes.forward_proxy import ForwardProxy
from tests.fakes.s3_server import S3Server

HOSTS = dict.fromkeys(
    ("hub.test", "cdn.test", "s3.test", "files.test", "weights.s3.test", "192.0.2.7"), "127.0.0.1"
)
DATA = random_bytes(3 * MIB)
KEYS = {"access_key": "AKIAOURKEY", "secret_key": "oursecretkey123"}


def named(url: str, name: str) -> str:
    return url.replace("127.0.0.1", name)


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    ca = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("files.test", "127.0.0.1").configure_cert(server)
    ca.configure_trust(client)
    return server, client


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    (tmp_path / "object").write_bytes(DATA)
    with S3Server() as server:
        server.put(tmp_path / "object", "weights", "llama/model.gguf")
        yield server


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_hugging_face_is_reached_through_the_proxy(tmp_path: Path, variable: str) -> None:
    async with Hub({"model.gguf": DATA, "config.json": b"{}"}) as hub, ForwardProxy(HOSTS) as proxy:
        hub.url, hub.cdn, hub.page = named(hub.url, "hub.test"), named(hub.cdn, "cdn.test"), 1
        proxy.password = "me:p%3A secret"
        proxies = {variable: f"http://me:p%253A%20secret@127.0.0.1:{proxy.port}"}
        await engine(tmp_path, hf_endpoint=hub.url, proxies=proxies).download(
            download_request("ns/repo", tmp_path / "out")
        )
    assert read_folder(tmp_path / "out") == {"model.gguf": DATA, "config.json": b"{}"}
    assert proxy.hosts == {"hub.test", "cdn.test"}
    assert proxy.sent["cdn.test"] > len(DATA)
    assert hub.listed == 1


@pytest.mark.parametrize(
    ("style", "name", "asked"),
    [({}, "192.0.2.7", "192.0.2.7"), ({"path_style": "0"}, "s3.test", "weights.s3.test")],
)
async def test_an_object_store_is_listed_and_fetched_through_it(
    tmp_path: Path,
    s3: S3Server,
    style: dict[str, str],
    name: str,
    asked: str,
) -> None:
    """moto takes the first part of a host's name for a bucket, but not of an address."""
    async with ForwardProxy(HOSTS) as proxy:
        proxy.password = "me:p:secret"
        fetcher = engine(
            tmp_path,
            endpoint=named(s3.url, name),
            proxies={"http_proxy": f"http://me:p%3Asecret@127.0.0.1:{proxy.port}"},
            **KEYS,
        )
        await fetcher.download(download_request("s3://weights/llama", tmp_path / "out", style))
    assert read_folder(tmp_path / "out") == {"model.gguf": DATA}
    assert proxy.sent.total() > len(DATA)
    assert proxy.hosts == {asked}


async def test_modelscope_is_asked_through_it(tmp_path: Path) -> None:
    async with ModelScopeHub({"model.gguf": DATA}) as hub, ForwardProxy(HOSTS) as proxy:
        config = {"ms_endpoint": named(hub.url, "hub.test")}
        await engine(None, is_trusted=True, proxies={"HTTP_PROXY": proxy.url}).download(
            download_request("ms://ns/repo", tmp_path / "out", config)
        )
    assert read_folder(tmp_path / "out") == {"model.gguf": DATA}
    assert proxy.sent["hub.test"] > len(DATA)


@pytest.mark.parametrize("is_secured", [False, True])
async def test_a_secured_host_is_reached_through_a_tunnel(
    tmp_path: Path, tls: tuple, is_secured: bool
) -> None:
    """Also by a proxy that is itself reached over TLS."""
    async with (
        FileServer({"model.gguf": DATA}, ssl_context=tls[0]) as server,
        ForwardProxy(HOSTS, ssl_context=tls[0] if is_secured else None) as proxy,
    ):
        proxy.password = "me:secret"
        fetcher = engine(
            tmp_path,
            ssl_context=tls[1],
            download_allowed_hosts="files.test",
            proxies={
                "HTTPS_PROXY": proxy.url.replace("//", "//me:secret@"),
                "HTTP_PROXY": "http://127.0.0.1:1",
            },
        )
        await fetcher.download(
            download_request(f"{named(server.url, 'files.test')}/model.gguf", tmp_path / "out")
        )
    assert read_folder(tmp_path / "out") == {"model.gguf": DATA}
    assert set(proxy.asked) == {("CONNECT", "files.test")}
    assert proxy.sent["files.test"] > len(DATA)


async def test_no_proxy_hosts_and_this_machine_are_reached_directly(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client reads the environment by itself."""
    async with Hub({"model.gguf": DATA}) as hub, ForwardProxy(HOSTS) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for number, proxies in enumerate(
            ({}, {"HTTP_PROXY": proxy.url}, {"HTTP_PROXY": proxy.url, "NO_PROXY": "*"})
        ):
            fetcher = engine(tmp_path, hf_endpoint=hub.url, endpoint=s3.url, proxies=proxies, **KEYS)
            await fetcher.download(download_request("ns/repo", tmp_path / f"hf{number}"))
            await fetcher.download(download_request("s3://weights", tmp_path / f"s3{number}"))
        assert proxy.asked == []
        fetcher = engine(
            tmp_path,
            hf_endpoint="http://hub.test:1",
            endpoint="http://s3.test:1",
            proxies={"HTTP_PROXY": proxy.url, "no_proxy": "hub.test,.s3.test"},
            **KEYS,
        )
        for source in ("ns/repo", "s3://weights"):  # names that only the proxy knows
            with pytest.raises(UpstreamFailed):
                await fetcher.download(download_request(source, tmp_path / "out"))
    assert proxy.asked == []


@pytest.mark.parametrize("given", ["", "me:wrongsecret@"])
async def test_wrong_proxy_credentials_name_the_variable(tmp_path: Path, tls: tuple, given: str) -> None:
    async with ForwardProxy(HOSTS) as proxy:
        proxy.password = "me:rightsecret"
        proxies = {name: proxy.url.replace("//", f"//{given}") for name in ("http_proxy", "HTTPS_PROXY")}
        plain = engine(
            None,
            is_trusted=True,
            hf_endpoint="http://hub.test",
            endpoint="http://s3.test",
            proxies=proxies,
            **KEYS,
        )
        secured = engine(
            None,
            is_trusted=True,
            hf_endpoint="https://hub.test",
            endpoint="https://s3.test",
            proxies=proxies,
            **KEYS,
        )
        for fetcher, variable in ((plain, "http_proxy"), (secured, "HTTPS_PROXY")):
            for source in ("ns/repo", "s3://weights", "ms://ns/repo", "https://files.test/x"):
                if source.startswith("https") and fetcher is plain:
                    continue
                config = (
                    {"ms_endpoint": "http://hub.test" if fetcher is plain else "https://hub.test"}
                    if source.startswith("ms")
                    else {}
                )
                before = len(proxy.asked)
                with pytest.raises(UpstreamFailed) as caught:
                    await fetcher.download(download_request(source, tmp_path / "out", config))
                wants = "other credentials" if given else "credentials"
                assert caught.value.message == (
                    f"The proxy of {variable} (http://127.0.0.1:{proxy.port}) requires {wants} (407). "
                    f"Set {variable} to http://user:password@host:port."
                ), source
                assert caught.value.code == "proxy_refused"
                assert len(proxy.asked) == before + 1  # asking again would not help


async def test_host_that_the_proxy_refuses_is_reported(tmp_path: Path) -> None:
    async with ForwardProxy(HOSTS) as proxy:
        proxy.refuses = {"hub.test": 403, "s3.test": 403, "files.test": 403}
        proxies = {"HTTPS_PROXY": proxy.url.replace("//", "//me:verysecret@")}
        fetcher = engine(
            None,
            is_trusted=True,
            hf_endpoint="https://hub.test",
            endpoint="https://s3.test",
            proxies=proxies,
            **KEYS,
        )
        for source, host in (
            ("ns/repo", "hub.test"),
            ("https://files.test/x", "files.test"),
            ("s3://weights", "s3.test"),
        ):
            with pytest.raises(
                UpstreamFailed,
                match=rf"proxy of HTTPS_PROXY \(http://127.0.0.1:{proxy.port}\).* forward requests to {host}",
            ) as caught:
                await fetcher.download(download_request(source, tmp_path / "out"))
            assert "verysecret" not in caught.value.message
            assert caught.value.code == "proxy_refused"
        proxy.refuses = {}
        with pytest.raises(
            UpstreamFailed, match=r"did not forward the request to unknown\.test \(502\); tried 3 times"
        ):
            await fetcher.download(download_request("https://unknown.test/x", tmp_path / "out"))


async def test_unreachable_proxy_is_reported(tmp_path: Path) -> None:
    async with ForwardProxy(HOSTS) as gone:
        pass
    proxies = {"ALL_PROXY": f"http://me:verysecret@127.0.0.1:{gone.port}"}
    for scheme in ("http", "https"):
        fetcher = engine(
            None,
            is_trusted=True,
            hf_endpoint=f"{scheme}://hub.test",
            endpoint=f"{scheme}://s3.test",
            proxies=proxies,
            **KEYS,
        )
        for source in ("ns/repo", "s3://weights", "https://files.test/x"):
            with pytest.raises(
                UpstreamFailed, match=r"the proxy of ALL_PROXY \(http://127.0.0.1.*tried 3 times"
            ) as caught:
                await fetcher.download(download_request(source, tmp_path / "out"))
            assert "refused" in caught.value.message.lower() or "connect" in caught.value.message.lower()
            assert "verysecret" not in caught.value.message


async def test_variable_without_a_valid_proxy_is_reported(tmp_path: Path) -> None:
    fetcher = engine(
        None,
        is_trusted=True,
        endpoint="https://s3.test",
        proxies={"HTTPS_PROXY": "socks5://me:verysecret@p.test:1"},
        **KEYS,
    )
    for source in ("ns/repo", "s3://weights", "ms://ns/repo", "https://files.test/x"):
        with pytest.raises(UpstreamFailed, match="HTTPS_PROXY names a socks5:// proxy") as caught:
            await fetcher.download(download_request(source, tmp_path / "out"))
        assert "verysecret" not in caught.value.message


async def test_through_a_proxy_no_private_address_is_reached_either(tmp_path: Path) -> None:
    """As far as can be checked here: names that only the proxy can resolve are left to the proxy."""
    async with Hub({"model.gguf": DATA}) as hub, ForwardProxy(HOSTS | {"10.1.2.3": "127.0.0.1"}) as proxy:
        fetcher = engine(tmp_path, download_allowed_hosts="10.0.0.0/8", proxies={"ALL_PROXY": proxy.url})
        for endpoint in ("http://192.168.1.1", "http://169.254.169.254", "http://127.0.0.1:9"):
            for config, source in (
                ({"hf_endpoint": endpoint}, "ns/repo"),
                ({"endpoint": endpoint, **KEYS}, "s3://weights"),
                ({"ms_endpoint": endpoint}, "ms://ns/repo"),
            ):
                with pytest.raises(Forbidden, match="is not allowed"):
                    await fetcher.download(download_request(source, tmp_path / "out", config))
        assert proxy.asked == []
        hub.cdn = named(hub.cdn, "192.168.1.1")  # nor by a redirect
        with pytest.raises(Forbidden, match=r"Access to 192\.168\.1\.1 is not allowed"):
            await fetcher.download(
                download_request("ns/repo", tmp_path / "out", {"hf_endpoint": named(hub.url, "10.1.2.3")})
            )
        hub.cdn = named(hub.cdn.replace("192.168.1.1", "127.0.0.1"), "cdn.test")
        await fetcher.download(
            download_request("ns/repo", tmp_path / "out", {"hf_endpoint": named(hub.url, "hub.test")})
        )
    assert read_folder(tmp_path / "out") == {"model.gguf": DATA}
