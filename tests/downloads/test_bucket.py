"""Object stores: what their client's errors mean, without a store."""

from typing import Any

import pytest
from aiohttp import web
from obstore import exceptions as known

from appliance.base.errors import ApplianceError, Forbidden, Invalid, NotFound, TimedOut, UpstreamFailed
from appliance.base.proxies import Proxies
from appliance.downloads.sources.bucket import Bucket
from appliance.downloads.sources.contract import Interrupted, RemoteFile, SourceChanged, SourceTimeouts
from appliance.downloads.sources.obs import Obs
from tests.downloads.pages import serving_pages, source_context

KEYS = {"access_key": "AKIAOURKEY", "secret_key": "oursecretkey123"}


def bucket(address: str = "models/llama", *, proxy: str = "", **config: str) -> Bucket:
    context = source_context(address, **{"endpoint": "http://store.test:9000", **KEYS, **config})
    if proxy:
        object.__setattr__(context, "proxies", Proxies.from_environ({"HTTP_PROXY": proxy}))
    return Bucket(context, scheme="s3")


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (Forbidden("ours"), Forbidden, "^ours$"),
        (Exception("status code: 403"), Forbidden, r"s3:m at http://store.test:9000 refuses access \(403\)"),
        (Exception("status code: 404"), NotFound, r"does not have it \(404\)"),
        (Exception("status code: 503"), Interrupted, "responded with 503"),
        (known.PreconditionError("x"), SourceChanged, "changed at its source"),
        (Exception("status code: 412"), SourceChanged, "changed at its source"),
        (known.NotFoundError("gone"), NotFound, "s3:m at http://store.test:9000 does not exist"),
        (Exception("Error parsing Path"), Invalid, "has a name that a file here cannot have"),
        (TimeoutError(), TimedOut, "stopped sending"),
        (Exception('x Debug source: error: "oursecretkey123 refused"'), Interrupted, r"\[secret\] refused"),
        (Exception("InvalidCertificate( Expired"), Interrupted, "InvalidCertificate"),
        (Exception("y Debug source: InvalidCertificate( Expired"), Interrupted, r"not trusted \(Expired\)"),
    ],
)
def test_a_clients_error_has_its_meaning(raised: Exception, kind: type[ApplianceError], text: str) -> None:
    error = bucket()._failure(raised, "s3:m")
    assert type(error) is kind
    with pytest.raises(kind, match=text):
        raise error


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        ("status code: 407", r"requires credentials \(407\)"),
        ("ProxyAuthRequired", r"requires credentials \(407\)"),
        ("TunnelUnsuccessful", "does not forward requests to store.test"),
    ],
)
def test_a_proxys_refusal_names_the_proxy(raised: str, text: str) -> None:
    error = bucket(proxy="http://10.0.0.1:3128")._failure(Exception(raised), "s3:m")
    assert error.code == "proxy_refused"
    with pytest.raises(ApplianceError, match=text):
        raise error


@pytest.mark.parametrize(
    ("address", "config", "text"),
    [
        ("x", {}, "A bucket's name is 2 to 63"),
        ("models/a?sig=1", {}, "without a query"),
        ("models", {"endpoint": "ftp://h"}, "`endpoint` must be an http"),
        ("models", {"endpoint": "http://h:99999999"}, "`endpoint` must be an http"),
        ("models", {"access_key": ""}, "Missing credentials"),
    ],
)
def test_a_bad_source_is_refused(address: str, config: dict[str, str], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        bucket(address, **config)


def page_of(*keys: str) -> str:
    rows = "".join(
        f"<Contents><Key>llama/{key}</Key><Size>5</Size><ETag>x</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in keys
    )
    return (
        f"<ListBucketResult><Name>models</Name><KeyCount>{len(keys)}</KeyCount><IsTruncated>true</IsTruncated>"
        f"<NextContinuationToken>again</NextContinuationToken>{rows}</ListBucketResult>"
    )


@pytest.mark.parametrize(
    ("keys", "kind", "text"),
    [
        (["a", "b"], UpstreamFailed, "lists 'a' twice: the store repeats a page"),
        ([], TimedOut, "stopped sending"),
    ],
)
async def test_a_list_that_repeats_its_token_ends(keys: list[str], kind: type[Exception], text: str) -> None:
    async def listing(_: web.Request) -> web.Response:
        return web.Response(text=page_of(*keys), content_type="application/xml")

    async with serving_pages({"/models": listing}) as url:
        store = bucket(endpoint=url)
        store._timeouts = SourceTimeouts(first_byte_s=0.3)
        with pytest.raises(kind, match=text):
            await store.listing()


def test_obs_needs_an_endpoint() -> None:
    with pytest.raises(Invalid, match=r"obs:// needs the store's address"):
        Obs(source_context("models", **KEYS))


async def test_an_object_that_ends_early_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(self: Bucket, key: str, options: Any) -> Any:
        assert options == {"if_match": '"tag"', "range": (2, 10)}
        yield b"abc"

    monkeypatch.setattr(Bucket, "_read", read)
    with pytest.raises(Interrupted, match="ended 5 bytes early"):
        async for _ in bucket().pieces(RemoteFile("m", 10, etag="tag"), 2, None):
            pass
