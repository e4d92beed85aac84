"""Object stores that speak S3's protocol, through obstore: every object below a prefix, in parts, always the version that was listed."""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from appliance.base.errors import ApplianceError, Forbidden, Invalid, NotFound, TimedOut
from appliance.base.proxies import Proxy
from appliance.base.reach import HostPolicy, check_url
from appliance.base.settings import FALSE_WORDS, TRUE_WORDS
from appliance.downloads.sources.contract import (
    Interrupted,
    Listing,
    RemoteFile,
    SourceContext,
    SourceTimeouts,
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
    """One prefix of a bucket. Path style unless `path_style` is 0, which puts the bucket's name before the endpoint's host."""

    can_range = True

    def __init__(self, context: SourceContext, *, scheme: str, needs_endpoint: bool = False) -> None:
        self._name, _, prefix = context.address.partition("/")
        self._prefix = prefix.strip("/")
        if not _BUCKET.fullmatch(self._name):
            raise Invalid(
                f"An object store's source is {scheme}://bucket/prefix; a bucket's name has at least two letters, digits, dots, hyphens "
                "and underscores.",
                param="source",
            )
        if "?" in prefix:  # what stands behind one is shown and kept nowhere, as it is a signature elsewhere
            raise Invalid(
                f"An object store's source is {scheme}://bucket/prefix, without a query. An object with a ? in its name comes with the "
                "prefix above it; `include` in config chooses it.",
                param="source",
            )
        self._pinned = f"{scheme}://{self._name}" + (f"/{self._prefix}" if self._prefix else "")
        self._endpoint = context.config.get("endpoint", "").rstrip("/")
        if needs_endpoint and not self._endpoint:
            raise Invalid(
                f"{scheme}:// needs the store's address: set `endpoint` in config, or ENDPOINT.",
                param="config.endpoint",
            )
        self._reach: HostPolicy = context.reach
        self._timeouts = context.timeouts
        address = _address(self._endpoint, context.config)
        self._proxy = context.proxies.find(address)
        self._host = urlsplit(address).hostname or ""
        self._hidden = [
            value for key in ("access_key", "secret_key") if (value := context.config.get(key, ""))
        ] + context.proxies.secrets
        self._store = _store(self._name, address, context.config, context.timeouts, self._proxy)

    async def listing(self) -> Listing:
        if self._endpoint:
            await check_url(
                self._endpoint, reach=self._reach, what=self._pinned, is_proxied=self._proxy is not None
            )
        from obstore import list as list_objects

        files: list[RemoteFile] = []
        try:
            async with asyncio.timeout(self._timeouts.first_byte_s * 4):
                async for batch in list_objects(self._store, self._prefix or None):
                    files += [remote for row in batch if (remote := self._remote(row)) is not None]
                files = await self._without_markers(files)
                if not files and self._prefix:
                    files = [remote for remote in [await self._single()] if remote is not None]
        except Exception as exc:
            raise self._failure(exc, self._pinned) from exc
        if not files:
            raise NotFound(f"There is nothing below {self._pinned}.")
        return Listing(tuple(files), self._pinned)

    def _remote(self, row: Any) -> RemoteFile | None:
        """Give one object, named from the prefix on."""
        key = str(row["path"])
        name = key[len(self._prefix) :].lstrip("/") if self._prefix else key
        return (
            RemoteFile(name, int(row["size"]), "", str(row["e_tag"] or "").strip('"'), key) if name else None
        )

    async def _without_markers(self, files: list[RemoteFile]) -> list[RemoteFile]:
        """Leave out the empty objects `folder/` that consoles make; the store's client lists them without the slash: 1. of folders with files
        2. of empty ones, which do not exist without it."""
        folders = {
            path[:at]
            for path in (file.path for file in files)
            for at, letter in enumerate(path)
            if letter == "/"
        }
        kept = []
        for file in files:
            if file.size_bytes == 0 and (file.path in folders or not await self._exists(file.key)):
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
        """Give the object whose whole name the prefix is."""
        from obstore import head_async
        from obstore.exceptions import NotFoundError

        try:
            row = await head_async(self._store, self._prefix)
        except (NotFoundError, FileNotFoundError):
            return None
        return RemoteFile(
            self._prefix.rpartition("/")[2],
            int(row["size"]),
            "",
            str(row["e_tag"] or "").strip('"'),
            str(row["path"]),
        )

    async def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
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
            raise Interrupted(f"the answer ended {stop - start - length} bytes early")

    async def _read(self, key: str, options: Any) -> AsyncGenerator[bytes]:
        from obstore import get_async

        async with asyncio.timeout(self._timeouts.first_byte_s):
            answer = await get_async(self._store, key, options=options)
        stream = answer.stream(min_chunk_size=PIECE_BYTES).__aiter__()
        while True:
            try:
                async with asyncio.timeout(self._timeouts.idle_s):
                    piece = await anext(stream)
            except StopAsyncIteration:
                return
            yield piece

    def _failure(self, exc: Exception, what: str) -> ApplianceError:
        """Say what the store's client met: 1. ours   2. a status   3. no such object   4. a name   5. silence   6. a proxy that does not pass on
        7. anything else, which may pass."""
        from obstore import exceptions as known

        if isinstance(exc, ApplianceError):  # 1
            return exc
        text = str(exc)
        for secret in self._hidden:
            text = text.replace(secret, "[secret]")
        where = f"{what} at {name_host(self._proxy, self._endpoint or 'S3')}"
        status = _STATUS.search(text)
        if self._proxy is not None and (
            (status is not None and status[1] == "407") or "ProxyAuthRequired" in text
        ):  # 6
            return self._proxy.error_for(407, self._host)
        if self._proxy is not None and "TunnelUnsuccessful" in text:  # the client does not say the status
            return Interrupted(f"{where}: the proxy did not pass on to {self._host}", code="proxy_refused")
        if status is not None and status[1] in {"401", "403"}:  # 2
            return Forbidden(
                f"{where} is refused ({status[1]}). Check access_key and secret_key, and what they may read.",
                code="source_forbidden",
            )
        if status is not None:
            return status_error(int(status[1]), what, name_host(self._proxy, self._endpoint or "S3"), {})
        if isinstance(exc, (known.NotFoundError, FileNotFoundError)):  # 3
            return NotFound(f"{where} does not exist.")
        if isinstance(exc, known.InvalidPathError) or "arsing Path" in text or "path segment" in text:  # 4
            return Invalid(f"{what} holds a name that no file can have here.", code="unsafe_name")
        if isinstance(exc, TimeoutError):  # 5
            return TimedOut(f"{where} fell silent")
        return Interrupted(f"{where}: {_reason(text)}")  # 7

    async def close(self) -> None:
        """The store's client closes its connections when it is let go."""


def _address(endpoint: str, config: Mapping[str, str]) -> str:
    """Give the store's address. Raises  Invalid"""
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
            "The endpoint is an http(s) address without credentials, such as https://minio.example.com:9000.",
            param="config.endpoint",
        )
    return address


