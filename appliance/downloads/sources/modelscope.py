"""ms://ns/repo[@revision][/sub/path]: ModelScope, by its HTTP API.

Source  its own client: /api/v1/models/{repo}/repo/files lists, /repo?FilePath= gives a file and knows Range; the token goes as the cookie
        m_session_id; the default branch is master
"""

import re
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import unquote, urlencode

from appliance.base.errors import Forbidden, Invalid, NotFound, UpstreamFailed
from appliance.downloads.sources.contract import Listing, RemoteFile, SourceContext
from appliance.downloads.sources.web import WebClient

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<sub>.+))?")
_TOKEN = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")  # what a cookie's value may hold


class ModelScope:
    scheme = "ms"
    can_range = True

    def __init__(self, context: SourceContext) -> None:
        match = _REPO.fullmatch(context.address.strip("/"))
        if match is None or ".." in match["repo"]:
            raise Invalid(
                "A ModelScope source is ms://namespace/repository, with @revision and a path in it where wanted.",
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
            raise Invalid("ms_token has characters that no token has.", param="config.ms_token")
        self._secret = {"Cookie": f"m_session_id={token}"} if token else {}
        self._web = WebClient(context, reach=context.reach)

    async def listing(self) -> Listing:
        url = f"{self._base}/files?{urlencode({'Revision': self._revision, 'Recursive': 'true'})}"
        answer, _ = await self._web.json(url, what=self._repo, secret=self._secret)
        code = answer.get("Code") if isinstance(answer, dict) else None
        if code in {401, 403, 10010205002}:
            raise Forbidden(
                f"{self._repo}: ModelScope refuses it ({code}). ms_token must be allowed to read it.",
                code="source_forbidden",
            )
        if code == 404 or (
            code != 200 and isinstance(code, int) and "not exist" in str(answer.get("Message", ""))
        ):
            raise NotFound(f"{self._repo} has no revision {self._revision} at ModelScope, or does not exist.")
        try:
            rows = [row for row in answer["Data"]["Files"] if row.get("Type") != "tree"]
            files = tuple(remote for row in rows if (remote := self._remote(row)) is not None)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise UpstreamFailed(
                f"{self._repo}: ModelScope gave a list that cannot be read (code {code})."
            ) from exc
        if self._sub and not files:
            raise NotFound(f"{self._repo} has no {self._sub} at revision {self._revision}.")
        return Listing(files, f"ms://{self._repo}@{self._revision}" + (f"/{self._sub}" if self._sub else ""))

    def _remote(self, row: dict[str, Any]) -> RemoteFile | None:
        path, digest = str(row["Path"]), str(row.get("Sha256") or "")
        if self._sub and path != self._sub and not path.startswith(self._sub + "/"):
            return None
        name = (
            path.rpartition("/")[2]
            if path == self._sub
            else path[len(self._sub) :].lstrip("/")
            if self._sub
            else path
        )
        return RemoteFile(
            name, int(row["Size"]), f"sha256:{digest}" if digest else "", str(row.get("Revision") or ""), path
        )

    async def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
        url = f"{self._base}?{urlencode({'Revision': self._revision, 'FilePath': file.key})}"
        async for piece in self._web.file(url, file, start, end, secret=self._secret):
            yield piece

    async def close(self) -> None:
        await self._web.close()
