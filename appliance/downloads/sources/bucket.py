"""Object stores that speak S3's protocol, by obstore: every object below a prefix, as it was listed."""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from appliance.base.errors import ApplianceError, Forbidden, Invalid, NotFound, TimedOut, UpstreamFailed
from appliance.base.logs import REDACTED
from appliance.base.proxies import Proxy
from appliance.base.reach import HostPolicy, check_url
from appliance.base.setting_types import FALSE_WORDS, TRUE_WORDS
from appliance.downloads.sources.contract import (
    Interrupted,
    Listing,
    RemoteFile,
    SourceContext,
)
from appliance.downloads.sources.web import name_host, status_error

PIECE_BYTES = 1 << 20
DEFAULT_REGION = "us-east-1"
NO_PROXY = "http://proxy.invalid:1"
_STATUS = re.compile(r"status code: (\d{3})")
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(\w+)")
_CAUSE = re.compile(r'(?:message|error): "([^"]+)"')
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


class Bucket:
    """One prefix of a bucket.

    The address has path style, unless `path_style` is 0, which puts the bucket's name before the endpoint's
    host.
    """

    can_range = True

    def __init__(self, context: SourceContext, *, scheme: str, needs_endpoint: bool = False) -> None:
        self._name, _, prefix = context.address.partition("/")
        self._prefix = prefix.strip("/")
        if not _BUCKET.fullmatch(self._name):
            raise Invalid(
                f"An object store's source must be {scheme}://bucket/prefix. A bucket's name is 2 to 63 "
                "letters, digits, dots, hyphens and underscores.",
                param="source",
            )
        if "?" in prefix:  # elsewhere a query is a signature, so it is never shown or kept
            raise Invalid(
                f"An object store's source must be {scheme}://bucket/prefix, without a query. For an object "
                "with a ? in its name, use the prefix above it, and select it by `include` in config.",
                param="source",
            )
        self._pinned = f"{scheme}://{self._name}" + (f"/{self._prefix}" if self._prefix else "")
        self._endpoint = context.config.get("endpoint", "").rstrip("/")
        if needs_endpoint and not self._endpoint:
            raise Invalid(
                f"{scheme}:// needs the store's address. Set `endpoint` in config, or ENDPOINT.",
                param="config.endpoint",
            )
        self._reach: HostPolicy = context.reach
        self._timeouts = context.timeouts
        address = _address(self._endpoint, context.config)
        self._proxy = context.proxies.find(address)
        self._host = urlsplit(address).hostname or ""
        keys = [context.config.get(key, "") for key in ("access_key", "secret_key")]
        self._secrets = [key for key in keys if key] + context.proxies.secrets
        self._store = _store(self._name, address, context, self._proxy)

    async def listing(self) -> Listing:
        """Return all objects below the prefix."""
        if self._endpoint:
            await check_url(
                self._endpoint, reach=self._reach, what=self._pinned, is_proxied=self._proxy is not None
            )
        files: list[RemoteFile] = []
        try:
            async with asyncio.timeout(self._timeouts.listing_s):
                files = await self._without_markers(await self._list_all())
                if not files and self._prefix:
                    files = [remote for remote in [await self._single()] if remote is not None]
        except Exception as exc:
            raise self._failure(exc, self._pinned) from exc
        if not files:
            raise NotFound(f"There are no objects below {self._pinned}.")
        return Listing(tuple(files), self._pinned)

    async def _list_all(self) -> list[RemoteFile]:
        """List all objects below the prefix.

        Raises:
            UpstreamFailed: The store lists an object twice: it gives out the same page again and again.
        """
        from obstore import list as list_objects

        files: dict[str, RemoteFile] = {}
        batches = list_objects(self._store, self._prefix or None).__aiter__()
        while True:
            try:
                # The client asks for page after page: without objects in them it would never come back.
                async with asyncio.timeout(self._timeouts.first_byte_s):
                    batch = await anext(batches)
            except StopAsyncIteration:
                return list(files.values())
            for remote in map(self._remote, batch):
                if remote is None:
                    continue
                if remote.key in files:
                    raise UpstreamFailed(
                        f"{self._pinned} at {self._endpoint or 'S3'} lists {remote.path[:200]!r} twice: "
                        "the store repeats a page of its list. Ask its operator."
                    )
                files[remote.key] = remote

    def _remote(self, row: Any) -> RemoteFile | None:
        """Return one object, named from the prefix on."""
        key = str(row["path"])
        name = key[len(self._prefix) :].lstrip("/") if self._prefix else key
        return RemoteFile(name, int(row["size"]), "", _etag(row), key) if name else None

    async def _without_markers(self, files: list[RemoteFile]) -> list[RemoteFile]:
        """Leave out the empty objects `folder/` of consoles. The client lists them without the slash.

        1. such an object of a folder with files
        2. one of an empty folder: without the slash it does not exist
        """
        paths = [file.path for file in files]
        folders = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "/"}
        kept = []
        for file in files:
            if file.size_bytes == 0 and (file.path in folders or not await self._exists(file.key)):  # 1, 2
                continue
            kept.append(file)
        return kept

    async def _exists(self, key: str) -> bool:
        from obstore import head_async
        from obstore.exceptions import NotFoundError

        try:
            await head_async(self._store, key)
        except (NotFoundError, FileNotFoundError):
            return False
        return True

    async def _single(self) -> RemoteFile | None:
        """Return the object whose whole name the prefix is."""
        from obstore import head_async
        from obstore.exceptions import NotFoundError

        try:
            row = await head_async(self._store, self._prefix)
        except (NotFoundError, FileNotFoundError):
            return None
        name = self._prefix.rpartition("/")[2]
        return RemoteFile(name, int(row["size"]), "", _etag(row), str(row["path"]))

    async def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """Yield an object's bytes, see `DownloadSource.pieces`."""
        options: Any = {"if_match": f'"{file.etag}"'} if file.etag else {}
        stop = file.size_bytes if end is None else end
        if stop is not None and stop > start:
            options["range"] = (start, stop)
        length = 0
        try:
            async with aclosing(self._read(file.key, options)) as pieces:
                async for piece in pieces:
                    length += len(piece)
                    yield piece
        except Exception as exc:
            raise self._failure(exc, file.path) from exc
        if stop is not None and length < stop - start:
            raise Interrupted(f"the response ended {stop - start - length} bytes early")

    async def _read(self, key: str, options: Any) -> AsyncGenerator[bytes]:
        from obstore import get_async

        async with asyncio.timeout(self._timeouts.first_byte_s):
            response = await get_async(self._store, key, options=options)
        stream = response.stream(min_chunk_size=PIECE_BYTES).__aiter__()
        while True:
            try:
                async with asyncio.timeout(self._timeouts.idle_s):
                    piece = await anext(stream)
            except StopAsyncIteration:
                return
            yield piece

    def _failure(self, exc: Exception, what: str) -> ApplianceError:
        """Translate what the store's client raised.

        1. an ApplianceError
        2. the proxy refused
        3. a status
        4. no such object
        5. a name that cannot be used
        6. silence
        7. anything else, which may pass
        """
        from obstore import exceptions as known

        if isinstance(exc, ApplianceError):  # 1
            return exc
        text = str(exc)
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        host = name_host(self._proxy, self._endpoint or "S3")
        where = f"{what} at {host}"
        found = _STATUS.search(text)
        status = int(found[1]) if found is not None else 0
        if self._proxy is not None:  # 2
            if status == 407 or "ProxyAuthRequired" in text:
                return self._proxy.error_for(407, self._host)
            if "TunnelUnsuccessful" in text:  # the client does not say the status
                return Interrupted(
                    f"{where}: the proxy does not forward requests to {self._host}", code="proxy_refused"
                )
        if status in {401, 403}:  # 3
            return Forbidden(
                f"{where} refuses access ({status}). Check access_key and secret_key, and what they may "
                "read.",
                code="source_forbidden",
            )
        if status:
            return status_error(status, what, host, {})
        if isinstance(exc, known.PreconditionError):
            return status_error(412, what, host, {})
        if isinstance(exc, known.NotFoundError | FileNotFoundError):  # 4
            return NotFound(f"{where} does not exist.")
        if isinstance(exc, known.InvalidPathError) or "arsing Path" in text or "path segment" in text:  # 5
            return Invalid(f"{what} has a name that a file here cannot have.", code="unsafe_name")
        if isinstance(exc, TimeoutError):  # 6
            return TimedOut(f"{where} stopped sending")
        return Interrupted(f"{where}: {_find_reason(text)}")  # 7

    async def close(self) -> None:
        """Do nothing: the store's client closes its connections when it is collected."""


