"""The whole HTTP front on loopback with downloads, over a stand-in Downloader."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from appliance.base.clock import SystemClock
from appliance.base.errors import ApplianceError
from appliance.downloads.contract import SourceOffer
from appliance.downloads.jobs import DownloadJobs
from appliance.downloads.request import DownloadFolders
from appliance.engines.receipts import Receipts
from appliance.front.balance import BalanceHandlers
from appliance.front.downloads import DownloadHandlers
from appliance.front.ollama.handlers import OllamaHandlers
from appliance.front.ollama.pull import PullHandlers
from appliance.front.openai.handlers import OpenAIHandlers
from appliance.front.openai.responses import ResponsesHandlers
from appliance.front.passthrough.passthrough import Passthrough
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.request import Request
from appliance.front.routes import join_routes
from appliance.front.server.server import HttpServer, serving_http
from appliance.front.sidecar import DIALECT, SidecarHandlers, sidecar_routes
from appliance.front.system import SystemHandlers
from appliance.models.pulls import PulledModels, Pulls
from appliance.parts import Appliance
from appliance.settings import load_or_raise
from tests.downloads.standin_downloader import StandinDownloader


@dataclass
class DownloadsApi:
    """What a test uses: the address, the stand-in, and the recorded calls of others."""

    home: Path
    downloader: StandinDownloader
    base_url: str = ""
    # what each repository has
    offered: dict[str, list[SourceOffer] | ApplianceError] = field(default_factory=dict)
    happened: list[tuple[str, ...]] = field(default_factory=list)
    jobs: DownloadJobs | None = None

    async def list(self, source: str, config: Mapping[str, str]) -> list[SourceOffer]:
        found = self.offered[source]
        if isinstance(found, ApplianceError):
            raise found
        return found

    async def eject(self, alias: str) -> None:
        self.happened.append(("eject", alias))

    async def reread(self) -> None:
        self.happened.append(("reread",))


@asynccontextmanager
async def downloads_api(
    home: Path, *, is_sidecar: bool = False, jobs_path: Path | None = None, **variables: str
) -> AsyncIterator[DownloadsApi]:
    """Serve it. Downloads go below `home`; GATHER is zero, so that every step is sent."""
    settings, _ = load_or_raise({"NAT_REDIRECT": "off", "ACCESS_LOG": "0", **variables})
    clock, parts = SystemClock(), Appliance(settings, [])
    parts.lifecycle.set_state("serving")
    api = DownloadsApi(home, StandinDownloader())
    async with parts.tasks:
        await parts.fleet.wait_first_probes()
        parts.pipeline = pipeline = RequestPipeline(
            settings.front,
            receipts=Receipts(),
            metrics=parts.metrics,
            clock=clock,
            state=parts.lifecycle.state,
            access_log=AccessLog(clock=clock, form="json"),
        )
        pulled = PulledModels(home, clock=clock, on_change=api.reread)
        api.jobs = jobs = DownloadJobs(
            api.downloader,
            tasks=parts.tasks,
            clock=clock,
            path=jobs_path,
            on_fetched=pulled.add_fetched,
        )
        await jobs.open()

        def admit(request: Request) -> None:
            pipeline.keys.check(Access.OPERATOR, request.headers, request.peer)

        pulls = Pulls(jobs, pulled, lister=api.list, eject=api.eject)
        system = SystemHandlers(
            status=lambda: {"ok": True},
            metrics=parts.metrics,
            measure=parts.measure,
        )
        handlers = DownloadHandlers(
            jobs, folders=lambda: DownloadFolders(home), is_sidecar=is_sidecar, gather_s=0
        )
        if is_sidecar:
            server = HttpServer(
                sidecar_routes(SidecarHandlers(lambda: None), handlers),
                pipeline,
                clock=clock,
                dialect=DIALECT,
            )
        else:
            routes = join_routes(
                system,
                BalanceHandlers(parts.router, clock=clock, set_strategy=parts.fleet.set_strategy),
                handlers,
                OpenAIHandlers(parts.router, heartbeat_s=lambda: 10),
                ResponsesHandlers(parts.router, clock=clock),
                OllamaHandlers(parts.router, clock=clock, pulls=PullHandlers(pulls, admit=admit, gather_s=0)),
            )
            server = HttpServer(
                routes, pipeline, clock=clock, passthrough=Passthrough(parts.router, pipeline)
            )
        async with serving_http(
            server, [("127.0.0.1", 0)], hurry=parts.lifecycle.hurry, tasks=parts.tasks, grace_s=lambda: 5
        ) as bound:
            api.base_url = f"http://127.0.0.1:{bound[0][1]}"
            yield api
            await jobs.close()
        await parts.fleet.close()
