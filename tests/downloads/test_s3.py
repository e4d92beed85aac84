"""s3:// and obs:// sources, against a real S3 server (moto)."""

import io
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import trustme
from moto.server import ThreadedMotoServer

from appliance.base.errors import Forbidden, Invalid, NotFound, UpstreamFailed
from tests.downloads.engines import MIB, download_request, engine, random_bytes, read_folder

FILES = {"config.json": b"{}", "sub/weights.bin": random_bytes(2 * MIB), "empty": b""}
KEYS = {"access_key": "AKIAOURKEY", "secret_key": "oursecretkey123"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str) -> Iterator[object]:
    client = boto3.client(
        "s3", endpoint_url=s3, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    )
    client.create_bucket(Bucket="models")
    for path, data in FILES.items():
        client.put_object(Bucket="models", Key=f"llama/{path}", Body=data)
    # The marker of a folder, as web consoles create it:
    client.put_object(Bucket="models", Key="llama/sub/", Body=b"")
    client.put_object(Bucket="models", Key="llama/nothing-in-it/", Body=b"")
    client.put_object(Bucket="models", Key="llama2/other", Body=b"not below the prefix")
    yield client
    for row in client.list_objects_v2(Bucket="models").get("Contents", []):
        client.delete_object(Bucket="models", Key=row["Key"])
    client.delete_bucket(Bucket="models")


async def test_all_below_a_prefix_is_fetched_and_then_known(s3: str, bucket: object, tmp_path: Path) -> None:
    fetcher = engine(tmp_path, endpoint=s3, **KEYS)
    done = await fetcher.download(download_request("s3://models/llama", tmp_path / "out"))
    assert read_folder(tmp_path / "out") == FILES
    assert done.files == 3
    assert (
        await fetcher.download(download_request("s3://models/llama/", tmp_path / "out"))
    ).fetched_bytes == 0
    assert await fetcher.verify(tmp_path / "out") == []


async def test_one_object_and_a_part_of_a_prefix_can_be_named(
    s3: str, bucket: object, tmp_path: Path
) -> None:
    fetcher = engine(tmp_path, endpoint=s3, **KEYS)
    await fetcher.download(download_request("s3://models/llama/sub/weights.bin", tmp_path / "one"))
    await fetcher.download(
        download_request("obs://models/llama/sub", tmp_path / "two", KEYS | {"path_style": "1"})
    )
    assert (
        read_folder(tmp_path / "one")
        == read_folder(tmp_path / "two")
        == {"weights.bin": FILES["sub/weights.bin"]}
    )


