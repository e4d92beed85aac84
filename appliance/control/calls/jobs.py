"""The calls about downloads: parse the request and call the jobs, as the HTTP front does."""

import asyncio
from contextlib import aclosing

from grpc.aio import ServicerContext

from appliance.base.errors import Conflict
from appliance.control.calls.group import AnyContext, CallGroup, require_text
from appliance.control.convert.jobs import to_job
from appliance.control.follow import follow_until
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import write
from appliance.downloads.jobs import GATHER_S, DownloadJobs
from appliance.downloads.request import DownloadFolders, default_folder, parse_download_request, parse_source


class JobCalls(CallGroup):
    """ListJobs, GetJob, StartDownload, CancelJob, WatchJob."""

    async def ListJobs(self, request: pb.ListJobsRequest, context: AnyContext) -> pb.ListJobsResponse:
        """Return every job, newest first."""
        jobs, _ = self._downloads()
        return pb.ListJobsResponse(jobs=[to_job(job) for job in jobs.all()])

    async def GetJob(self, request: pb.GetJobRequest, context: AnyContext) -> pb.GetJobResponse:
        """Return one job."""
        jobs, _ = self._downloads()
        return pb.GetJobResponse(job=to_job(jobs.get(require_text(request.id, "id"))))

    async def StartDownload(
        self, request: pb.StartDownloadRequest, context: AnyContext
    ) -> pb.StartDownloadResponse:
        """Start a download, or join a running one of the same source and folder; return its job."""
        jobs, folders = self._downloads()
        source = parse_source(require_text(request.source, "source"))
        wanted = await asyncio.to_thread(
            parse_download_request,
            source,
            request.output_dir or default_folder(source),
            folders=folders,
            config=dict(request.config),
            max_workers=request.max_workers if request.HasField("max_workers") else None,
        )
        return pb.StartDownloadResponse(job=to_job(await jobs.start(wanted)))

    async def CancelJob(self, request: pb.CancelJobRequest, context: AnyContext) -> pb.CancelJobResponse:
        """Cancel a job; return it with its new state."""
        jobs, _ = self._downloads()
        job = await self._run_uninterrupted(jobs.cancel(require_text(request.id, "id")))
        return pb.CancelJobResponse(job=to_job(job))

    async def WatchJob(
        self,
        request: pb.WatchJobRequest,
        context: ServicerContext[pb.WatchJobRequest, pb.WatchJobResponse],
    ) -> None:
        """Send a job now and after each change, until it has ended."""
        jobs, _ = self._downloads()
        job_id = jobs.get(require_text(request.id, "id")).id
        async with aclosing(follow_until(self._stopping, jobs.follow(job_id))) as changes:
            async for job in changes:
                if job is not None:
                    await write(context, pb.WatchJobResponse(job=to_job(job)))
                    await asyncio.sleep(GATHER_S if job.is_active else 0)

    def _downloads(self) -> tuple[DownloadJobs, DownloadFolders]:
        """Return the jobs, and the folders that downloads may go to."""
        if self._parts.jobs is None or self._parts.folders is None:
            raise Conflict("Downloads are not available on this appliance.", code="no_downloads")
        return self._parts.jobs, self._parts.folders()
