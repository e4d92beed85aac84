"""The calls about downloads. All they do is read what is asked for and ask the jobs, as the HTTP door does."""

import asyncio
from contextlib import aclosing
from typing import Any

from appliance.base.errors import Conflict
from appliance.control.calls import CallGroup, named
from appliance.control.convert_jobs import to_job
from appliance.control.follow import followed
from appliance.control.v1 import control_pb2 as pb
from appliance.control.writing import write
from appliance.downloads.jobs import GATHER_S, DownloadJobs
from appliance.downloads.request import DownloadFolders, default_folder, parse_download_request, parse_source


class JobCalls(CallGroup):
    """ListJobs, GetJob, StartDownload, CancelJob, WatchJob."""

    async def ListJobs(self, request: Any, context: Any) -> Any:
        return pb.ListJobsResponse(jobs=[to_job(job) for job in self._jobs()[0].all()])

    async def GetJob(self, request: Any, context: Any) -> Any:
        return pb.GetJobResponse(job=to_job(self._jobs()[0].get(named(request.id, "id"))))

    async def StartDownload(self, request: Any, context: Any) -> Any:
        jobs, folders = self._jobs()
        source = parse_source(named(request.source, "source"))
        wish = await asyncio.to_thread(
            parse_download_request,
            source,
            request.output_dir or default_folder(source),
            folders=folders,
            config=dict(request.config),
            max_workers=request.max_workers if request.HasField("max_workers") else None,
        )
        return pb.StartDownloadResponse(job=to_job(await jobs.start(wish)))

    async def CancelJob(self, request: Any, context: Any) -> Any:
        jobs, _ = self._jobs()
        return pb.CancelJobResponse(job=to_job(await self._finished(jobs.cancel(named(request.id, "id")))))

    async def WatchJob(self, request: Any, context: Any) -> None:
        jobs, _ = self._jobs()
        job_id = jobs.get(named(request.id, "id")).id
        async with aclosing(followed(jobs.follow(job_id), stopping=self._stopping)) as changes:
            async for job in changes:
                if job is not None:
                    await write(context, pb.WatchJobResponse(job=to_job(job)))
                    await asyncio.sleep(GATHER_S if job.is_active else 0)

    def _jobs(self) -> tuple[DownloadJobs, DownloadFolders]:
        if self._parts.jobs is None or self._parts.folders is None:
            raise Conflict("Nothing can be downloaded by this appliance.", code="no_downloads")
        return self._parts.jobs, self._parts.folders()
