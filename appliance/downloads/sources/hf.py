"""hf://ns/repo[@revision][/sub/path] and ns/repo: Hugging Face, or a server with its API (HF_ENDPOINT).

The official client lists the files: it knows revisions, pages, and why access to a repository is refused. It
is not used for transfers: it cannot resume a file, neither over HTTP nor over xet, and does not verify
checksums. Repositories stored in xet are served over HTTP as well, with ranges and with SHA-256 known in
advance, so that the engine can fetch them like all others.
"""

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from appliance.base.errors import ApplianceError, Forbidden, Invalid, NotFound, TimedOut, UpstreamFailed
from appliance.base.reach import check_url
from appliance.downloads.sources.contract import (
    Interrupted,
    Listing,
    RemoteFile,
    SourceContext,
    pin,
    sub_path_name,
)
from appliance.downloads.sources.web import WebClient, name_host, status_error

Tree = tuple[str, list[Any]]  # the commit, and its files
_REPO = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<sub>.+))?"
)


class Hf:
    """One repository at one revision. A moving one (a branch) is pinned to its commit by the listing."""

    scheme = "hf"
    can_range = True

    def __init__(self, context: SourceContext) -> None:
        match = _REPO.fullmatch(context.address.strip("/"))
        if match is None or ".." in match["repo"]:
            raise Invalid(
                "A Hugging Face source must be hf://namespace/repository, and may have @revision and /path.",
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
        self._timeouts = context.timeouts
        self._reach = context.reach
        self._pinned = self._revision
        self._proxies = context.proxies
        self._web = WebClient(context, reach=context.reach)

    async def listing(self) -> Listing:
        """Return all files below the sub-path, at the commit that the revision names now."""
        await check_url(
            self._endpoint,
            reach=self._reach,
            what=self._repo,
            is_proxied=self._proxies.find(self._endpoint) is not None,
        )
        try:
            async with asyncio.timeout(self._timeouts.listing_s):
                commit, entries = await _in_daemon_thread(self._fetch_tree)
        except TimeoutError as exc:
            raise TimedOut(f"{self._repo}: {self._endpoint} did not list the files in time") from exc
        self._pinned = commit
        files = tuple(remote for entry in entries if (remote := self._remote(entry)) is not None)
        if self._sub and not files:
            raise NotFound(f"{self._repo} has no {self._sub} at revision {self._revision}.")
        return Listing(files, pin(self.scheme, self._repo, commit, self._sub))

    def _fetch_tree(self) -> Tree:
        """Fetch the tree with the official client (blocks)."""
        from huggingface_hub import HfApi, RepoFile

        from appliance.downloads.sources.hf_client import use_proxies

        use_proxies(self._proxies)
        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        try:
            info = api.model_info(self._repo, revision=self._revision, timeout=self._timeouts.first_byte_s)
            commit = info.sha or self._revision
            tree = api.list_repo_tree(self._repo, revision=commit, recursive=True)
            return commit, [entry for entry in tree if isinstance(entry, RepoFile)]
        except Exception as exc:
            raise self._failure(exc) from exc

    def _remote(self, entry: Any) -> RemoteFile | None:
        """Return one file, named from the sub-path on; None = it is not below that."""
        path = str(entry.path)
        name = sub_path_name(path, self._sub)
        if name is None:
            return None
        digest = f"sha256:{entry.lfs.sha256}" if entry.lfs is not None else f"git-sha1:{entry.blob_id}"
        return RemoteFile(name, entry.size, digest, entry.blob_id, path)

    def _failure(self, exc: Exception) -> ApplianceError:
        """Translate what the official client raised.

        1. an ApplianceError
        2. the proxy refused
        3. the repository cannot be accessed, or does not exist
        4. a status
        5. not reached, or offline
        6. anything else
        """
        import httpx2
        from huggingface_hub import errors

        if isinstance(exc, ApplianceError):  # 1
            return exc
        proxy, host = self._proxies.find(self._endpoint), urlsplit(self._endpoint).hostname or ""
        at = name_host(proxy, self._endpoint)
        where = f"{self._repo} at {at}"
        status = (
            exc.response.status_code
            if isinstance(exc, errors.HfHubHTTPError) and exc.response is not None
            else 0
        )
        if proxy is not None:  # 2
            reported = str(exc)[:3]
            if isinstance(exc, httpx2.ProxyError) and reported.isdecimal():
                return proxy.error_for(int(reported), host)
            if status == 407:
                return proxy.error_for(407, host)
        if isinstance(
            exc, errors.GatedRepoError | errors.RepositoryNotFoundError | errors.RevisionNotFoundError
        ):
            return self._access_error(exc, where)  # 3
        if isinstance(exc, errors.HfHubHTTPError) and exc.response is not None:  # 4
            return status_error(exc.response.status_code, self._repo, at, exc.response.headers)
        if isinstance(exc, httpx2.TimeoutException):  # 5
            return TimedOut(f"{where} did not respond in time")
        if isinstance(exc, errors.OfflineModeIsEnabled):
            return UpstreamFailed(f"{where} is not contacted: HF_HUB_OFFLINE is set.")
        if isinstance(exc, httpx2.TransportError | ConnectionError):
            return Interrupted(f"{where} cannot be reached: {exc}")
        if isinstance(exc, errors.HFValidationError):
            return Invalid(f"{self._repo} is not a valid repository name.", param="source")
        return UpstreamFailed(f"{where} sent a list that cannot be read ({type(exc).__name__}).")  # 6

    def _access_error(self, exc: Exception, where: str) -> ApplianceError:
        """Return the error of a repository that cannot be read: 1. gated   2. no revision   3. not there."""
        from huggingface_hub import errors

        if isinstance(exc, errors.GatedRepoError):  # 1
            return Forbidden(
                f"{where} is gated. Accept its terms there, and use an hf_token of that account.",
                code="source_forbidden",
            )
        if isinstance(exc, errors.RevisionNotFoundError):  # 2
            return NotFound(f"{where} has no revision {self._revision}.")
        return NotFound(f"{where} does not exist, or hf_token may not read it.")  # 3

    async def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """Yield a file's bytes, see `DownloadSource.pieces`."""
        url = f"{self._endpoint}/{self._repo}/resolve/{quote(self._pinned, safe='')}/{quote(file.key)}"
        secret = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        async for piece in self._web.file(url, file, start, end, secret=secret):
            yield piece

    async def close(self) -> None:
        """Close the connections."""
        await self._web.close()


async def _in_daemon_thread(work: Callable[[], Tree]) -> Tree:
    """Call a blocking function in a daemon thread.

    One of asyncio's threads would delay the exit of the process until the server responds.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Tree] = loop.create_future()

    def settle(result: Tree | None, error: Exception | None) -> None:
        if future.done():  # the caller has left
            return
        if result is not None:
            future.set_result(result)
        else:
            future.set_exception(error or RuntimeError("the listing returned nothing"))

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as exc:
            error = exc
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop has ended meanwhile
            pass

    threading.Thread(target=run, name="hf-listing", daemon=True).start()
    return await future