def _store(
    name: str,
    address: str,
    config: Mapping[str, str],
    timeouts: SourceTimeouts,
    proxy: Proxy | None,
) -> Any:
    """Build obstore's client; keys are handed over by a function, and the proxy by name, so that none come from the environment behind our
    back. A proxy that is left out for every host keeps it from looking for one."""
    from obstore.store import S3Store

    access, secret = config.get("access_key", ""), config.get("secret_key", "")
    is_anonymous = config.get("anonymous", "").lower() in TRUE_WORDS
    if not is_anonymous and not (access and secret):
        raise Invalid(
            "Missing credentials: set access_key and secret_key in config, or ACCESS_KEY and SECRET_KEY; `anonymous` for a public bucket.",
            param="config.access_key",
            code="missing_credentials",
        )
    region = config.get("region", "") or DEFAULT_REGION
    is_path_style = config.get("path_style", "").lower() not in FALSE_WORDS
    if not is_path_style:
        parts = urlsplit(address)
        address = parts._replace(netloc=f"{name}.{parts.netloc}").geturl()
    way: Any = (
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
        retry_config={"max_retries": 0},  # the engine tries again, for all sources alike
        client_options=way
        | {
            "allow_http": True,
            "timeout": timedelta(hours=24),
            "connect_timeout": timedelta(seconds=timeouts.connect_s),
            "read_timeout": timedelta(seconds=timeouts.idle_s),
        },
    )


def _reason(text: str) -> str:
    """Give the part of the client's report that people can use: 1. the innermost cause, where it has one   2. what it says itself."""
    first, _, source = text.partition("Debug source:")
    if found := _CERTIFICATE.search(source):  # 1
        return (
            f"its certificate is not trusted ({found[1]}); SSL_CERT_FILE can name a file with its authority"
        )
    if causes := _CAUSE.findall(source):
        return str(causes[-1])[:300]
    return " ".join(first.split("\n\n")[0].split())[:300]  # 2
