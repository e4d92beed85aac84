"""Ollama's /api/pull of a model on Hugging Face, and /api/delete of a pulled one: the real thing, in Ollama's words.

A stream begins before the repository is asked, as Ollama's does: what fails from there on is said in a last line. A client that leaves
cancels the download unless others want it; what was fetched stays for the next time. Both are for operators: they fill and clear the disk.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from appliance.base.errors import Invalid
from appliance.downloads.job import DownloadJob
from appliance.downloads.jobs import GATHER_S
from appliance.engines.stream import GeneratedStream
from appliance.front.ollama.ndjson import CONTENT_TYPE, line
from appliance.front.pipeline.errors import error_event
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.models.pull_name import PullFiles, PullName, parse_pull_name
from appliance.models.pulls import Pulls, pull_digest


class PullHandlers:
    """The two handlers.

    Takes   admit: raises unless a call may do what operators may; gather_s: for tests
    """

    def __init__(self, pulls: Pulls, *, admit: Callable[[Request], None], gather_s: float = GATHER_S) -> None:
        self._pulls = pulls
        self._admit = admit
        self._gather_s = gather_s

    async def pull(self, request: Request, name: str, *, is_stream: bool) -> Response | None:
        """POST /api/pull: `pulling manifest`, `pulling <12 hex>` with digest, total and completed, `verifying sha256 digest`, `writing manifest`,
        `success`; without a stream only the last. None = the name is none of Hugging Face's.

        Raises  Invalid: it begins like one and is none · Forbidden, Unauthenticated · without a stream whatever the download does
        """
        wanted = parse_pull_name(name)
        if wanted is None:
            return None
        self._admit(request)
        lines = self._lines(wanted)
        if is_stream:
            return Response(
                content_type=CONTENT_TYPE,
                pieces=GeneratedStream((line(one) async for one in lines), lines),
                on_error=partial(error_event, dialect="ollama"),
            )
        last: dict[str, Any] = {}
        async for one in lines:
            last = one
        return json_response(last)

    async def _lines(self, name: PullName) -> AsyncGenerator[dict[str, Any], None]:
        yield {"status": "pulling manifest"}
        choice = await self._pulls.find_files(name)
        job = await self._pulls.start(name, choice)
        digest = pull_digest(name, choice)
        with self._pulls.jobs.holding(job.id):
            async for now in self._pulls.jobs.follow(job.id):
                if now.is_active:
                    yield _progress(digest, choice, now)
                    await asyncio.sleep(self._gather_s)
            done = await self._pulls.jobs.wait(job.id)  # raises why it failed
        yield _progress(digest, choice, done)
        for status in ("verifying sha256 digest", "writing manifest", "success"):
            yield {"status": status}

    async def delete(self, request: Request, name: str) -> Response:
        """DELETE /api/delete: unloads a pulled model and removes its files; an empty 200.

        Raises  Forbidden, Unauthenticated · Invalid: no name · NoSuchModel: nothing was pulled by that name · Conflict: it is being pulled
        """
        self._admit(request)
        if not name:
            raise Invalid("model is required", param="model")
        wanted = parse_pull_name(name)
        await self._pulls.delete(wanted.alias if wanted else name)
        return Response(body=b"")


def _progress(digest: str, choice: PullFiles, job: DownloadJob) -> dict[str, Any]:
    """Give a line of progress; as in Ollama there is no `completed` while it is zero."""
    total = choice.total_bytes or job.progress.total_bytes or job.bytes_total
    done = (
        total
        if job.state == "completed"
        else min(job.progress.done_bytes, total)
        if total
        else job.progress.done_bytes
    )
    told: dict[str, Any] = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}"}
    return told | {name: number for name, number in (("total", total), ("completed", done)) if number}
