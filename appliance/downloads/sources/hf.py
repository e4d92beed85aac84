"""hf://ns/repo[@revision][/sub/path] and the bare ns/repo: Hugging Face, or what serves its API (HF_ENDPOINT).

The official client lists: it knows revisions, pages and the ways in which a repository can be closed. It does not transfer: it starts a file
that was cut off from its beginning, neither by HTTP nor by xet can it go on, and it holds no file against its checksum. Repositories kept in
xet are served by HTTP all the same, in parts and with SHA-256 known beforehand, so the engine's own way goes for them too.
"""

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from appliance.base.errors import ApplianceError, Forbidden, Invalid, NotFound, TimedOut, UpstreamFailed
from appliance.base.reach import check_url
from appliance.downloads.sources.contract import Interrupted, Listing, RemoteFile, SourceContext
from appliance.downloads.sources.web import WebClient, name_host, status_error

Asked = tuple[str, list[Any]]
_REPO = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<sub>.+))?"
)


class Hf:
    """One repository at one revision; a moving revision (a branch) is pinned to its commit when it is listed."""

    scheme = "hf"
    can_range = True

    def __init__(self, context: SourceContext) -> None:
        match = _REPO.fullmatch(context.address.strip("/"))
        if match is None or ".." in match["repo"]:
            raise Invalid(
                "A Hugging Face source is hf://namespace/repository, with @revision and a path in it where wanted.",
                param="source",
            )
        config = context.config
        self._repo = match["repo"]
        self._sub = (match["sub"] or "").strip("/")
        self._revision = unquote(
            match["revision"] or config.get("revision") or config.get("hf_revision") or "main"
        )
        self._endpoint = config["hf_endpoint"].rstrip("/")
        self._token = config.get("hf_token", "")
        self._tries = context.timeouts
        self._reach = context.reach
        self._pinned = self._revision
        self._proxies = context.proxies
        self._web = WebClient(context, reach=context.reach)

    async def listing(self) -> Listing:
        await check_url(
            self._endpoint,
            reach=self._reach,
            what=self._repo,
            is_proxied=self._proxies.find(self._endpoint) is not None,
        )
        try:
            async with asyncio.timeout(self._tries.first_byte_s * 4):
                commit, entries = await _aside(self._ask)
        except TimeoutError as exc:
            raise TimedOut(f"{self._repo}: {self._endpoint} did not list its files in time") from exc
        self._pinned = commit
        files = tuple(remote for entry in entries if (remote := self._remote(entry)) is not None)
        if self._sub and not files:
            raise NotFound(f"{self._repo} has no {self._sub} at revision {self._revision}.")
        return Listing(files, f"hf://{self._repo}@{commit}" + (f"/{self._sub}" if self._sub else ""))

    def _ask(self) -> Asked:
        """Ask with the official client, in a thread; give the commit and its files."""
        from huggingface_hub import HfApi, RepoFile

        from appliance.downloads.sources.hf_client import use_proxies

        use_proxies(self._proxies)
        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        try:
            info = api.model_info(self._repo, revision=self._revision, timeout=self._tries.first_byte_s)
            commit = info.sha or self._revision
            tree = api.list_repo_tree(self._repo, revision=commit, recursive=True)
            return commit, [entry for entry in tree if isinstance(entry, RepoFile)]
        except Exception as exc:
            raise self._failure(exc) from exc

    def _remote(self, entry: Any) -> RemoteFile | None:
        """Give one file, named from the sub-path on; None = it is not below that."""
        path = str(entry.path)
        if self._sub and path != self._sub and not path.startswith(self._sub + "/"):
            return None
        name = (
            path.rpartition("/")[2]
            if path == self._sub
            else path[len(self._sub) :].lstrip("/")
            if self._sub
            else path
        )
        digest = f"sha256:{entry.lfs.sha256}" if entry.lfs is not None else f"git-sha1:{entry.blob_id}"
        return RemoteFile(name, entry.size, digest, entry.blob_id, path)

    def _failure(self, exc: Exception) -> ApplianceError:
        """Say what the official client met: 0. ours, a proxy   1. closed   2. not there   3. a status   4. not reached, or offline
        5. anything else."""
        import httpx2
        from huggingface_hub import errors

        if isinstance(exc, ApplianceError):  # 0
            return exc
        proxy, host = self._proxies.find(self._endpoint), urlsplit(self._endpoint).hostname or ""
        where = f"{self._repo} at {name_host(proxy, self._endpoint)}"
        if proxy is not None and isinstance(exc, httpx2.ProxyError) and (status := str(exc)[:3]).isdecimal():
            return proxy.error_for(int(status), host)
        if isinstance(exc, errors.GatedRepoError):  # 1
            return Forbidden(
                f"{where} is gated: its terms must be accepted there, and hf_token be of who did so.",
                code="source_forbidden",
            )
        if isinstance(exc, errors.RevisionNotFoundError):  # 2
            return NotFound(f"{where} has no revision {self._revision}.")
        if isinstance(exc, errors.RepositoryNotFoundError):
            return NotFound(f"{where} does not exist, or hf_token may not see it.")
        if isinstance(exc, errors.HfHubHTTPError) and exc.response is not None:  # 3
            if proxy is not None and exc.response.status_code == 407:
                return proxy.error_for(407, host)
            return status_error(
                exc.response.status_code, self._repo, name_host(proxy, self._endpoint), exc.response.headers
            )
        if isinstance(exc, httpx2.TimeoutException):  # 4
            return TimedOut(f"{where} did not answer in time")
        if isinstance(exc, errors.OfflineModeIsEnabled):
            return UpstreamFailed(f"{where} is not asked: HF_HUB_OFFLINE is set.")
        if isinstance(exc, (httpx2.TransportError, ConnectionError)):
            return Interrupted(f"{where} cannot be reached: {exc}")
        if isinstance(exc, errors.HFValidationError):
            return Invalid(f"{self._repo} is no name of a repository.", param="source")
        return UpstreamFailed(f"{where} gave a list that cannot be read ({type(exc).__name__}).")  # 5

    async def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
        url = f"{self._endpoint}/{self._repo}/resolve/{quote(self._pinned, safe='')}/{quote(file.key)}"
        secret = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        async for piece in self._web.file(url, file, start, end, secret=secret):
            yield piece

    async def close(self) -> None:
        await self._web.close()


async def _aside(ask: Callable[[], Asked]) -> Asked:
    """Call what blocks in a thread that nobody waits for: one of asyncio's own would hold up the end of the process until its server answers.

    Raises  whatever it raises
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Asked] = loop.create_future()

    def settle(result: Asked | None, error: Exception | None) -> None:
        if future.done():  # whoever asked has left
            return
        if result is not None:
            future.set_result(result)
        else:
            future.set_exception(error or RuntimeError("it gave nothing"))

    def run() -> None:
        result, error = None, None
        try:
            result = ask()
        except Exception as exc:
            error = exc
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop has ended meanwhile
            pass

    threading.Thread(target=run, name="hf-listing", daemon=True).start()
    return await future