def _etag(row: Any) -> str:
    return str(row["e_tag"] or "").strip('"')


def _address(endpoint: str, config: Mapping[str, str]) -> str:
    """Return the store's address; raise Invalid if it is none."""
    address = endpoint or f"https://s3.{config.get('region', '') or DEFAULT_REGION}.amazonaws.com"
    try:
        parts = urlsplit(address)
        is_address = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.username is None
            and (parts.port or 1) > 0
        )
    except ValueError:
        is_address = False
    if not is_address:
        raise Invalid(
            "`endpoint` must be an http(s) address without credentials, such as https://minio.example.com:9000.",
            param="config.endpoint",
        )
    return address


def _store(name: str, address: str, context: SourceContext, proxy: Proxy | None) -> Any:
    """Build obstore's client.

    Keys are passed by a function, and the proxy by name, so that the client reads neither from the
    environment. Without a proxy it is given one that is excluded for every host, else it would look for one.
    """
    from obstore.store import S3Store

    config, timeouts = context.config, context.timeouts
    access, secret = config.get("access_key", ""), config.get("secret_key", "")
    is_anonymous = config.get("anonymous", "").lower() in TRUE_WORDS
    if not is_anonymous and not (access and secret):
        raise Invalid(
            "Missing credentials. Set access_key and secret_key in config, or ACCESS_KEY and SECRET_KEY; or "
            "`anonymous` for a public bucket.",
            param="config.access_key",
            code="missing_credentials",
        )
    region = config.get("region", "") or DEFAULT_REGION
    is_path_style = config.get("path_style", "").lower() not in FALSE_WORDS
    if not is_path_style:
        parts = urlsplit(address)
        address = parts._replace(netloc=f"{name}.{parts.netloc}").geturl()
    proxy_options: Any = (
        {"proxy_url": NO_PROXY, "proxy_excludes": "*,0.0.0.0/0,::/0"}
        if proxy is None
        else {"proxy_url": proxy.url_with_credentials}
    )
    keys: Any = (
        None
        if is_anonymous
        else lambda: {"access_key_id": access, "secret_access_key": secret, "token": None, "expires_at": None}
    )
    return S3Store(
        name,
        endpoint=address,
        region=region,
        virtual_hosted_style_request=not is_path_style,
        skip_signature=is_anonymous,
        credential_provider=keys,
        retry_config={"max_retries": 0},  # the engine retries, for all sources alike
        client_options=proxy_options
        | {
            "allow_http": True,
            "timeout": timedelta(hours=24),
            "connect_timeout": timedelta(seconds=timeouts.connect_s),
            "read_timeout": timedelta(seconds=timeouts.idle_s),
        },
    )


def _find_reason(text: str) -> str:
    """Return the useful part of the client's report: 1. the innermost cause   2. else its first lines."""
    first, _, source = text.partition("Debug source:")
    if found := _CERTIFICATE.search(source):  # 1
        return (
            f"its certificate is not trusted ({found[1]}); SSL_CERT_FILE can name a file with its authority"
        )
    if causes := _CAUSE.findall(source):
        return str(causes[-1])[:300]
    return " ".join(first.split("\n\n")[0].split())[:300]  # 2
