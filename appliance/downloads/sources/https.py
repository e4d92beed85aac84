"""https://host/path/file: one file from a web server, where the operator allows the host."""

from collections.abc import AsyncGenerator
from urllib.parse import unquote, urlsplit

from appliance.base.errors import Invalid
from appliance.downloads.contract import redact_source
from appliance.downloads.sources.contract import Listing, RemoteFile, SourceContext
from appliance.downloads.sources.web import WebClient, version_tag


class Https:
    """One file."""

    scheme = "https"

    def __init__(self, context: SourceContext) -> None:
        self._url = f"https://{context.address}"
        try:
            parts = urlsplit(self._url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise Invalid(
                "The source is not a valid address. Write https://host/path/file.", param="source"
            ) from None
        if parts.username is not None or parts.password is not None:
            raise Invalid(
                f"The address of {host} contains credentials, which would be written down. Remove them.",
                param="source",
            )
        self._name = unquote(parts.path.rpartition("/")[2])
        if not host or not self._name:
            raise Invalid("An https:// source must be one file: https://host/path/file.", param="source")
        context.reach.check_host(host)
        self._checksum = _parse_checksum(context.config.get("checksum", ""))
        self._web = WebClient(context, reach=context.reach, checks_names=True)
        self.can_range = True

    async def listing(self) -> Listing:
        """Request the file and leave after the head: servers answer HEAD differently from GET."""
        async with self._web.get(self._url, what=self._name, secret={}) as response:
            length = str(response.headers.get("Content-Length", ""))
            self.can_range = "bytes" in response.headers.get("Accept-Ranges", "") and length.isdecimal()
            size_bytes = int(length) if length.isdecimal() else None
            file = RemoteFile(self._name, size_bytes, self._checksum, version_tag(response.headers))
        return Listing((file,), redact_source(self._url))

    async def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """Yield the file's bytes, see `DownloadSource.pieces`."""
        async for piece in self._web.file(self._url, file, start, end, secret={}, etag=file.etag):
            yield piece

    async def close(self) -> None:
        """Close the connections."""
        await self._web.close()


def _parse_checksum(text: str) -> str:
    """Parse `sha256:HEX`; the kind may be left out."""
    digest = text.strip().lower().removeprefix("sha256:")
    if digest and (len(digest) != 64 or not set(digest) <= set("0123456789abcdef")):
        raise Invalid("`checksum` must be sha256: and 64 hexadecimal digits.", param="config.checksum")
    return f"sha256:{digest}" if digest else ""
