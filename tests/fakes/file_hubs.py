"""Stand-ins for servers of model files: a plain one, a Hugging Face endpoint, ModelScope's API.

Built from the public APIs as their own clients use them; the Hugging Face one is held to that by letting the
official client download from it (tests/downloads/test_hf.py). All record what was asked and how many bytes
were sent, and can misbehave on purpose.

    async with Hub({"config.json": b"{}", "model.gguf": Path("/big/file")}) as hub:
        hub.faults["model.gguf"] = [Status(503), Cut(after_bytes=1000)]         # the next two answers with
        its bytes …                                                                       # hub.url,
        hub.asked, hub.sent
"""

import asyncio
import hashlib
import ssl
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

COMMIT = "c0ffee" + "0" * 34
PIECE = 128 * 1024


@dataclass(frozen=True)
class Status:
    """Answer with an error."""

    status: int
    retry_after: str = ""


@dataclass(frozen=True)
class Cut:
    """Break the connection after so many bytes."""

    after_bytes: int


@dataclass(frozen=True)
class Stall:
    """Fall silent after so many bytes."""

    after_bytes: int


@dataclass(frozen=True)
class Asked:
    path: str
    first: int
    authorization: str


@dataclass
class FileServer:
    """Serves bytes: with ranges or without, slowly or not."""

    files: dict[str, bytes | Path] = field(default_factory=dict)
    has_ranges: bool = True
    tells_ranges: bool = True  # Accept-Ranges
    tells_length: bool = True
    drip_s: float = 0.0  # between two pieces
    etags: dict[str, str] = field(default_factory=dict)
    ssl_context: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self.faults: dict[str, list[Status | Cut | Stall]] = {}
        self.asked: list[Asked] = []
        self.sent: Counter[str] = Counter()
        self.open_now = 0
        self.most_open = 0
        self.flowing = asyncio.Event()  # cleared: no byte of a file is sent until it is set again
        self.flowing.set()
        self._runners: list[web.AppRunner] = []
        self._digests: dict[str, str] = {}

    async def __aenter__(self):
        self.url = await self._serve(self.routes())
        return self

    async def __aexit__(self, *_: object) -> None:
        for runner in self._runners:
            await runner.cleanup()

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/{path:.+}", self._plain)]

    async def _serve(self, routes: list[web.RouteDef]) -> str:
        app = web.Application()
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.ssl_context)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        return f"{'https' if self.ssl_context else 'http'}://127.0.0.1:{port}"

    async def _plain(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        if path not in self.files:
            return web.Response(status=404)
        return await self.give(request, path)

    def sha256(self, path: str) -> str:
        if isinstance(data := self.files[path], bytes):
            return hashlib.sha256(data).hexdigest()
        if path not in self._digests:  # a large file is read once
            with data.open("rb") as file:
                self._digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[path]

    def read(self, path: str) -> bytes:
        data = self.files[path]
        return data if isinstance(data, bytes) else data.read_bytes()

    def size(self, path: str) -> int:
        data = self.files[path]
        return len(data) if isinstance(data, bytes) else data.stat().st_size

    async def give(
        self, request: web.Request, path: str, headers: dict[str, str] | None = None
    ) -> web.StreamResponse:
        """Give a file's bytes, or what is asked of them, or the next fault."""
        size = self.size(path)
        first, last = 0, size - 1
        wanted = request.headers.get("Range", "")
        is_part = bool(wanted) and self.has_ranges
        if is_part:
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high) if high else size - 1, size - 1)
        if request.method == "GET":
            self.asked.append(
                Asked(
                    path, first, request.headers.get("Authorization", "") + request.headers.get("Cookie", "")
                )
            )
        fault = self.faults[path].pop(0) if request.method == "GET" and self.faults.get(path) else None
        if isinstance(fault, Status):
            return web.Response(
                status=fault.status,
                headers={"Retry-After": fault.retry_after} if fault.retry_after else {},
                text="no",
            )
        answer = web.StreamResponse(status=206 if is_part else 200, headers=headers or {})
        answer.headers["ETag"] = f'"{self.etags.get(path, hashlib.md5(path.encode()).hexdigest())}"'
        if self.tells_ranges and self.has_ranges:
            answer.headers["Accept-Ranges"] = "bytes"
        if is_part:
            answer.headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        if self.tells_length:
            answer.content_length = last - first + 1
        await answer.prepare(request)
        if request.method == "GET":
            await self._send(request, answer, path, first, last + 1, fault)
        return answer

    async def _send(
        self,
        request: web.Request,
        answer: web.StreamResponse,
        path: str,
        at: int,
        end: int,
        fault: Cut | Stall | None,
    ) -> None:
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        data, begun = self.files[path], at
        try:
            while at < end:
                await self.flowing.wait()
                stop = min(end, at + PIECE)
                if fault is not None:
                    stop = min(stop, begun + fault.after_bytes)
                if fault is not None and stop <= at:
                    if isinstance(fault, Stall):
                        await asyncio.sleep(30)
                    request.transport.abort()
                    return
                piece = (
                    data[at:stop]
                    if isinstance(data, bytes)
                    else await asyncio.to_thread(_read, data, at, stop)
                )
                await answer.write(piece)
                self.sent[path] += len(piece)
                at = stop
                if self.drip_s:
                    await asyncio.sleep(self.drip_s)
        except ConnectionError:
            pass  # the one who asked has left, or was killed
        finally:
            self.open_now -= 1


