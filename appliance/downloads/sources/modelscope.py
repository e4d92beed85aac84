"""ms://ns/repo[@revision][/sub/path]: ModelScope, by its HTTP API.

Source: its own client. /api/v1/models/{repo}/repo/files lists, /repo?FilePath= sends a file and supports
Range; the token is sent as the cookie m_session_id; the default branch is master.
"""

import re
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import unquote, urlencode

from appliance.base.errors import Forbidden, Invalid, NotFound, UpstreamFailed
from appliance.downloads.sources.contract import Listing, RemoteFile, SourceContext, pin, sub_path_name
from appliance.downloads.sources.web import WebClient

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<sub>.+))?")
_TOKEN = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")  # what a cookie's value may hold


class ModelScope:
    """One repository at one revision."""

    scheme = "ms"
    can_range = True

    def __init__(self, context: SourceContext) -> None:
        match = _REPO.fullmatch(context.address.strip("/"))
        if match is None or ".." in match["repo"]:
            raise Invalid(
                "A ModelScope source must be ms://namespace/repository, and may have @revision and /path.",
                param="source",
            )
        config = context.config
        self._repo, self._sub = match["repo"], (match["sub"] or "").strip("/")
        self._revision = unquote(
            match["revision"] or config.get("revision") or config.get("ms_revision") or "master"
        )
        self._base = f"{config['ms_endpoint'].rstrip('/')}/api/v1/models/{self._repo}/repo"
        token = config.get("ms_token", "")
        if not _TOKEN.fullmatch(token):
            raise Invalid("`ms_token` has characters that a token cannot have.", param="config.ms_token")
        self._secret = {"Cookie": f"m_session_id={token}"} if token else {}
        self._web = WebClient(context, reach=context.reach)

    async def listing(self) -> Listing:
        """Return all files below the sub-path."""
        url = f"{self._base}/files?{urlencode({'Revision': self._revision, 'Recursive': 'true'})}"
        body, _ = await self._web.json(url, what=self._repo, secret=self._secret)
        code = body.get("Code") if isinstance(body, dict) else None
        self._check_code(code, body)
        try:
            rows = [row for row in body["Data"]["Files"] if row.get("Type") != "tree"]
            files = tuple(remote for row in rows if (remote := self._remote(row)) is not None)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise UpstreamFailed(
                f"{self._repo}: ModelScope sent a list that cannot be read (code {code})."
            ) from exc
        if self._sub and not files:
            raise NotFound(f"{self._repo} has no {self._sub} at revision {self._revision}.")
        return Listing(files, pin(self.scheme, self._repo, self._revision, self._sub))

    def _check_code(self, code: object, body: Any) -> None:
        """Raise what the API's own code means, which may come with status 200."""
        if code in {401, 403, 10010205002}:
            raise Forbidden(
                f"{self._repo}: ModelScope refuses access ({code}). `ms_token` must be allowed to read it.",
                code="source_forbidden",
            )
        is_missing = isinstance(code, int) and code != 200 and "not exist" in str(body.get("Message", ""))
        if code == 404 or is_missing:
            raise NotFound(f"{self._repo} does not exist at ModelScope, or has no revision {self._revision}.")

    def _remote(self, row: dict[str, Any]) -> RemoteFile | None:
        """Return one file, named from the sub-path on; None = it is not below that."""
        path, digest = str(row["Path"]), str(row.get("Sha256") or "")
        name = sub_path_name(path, self._sub)
        if name is None:
            return None
        return RemoteFile(
            name, int(row["Size"]), f"sha256:{digest}" if digest else "", str(row.get("Revision") or ""), path
        )

    async def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """Yield a file's bytes, see `DownloadSource.pieces`."""
        url = f"{self._base}?{urlencode({'Revision': self._revision, 'FilePath': file.key})}"
        async for piece in self._web.file(url, file, start, end, secret=self._secret):
            yield piece

    async def close(self) -> None:
        """Close the connections."""
        await self._web.close()