async def test_a_file_without_manifest_is_known_by_its_etag(s3: str, bucket: object, tmp_path: Path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub" / "weights.bin").write_bytes(FILES["sub/weights.bin"])
    done = await engine(tmp_path, endpoint=s3, **KEYS).download(
        download_request("s3://models/llama", tmp_path / "out")
    )
    assert done.fetched_bytes == len(FILES["config.json"])


async def test_objects_in_parts_that_change_are_fetched_anew(s3: str, bucket: object, tmp_path: Path) -> None:
    first, second = random_bytes(12 * MIB, 5), random_bytes(12 * MIB, 6)
    bucket.upload_fileobj(io.BytesIO(first), "models", "big/model")
    fetcher = engine(tmp_path, endpoint=s3, **KEYS)
    await fetcher.download(download_request("s3://models/big", tmp_path / "out"))
    assert (
        "-"
        in json.loads((tmp_path / "out" / ".download.json").read_text())["downloads"][0]["files"][0]["etag"]
    )
    bucket.upload_fileobj(io.BytesIO(second), "models", "big/model")
    done = await fetcher.download(download_request("s3://models/big", tmp_path / "out"))
    assert done.fetched_bytes == len(second)
    assert read_folder(tmp_path / "out") == {"model": second}


async def test_what_changed_since_the_listing_is_not_mixed(s3: str, bucket: object, tmp_path: Path) -> None:
    bucket.put_object(Bucket="models", Key="big/model", Body=random_bytes(MIB, 7))

    def change(progress: object) -> None:
        if progress.phase == "fetching" and progress.done_bytes == 0:  # type: ignore[attr-defined]
            bucket.put_object(Bucket="models", Key="big/model", Body=random_bytes(MIB, 8))

    with pytest.raises(UpstreamFailed, match="model changed at its source") as caught:
        await engine(tmp_path, endpoint=s3, **KEYS).download(
            download_request("s3://models/big", tmp_path / "out"), change
        )
    assert caught.value.code == "changed"
    assert read_folder(tmp_path / "out") == {}


async def test_repair_fetches_what_is_damaged_missing_or_cut(s3: str, bucket: object, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetcher = engine(tmp_path, endpoint=s3, **KEYS)
    await fetcher.download(download_request("s3://models/llama", out))
    damaged = bytearray(FILES["sub/weights.bin"])
    damaged[1000] ^= 1
    (out / "sub" / "weights.bin").write_bytes(damaged)
    (out / "config.json").unlink()
    (out / "empty").write_bytes(b"x")
    assert {(flaw.path, flaw.kind) for flaw in await fetcher.verify(out)} == {
        ("sub/weights.bin", "checksum"),
        ("config.json", "missing"),
        ("empty", "size"),
    }
    done = await fetcher.repair(out)
    assert done.fetched_bytes == 2 * MIB + 2
    assert read_folder(out) == FILES
    assert await fetcher.verify(out) == []


async def test_repair_does_not_mix_in_what_the_source_has_by_now(
    s3: str, bucket: object, tmp_path: Path
) -> None:
    fetcher = engine(tmp_path, endpoint=s3, **KEYS)
    await fetcher.download(download_request("s3://models/llama", tmp_path / "out"))
    bucket.put_object(Bucket="models", Key="llama/config.json", Body=b"[]")
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(UpstreamFailed, match="other contents now"):
        await fetcher.repair(tmp_path / "out")


@pytest.mark.parametrize("key", ["evil/../../etc/passwd", "evil//twice", "evil/back\\slash"])
async def test_names_that_lead_elsewhere_are_refused(
    s3: str, bucket: object, tmp_path: Path, key: str
) -> None:
    bucket.put_object(Bucket="models", Key=key, Body=b"x")
    with pytest.raises(Invalid) as caught:
        await engine(tmp_path, endpoint=s3, **KEYS).download(
            download_request("s3://models/evil", tmp_path / "out")
        )
    assert caught.value.code == "unsafe_name"


async def test_a_query_is_refused_and_a_question_mark_is_not(s3: str, bucket: object, tmp_path: Path) -> None:
    bucket.put_object(Bucket="models", Key="odd/what?.bin", Body=b"x")
    fetcher, out = engine(tmp_path, endpoint=s3, **KEYS), tmp_path / "out"
    with pytest.raises(Invalid, match="without a query") as caught:
        await fetcher.download(download_request("s3://models/odd/what?.bin", out))
    assert ".bin" not in caught.value.message  # it may have been a signature
    await fetcher.download(download_request("s3://models/odd", out))
    assert read_folder(out) == {"what?.bin": b"x"}
    (out / "what?.bin").write_bytes(b"y")
    await fetcher.repair(out)
    assert read_folder(out) == {"what?.bin": b"x"}


async def test_keys_are_needed_and_never_shown(s3: str, bucket: object, tmp_path: Path) -> None:
    for given in ({}, {"access_key": "AKIAOURKEY"}):
        with pytest.raises(Invalid, match="Missing credentials"):
            await engine(tmp_path, endpoint=s3, **given).download(
                download_request("s3://models/llama", tmp_path / "out")
            )
    with pytest.raises(Invalid, match="ENDPOINT"):
        await engine(tmp_path, **KEYS).download(download_request("obs://models/llama", tmp_path / "out"))
    assert "oursecretkey123" not in repr(download_request("s3://models/llama", tmp_path, KEYS))


async def test_missing_objects_are_reported(s3: str, bucket: object, tmp_path: Path) -> None:
    fetcher = engine(tmp_path, endpoint=s3, **KEYS)
    with pytest.raises(NotFound, match="no objects below s3://models/none"):
        await fetcher.download(download_request("s3://models/none", tmp_path / "out"))
    with pytest.raises(NotFound, match=r"nobucket.* does not have it"):
        await fetcher.download(download_request("s3://nobucket/x", tmp_path / "out"))
    with pytest.raises(Invalid, match="s3://bucket/prefix"):
        await fetcher.download(download_request("s3:///x", tmp_path / "out"))


async def test_a_callers_endpoint_gets_no_keys_of_the_operator(
    s3: str, bucket: object, tmp_path: Path
) -> None:
    own = engine(tmp_path, endpoint="https://store.example.com", **KEYS)
    with pytest.raises(Invalid, match="Missing credentials"):
        await own.download(download_request("s3://models/llama", tmp_path / "out", {"endpoint": s3}))
    with pytest.raises(Forbidden, match=r"Access to 127\.0\.0\.1 is not allowed"):
        await own.download(download_request("s3://models/llama", tmp_path / "out", {"endpoint": s3, **KEYS}))
    listed = engine(tmp_path, download_allowed_hosts="127.0.0.0/8")
    await listed.download(download_request("s3://models/llama", tmp_path / "out", {"endpoint": s3, **KEYS}))
    trusted = engine(None, is_trusted=True, endpoint="https://store.example.com", **KEYS)
    assert (
        await trusted.download(download_request("s3://models/llama", tmp_path / "two", {"endpoint": s3}))
    ).files == 3


async def test_a_refusal_names_the_object_and_not_the_key(tmp_path: Path) -> None:
    from tests.fakes.file_hubs import FileServer, Status

    async with FileServer({"models": b""}) as server:
        server.faults["models"] = [Status(403)]
        with pytest.raises(Forbidden, match=r"s3://models/x.*refuses access") as caught:
            await engine(tmp_path, endpoint=server.url, **KEYS).download(
                download_request("s3://models/x", tmp_path / "out")
            )
        server.faults["models"] = [Status(500)] * 9
        with pytest.raises(UpstreamFailed, match="tried 3 times") as again:
            await engine(tmp_path, endpoint=server.url, **KEYS).download(
                download_request("s3://models/x", tmp_path / "out")
            )
    for text in (caught.value.message, again.value.message):
        assert "AKIAOURKEY" not in text
        assert "oursecretkey123" not in text


async def test_an_unreachable_or_untrusted_store_names_the_cause(tmp_path: Path) -> None:
    from tests.fakes.file_hubs import FileServer

    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server_side)
    async with FileServer({"models": b""}, ssl_context=server_side) as server:
        with pytest.raises(
            UpstreamFailed, match=r"certificate is not trusted \(UnknownIssuer\); SSL_CERT_FILE"
        ):
            await engine(tmp_path, endpoint=server.url, **KEYS).download(
                download_request("s3://models/x", tmp_path / "out")
            )
    for endpoint, cause in (
        (server.url, "Connection refused"),
        ("http://nobody.invalid", "failed to lookup address"),
    ):
        with pytest.raises(UpstreamFailed, match=f"s3://models/x at {endpoint}: {cause}"):
            await engine(tmp_path, endpoint=endpoint, **KEYS).download(
                download_request("s3://models/x", tmp_path / "out")
            )