def _read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


class Hub(FileServer):
    """A Hugging Face endpoint with one repository, ns/repo; files from 1000 bytes are LFS's."""

    token = ""
    page = 1000
    is_gated = False
    is_quick = False  # large files by the kernel's own way, not counted

    async def __aenter__(self):
        self.cdn = await self._serve([web.get("/lfs/{oid}", self._lfs)])
        self.listed = 0
        return await super().__aenter__()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/models/ns/repo/revision/{revision:.+}", self._info),
            web.get("/api/models/ns/repo", self._info),
            web.get("/api/models/ns/repo/tree/{revision}", self._tree),
            web.get("/ns/repo/resolve/{revision}/{path:.+}", self._resolve),
        ]

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.is_gated:
            return web.json_response({"error": "gated"}, status=403, headers={"X-Error-Code": "GatedRepo"})
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response(
                {"error": "Invalid credentials"}, status=401, headers={"X-Error-Code": "RepoNotFound"}
            )
        revision = request.match_info.get("revision", "main")
        if revision not in {"main", COMMIT, "refs/pr/1"}:
            return web.json_response(
                {"error": "no"}, status=404, headers={"X-Error-Code": "RevisionNotFound"}
            )
        return None

    async def _info(self, request: web.Request) -> web.Response:
        self.listed += 1
        return self._refusal(request) or web.json_response(
            {
                "_id": "1",
                "id": "ns/repo",
                "modelId": "ns/repo",
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in self.files],
            }
        )

    def is_lfs(self, path: str) -> bool:
        return self.size(path) >= 1000

    async def _tree(self, request: web.Request) -> web.Response:
        if refusal := self._refusal(request):
            return refusal
        at = int(request.query.get("cursor", "0"))
        rows, paths = [], sorted(self.files)
        for path in paths[at : at + self.page]:
            size = self.size(path)
            blob = b"lfs " + path.encode() if self.is_lfs(path) else b"blob %d\0" % size + self.read(path)
            row = {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(blob).hexdigest()}
            if self.is_lfs(path):
                row["lfs"] = {"oid": self.sha256(path), "size": size, "pointerSize": 134}
            rows.append(row)
        more = {}
        if at + self.page < len(paths):
            tree = f"{self.url}/api/models/ns/repo/tree/{COMMIT}"
            more = {"Link": f'<{tree}?recursive=true&cursor={at + self.page}>; rel="next"'}
        return web.json_response(rows, headers=more)

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        if refusal := self._refusal(request):
            return refusal
        if path not in self.files:
            return web.Response(
                status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            )
        if not self.is_lfs(path):
            return await self.give(request, path, {"X-Repo-Commit": COMMIT})
        oid = self.sha256(path)
        return web.Response(
            status=302,
            headers={
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(self.size(path)),
                "X-Linked-Etag": f'"{oid}"',
                "Location": f"{self.cdn}/lfs/{oid}?X-Amz-Signature=abc&name={quote(path)}",
            },
        )

    async def _lfs(self, request: web.Request) -> web.StreamResponse:
        if self.is_quick and isinstance(data := self.files[request.query["name"]], Path):
            return web.FileResponse(data)
        return await self.give(request, request.query["name"])


class ModelScopeHub(FileServer):
    """ModelScope's API with one repository, ns/repo."""

    token = ""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v1/models/ns/repo/repo/files", self._files),
            web.get("/api/v1/models/ns/repo/repo", self._file),
        ]

    async def _files(self, request: web.Request) -> web.Response:
        if self.token and request.cookies.get("m_session_id") != self.token:
            return web.json_response({"Code": 10010205002, "Message": "no permission", "Success": False})
        if request.query["Revision"] != "master":
            return web.json_response(
                {"Code": 404, "Message": "revision does not exist", "Success": False}, status=404
            )
        rows = [
            {
                "Name": path.rpartition("/")[2],
                "Path": path,
                "Type": "blob",
                "Size": self.size(path),
                "Sha256": self.sha256(path),
                "Revision": COMMIT,
            }
            for path in self.files
        ]
        rows.append(
            {"Name": "folder", "Path": "folder", "Type": "tree", "Size": 0, "Sha256": "", "Revision": COMMIT}
        )
        return web.json_response({"Code": 200, "Data": {"Files": rows}, "Success": True})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return await self.give(request, request.query["FilePath"])
