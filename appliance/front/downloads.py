"""The addresses of downloads: /v1/download_model, and the jobs behind it; also on the sidecar's port.

On the main port a failed download has the status of its error, on the sidecar's port 500 and `Download
failed: …`: for compatibility, see docs/compatibility.md.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from appliance.base.errors import ApplianceError, Conflict, Invalid
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.downloads.contract import DownloadRequest
from appliance.downloads.job import DownloadJob, job_object
from appliance.downloads.jobs import GATHER_S, DownloadJobs
from appliance.downloads.request import DownloadFolders, parse_config, parse_download_request
from appliance.engines.stream import GeneratedStream
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.body import check_types, read_object
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import HEARTBEAT, SSE_HEADERS, render_error_event, render_event

TYPES: dict[str, Any] = {
    "source": str,
    "output_dir": str,
    "config": (str, dict),
    "max_workers": int,
    "async_download": bool,
}


class DownloadHandlers:
    """The handlers of downloads, jobs and download folders.

    Args:
        jobs: Runs the downloads.
        folders: Returns the folders that downloads may go to.
        is_sidecar: Whether it is for the sidecar's port, whose errors differ (see above).
        gather_s: Seconds between two events of a job's feed.
    """

    def __init__(
        self,
        jobs: DownloadJobs,
        *,
        folders: Callable[[], DownloadFolders],
        is_sidecar: bool = False,
        gather_s: float = GATHER_S,
    ) -> None:
        self._is_sidecar = is_sidecar
        self._jobs = jobs
        self._folders = folders
        self._gather_s = gather_s

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        ours = partial(Route, access=Access.OPERATOR)
        return [
            ours(("POST",), "/v1/download_model", self.download_model),
            ours(("GET",), "/v1/jobs", self.jobs, is_open_while_draining=True),
            ours(("GET",), "/v1/jobs/{id}", self.job, is_open_while_draining=True),
            ours(("DELETE",), "/v1/jobs/{id}", self.cancel, is_open_while_draining=True),
            ours(
                ("GET",), "/v1/jobs/{id}/stream", self.stream, is_open_while_draining=True, takes_ticket=True
            ),
            ours(("POST",), "/v1/downloads/verify", self.verify),
            ours(("POST",), "/v1/downloads/repair", self.repair),
        ]

    # ---- downloading

    async def download_model(self, request: Request) -> Response:
        """Download a model: `{source, output_dir, config?, max_workers?, async_download?}`.

        Returns:
            200 `{status: "completed", message, source, output_dir, job, files, bytes}` when it is complete;
            with async_download 202 `{status: "started", message, source, output_dir, job}` at once.
        """
        body = read_object(request.body)
        check_types(body, TYPES)
        wanted = await asyncio.to_thread(
            parse_download_request,
            body.get("source"),
            body.get("output_dir"),
            folders=self._folders(),
            config=body.get("config"),
            max_workers=body.get("max_workers"),
        )
        is_detached = bool(body.get("async_download"))
        job = await self._jobs.start(wanted, is_detached=is_detached)
        fields = {"source": job.source, "output_dir": str(job.output_dir), "job": job.id}
        if is_detached:
            return _started(f"The download of {job.source} to {job.output_dir} has started.", fields)
        return await self._complete(
            job, fields, message=f"{job.source} is in {job.output_dir}.", failure="Download failed"
        )

    async def _complete(
        self, job: DownloadJob, fields: dict[str, Any], *, message: str, failure: str
    ) -> Response:
        """Wait for the end of a job and report it.

        Args:
            job: The running job.
            fields: The fields of the body that name the job.
            message: The message of a completed job.
            failure: The start of the error text on the sidecar's port.
        """
        try:
            done = await self._jobs.wait(job.id)
        except ApplianceError as error:
            if not self._is_sidecar:
                raise
            text = f"{failure}: {error.message}"
            raise type(error)(text, code=error.code, details={"status": 500}) from None
        sizes = {"files": done.files, "bytes": done.bytes_total}
        return json_response({"status": "completed", "message": message, **fields, **sizes})

    # ---- jobs

    async def jobs(self, request: Request) -> Response:
        """List the jobs, newest first: `{jobs: [{id, state, …}]}`."""
        return json_response({"jobs": [job_object(job) for job in self._jobs.all()]})

    async def job(self, request: Request) -> Response:
        """Show one job."""
        return json_response(job_object(self._jobs.get(request.params["id"])))

    async def cancel(self, request: Request) -> Response:
        """Cancel a job; what was fetched is kept for the next download."""
        return json_response(job_object(await self._jobs.cancel(request.params["id"])))

    async def stream(self, request: Request) -> Response:
        """Follow a job as server-sent events.

        The events are `progress` with the job object; the last one is completed, failed, cancelled or
        interrupted.
        """
        self._jobs.get(request.params["id"])
        return Response(
            content_type=SSE_CONTENT_TYPE,
            headers=SSE_HEADERS,
            pieces=GeneratedStream(self._feed(request.params["id"])),
            on_error=render_error_event,
            heartbeat=HEARTBEAT,
        )

    async def _feed(self, job_id: str) -> AsyncGenerator[bytes, None]:
        async for job in self._jobs.follow(job_id):
            yield render_event("progress" if job.is_active else job.state, job_object(job))
            if job.is_active:
                await asyncio.sleep(self._gather_s)

    # ---- folders

    async def verify(self, request: Request) -> Response:
        """Compare a folder with its manifest: `{output_dir}`.

        Returns:
            `{output_dir, ok, flaws: [{path, kind, detail}]}`; kind: missing, size, checksum, partial.
        """
        body = read_object(request.body)
        folder = await self._folder(body)
        flaws = await self._jobs.verify(folder)
        rows = [{"path": flaw.path, "kind": flaw.kind, "detail": flaw.detail} for flaw in flaws]
        return json_response({"output_dir": str(folder), "ok": not rows, "flaws": rows})

    async def repair(self, request: Request) -> Response:
        """Download again what is wrong in a folder: `{output_dir, config?, async_download?}`.

        Returns:
            200 `{status: "completed", message, output_dir, job, files, bytes}`, or with async_download
            202 `{status: "started", message, output_dir, job}` at once.
        """
        body = read_object(request.body)
        folder = await self._folder(body)
        is_detached = bool(body.get("async_download"))
        wanted = DownloadRequest("", folder, config=parse_config(body.get("config")))
        job = await self._jobs.start(wanted, kind="repair", is_detached=is_detached)
        fields = {"output_dir": str(folder), "job": job.id}
        if is_detached:
            return _started(f"The repair of {folder} has started.", fields)
        return await self._complete(job, fields, message=f"{folder} is complete.", failure="Repair failed")

    async def _folder(self, body: dict[str, Any]) -> Path:
        """Return the folder that a body names; raise Conflict while a download writes to it."""
        check_types(body, TYPES)
        text = body.get("output_dir")
        if not text:
            raise Invalid("`output_dir` is required.", param="output_dir", code="missing_required_parameter")
        folder = await asyncio.to_thread(self._folders().resolve_folder, text)
        active = next(
            (
                job
                for job in self._jobs.all()
                if job.is_active and job.kind == "download" and job.output_dir == folder
            ),
            None,
        )
        if active is not None:
            raise Conflict(
                f"{active.source} is being downloaded to {folder} (job {active.id}). "
                "Wait for it, or cancel it.",
                code="download_runs",
            )
        return folder


def _started(message: str, fields: dict[str, Any]) -> Response:
    return json_response({"status": "started", "message": message, **fields}, status=202)
