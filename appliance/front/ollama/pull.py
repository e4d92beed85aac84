"""Ollama's /api/pull of a model on Hugging Face, and /api/delete of a pulled one.

A stream starts before the repository is asked, as Ollama's does: a failure after that is its last line. A
client that leaves cancels the download unless others wait for it; what was fetched is kept. Both need an
operator: they fill and clear the disk.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from appliance.base.errors import Invalid
from appliance.downloads.job import DownloadJob
from appliance.downloads.jobs import GATHER_S
from appliance.engines.stream import GeneratedStream
from appliance.front.ollama.ndjson import CONTENT_TYPE, json_line
from appliance.front.pipeline.errors import error_event
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.models.pull_name import PullFiles, PullName, parse_pull_name
from appliance.models.pulls import Pulls, pull_digest


class PullHandlers:
    """What OllamaHandlers calls for pull and delete.

    Args:
        admit: Raises unless the client is an operator.
        gather_s: Seconds between two lines of progress.
    """

    def __init__(self, pulls: Pulls, *, admit: Callable[[Request], None], gather_s: float = GATHER_S) -> None:
        self._pulls = pulls
        self._admit = admit
        self._gather_s = gather_s

    def is_name(self, name: str) -> bool:
        """Whether a model of Hugging Face is named.

        Raises:
            Invalid: The name starts like one of Hugging Face and is invalid.
        """
        return parse_pull_name(name) is not None

    async def pull(self, request: Request, name: str, *, is_stream: bool) -> Response | None:
        """Download a model; return None where `name` is not one of Hugging Face.

        Returns:
            Lines: `pulling manifest`, `pulling <12 hex digits>` with digest, total and completed, then
            `verifying sha256 digest`, `writing manifest`, `success`; or without a stream the last one.

        Raises:
            Invalid: The name starts like one of Hugging Face and is invalid.
            Forbidden, Unauthenticated: The client is no operator.
            ApplianceError: Without a stream: the download failed.
        """
        wanted = parse_pull_name(name)
        if wanted is None:
            return None
        self._admit(request)
        lines = self._lines(wanted)
        if is_stream:
            return Response(
                content_type=CONTENT_TYPE,
                pieces=GeneratedStream((json_line(one) async for one in lines), lines),
                on_error=partial(error_event, dialect="ollama"),
            )
        last: dict[str, Any] = {}
        async for one in lines:
            last = one
        return json_response(last)

    async def _lines(self, name: PullName) -> AsyncGenerator[dict[str, Any], None]:
        yield {"status": "pulling manifest"}
        files = await self._pulls.find_files(name)
        job = await self._pulls.start(name, files)
        digest = pull_digest(name, files)
        with self._pulls.jobs.holding(job.id):
            async for now in self._pulls.jobs.follow(job.id):
                if now.is_active:
                    yield _progress(digest, files, now)
                    await asyncio.sleep(self._gather_s)
            done = await self._pulls.jobs.wait(job.id)  # raises why it failed
        yield _progress(digest, files, done)
        for status in ("verifying sha256 digest", "writing manifest", "success"):
            yield {"status": status}

    async def delete(self, request: Request, name: str) -> Response:
        """Unload a pulled model and remove its files; return an empty 200.

        Raises:
            Forbidden, Unauthenticated: The client is no operator.
            Invalid: There is no name.
            NoSuchModel: No model of this name was pulled.
            Conflict: It is being pulled.
        """
        self._admit(request)
        if not name:
            raise Invalid("model is required", param="model")
        wanted = parse_pull_name(name)
        await self._pulls.delete(wanted.alias if wanted else name)
        return Response(body=b"")


def _progress(digest: str, files: PullFiles, job: DownloadJob) -> dict[str, Any]:
    """Return a line of progress; as in Ollama there is no `completed` while it is zero."""
    total = files.total_bytes or job.progress.total_bytes or job.bytes_total
    done = job.progress.done_bytes
    if job.state == "completed":
        done = total
    elif total:
        done = min(done, total)
    line: dict[str, Any] = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}"}
    return line | {name: number for name, number in (("total", total), ("completed", done)) if number}
